"""Charts of spectra and budgets, trace by trace, against what went in."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from app.charts import budget, spectra, spectra_grid, theme
from starfish_lab.spectra.fit import MarchenkoPastur


def matrix_row(
    layer: str, part: str = "", *, depth: int = 0, shape: tuple[int, int] = (96, 192), spikes: int = 0, seed: int = 0, heavy: bool = False
) -> dict:
    """A row as `spectra_table` makes it, of Gaussian noise (or a heavy tail) with planted spikes, made with NumPy alone."""
    rng = np.random.default_rng(seed)
    weight = 0.05 * (rng.standard_t(1.2, shape) if heavy else rng.standard_normal(shape))
    for i in range(spikes):
        weight += (2 + i) * np.outer(rng.standard_normal(shape[0]) / shape[0] ** 0.5, rng.standard_normal(shape[1]) / shape[1] ** 0.5)
    singular, n = np.linalg.svd(weight, compute_uv=False), max(shape)
    fit = MarchenkoPastur().fit(singular**2 / n, shape=shape)
    edges = np.geomspace(singular.min() ** 2 / n * 0.999, singular.max() ** 2 / n * 1.001, 31)
    return {
        "layer": layer, "part": part, "block": f"blocks.{depth}" if depth >= 0 else "", "depth": depth,
        "kind": "attention" if "attn" in layer else "mlp",
        "rows": shape[0], "cols": shape[1], "gamma": min(shape) / n, "sigma": fit.sigma_, "sigma_plus": fit.edge_, "lower_edge": fit.lower_edge_,
        "fit_error": fit.fit_error_, "bulk_fraction": fit.bulk_fraction_, "spikes": len(fit.spikes_), "spike_energy": fit.spike_energy_,
        "stable_rank": float((singular**2).sum() / singular[0] ** 2), "hill_alpha": 2.0, "top": float(singular[0]), "applies": fit.applies_,
        "verdict": fit.verdict_, "bin_edges": edges.tolist(), "counts": np.histogram(singular**2 / n, edges)[0].tolist(),
        "spike_values": (fit.spikes_**2 / n).tolist(),
    }  # fmt: skip


def table(depth: int = 3, roles: tuple[str, ...] = ("q", "fc1")) -> pd.DataFrame:
    layers = {"q": ("attn.qkv", "q"), "k": ("attn.qkv", "k"), "fc1": ("mlp.fc1", ""), "fc2": ("mlp.fc2", "")}
    rows = [
        matrix_row(f"blocks.{d}.{layers[r][0]}", layers[r][1], depth=d, spikes=d, seed=10 * d + i, shape=(32, 64))
        for d in range(depth)
        for i, r in enumerate(roles)
    ]
    return pd.DataFrame([*rows, matrix_row("head", depth=-1, shape=(10, 64))])


def traces(fig, kind: str) -> list:
    return [trace for trace in fig.data if trace.type == kind]


@pytest.mark.parametrize("spikes", [0, 3])
def test_density_holds_all_eigenvalues_of_the_bulk(spikes):
    row = pd.Series(matrix_row("blocks.0.mlp.fc1", spikes=spikes))
    x, counts_a_bin = spectra.density(row, points=4000)
    step = np.log(row["bin_edges"][1] / row["bin_edges"][0])
    # bins are even in ln λ, so the eigenvalues under the line are the integral of counts a bin over ln λ / step
    assert np.trapezoid(counts_a_bin / step, np.log(x)) == pytest.approx(96 - spikes, rel=0.01)


def test_enlarged_spectrum_shows_histogram_bulk_edge_and_every_spike():
    row = pd.Series(matrix_row("blocks.4.mlp.fc1", depth=4, spikes=3))
    fig = spectra.spectrum(row)
    (bars,) = traces(fig, "bar")
    assert sum(bars.y) == 96 == min(row["rows"], row["cols"])
    assert np.allclose(np.array(bars.x) - np.array(bars.width) / 2, row["bin_edges"][:-1])
    line, diamonds = traces(fig, "scatter")
    assert list(diamonds.x) == row["spike_values"] and len(diamonds.x) == 3 and diamonds.marker.symbol == "diamond"
    edge = row["sigma_plus"] ** 2 / 192
    assert any(shape.type == "line" and shape.x0 == pytest.approx(edge) for shape in fig.layout.shapes)
    assert any(shape.type == "rect" and shape.x1 == pytest.approx(edge) for shape in fig.layout.shapes), "the bulk is shaded up to its edge"
    assert any("edge σ₊" in note.text for note in fig.layout.annotations)
    assert fig.layout.xaxis.type == "log" and "fc1, block 4: 3 spikes" in fig.layout.title.text
    assert line.line.dash == "solid" and 0.9 * edge < max(line.x) < 1.1 * edge


def test_a_layer_that_is_no_bulk_says_so():
    row = pd.Series(matrix_row("blocks.1.attn.proj", depth=1, heavy=True))
    assert not row["applies"], row["verdict"]
    fig = spectra.spectrum(row)
    assert fig.layout.title.text == "MP does not describe proj, block 1"
    assert traces(fig, "scatter")[0].line.dash == "dot"
    small = spectra_grid.grid(pd.DataFrame([row]))
    assert any("×" in text for text in next(trace.text for trace in small.data if trace.mode == "text"))


def test_a_matrix_of_zeros_is_drawn_as_its_verdict():
    row = pd.Series(
        matrix_row("blocks.0.mlp.fc1") | {"bin_edges": [], "counts": [], "spike_values": [], "sigma": 0.0, "sigma_plus": None, "verdict": "zeros"}
    )
    assert [note.text for note in spectra.spectrum(row).layout.annotations] == ["zeros"]
    assert len(spectra_grid.grid(pd.DataFrame([row])).data) == 0


def test_control_is_drawn_only_where_asked_for_and_known():
    row = pd.Series(matrix_row("blocks.0.mlp.fc1"))
    known = pd.concat([row, pd.Series({"control_counts": row["counts"]})])
    assert len(spectra.spectrum(known, control=True).data) == len(spectra.spectrum(known).data) + 1
    assert len(spectra.spectrum(row, control=True).data) == len(spectra.spectrum(row).data)


def test_grid_has_a_panel_a_matrix_in_one_figure_without_webgl():
    rows = table()
    fig = spectra_grid.grid(rows, selected=("blocks.1.mlp.fc1", ""))
    (bars,) = traces(fig, "bar")
    assert [tuple(key) for key in bars.customdata] == [(f"blocks.{d}.attn.qkv", "q") for d in range(3)] + [
        (f"blocks.{d}.mlp.fc1", "") for d in range(3)
    ]
    assert {trace.type for trace in fig.data} == {"bar", "scatter"}, "and no WebGL"
    assert len(set(zip(bars.x, bars.base))) == 6 and len(fig.data) <= 9, "a trace of a kind, not of a panel"
    labels = next(trace.text for trace in fig.data if trace.mode == "text")
    assert [text.startswith("<b>") for text in labels] == [False] * 4 + [True, False] and "fc1 1" in labels[4]
    # λ in units of the edge: it stands at the same place in every panel
    edges = next(np.array(t.x, float) for t in traces(fig, "scatter") if t.line.width == 1)
    assert np.allclose(edges[~np.isnan(edges)] % 1, edges[0])


def test_a_panel_holds_its_histogram_to_scale():
    row = table().iloc[[0]]
    (area,) = (trace for trace in traces(spectra_grid.grid(row), "scatter") if trace.fill == "toself")
    counts = np.array(row["counts"].iloc[0], float)
    heights = np.array(area.y)[1:-1:2] + 1
    top = max([*counts, *spectra.density(row.iloc[0], 40)[1]])
    assert np.allclose(heights, spectra_grid.HIGH * counts / top) and np.allclose(np.array(area.y)[[0, -1]], -1)


def test_grid_never_shows_more_than_48_panels_and_says_how_many_there_are():
    rows = pd.concat([table(1, ("fc1",)).head(1).assign(layer=f"blocks.{d}.mlp.fc1", depth=d) for d in range(60)])
    fig = spectra_grid.grid(rows)
    assert len(traces(fig, "bar")[0].x) == 48
    assert fig.layout.title.text.startswith("48 of 60 matrices")


def test_heat_map_has_roles_by_depth_and_crosses():
    rows = table()
    rows.loc[rows["layer"] == "blocks.2.mlp.fc1", "applies"] = False
    fig = spectra.heatmap(rows, "spikes")
    (heat,), (figures,) = traces(fig, "heatmap"), traces(fig, "scatter")
    assert list(heat.y) == ["q", "fc1"] and list(heat.x) == [0, 1, 2]
    inside = rows[rows["depth"] >= 0].assign(role=lambda t: ["q" if p else "fc1" for p in t["part"]])
    expected = inside.set_index(["role", "depth"])["spikes"]
    assert all(heat.z[i][d] == expected[(role, d)] for i, role in enumerate(heat.y) for d in range(3))
    words = dict(zip(zip(figures.y, figures.x), figures.text))
    assert words["fc1", 2].endswith("×") and not words["fc1", 1].endswith("×")
    assert list(heat.customdata[0][1])[:2] == ["blocks.1.attn.qkv", "q"]


@pytest.mark.parametrize("value", spectra.VALUES)
def test_heat_map_of_every_value_starts_at_zero_and_its_title_names_the_largest(value):
    rows = table()
    fig = spectra.heatmap(rows, value)
    inside = rows[rows["depth"] >= 0]
    assert fig.data[0].zmin == 0
    assert spectra.name(inside.loc[inside[value].idxmax()]) in fig.layout.title.text


def layers(shares: dict[str, float]) -> pd.DataFrame:
    rows = []
    for depth in range(2):
        for name, share in shares.items():
            weights = 1000 * (1 + len(rows))
            kind = "attention" if "attn" in name else "mlp"
            rows.append({
                "layer": f"blocks.{depth}.{name}", "block": f"blocks.{depth}", "depth": depth, "kind": kind, "weights": weights,
                "removed": round(share * weights), "sparsity": share, "note": "",
                "macs_g": weights / 1e6, "macs_g_effective": weights * (1 - share) / 1e6,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_budget_stacks_what_goes_and_what_stays_on_the_shared_axis():
    data = layers({"attn.qkv": 0.5, "mlp.fc1": 0.5})
    fig = budget.budget(data, selected="blocks.1.attn.qkv")
    attention, mlp, stays = fig.data
    assert list(attention.x) == [0, 2] and list(mlp.x) == [1, 3] and list(stays.x) == [0, 1, 2, 3]
    assert list(attention.y) == list(data["removed"])[::2] and list(mlp.customdata) == list(data["layer"])[1::2]
    heights = np.array(stays.y) + np.array([attention.y[0], mlp.y[0], attention.y[1], mlp.y[1]])
    assert list(heights) == list(data["weights"]) and fig.layout.barmode == "stack"
    hues = [bars.marker.color.rpartition(",")[0] for bars in (attention, mlp)]
    assert hues[0] == hues[1] and attention.marker.color != mlp.marker.color, "one hue, two depths"
    assert [shape.x0 for shape in fig.layout.shapes if shape.type == "line"] == [1.5], "a faint line between the two blocks"
    (outline,) = [shape for shape in fig.layout.shapes if shape.type == "rect"]
    assert (outline.x0 + outline.x1) / 2 == 2 and outline.y1 == 3000
    assert list(fig.layout.xaxis.ticktext) == ["0", "1"]
    assert fig.layout.title.text == "Every layer loses 50.0 %"


def test_budget_titles_are_findings():
    uneven = layers({"attn.qkv": 0.5, "mlp.fc1": 0.5})
    uneven.loc[uneven["depth"] == 1, "removed"] = 0
    assert budget.finding(uneven) == "Block 0 loses most (50.0 %), block 1 least (0.0 %)"
    assert budget.finding(layers({"attn.qkv": 0.25, "mlp.fc1": 0.5})) != budget.finding(layers({"attn.qkv": 0.5, "mlp.fc1": 0.25}))
    assert budget.finding(layers({"attn.qkv": 0.0, "mlp.fc1": 0.0})) == "Nothing is removed"


def test_layers_left_dense_are_marked_with_their_reason():
    data = layers({"attn.qkv": 0.5, "mlp.fc1": 0.0})
    data.loc[data["layer"].str.contains("fc1"), "note"] = "6 inputs are no multiple of 4"
    fig = budget.budget(data, measure="share")
    (mark,) = traces(fig, "scatter")
    assert list(mark.customdata) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"] and set(mark.hovertext) == {"6 inputs are no multiple of 4"}
    assert fig.layout.title.text == "Every layer the pattern fits loses 50.0 %"


def test_an_estimate_is_hatched_and_says_its_rule():
    data = layers({"attn.qkv": 0.5, "mlp.fc1": 0.5})
    estimate, exact = budget.budget(data, rule="from quantiles"), budget.budget(data)
    assert estimate.data[0].marker.pattern.shape == "/" and "from quantiles" in estimate.data[0].hovertext[0]
    assert exact.data[0].marker.pattern.shape is None and "estimate" not in exact.data[0].hovertext[0]


@pytest.mark.parametrize("dark", [False, True])
def test_stages_stay_apart_for_colour_blind_eyes(dark):
    """Deuteranopia after Machado et al. 2009, severity 1; distances in CIELAB, where 10 is plainly visible side by side."""
    deuteranope = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])

    def lab(colour: str) -> np.ndarray:
        srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.clip(deuteranope @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / np.array([0.9505, 1, 1.089])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = [lab(theme.stage_colour(stage, dark)) for stage in theme.STAGES]
    assert min(np.linalg.norm(colours[i] - colours[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 15
    assert len(set(theme.STAGE_SYMBOLS.values())) == 3


def test_figures_are_plain_json_with_titles_and_one_template():
    for fig in (spectra_grid.grid(table()), spectra.heatmap(table()), budget.budget(layers({"attn.qkv": 0.5})), spectra.spectrum(table().iloc[0])):
        loaded = json.loads(fig.to_json())
        assert loaded["layout"]["title"]["text"] and loaded["layout"]["template"]["layout"]["font"]["family"] == theme.FONT
        assert isinstance(loaded["layout"]["uirevision"], str)
