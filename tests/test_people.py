"""What a person may do with the store: roles, ownership, quotas, and the record of it. How the pages ask is in test_app_team."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from conftest import at_once
from sqlalchemy.exc import OperationalError

from starfish_lab.errors import Forbidden, LabError, StoreError
from starfish_lab.latency import importing
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store, folder_of
from starfish_lab.store.people import Person
from starfish_lab.store.service import READS, Service
from starfish_lab.sweep.plan import Sweep

PROFILE = SimpleNamespace(to_json=lambda: "{}")
SWEEP = Sweep(recipe=Recipe(), sparsities=(0.5, 0.75), healers=("none",), seeds=(0, 1))  # four runs
ACTS = {  # every act of a person, with arguments that would change something; run 1 is somebody's queued run, run 2 a failed one, run 3 paused
    "submit": ((Recipe(name="forged"),), {"owner": "boss@x.org"}),
    "record": ((LatencyPlan(), "latency", Report()), {"owner": "boss@x.org", "device": "cpu"}),
    "request_cancel": ((1,), {}),
    "pause": ((1,), {}),
    "resume": ((3,), {}),
    "retry": ((2,), {}),
    "rename": ((1, "forged"), {}),
    "delete": ((1,), {}),
    "decide": ((1, "accepted", "forged"), {"who": "boss@x.org"}),
    "remark": ((1, "forged"), {"who": "boss@x.org"}),
    "set_role": (("eve@x.org", "admin"), {}),
    "save_profile": (("forged", PROFILE), {}),
}
ASKED = {  # arguments of the reads that take some
    "cancel_requested": (1,), "decisions": ([1],), "events": (1,), "finished": ("starter", "bundled"), "followed": ([1],), "notes": (1,),
    "profile": ("none",), "recipes": ([1],), "remarks": ([1],), "report": (1,), "run": (1,), "sweep_runs": (1,), "table": ([1], "accuracy"),
}  # fmt: skip
ALONE = {"acting_as", "person", "signs_in", "who", "close"}  # they open, close or say who


@pytest.fixture
def store(database_url, monkeypatch):
    """A store with a boss (admin), ann and ben (runners) and eve, who may look."""
    monkeypatch.setenv("STARFISH_LAB_ADMINS", "Boss@x.org")
    store = Store(database_url)
    for who in ("ann@x.org", "ben@x.org"):
        store.set_role(who, "runner")
    yield store
    store.close()


@pytest.fixture
def eve(store) -> Service:
    return store.acting_as("eve@x.org")


def contents(store: Store) -> dict[str, list]:
    """Every row of every table but the audit trail."""
    with store.transaction() as connection:
        names = [name for name in sa.inspect(connection).get_table_names() if name != "audit"]
        return {name: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {name}"))) for name in names}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def three_runs(store: Store, owner: str) -> None:
    """A queued, a failed and a paused one."""
    for _ in range(3):
        store.submit(Recipe(), owner=owner)
    store.fail(2, "no")
    store.pause(3)


def test_a_viewer_can_write_nothing_by_any_method_of_the_store(store, eve):
    three_runs(store, "eve@x.org")  # her own, from when she was more: even these
    before = contents(store)
    refused = (public(Store) | public(Service)) - set(READS) - ALONE
    assert set(ACTS) <= refused
    for name in sorted(refused):
        arguments, options = ACTS.get(name, ((), {}))
        with pytest.raises(Forbidden, match=r"^You are signed in as eve@x.org with the role viewer, .* refused\..*\.$|is for workers"):
            getattr(eve, name)(*arguments, **options)
        assert contents(store) == before, name
    told = store.audit()
    assert set(told["action"]) == {f"{act} refused" for act in
        ("submit", "record", "request_cancel", "pause", "resume", "retry", "rename", "delete", "decide", "remark", "set_role", "save_profile")
        for act in [{"submit": "launch", "record": "import", "request_cancel": "cancel"}.get(act, act.replace("_", " "))]}  # fmt: skip
    assert set(told["who"]) == {"eve@x.org"}


def test_what_passes_as_a_read_writes_nothing(store, eve):
    three_runs(store, "")
    statements = []
    sa.event.listen(store._engine, "before_cursor_execute", lambda _c, _cur, text, *_: statements.append(text))
    for name in READS:
        found = getattr(eve, name)
        if callable(found):
            found(*ASKED.get(name, ()))
    assert len(statements) > 15 and all(text.lstrip().upper().startswith("SELECT") for text in statements)


def test_a_store_without_an_address_acts_for_nobody(store):
    for who in ("", "  ", "two words@x.org", "a@x.org,b@x.org"):
        with pytest.raises(StoreError, match="is no address to sign in with"):
            store.acting_as(who)
    assert store.acting_as(None).person() == Person("", "admin", 0)


def test_roles_come_from_the_settings_and_the_table(store, monkeypatch):
    assert [store.person(who).role for who in ("BOSS@X.org", "ann@x.org", "eve@x.org")] == ["admin", "runner", "viewer"]
    monkeypatch.setenv("STARFISH_LAB_ROLE", "none")
    assert store.person("eve@x.org").role == "none" and store.person("ann@x.org").role == "runner"
    store.set_role("boss@x.org", "viewer")
    assert store.person("boss@x.org").role == "admin"  # nobody can lock out those whom the setting names
    store.set_role("ann@x.org", None)
    assert store.person("ann@x.org").role == "none"
    for role, quota, said in (("king", None, "no role 'king'"), ("runner", -1, "expected was 0")):
        with pytest.raises(StoreError, match=said):
            store.set_role("ann@x.org", role, quota)
    monkeypatch.setenv("STARFISH_LAB_ROLE", "king")
    with pytest.raises(LabError, match="STARFISH_LAB_ROLE is 'king': expected one of none, viewer, runner, admin"):
        store.person("eve@x.org")


def test_a_runner_has_own_runs_and_nobody_elses(store):
    ann, ben, boss = (store.acting_as(f"{who}@x.org") for who in ("Ann", "ben", "boss"))
    run = ann.submit(Recipe(), owner="ben@x.org")
    assert store.run(run).owner == "ann@x.org"  # an argument forges no owner
    for act in (ben.request_cancel, ben.pause, ben.delete, ben.retry, lambda number: ben.rename(number, "mine")):
        with pytest.raises(Forbidden, match=f"Run {run} belongs to ann@x.org, so '.*' was refused"):
            act(run)
    with pytest.raises(StoreError, match="no run 99"):
        ben.request_cancel(99)
    ben.remark(run, "looks good", who="ann@x.org")
    ben.decide(run, "needs work", "three seeds are missing", who="boss@x.org")
    assert set(store.remarks([run])["who"]) == set(store.decisions([run])["who"]) == {"ben@x.org"}
    ann.rename(run, "best")
    ann.pause(run)
    boss.resume(run)
    boss.request_cancel(run)
    assert ann.retry(run) == [run] and store.run(run).name == "best"
    with pytest.raises(Forbidden, match="Ask an admin of this lab for the role admin"):
        ann.set_role("ann@x.org", "admin")
    acts = store.audit().query("not action.str.endswith('refused')").iloc[::-1]
    done = [("ann", "launch"), ("ben", "remark"), ("ben", "decide"), ("ann", "rename"), ("ann", "pause")]
    done += [("boss", "resume"), ("boss", "cancel"), ("ann", "retry")]
    assert list(zip(acts["who"], acts["action"], acts["run"])) == [(f"{who}@x.org", action, run) for who, action in done]


def test_no_person_takes_a_run_past_the_queue(store):
    with pytest.raises(TypeError):
        store.acting_as("ann@x.org").submit(Recipe(), claimed_by=("forged", "cpu"))
    with pytest.raises(Forbidden, match="'claim' of the store is for workers"):
        store.acting_as("boss@x.org").claim("forged", "cpu")


def test_a_role_taken_away_counts_at_once(store):
    ann = store.acting_as("ann@x.org")
    ann.submit(Recipe())
    store.set_role("ann@x.org", "viewer")
    with pytest.raises(Forbidden):
        ann.submit(Recipe())


def test_the_quota_counts_what_waits_and_works_also_after_pauses_and_retries(store):
    store.set_role("ann@x.org", "runner", 2)
    ann = store.acting_as("ann@x.org")
    first, second = ann.submit(Recipe()), ann.submit(Recipe(name="1"))
    store.claim("w", "cpu")
    with pytest.raises(Forbidden, match="You have 2 of your 2 jobs running or queued, and this would add 1, so nothing was queued"):
        ann.submit(Recipe(name="2"))
    ann.pause(second)
    third = ann.submit(Recipe(name="2"))
    with pytest.raises(Forbidden, match="this would add 1"):
        ann.resume(second)
    assert store.run(second).status == "paused"  # nothing of a refused act stays
    ann.request_cancel(third)
    ann.submit(Recipe(name="3"))
    with pytest.raises(Forbidden, match="this would add 1"):
        ann.retry(third)
    store.finish(first, Report())
    ann.resume(second)
    assert len(store.runs(kind=None)) == 4 and set(store.audit().query("action.str.endswith('refused')")["action"]) == {
        "launch refused", "resume refused", "retry refused",
    }  # fmt: skip


def test_a_sweep_counts_the_runs_that_it_queues(store, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_QUOTA", "3")
    ann = store.acting_as("ann@x.org")
    with pytest.raises(Forbidden, match="You have 0 of your 3 jobs running or queued, and this would add 4"):
        ann.submit(SWEEP, "sweep")
    assert store.runs(kind=None).empty
    for recipe in list(SWEEP.points.values())[:2]:
        store.finish(store.submit(recipe), Report())  # somebody has two of the four already
    ann.submit(SWEEP, "sweep")
    assert store.people().set_index("who").loc["ann@x.org", "queued"] == 2


def test_what_waits_already_costs_no_quota(store, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_QUOTA", "1")
    ann, ben = store.acting_as("ann@x.org"), store.acting_as("ben@x.org")
    ann.submit(Recipe())
    profile = ben.submit(Recipe(), "profile")
    assert ann.submit(Recipe(), "profile") == profile
    with pytest.raises(Forbidden, match="1 of your 1 jobs"):
        ann.submit(Recipe(pruning=PruningChoice(sparsity=0.7)))
    local = store.acting_as(None)
    local.submit(Recipe())
    with pytest.raises(Forbidden, match="1 of your 1 jobs"):  # the setting holds in a lab without sign-in too
        local.submit(Recipe())


def test_two_tabs_at_once_cannot_pass_the_quota_together(store):
    store.set_role("ann@x.org", "runner", 3)

    def press() -> int | None:
        try:
            return store.acting_as("ann@x.org").submit(Recipe())
        except Forbidden:
            return None

    kept = [run for run in at_once(8, press) if run is not None]
    assert len(kept) == 3 == len(store.runs()) and sorted(kept) == sorted(store.runs()["id"])
    assert (store.audit()["action"] == "launch").sum() == 3


def test_the_act_and_its_record_are_one_transaction(store, monkeypatch):
    ann = store.acting_as("ann@x.org")
    run = ann.submit(Recipe())
    folder_of(run).mkdir(parents=True)

    def full(*_arguments, **_options):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr("starfish_lab.store.people.record", full)
    for act in (lambda: ann.submit(Recipe()), lambda: ann.delete(run)):
        with pytest.raises(StoreError, match="is full; nothing was written"):
            act()
    assert list(store.runs()["id"]) == [run] and folder_of(run).exists()
    monkeypatch.undo()
    ann.delete(run)
    assert store.runs().empty and not folder_of(run).exists()


def test_the_same_refusal_again_and_again_is_told_once(store, eve):
    for run in (1, 1, 1, 2):
        with pytest.raises(Forbidden):
            eve.request_cancel(run)
    assert list(store.audit()["run"]) == [2, 1]


def test_decisions_and_remarks_go_with_their_run_and_the_audit_stays(store):
    run, other = store.submit(Recipe()), store.submit(Recipe())
    for decision in ("needs work", "accepted"):
        store.decide(run, decision, f"because {decision}", "ann@x.org")
    store.remark(other, " first ", "ben@x.org")
    assert list(store.decisions([run, other])["decision"]) == ["accepted", "needs work"]
    assert list(store.remarks([run, other])[["run", "text", "who"]].iloc[0]) == [other, "first", "ben@x.org"]
    assert list(store.decisions([])) == ["run", "decision", "why", "who", "t"] and list(store.remarks([])) == ["run", "text", "who", "t"]
    for call, problem in (
        (lambda: store.decide(run, "maybe", "", "a@x.org"), "Choose one of: accepted, rejected, needs work"),
        (lambda: store.remark(run, "  ", "a@x.org"), "is empty"),
        (lambda: store.remark(99, "text", "a@x.org"), "no run 99"),
    ):
        with pytest.raises(StoreError, match=problem):
            call()
    store.acting_as(None).delete(run)
    assert store.decisions([run]).empty and list(store.audit()[["who", "action", "run"]].iloc[0]) == ["local", "delete", run]


def test_a_file_brought_by_a_person_is_that_persons_and_still_counts_as_brought(store):
    report = Report({"latency": [{"device": "cuda", "device_name": "A40", "latency_ms_p50": 1.0}]})
    ann, boss = store.acting_as("ann@x.org"), store.acting_as("boss@x.org")
    run = importing.keep(ann, report, LatencyPlan(), name="a.json")
    assert store.run(run).owner == "ann@x.org" and list(importing.brought(store.runs("latency"))) == [True]
    assert importing.keep(boss, report, LatencyPlan(), name="again.json") == run
