"""Charts of what happens before and while a network is pruned, on rows whose figures can be read off."""

from __future__ import annotations

import pandas as pd
import pytest

from app.charts import budget, cycles, projection


def layers(count: int = 4) -> pd.DataFrame:
    return pd.DataFrame([{"layer": f"blocks.{d}.mlp.fc1", "block": f"blocks.{d}", "depth": d} for d in range(count)])


def phase(cycle: int, name: str, sparsity: float, first: float | None = None, last: float | None = None) -> dict[str, object]:
    return dict(cycle=cycle, phase=name, sparsity=sparsity, loss_first=first, loss_last=last, steps=5, weights_removed=10, restored=0)


def test_cycles_say_what_they_reached_and_what_the_loss_did():
    rows = pd.DataFrame([phase(1, "prune", 0.05), phase(1, "tune", 0.05, 2.0, 1.0), phase(2, "prune", 0.1), phase(2, "tune", 0.1, 1.8, 1.2)])
    fig = cycles.cycles(rows, dark=True)
    assert fig.layout.title.text == "2 cycles reach 10.0 %; the loss goes from 1 to 1.20"
    ends = next(trace for trace in fig.data if trace.name == "training ends")
    assert list(ends.x) == [5.0, 10.0] and list(ends.y) == [1.0, 1.2]
    assert "cycle 2" in ends.hovertext[1] and "10 weights removed" in ends.hovertext[1]


def test_losses_of_different_size_are_told_apart_on_a_log_axis():
    rows = [phase(1, "select", 0.05, 0.002, 0.001), phase(1, "tune", 0.05, 0.9, 0.8)]
    assert cycles.cycles(pd.DataFrame(rows)).layout.yaxis.type == "log"
    assert cycles.cycles(pd.DataFrame(rows[1:])).layout.yaxis.type is None
    assert cycles.cycles(pd.DataFrame([phase(1, "select", 0.05, 0.0, 0.0), *rows[1:]])).layout.yaxis.type is None


@pytest.mark.parametrize(
    ("rows", "title"),
    [([], "No cycle has run"), ([phase(1, "prune", 0.05)], "1 cycle reaches 5.0 %"), ([phase(1, "tune", 0.05, 2.0, 1.0)], "1 cycle reaches 5.0 %")],
)
def test_cycles_without_training_or_without_rows_are_told(rows, title):
    assert cycles.cycles(pd.DataFrame(rows)).layout.title.text == title


def test_what_reordering_kept_is_weighed_by_the_layers_sizes():
    rows = layers(2).assign(kept_before=[0.8, 0.6], kept_after=[0.9, 0.6], place=["gather", "unchanged"], values_moved=[500, 0], elements=[300, 100])
    fig = projection.kept(rows)
    assert fig.layout.title.text == "Reordering keeps 82.5 % of the importance, before it 75.0 %"
    assert projection.gathers(rows) == "1 layer gathers its inputs when it runs: 500 values an image."
    same = rows.assign(kept_after=rows["kept_before"], values_moved=0, place="unchanged")
    assert projection.kept(same).layout.title.text.startswith("Reordering keeps no more")
    assert projection.gathers(same) == "No layer moves anything when it runs."


def test_what_a_solver_saved_needs_a_cost_to_compare_with():
    rows = layers(3).assign(cost=[0.5, 0.9, 0.0], cost_magnitude=[1.0, 1.0, 0.0])
    fig = projection.saved(rows, solver="CAST")
    assert fig.layout.title.text == "CAST changes the outputs less than magnitude: 30 % in the middle layer"
    assert list(fig.data[0].y)[:2] == pytest.approx([50.0, 10.0]) and pd.isna(fig.data[0].y[2])
    assert projection.saved(rows.assign(cost_magnitude=0.0), solver="CAST").layout.title.text == "No cost is known"


@pytest.mark.parametrize("measure", list(budget.MEASURES))
def test_edge_weights_stand_on_an_axis_of_their_own(measure):
    rows = layers(3).assign(kind="mlp", weights=100, removed=[40, 50, 60], macs_g=0.1, macs_g_effective=0.05, note="", edge_weight=[0.5, 1.0, 1.5])
    fig = budget.budget(rows, measure=measure, rule="a rule")
    marks = next(trace for trace in fig.data if trace.name == "edge weight w")
    assert list(marks.y) == [0.5, 1.0, 1.5] and marks.yaxis == "y2"
    assert fig.layout.yaxis2.range == pytest.approx((0, 1.62)) and fig.layout.yaxis2.side == "right"
    assert (fig.layout.yaxis.range == (0, 103)) == (measure == "share")
    assert any("edge weight w = 1.50" in text for trace in fig.data if trace.hovertext is not None for text in trace.hovertext)
    assert "yaxis2" not in budget.budget(rows.drop(columns="edge_weight")).layout.to_plotly_json()
