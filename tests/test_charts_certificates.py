"""Charts of certificates: what is drawn from tables whose figures are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic

from app.charts import certificates as charts
from app.charts import theme
from starfish_lab import certificate_bounds as bounds
from starfish_lab.report import Report

LAYERS = [f"blocks.{d}.{name}" for d in range(3) for name in ("attn.qkv", "mlp.fc1")]


def certified(*, flipped: int = 0, healed: bool = True, head: bool = True) -> Report:
    """A synthetic run with certificates: of 100 images 25 are certified pruned and 75 healed; the head alone keeps 90 for certain."""
    report = synthetic.report()
    for stage, eta, share, changed in (("pruned", 2.0, 0.25, 40), ("healed", 0.5, 0.75, 10))[: 1 + healed]:
        row = dict(
            scope="network", what="whole network, measured", label="bound", images=100, certified=int(100 * share), certified_share=share,
            flipped=flipped, changed=changed, mean_change=eta, budget=2 * eta, ce_change=eta / 4, accuracy_change_bound=0.6, accuracy_change=-0.03,
        )  # fmt: skip
        report.add("certificates", [row], stage=stage)
        if head and stage == "pruned":
            what = "what if: head alone, 90 % of it pruned by magnitude"
            alone = dict(scope="head", what=what, certified=90, certified_share=0.9, changed=2, mean_change=0.1, budget=0.2)
            report.add("certificates", [row | alone], stage=stage)
        for image in range(100):
            margin = 2 * eta * (1.5 if image < 100 * share else 0.5)
            report.add("certificate_images", [dict(
                image=image, label="bound", margin=margin, eta=eta, certified=margin > 2 * eta, flipped=image >= 100 - changed,
                true_margin=margin, ce_change=0.1,
            )], stage=stage)  # fmt: skip
        for i, layer in enumerate([*LAYERS, "head"] if head and stage == "pruned" else LAYERS):
            mean = eta * (i + 1) if layer != "head" else 0.1
            report.add("certificate_layers", [dict(
                layer=layer, block=layer.rpartition(".")[0][:8] if layer != "head" else "", depth=i // 2 if layer != "head" else -1,
                kind="attention" if "attn" in layer else "mlp" if "mlp" in layer else "other",
                label="bound" if layer == "head" else "bound per unit L", what="as pruned", rows=32, cols=16, images=10, positions=5,
                mean_change=mean, max_change=3 * mean, budget=2 * mean, frobenius2=100.0, l1=400.0, disjoint=stage == "pruned",
                sigma=0.1, sigma_plus=1.0, applies=True, mean_norm=4.0, note="",
            )], stage=stage)  # fmt: skip
    return report


@pytest.fixture
def report() -> Report:
    return certified()


def named(fig) -> dict:
    return {trace.name: trace for trace in fig.data}


def test_margins_stand_against_twice_the_change(report):
    images, summary = report.frame("certificate_images"), report.frame("certificates")
    fig = charts.margins(images, summary)
    found = named(fig)
    for stage, reach, above in (("pruned", 4, 25), ("healed", 1, 75)):
        trace = found[stage]
        assert set(trace.x) == {reach} and (np.asarray(trace.y) > np.asarray(trace.x)).sum() == above
        assert (trace.marker.color, trace.marker.symbol) == (theme.STAGE_COLOURS[stage], theme.STAGE_SYMBOLS[stage])
    assert len(found["label changed"].x) == 50 and found["label changed"].marker.symbol == "circle-open"
    region, diagonal = found["label certain"], found["margin = 2η"]
    assert list(diagonal.x) == list(diagonal.y) and region.fill == "toself"
    assert all(y >= x for x, y in zip(region.x, region.y)) and max(region.y) >= fig.layout.yaxis.range[1]  # shaded above the diagonal alone
    assert fig.layout.xaxis.range[1] > 4 and fig.layout.yaxis.range[1] > 6
    assert fig.layout.title.text == "25 % of images provably keep their label pruned, 75 % healed"


def test_images_without_figures_and_no_images_draw_nothing():
    report = certified(healed=False)
    images = report.frame("certificate_images").assign(eta=None)
    assert charts.margins(images, report.frame("certificates")).data == ()
    assert charts.margins(pd.DataFrame(), pd.DataFrame()).layout.title.text == "Which images provably keep their label?"


@pytest.mark.parametrize(("share", "words"), [(0.41, "41 %"), (0.004, "Under 1 %"), (0.0, "0 %"), (0.999, "Over 99 %"), (1.0, "100 %")])
def test_the_finding_is_a_share_in_words(share, words):
    summary = certified(healed=False).frame("certificates").assign(certified_share=share)
    assert charts.finding(summary) == f"{words} of images provably keep their label"


def test_shares_add_up_and_tell_certain_from_kept(report):
    fig = charts.shares(report.frame("certificates"))
    found = named(fig)
    almost = charts.shares(certified(healed=False, head=False).frame("certificates").assign(certified=998, images=1000, changed=1, flipped=0))
    assert named(almost)["provably kept"].text[0] == "over 99 %"  # not rounded up to all
    assert list(found["provably kept"].y) == ["Pruned", "Pruned: Head alone, what if", "Healed"]
    assert list(found["provably kept"].x) == [25, 90, 75] and list(found["changed"].x) == [40, 2, 10]
    assert list(found["kept, not certified"].x) == pytest.approx([35, 8, 15])
    assert found["provably kept"].marker.color[0] == theme.tint(theme.STAGE_COLOURS["pruned"], 1)
    assert found["changed"].marker.color[2] == theme.tint(theme.STAGE_COLOURS["healed"], 0)
    assert fig.layout.title.text == "90 % keep their label, 75 % provably"
    wrong = named(charts.shares(certified(flipped=3).frame("certificates")))
    assert sum(wrong[name].x[0] for name in ("kept, not certified", "changed")) == pytest.approx(78)  # three are in both certified and changed


def test_layers_have_mean_maximum_and_a_dashed_bound(report):
    rows = report.frame("certificate_layers")
    rows = rows[(rows["stage"] == "pruned") & (rows["layer"] != "head")]
    fig = charts.layers(rows, stage="pruned", delta=0.05)
    found = named(fig)
    attention, mlp = found["Attention"], found["MLP"]
    assert list(attention.x) == [0, 2, 4] and list(attention.y) == [2, 6, 10] and list(mlp.y) == [4, 8, 12]
    assert list(attention.error_y.array) == pytest.approx([4, 12, 20]) and set(attention.error_y.arrayminus) == {0}
    assert attention.marker.color != mlp.marker.color  # one hue, two depths
    bound = found["holds with 95 % if R were noise as in the bulk"]
    expected = bounds.gaussian_budget(0.1, 32, 10, 4.0, 0.05, positions=5) / 2
    assert bound.line.dash == "dash" and list(bound.y) == pytest.approx([expected] * 6)
    assert fig.layout.title.text == "blocks.2.mlp.fc1 changes its output most: by 12"
    assert charts.layers(rows.iloc[:0], stage="pruned", delta=0.05).data == ()


def test_layers_without_figures_leave_a_gap(report):
    rows = report.frame("certificate_layers").query("stage == 'pruned'").copy()
    rows["mean_change"] = [None, *rows["mean_change"].tolist()[1:]]
    found = named(charts.layers(rows, stage="pruned", delta=0.05))
    assert np.isnan(found["Attention"].y[0]) and found["Attention"].y[1] == 6


def test_slack_marks_where_it_changes_sign(report):
    row = report.frame("certificate_layers").iloc[1]  # budget 8, ‖R‖_F² 100, ‖R‖₁ 400
    fig = charts.slack(row, lambda1=0.005, lambda2=0.1)
    curve, chosen = fig.data
    turn = (8 - 0.005 * 400) / 100
    below = np.asarray(curve.x) < turn
    assert (np.asarray(curve.y)[below] < 0).all() and (np.asarray(curve.y)[~below] >= 0).all() and below.any() and not below.all()
    assert list(np.sign(np.diff(curve.y))) == [1] * (len(curve.y) - 1) and fig.layout.xaxis.type == "log"
    assert chosen.x[0] == 0.1 and chosen.y[0] == pytest.approx(100 * 0.1 + 2 - 8)
    assert any(shape.x0 == pytest.approx(turn) for shape in fig.layout.shapes)
    (mark,) = fig.layout.annotations
    assert mark.x == pytest.approx(np.log10(turn)) and fig.layout.xaxis.range[0] < mark.x < fig.layout.xaxis.range[1]
    assert fig.layout.title.text == f"If L were 1: certified where λ₂ exceeds {theme.number(turn)}" and "per unit L" in fig.layout.yaxis.title.text
    assert len(charts.slack(row, lambda1=0.005, lambda2=5e-6).data) == 1  # the chosen λ₂ lies far to the left


@pytest.mark.parametrize(
    ("change", "title", "traces"),
    [
        ({"l1": 1e9}, "If L were 1: λ₁ = 0.001 alone certifies the removal", 2),
        ({"frobenius2": 0.0, "l1": 0.0}, "Nothing was removed here", 0),
        ({"budget": None}, "This layer has no figures", 0),
        ({"disjoint": False}, "No inequality here: weights that stay have moved", 0),
        ({"label": "bound"}, "Certified where λ₂ exceeds 0.0760", 1),
    ],
)
def test_slack_of_odd_layers_says_what_is_the_matter(report, change, title, traces):
    row = report.frame("certificate_layers").iloc[1].astype(object)
    for name, value in change.items():
        row[name] = value
    fig = charts.slack(row, lambda1=1e-3, lambda2=1e-4)
    assert fig.layout.title.text == title and len(fig.data) == traces
    assert ("per unit L" in fig.layout.yaxis.title.text) == ("label" not in change)


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_serialises(report, dark):
    rows, summary = report.frame("certificate_layers"), report.frame("certificates")
    for fig in (
        charts.margins(report.frame("certificate_images"), summary, dark=dark), charts.shares(summary, dark=dark),
        charts.layers(rows[rows["stage"] == "healed"], stage="healed", delta=0.1, dark=dark),
        charts.slack(rows.iloc[0], lambda1=0, lambda2=0, dark=dark),
    ):  # fmt: skip
        assert fig.to_json()
