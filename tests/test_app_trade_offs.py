"""Trade-offs: every finished run against a cost, the front, filters in the link, a click's panel, and 10,000 runs."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from app import trade_offs_rows as rows
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def shown(app) -> dict:
    (figure,) = charts(app).values()
    return figure


def drawn(figure: dict) -> dict[str, str]:
    """{run: stage} of the marks."""
    return {
        run: trace["name"] for trace in figure["data"] if trace["name"] in rows.STAGES and trace["name"] != "dense" for run in trace["customdata"]
    }


def done(store: Store, *, healed: float = 0.97, pattern: str = "unstructured", calibration: int = 64, method: str = "starfish", **changes) -> int:
    recipe = synthetic.recipe(method=method)
    pruning = PruningChoice(pattern=pattern, sparsity=0.5)
    recipe = replace(recipe, pruning=pruning, images=replace(recipe.images, calibration=calibration), **changes)
    run = store.submit(recipe)
    store.finish(run, synthetic.report(healed=healed))
    return run


# --- rows


def points(*values: tuple[float, float, float]) -> pd.DataFrame:
    """Of (cost, top1, half an interval)."""
    cost, top1, half = np.array(values).T
    return pd.DataFrame(dict(run=range(1, len(values) + 1), stage="healed", cost=cost, top1=top1, low=top1 - half, high=top1 + half, images=100))


def beaten_by(points: pd.DataFrame, row) -> bool:
    """By the definition, one by one."""
    return any(
        other.cost <= row.cost and other.top1 >= row.top1 and (other.cost < row.cost or other.top1 > row.top1) for other in points.itertuples()
    )


def test_on_the_front_stands_what_no_other_beats_in_both():
    rng = np.random.default_rng(0)
    many = points(*zip(rng.random(200).round(2), rng.random(200).round(2), np.full(200, 0.01)))
    found = rows.standing(many)
    front = found[found["standing"] == "front"]
    assert not any(beaten_by(many, row) for row in front.itertuples())
    others = found[found["standing"] != "front"].drop_duplicates(["cost", "top1"])
    same = set(zip(front["cost"], front["top1"]))
    assert all(beaten_by(many, row) or (row.cost, row.top1) in same for row in others.itertuples())


def test_where_intervals_overlap_a_point_is_not_resolved():
    found = rows.standing(points((1, 0.9, 0.02), (2, 0.87, 0.02), (2, 0.85, 0.02), (0.5, 0.4, 0.01), (3, 0.95, 0.01), (4, 0.93, 0.005))).set_index(
        "run"
    )
    assert found["standing"].to_dict() == {1: "front", 2: "unresolved", 3: "beaten", 4: "front", 5: "front", 6: "beaten"}


def test_marks_are_bounded_and_the_front_is_never_left_out():
    rng = np.random.default_rng(1)
    many = rows.standing(points(*zip(rng.random(5000), rng.random(5000), np.full(5000, 0.01))))
    beaten = int(many.loc[many["standing"] == "beaten", "run"].min())
    marks, dots = rows.drawn(many, beaten, most=200)
    assert len(marks) == 200 and len(dots) <= rows.SPOTS[0] * rows.SPOTS[1] + 200 and beaten in set(marks["run"])
    assert set(many.loc[many["standing"] == "front", "run"]) <= set(marks["run"])
    assert not set(marks["run"]) & set(dots["run"])


def test_what_a_run_needed_is_read_from_its_recipe():
    recipe = synthetic.recipe()
    needed = {
        method: rows.needs(replace(recipe, healing=replace(recipe.healing, method=method)).to_dict())["labels"]
        for method in ("starfish", "distillation", "none")
    }
    assert needed == {"starfish": "without", "distillation": "with", "none": "without"}
    assert rows.needs(replace(recipe, pruning=PruningChoice(score="taylor")).to_dict())["labels"] == "with"
    assert rows.needs(replace(recipe, start=replace(recipe.start, method="magnitude")).to_dict())["labels"] == "with"


def test_runs_are_read_once_and_deleted_ones_go(store, monkeypatch):
    first, second = done(store), done(store)
    shelf, read = rows.Shelf(), []
    runs = Store.runs
    monkeypatch.setattr(Store, "runs", lambda self, *a, **k: read.append(k.get("ids")) or runs(self, *a, **k))
    assert list(shelf.runs(store, "starter", "bundled").index) == [first, second] and read == [[1, 2]]
    shelf.runs(store, "starter", "bundled")
    third = done(store)
    assert list(shelf.runs(store, "starter", "bundled").index) == [first, second, third] and read == [[1, 2], [3]]
    assert set(shelf.table(store, "seconds")["run"]) == {1, 2, 3}
    store.delete(second)
    assert list(shelf.runs(store, "starter", "bundled").index) == [first, third]


def timing(store: Store, of: int, *, card: str, **ms: float) -> int:
    """A timing of run `of`'s recipe on the page Latency: p50 of a batch of 1 by execution, dense and pruned; 'bf16' in the name is a precision."""
    report = Report()
    for label, p50 in ms.items():
        row = {"execution": label, "stage": "dense" if label.startswith("dense") else "pruned", "batch": 1, "latency_ms_p50": p50}
        row |= {"precision": "bf16" if "bf16" in label else "float32", "device_name": card, "images_per_s": 1e3 / p50}
        report.add("latency", [row | {"merged": label.startswith("merged")}])
    run = store.submit(LatencyPlan.of(replace(Recipe.from_dict(store.recipes([of])[of]), name="on the card")), "latency")
    store.finish(run, report)
    return run


def test_a_run_stands_at_what_the_page_latency_took_of_its_network(store):
    first, second, other = done(store), done(store), done(store, calibration=32)
    shelf = rows.Shelf()

    def on_the_card() -> dict[tuple[int, str], tuple[float, str]]:
        runs = shelf.runs(store, "starter", "bundled")
        timed = shelf.latency(store, "starter", "bundled")
        found = rows.stages(runs, cost="latency_ms", latency=timed, seconds=pd.DataFrame(), device="Card", batch=1, precision="float32")
        return {(row.run, row.stage): (row.cost, row.execution) for row in found.itertuples()}

    assert on_the_card() == {}
    timing(store, first, card="Card", dense=4.0, masked=4.1, sliced=2.5, sliced_bf16=1.0, merged_sliced=0.5)
    assert on_the_card() == {(second, "healed"): (2.5, "sliced"), (second, "dense"): (4.0, "dense")}  # equal recipes: the newest run
    again = timing(store, other, card="Card", dense=3.0, sliced=2.0)
    assert on_the_card() == {(second, "healed"): (2.5, "sliced"), (other, "healed"): (2.0, "sliced"), (other, "dense"): (3.0, "dense")}
    store.delete(again)
    assert on_the_card() == {(second, "healed"): (2.5, "sliced"), (second, "dense"): (4.0, "dense")}


# --- page


def test_timings_of_the_page_latency_stand_on_the_axis_with_their_execution_and_precision(store):
    run = done(store)
    timing(store, run, card="Card", dense=4.0, sliced=2.5, sliced_bf16=1.0)
    app = open_page("trade_offs", cost="latency_ms", timed_on="Card", point=str(run))
    assert unharmed(app) and "on Card, float32 (ms)" in shown(app)["layout"]["xaxis"]["title"]["text"]
    assert "at 2.50 ms (sliced)" in said(app)
    app = open_page("trade_offs", cost="latency_ms", timed_on="Card", timed_in="bf16", point=str(run))
    assert unharmed(app) and "on Card, bf16 (ms)" in shown(app)["layout"]["xaxis"]["title"]["text"] and "at 1 ms (sliced bf16)" in said(app)


def test_without_finished_runs_the_page_leads_to_prune_and_heal(store):
    store.submit(synthetic.recipe())
    app = open_page("trade_offs")
    assert unharmed(app) and "No finished runs of starter yet" in said(app) and "Go to Prune & heal" in labels(app)


@pytest.mark.parametrize("cost", ["macs_g", "parameters_m", "latency_ms", "healing_s"])
def test_every_finished_run_of_the_network_stands_against_the_cost(store, cost):
    ids = [done(store, healed=top1) for top1 in (0.97, 0.8)]
    other = replace(synthetic.recipe(), model=ModelChoice(name="deit_tiny_patch16_224.fb_in1k", weights="random"))
    store.finish(store.submit(other), synthetic.report())
    app = open_page("trade_offs", cost=cost)
    assert unharmed(app)
    figure = shown(app)
    assert set(drawn(figure)) == {str(run) for run in ids} and set(drawn(figure).values()) == {"healed"}
    marks = [trace for trace in figure["data"] if trace["name"] in rows.STAGES]
    assert all(error > 0 for trace in marks for error in trace["error_y"]["array"] if trace["name"] == "healed")
    assert "Pareto front" in traces(figure) and "stand" in figure["layout"]["title"]["text"]


def test_filters_stand_in_the_link(store):
    done(store)
    done(store, pattern="structured")
    done(store, method="distillation")
    done(store, calibration=500)

    def runs(**query) -> set[str]:
        app = open_page("trade_offs", **query)
        assert unharmed(app)
        return set(drawn(shown(app)))

    assert runs() == {"1", "2", "3", "4"}
    assert runs(of_pattern="structured") == {"2"} and runs(label_use="with") == {"3"} and runs(label_use="without") == {"1", "2", "4"}
    assert runs(cal_most=64) == {"1", "2", "3"} and runs(cal_most=64, label_use="without", of_pattern="unstructured") == {"1"}
    app = open_page("trade_offs")
    app.pills[0].set_value(["structured"]).run()
    assert app.query_params["of_pattern"] == "structured" and set(drawn(shown(app))) == {"2"}


def test_a_point_has_its_recipe_one_click_away(store):
    run = done(store)
    app = open_page("trade_offs", point=run)
    assert unharmed(app) and "50 % unstructured" in said(app) and "Healed by STARFISH" in said(app) and "No labels were used" in said(app)
    assert {"Open in Explore", "Clone", "Compare"} <= set(labels(app))
    button(app, "Open in Explore").click().run()
    assert unharmed(app) and app.query_params["sparsity"] == "0.5"
    app = open_page("trade_offs", point=run)
    button(app, "Clone").click().run()
    assert unharmed(app) and app.query_params["parent"] == str(run)
    app = open_page("trade_offs", point=run, runs="7")
    button(app, "Compare").click().run()
    assert unharmed(app) and str(run) in app.query_params["runs"].split(",")


def test_published_rows_are_hollow_and_lead_to_their_recipe(store):
    recipe = replace(synthetic.recipe(), model=ModelChoice(name="deit_base_patch16_224.fb_in1k", weights="random"))
    store.finish(store.submit(recipe), synthetic.report())
    link = dict(model="deit_base_patch16_224.fb_in1k", weights="random")
    assert "literature" not in traces(shown(open_page("trade_offs", **link)))
    app = open_page("trade_offs", published=1, **link)
    assert unharmed(app)
    found = traces(shown(app))["literature"]
    assert found["marker"]["symbol"] == "square-open" and all(name.startswith("published ") for name in found["customdata"])
    app = open_page("trade_offs", published=1, point=found["customdata"][0], **link)
    assert unharmed(app) and "CAST 2:4+ToMe" in said(app) and "arXiv 2606.02608" in said(app)
    button(app, "Clone").click().run()
    assert unharmed(app) and app.query_params["preset"].startswith("deit-b.")
    assert "literature" not in traces(shown(open_page("trade_offs", published=1, label_use="without", **link)))


def test_nonsense_in_every_parameter_is_told(store):
    done(store)
    app = open_page(
        "trade_offs", cost="gold", of_pattern="?,x", label_use="maybe", cal_most="many", point="'; drop", timed_on="x", timed_batch="y",
        of_images="z", published="2",
    )  # fmt: skip
    assert unharmed(app) and "cost = 'gold'" in said(app) and "none of the runs" in said(app) and len(charts(app)) == 1
    assert unharmed(open_page("trade_offs", cost="latency_ms", timed_batch="y", timed_on="x", point="999999999999999999999"))


def test_other_images_stand_on_another_chart(store):
    done(store)
    recipe = synthetic.recipe()
    store.finish(store.submit(replace(recipe, images=replace(recipe.images, source="folder", path="/pictures"))), synthetic.report())
    assert set(drawn(shown(open_page("trade_offs", of_images="starter")))) == {"1"}
    assert set(drawn(shown(open_page("trade_offs", of_images="folder · /pictures")))) == {"2"}


def test_weights_of_two_files_are_two_networks(store, tmp_path):
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in files:
        path.touch()
        model = ModelChoice(name="deit_tiny_patch16_224.fb_in1k", weights="file", path=str(path))
        store.finish(store.submit(replace(synthetic.recipe(), model=model)), synthetic.report())
    app = open_page("trade_offs", model="deit_tiny_patch16_224.fb_in1k", weights="file", file=files[1])
    assert "2" in drawn(shown(app)) and "1" not in drawn(shown(app))


def test_ten_thousand_runs_are_drawn_again_in_half_a_second(store):
    many(store, 10_000)
    started = time.perf_counter()
    app = open_page("trade_offs")
    assert unharmed(app) and "of 10,000 runs" in shown(app)["layout"]["title"]["text"]
    first = time.perf_counter() - started
    assert sum(len(trace["x"]) for trace in shown(app)["data"]) < 6000
    seconds = synthetic.seconds_of_a_rerun(app)
    print(f"Trade-offs with 10,000 runs: first {1000 * first:.0f} ms, again {1000 * seconds:.0f} ms of processor time")
    assert seconds < 0.5


def many(store: Store, count: int) -> None:
    """So many finished runs, by their rows alone."""
    import json
    import random

    import sqlalchemy as sa

    from starfish_lab.store.queue import row_of
    from starfish_lab.store.schema import RUNS

    chance, template = random.Random(0), row_of(synthetic.recipe(), "experiment")
    summary = synthetic.report().summary()
    values = []
    for i in range(count):
        top1 = chance.random()
        found = summary | {
            "top1_healed": top1,
            "low_healed": max(0, top1 - 0.02),
            "high_healed": min(1, top1 + 0.02),
            "macs_g_effective_healed": chance.random(),
        }
        values.append(
            template | {"owner": "", "status": "done", "attempt": 1, "cancel": False, "finished_at": float(i), "summary": json.dumps(found)}
        )
    with store.transaction() as connection:
        connection.execute(sa.insert(RUNS), values)
