"""The charts of Trade-offs and of sensitivity: what is drawn, what stays apart, and what a pointer is told."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from app.charts import sensitivity, theme, trade_offs
from app.trade_offs_rows import standing

LITERATURE = pd.DataFrame(
    [dict(label="DeiT-B", cost=1.2, top1=0.8, method="CAST <b>", source="arXiv", pattern="2:4", trained="")], index=[285]
)  # fmt: skip


def points() -> pd.DataFrame:
    values = [(1, "healed", 0.5, 0.9), (2, "healed", 1.5, 0.89), (3, "pruned", 1.5, 0.3), (3, "dense", 3.0, 0.95)]
    return standing(pd.DataFrame([dict(run=r, stage=s, cost=c, top1=t, low=t - 0.02, high=t + 0.02, images=100) for r, s, c, t in values]))


def drawn(**changes) -> dict:
    given = dict(title="t", cost="parameters_m", labels={1: "run <i>one</i>"}) | changes
    literature = given.pop("literature", LITERATURE)
    return json.loads(trade_offs.trade_offs(points(), points().head(0), literature, **given).to_json())


def by_name(figure: dict, name: str) -> list[dict]:
    return [trace for trace in figure["data"] if trace.get("name") == name]


def test_stages_keep_their_marks_and_intervals_are_drawn():
    figure = drawn()
    for stage in ("dense", "pruned", "healed"):
        for trace in by_name(figure, stage):
            assert trace["marker"]["symbol"] == theme.STAGE_SYMBOLS[stage] and "error_y" in trace
    assert sum(trace.get("showlegend", True) for trace in by_name(figure, "healed")) == 1, "one place in the legend"
    opacities = {trace["customdata"][0]: trace["marker"]["opacity"] for stage in ("healed", "pruned") for trace in by_name(figure, stage)}
    assert opacities["1"] > opacities["2"] > opacities["3"], "front, not resolved, beaten"


def test_literature_is_hollow_and_on_no_front():
    figure = drawn()
    (published,) = by_name(figure, "literature")
    assert published["marker"]["symbol"] == "square-open" and published["customdata"] == ["published 285"]
    (front,) = by_name(figure, "Pareto front")
    assert (
        len(
            front["x"]
            if isinstance(front["x"], list)
            else trade_offs.trade_offs(points(), points().head(0), LITERATURE, title="", cost="macs_g", labels={}).data[0].x
        )
        == 2
    )
    assert not by_name(drawn(literature=LITERATURE.head(0)), "literature")


def test_names_of_people_are_no_markup():
    figure = drawn()
    hover = " ".join(str(trace.get("hovertext")) for trace in figure["data"])
    assert "run &lt;i&gt;one&lt;/i&gt;" in hover and "CAST &lt;b&gt;" in hover


@pytest.mark.parametrize(("chosen", "x"), [("1", 0.5), ("3", 1.5), ("published 285", 1.2), ("77", None), ("", None), ("published x", None)])
def test_the_chosen_point_is_ringed_at_its_last_stage(chosen, x):
    rings = by_name(drawn(chosen=chosen), "chosen")
    assert [ring["x"][0] for ring in rings] == ([] if x is None else [x])


def test_small_networks_count_in_smaller_units():
    found = points().assign(cost=lambda rows: rows["cost"] / 100)
    fig = trade_offs.trade_offs(found, found.head(0), LITERATURE.head(0), title="", cost="macs_g", labels={})
    assert fig.layout.xaxis.title.text.startswith("Effective multiply-adds (M") and max(fig.data[0].x) == pytest.approx(30)


def table(levels=(0.5, 0.9), layers=4, **columns) -> pd.DataFrame:
    rows = [
        dict(layer=f"blocks.{i}.mlp.fc1", block=f"blocks.{i}", depth=i, kind="mlp", weights=100, macs_g=0.1, level=level, sparsity=level,
             cosine_distance=0.1 * level, kl=level**2 / 10**i, agreement=0.9, images=64)
        for level in levels for i in range(layers)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_a_cell_is_a_layer_alone_and_the_deeper_it_is_the_more_it_hurts():
    fig = sensitivity.curves(table(), damage="kl", shares={"blocks.1.mlp.fc1": 0.7})
    cells, marks = fig.data
    z = np.array(cells.z)
    assert z.shape == (2, 4) and (np.diff(z, axis=0) >= 0).all() and (np.diff(z, axis=1) <= 0).all()
    assert z.max() == sensitivity.DECADES and z.min() >= 0
    assert "fc1 of block 0 bears least, fc1 of block 3 most" in fig.layout.title.text
    assert marks.y[0] == pytest.approx(0.5) and marks.x[0] == 1  # half-way between the rows of 50 and 90 %
    assert "blocks.0.mlp.fc1</b> alone at 50.0 %" in cells.hovertext[0][0] and "of 64 images" in cells.hovertext[0][0]


def test_accuracy_is_told_with_its_interval():
    rows = table(top1=0.7, low=0.6, high=0.8, top1_dense=0.9)
    fig = sensitivity.curves(rows, damage="top1")
    assert "top-1 70.0 %, interval 60.0 % to 80.0 %" in fig.data[0].hovertext[0][0] and "n = 64" in fig.data[0].hovertext[0][0]


def test_a_network_that_nothing_hurts_has_a_chart_too():
    assert sensitivity.curves(table(kl=0.0), damage="kl").layout.title.text == "No layer hurts alone"


def test_summed_damage_is_an_estimate_and_says_what_the_curves_would_save():
    best = pd.DataFrame({"position": [0.2, 0.8], "damage": [0.01, 1.0], "uniform": [0.1, 3.0]})
    fig = sensitivity.front(best, (0.8, 4.0), unit="weights", damage="drift")
    assert "4× less damage" in fig.layout.title.text and all(trace.line.dash == "dash" for trace in fig.data[:2])
    assert fig.data[2].marker.symbol == "x-open"
    assert "spent along the curves" in sensitivity.front(best, (0.8, 1.0), unit="weights", damage="drift").layout.title.text
