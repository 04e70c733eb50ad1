"""Sweeps: one plan, many runs, none done twice; all of them paused, resumed, cancelled and retried as one."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from conftest import at_once
from test_store import make_stale, report

from starfish_lab.__main__ import main
from starfish_lab.errors import RecipeError, StoreError
from starfish_lab.jobs import worker
from starfish_lab.recipe import HealingChoice, PruningChoice, Recipe
from starfish_lab.store import Store, folder_of
from starfish_lab.sweep.plan import MOST, Point, Sweep

RECIPE = Recipe(name="digits", pruning=PruningChoice(score="wanda"), healing=HealingChoice(steps=20))
PLAN = Sweep(recipe=RECIPE, sparsities=(0.5, 0.75), healers=("starfish", "none"), seeds=(0, 1))


@pytest.fixture
def store(database_url):
    store = Store(database_url)
    yield store
    store.close()


def statuses(store: Store, sweep: int) -> list[str]:
    return list(store.sweep_runs(sweep)["status"])


def do_all(store: Store, worker: str = "w") -> list[int]:
    done = []
    while (run := store.claim(worker, "cpu")) is not None:
        assert run.kind != "sweep"
        store.finish(run.id, report(), worker=worker)
        done.append(run.id)
    return done


def test_a_plan_is_every_combination_once():
    assert len(PLAN.points) == 2 * 2 * 2 and len({recipe.fingerprint() for recipe in PLAN.recipes()}) == 8
    point = Point(pattern="unstructured", sparsity=0.75, score="wanda", budget="uniform", healer="none", seed=1)
    recipe = PLAN.points[point]
    assert (recipe.pruning.sparsity, recipe.pruning.seed, recipe.images.seed, recipe.healing.seed, recipe.healing.method) == (0.75, 1, 1, 1, "none")
    assert recipe.healing.steps == 20 and recipe.model == RECIPE.model  # what is not listed is the recipe's own
    alone = Sweep(recipe=RECIPE)
    assert alone.recipes() == [RECIPE]  # nothing listed: the recipe itself, to the last field


def test_a_healer_under_two_names_stands_once():
    plan = replace(PLAN, healers=("starfish", "none+starfish"), seeds=(), sparsities=())
    assert [point.healer for point in plan.points] == ["starfish"]


def test_patterns_with_one_sparsity_stand_once():
    plan = replace(PLAN, patterns=("unstructured", "2:4", "1:4", "n_m"), healers=(), seeds=())
    found = [(point.pattern, point.sparsity) for point in plan.points]
    assert found == [("unstructured", 0.5), ("unstructured", 0.75), ("2:4", 0.5), ("1:4", 0.75)]  # 'n_m' is the recipe's 2:4 again
    assert [recipe.pruning.group for recipe in plan.recipes()][2:] == [4, 4]


def test_a_plan_survives_json_and_names_what_is_wrong():
    again = Sweep.from_json(PLAN.to_json())
    assert again == PLAN and again.fingerprint() == PLAN.fingerprint() and again.points == PLAN.points
    assert replace(PLAN, recipe=replace(RECIPE, name="other")).fingerprint() == PLAN.fingerprint() != replace(PLAN, seeds=(0,)).fingerprint()
    for wrong, words in [
        ({"sparsities": [1.0]}, "sparsities is"), ({"sparsities": [0.5, 0.5]}, "each once"), ({"healers": ["nope"]}, "no healer 'nope'"),
        ({"patterns": ["diagonal"]}, "diagonal"), ({"patterns": ["4:4"]}, "4:4"), ({"seeds": [-1]}, "seeds is"), ({"scores": ["luck"]}, "luck"),
        ({"sed": [1]}, "sed is not a field of a sweep"), ({"recipe": {}}, "no recipe"), ({"budgets": "uniform"}, "budgets must be a list"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            Sweep.from_dict(PLAN.to_dict() | wrong)
    with pytest.raises(RecipeError, match=f"at most {MOST}"):
        replace(PLAN, seeds=tuple(range(MOST)))


def test_a_sweep_queues_its_runs_and_follows_them(store):
    sweep = store.submit(PLAN, "sweep", owner="ada")
    rows = store.sweep_runs(sweep)
    assert len(rows) == 8 and not rows["adopted"].any() and set(rows["status"]) == {"queued"}
    child = store.run(int(rows["run"][0]))
    assert (child.kind, child.parent, child.owner, child.recipe) == ("experiment", sweep, "ada", PLAN.recipes()[0])
    run = store.run(sweep)
    assert (run.kind, run.status, run.active, run.step, run.steps, run.plan, run.recipe) == ("sweep", "queued", True, 0, 8, PLAN, RECIPE)
    first = store.claim("w", "cpu")
    assert first.id == child.id and store.run(sweep).status == "running"
    store.finish(first.id, report(), worker="w")
    assert (store.run(sweep).status, store.run(sweep).step) == ("running", 1) and store.run(sweep).started_at == store.run(child.id).started_at
    assert store.run(sweep).seconds_left == pytest.approx(7 * (store.run(child.id).finished_at - store.run(child.id).started_at))
    assert len(do_all(store)) == 7
    run = store.run(sweep)
    assert (run.status, run.active, run.step, run.error) == ("done", False, 8, None) and run.finished_at >= run.started_at
    listed = store.runs("sweep").iloc[0]
    assert (listed["id"], listed["status"], listed["step"], listed["steps"], listed["method"], listed["sparsity"]) == (
        sweep, "done", 8, 8, "2 healers", 0.75,
    )  # fmt: skip
    assert list(store.runs("sweep", status="done")["id"]) == [sweep] and store.runs("sweep", status="queued").empty
    assert len(store.runs(None, status="done")) == 8 and len(store.runs(None)) == 9


def test_what_the_store_has_is_not_done_again(store):
    recipes = PLAN.recipes()
    done = store.submit(replace(recipes[0], name="another name"))
    store.finish(done, report())
    later = store.submit(recipes[0])  # also there, but not done yet
    waiting, failed, stopped = (store.submit(recipe) for recipe in recipes[1:4])
    store.fail(failed, "no")
    store.request_cancel(stopped)
    store.submit(recipes[4], "profile")  # another kind of run with the same recipe
    elsewhere = store.submit(replace(recipes[5], device="cuda"))  # another device, another result
    sweep = store.submit(PLAN, "sweep")
    rows = store.sweep_runs(sweep)
    assert list(rows["run"][:2]) == [done, waiting] and list(rows["adopted"]) == [True, True, *[False] * 6]
    assert not {later, failed, stopped, elsewhere} & set(rows["run"])
    again = store.submit(replace(PLAN, seeds=(1, 0, 2)), "sweep")  # in another order, with one seed more
    fresh = store.sweep_runs(again)
    assert fresh["adopted"].sum() == 8 and set(rows["run"]) < set(fresh["run"]) and set(fresh.loc[~fresh["adopted"], "seed"]) == {2}


def test_a_finished_run_that_was_asked_to_stop_too_late_still_counts(store):
    run = store.submit(PLAN.recipes()[0])
    store.finish(run, report())
    store.request_cancel(run)
    assert store.sweep_runs(store.submit(PLAN, "sweep"))["run"][0] == run


def test_two_who_launch_the_same_sweep_at_once_share_its_runs(store):
    ids = at_once(2, lambda: store.submit(PLAN, "sweep"))
    assert len(store.runs()) == 8
    assert sorted(store.sweep_runs(i)["adopted"].sum() for i in ids) == [0, 8]


def test_pause_holds_back_what_waits_and_lets_the_rest_end(store):
    other = store.submit(replace(RECIPE, name="alone"))
    sweep = store.submit(PLAN, "sweep")
    assert store.claim("w", "cpu").id == other
    first = store.claim("w", "cpu").id
    store.pause(sweep)
    assert statuses(store, sweep) == ["running", *["paused"] * 7] and store.run(sweep).status == "paused" and store.run(other).status == "running"
    assert store.claim("v", "cpu") is None
    store.finish(first, report(), worker="w")
    assert (store.run(sweep).status, store.run(sweep).step) == ("paused", 1) and store.run(int(store.sweep_runs(sweep)["run"][7])).active
    store.resume(sweep)
    assert store.run(sweep).status == "running" and len(do_all(store)) == 7 and store.run(sweep).status == "done"


def test_a_run_that_its_worker_hands_back_pauses_with_its_sweep(store):
    sweep = store.submit(PLAN, "sweep")
    first = store.claim("w", "cpu").id
    store.pause(sweep)
    assert store.release(first, worker="w") and store.run(first).status == "paused"
    store.resume(sweep)
    store.claim("w", "cpu")
    assert store.release(first, worker="w") and store.run(first).status == "queued"


def test_a_single_run_pauses_too(store):
    run = store.submit(RECIPE)
    store.pause(run)
    assert store.claim("w", "cpu") is None and store.run(run).status == "paused" and store.run(run).active
    store.resume(run)
    assert store.claim("w", "cpu").id == run
    with pytest.raises(StoreError, match="waits for no worker"):
        store.pause(run)
    for call in (store.pause, store.resume, store.retry, store.request_cancel):
        with pytest.raises(StoreError, match="no run 99"):
            call(99)


def test_cancel_ends_its_own_runs_only(store):
    theirs = store.submit(PLAN.recipes()[0])
    sweep = store.submit(PLAN, "sweep")
    assert [store.claim("w", "cpu").id for _ in range(2)][0] == theirs
    mine = int(store.sweep_runs(sweep)["run"][1])
    store.pause(sweep)
    store.request_cancel(sweep)
    assert statuses(store, sweep) == ["running", "running", *["cancelled"] * 6] and store.run(sweep).status == "running"
    assert store.cancel_requested(mine, worker="w") and not store.cancel_requested(theirs, worker="w")
    store.mark_cancelled(mine, worker="w")
    assert store.run(sweep).status == "cancelled" and store.run(theirs).status == "running"  # it waits for nobody else's run


def test_a_failed_run_stops_no_other_and_is_tried_again(store):
    sweep = store.submit(PLAN, "sweep")
    bad = store.claim("w", "cpu").id
    store.note(bad, "heard once", worker="w")
    store.fail(bad, "no luck", worker="w")
    assert store.run(sweep).status == "running" and f"1 of 8 runs failed: {bad}." in store.run(sweep).error
    assert len(do_all(store)) == 7
    assert store.run(sweep).status == "failed" and not store.run(sweep).active
    assert store.retry(sweep) == [bad]
    run = store.run(bad)
    assert (run.status, run.attempt, run.error, run.finished_at, run.worker, store.notes(bad)) == ("queued", 0, None, None, None, [])
    assert store.run(sweep).status == "running" and do_all(store) == [bad]
    assert store.run(sweep).status == "done" and store.run(sweep).error is None
    with pytest.raises(StoreError, match="nothing to try again"):
        store.retry(sweep)


def test_a_cancelled_sweep_is_taken_up_again(store):
    sweep = store.submit(PLAN, "sweep")
    store.request_cancel(sweep)
    assert store.run(sweep).status == "cancelled" and store.claim("w", "cpu") is None
    assert store.run(sweep).cancel
    assert len(store.retry(sweep)) == 8 and not store.run(sweep).cancel  # it is not stopping any more
    assert len(do_all(store)) == 8 and store.run(sweep).status == "done"


def test_what_failed_of_a_run_that_it_adopted_is_named(store):
    theirs = store.submit(PLAN.recipes()[0])
    sweep = store.submit(PLAN, "sweep")
    store.claim("w", "cpu")
    store.fail(theirs, "no luck", worker="w")
    do_all(store)
    assert store.run(sweep).status == "failed"
    with pytest.raises(StoreError, match=f"not its own: try again run {theirs},"):
        store.retry(sweep)


def test_a_run_whose_worker_died_is_taken_over_within_its_sweep(store):
    sweep = store.submit(PLAN, "sweep")
    first = store.claim("w", "cpu").id
    make_stale(store)
    assert store.claim("v", "cpu").id == first and statuses(store, sweep).count("running") == 1


def test_deleting_a_sweep_leaves_what_it_did_not_make(store):
    theirs = store.submit(PLAN.recipes()[0])
    sweep = store.submit(PLAN, "sweep")
    adopter = store.submit(replace(PLAN, sparsities=(0.5,), healers=("none",)), "sweep")
    made = store.sweep_runs(sweep)
    shared = set(store.sweep_runs(adopter)["run"])
    store.claim("w", "cpu")
    busy = store.claim("w", "cpu").id
    with pytest.raises(StoreError, match=f"Run {busy} is still running"):
        store.delete(sweep)
    assert len(store.sweep_runs(sweep)) == 8  # nothing is half deleted
    store.finish(busy, report(), worker="w")
    lone = next(run for run in made["run"] if run not in shared | {theirs})
    folder_of(lone).mkdir(parents=True)
    store.delete(sweep)
    assert set(store.runs(None)["id"]) == {theirs, adopter} | shared and len(shared) == 2
    assert not folder_of(lone).exists() and store.events(lone).empty


def test_a_deleted_run_leaves_its_sweep_unfinished_and_the_next_sweep_does_it(store):
    sweep = store.submit(PLAN, "sweep")
    do_all(store)
    gone = int(store.sweep_runs(sweep)["run"][3])
    store.delete(gone)
    assert statuses(store, sweep)[3] == "deleted" and store.run(sweep).status == "cancelled"
    again = store.sweep_runs(store.submit(PLAN, "sweep"))
    assert list(again.loc[~again["adopted"]].index) == [3]


def test_a_large_sweep_is_submitted_and_read_quickly(store):
    plan = replace(PLAN, sparsities=tuple(i / 101 for i in range(1, 101)), seeds=tuple(range(5)))
    started = time.process_time()
    sweep = store.submit(plan, "sweep")
    rows, run = store.sweep_runs(sweep), store.run(sweep)
    store.pause(sweep)
    assert len(rows) == run.steps == 1000 and time.process_time() - started < 10


FLAGS = ["--sparsities", "0.5,.75", "--patterns", "unstructured,2:4", "--healers", "none", "--seeds", "0,1"]


def call(capsys, *arguments: str) -> tuple[int, object, str]:
    status = main(["sweep", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_the_command_makes_a_plan_of_flags_and_of_its_own_file(capsys, tmp_path):
    status, plan, _ = call(capsys, *FLAGS, "--set", "pruning.score=wanda", "--show")
    plan = Sweep.from_dict(plan)
    assert status == 0 and len(plan.points) == 6 and plan.recipe.pruning.score == "wanda"
    assert (plan.sparsities, plan.patterns, plan.healers, plan.seeds) == ((0.5, 0.75), ("unstructured", "2:4"), ("none",), (0, 1))
    (tmp_path / "plan.json").write_text(plan.to_json())
    _, again, _ = call(capsys, str(tmp_path / "plan.json"), "--seeds", "3", "--set", "name=mine", "--show")
    assert Sweep.from_dict(again) == replace(plan, seeds=(3,), recipe=replace(plan.recipe, name="mine"))
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    _, bare, _ = call(capsys, str(tmp_path / "recipe.json"), "--show")
    assert Sweep.from_dict(bare) == Sweep(recipe=RECIPE) and Store().runs(None).empty


def test_the_command_queues_and_holds_and_ends_a_sweep_by_its_number(capsys):
    status, rows, err = call(capsys, *FLAGS, "--queue")
    assert status == 0 and len(rows) == 6 and {row["status"] for row in rows} == {"queued"} and "run 1" in err
    for wish, found in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued"), ("of", "queued")):
        status, rows, _ = call(capsys, f"--{wish}", "1")
        assert status == 0 and {row["status"] for row in rows} == {found}
    _, single, _ = call(capsys, "--cancel", str(rows[0]["run"]))
    assert single == [{"run": rows[0]["run"], "kind": "experiment", "status": "cancelled"}]
    status, nothing, err = call(capsys, "--pause", "99")
    assert (status, nothing) == (1, None) and "no run 99" in err


def test_the_command_does_the_runs_here_and_leaves_those_of_others(capsys, monkeypatch):
    def experiment(run, **_):
        if run.recipe.pruning.sparsity == 0.75:
            raise RecipeError("three quarters are too much")
        return report()

    monkeypatch.setitem(worker.KINDS, "experiment", experiment)
    monkeypatch.setattr(worker, "_title", lambda device: device)
    store = Store()
    theirs = store.submit(Sweep(seeds=(0,)).recipes()[0])
    assert store.claim("somebody", "cpu").id == theirs
    status, rows, err = call(capsys, "--seeds", "0,1", "--sparsities", "0.9,0.75", "--set", "device=auto")
    assert status == 0 and [row["status"] for row in rows] == ["running", "done", "failed", "failed"]
    assert rows[0]["adopted"] and rows[1]["top1_healed"] == pytest.approx(0.675) and "three quarters" in err and "4 of 4" in err


def test_ctrl_c_cancels_what_is_left_of_a_sweep(monkeypatch):
    monkeypatch.setattr(worker, "_title", lambda device: device)

    def interrupted(run, **_):
        raise KeyboardInterrupt

    monkeypatch.setitem(worker.KINDS, "experiment", interrupted)
    assert main(["sweep", *FLAGS]) == 130
    assert set(Store().runs()["status"]) == {"cancelled"} and Store().run(1).status == "cancelled"
