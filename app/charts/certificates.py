"""Charts of certificates: which labels provably stay, what each layer's removal moves, and when a penalty pays for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from starfish_lab import certificate_bounds as bounds

# How sure it is that a label stays, from the summary row: certified, the rest of those that stay, changed.
OUTCOMES = ("provably kept", "kept, not certified", "changed")
OPACITY = {"provably kept": 1.0, "kept, not certified": 0.4, "changed": 0.0}


def margins(images: pd.DataFrame, summary: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Each image's margin in the dense network against twice the largest change of a logit; above the diagonal the label is certain.

    `images` has the columns stage, image, margin, eta, flipped; `summary` those of a report's table certificates.
    """
    fig = theme.figure(
        finding(summary), dark=dark, height=400, x="Twice the largest change of a logit, 2η", y="Margin between the two best classes", keep=keep
    )
    shown = images.assign(reach=2 * images["eta"].astype(float)).dropna(subset=["margin", "reach"]) if len(images) else images
    if shown.empty:
        return fig
    width, height = (1.05 * max(float(shown[name].max()), 1e-9) for name in ("reach", "margin"))
    corner = max(width, height)
    fig.add_scatter(
        x=[0, 0, corner], y=[0, corner, corner], mode="none", fill="toself", fillcolor=theme.tint(theme.stage_colour("dense", dark), 0.12),
        name="label certain", hoverinfo="skip",
    )  # fmt: skip
    line = {"color": theme.ink(dark, quiet=True), "width": 1}
    fig.add_scatter(x=[0, corner], y=[0, corner], mode="lines", line=line, name="margin = 2η", hoverinfo="skip", showlegend=False)
    for stage in theme.STAGES[1:]:
        rows = shown[shown["stage"] == stage]
        if len(rows):
            small = theme.marker(stage, dark=dark, size=7) | {"opacity": 0.65, "line": {"width": 0}}
            fig.add_scatter(
                x=rows["reach"], y=rows["margin"], mode="markers", name=stage, marker=small, cliponaxis=False,
                customdata=rows[["image"]].to_numpy(),
                hovertemplate=f"image %{{customdata[0]}}, {stage}<br>margin %{{y:.3g}}, 2η %{{x:.3g}}<extra></extra>",
            )  # fmt: skip
    flipped = shown[shown["flipped"].astype(bool)]
    if len(flipped):
        fig.add_scatter(
            x=flipped["reach"], y=flipped["margin"], mode="markers", name="label changed", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 12, "color": theme.ink(dark, quiet=True), "line": {"width": 1}},
        )  # fmt: skip
    fig.update_xaxes(range=[0, width])
    fig.update_yaxes(range=[0, height])
    return fig.update_layout(hovermode="closest")


def finding(summary: pd.DataFrame) -> str:
    """The certificate of the whole network in words, healed where there is a healed one."""
    network = summary[summary["scope"] == "network"].set_index("stage") if len(summary) else summary
    shares = network["certified_share"] if len(network) else {}
    if "pruned" in shares and "healed" in shares:
        return theme.sentence(f"{_share(shares['pruned'])} of images provably keep their label pruned, {_share(shares['healed'])} healed")
    for stage in ("healed", "pruned"):
        if stage in shares:
            return theme.sentence(f"{_share(shares[stage])} of images provably keep their label")
    return "Which images provably keep their label?"


def shares(summary: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """A bar a stage, and one for the head alone: labels provably kept, kept though not certified, changed. Columns as in the table certificates."""
    fig = theme.figure(_shares_title(summary), dark=dark, height=150 + 42 * max(1, len(summary)), x="Share of images (%)", keep=keep)
    if summary.empty:
        return fig
    heads = ["Head alone, what if" if what.startswith("what if") else "Head alone" for what in summary["what"]]
    stages = summary["stage"].str.capitalize()
    names = [stage if scope == "network" else f"{stage}: {head}" for stage, scope, head in zip(stages, summary["scope"], heads)]
    certified = summary["certified"] / summary["images"]
    changed = summary["changed"] / summary["images"]
    parts = dict(zip(OUTCOMES, (certified, 1 - certified - changed + summary["flipped"] / summary["images"], changed)))
    for outcome, values in parts.items():
        ink = {} if OPACITY[outcome] == 1 else {"color": theme.ink(dark)}  # on a full colour Plotly finds the contrast itself
        colours = [theme.stage_colour(stage, dark) for stage in summary["stage"]]
        fig.add_bar(
            x=100 * values, y=names, orientation="h", name=outcome, text=[_share(v) if v >= 0.05 else "" for v in values],
            textposition="inside", insidetextanchor="middle", customdata=summary[["what", "images"]].to_numpy(),
            marker={"color": [theme.tint(c, OPACITY[outcome]) for c in colours], "line": {"color": colours, "width": 1}},
            textfont={"size": 12, **ink},
            hovertemplate=f"%{{customdata[0]}}<br>{outcome}: %{{x:.1f}} % of %{{customdata[1]}} images<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(range=[0, 100.5])
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return theme.legend_below(fig.update_layout(barmode="stack", legend_traceorder="normal"))


def _shares_title(summary: pd.DataFrame) -> str:
    network = summary[summary["scope"] == "network"] if len(summary) else summary
    if network.empty:
        return "How many labels stay?"
    last = network.iloc[-1]
    return theme.sentence(f"{_share(1 - last['changed'] / last['images'])} keep their label, {_share(last['certified_share'])} provably")


def layers(rows: pd.DataFrame, *, stage: str, delta: float, dark: bool = False, keep: object = True) -> go.Figure:
    """Over depth: the change ‖Rψ₁‖_∞ of each layer's output, mean over images with the maximum above it, and the bound for Gaussian noise, dashed.

    `rows` are those of one stage of the table certificate_layers, in depth order; `delta` is the probability that the bound fails.
    """
    rows = rows.reset_index(drop=True)
    fig = theme.figure(_layers_title(rows), dark=dark, height=360, y="Largest change of an output, ‖Rψ₁‖<sub>∞</sub>", keep=(keep, stage))
    if rows.empty:
        return fig
    places = theme.layer_axis(fig, rows, dark=dark)
    x = rows["layer"].map(places)
    figures = rows[["mean_change", "max_change"]].astype(float)
    noise = bounds.gaussian_budget(rows["sigma"], rows["rows"], rows["images"], rows["mean_norm"], delta, positions=rows["positions"]) / 2
    fig.add_scatter(
        x=x, y=noise, mode="lines+markers", name=f"holds with {100 * (1 - delta):.3g} % if R were noise as in the bulk",
        line={"color": theme.ink(dark, quiet=True), "width": 1.5, "dash": theme.ORIGIN_DASH["estimate"]},
        marker={"symbol": "circle-open", "size": 5}, customdata=rows["layer"],
        hovertemplate="%{customdata}<br>%{y:.3g} for Gaussian noise with the layer's σ<extra></extra>",
    )  # fmt: skip
    for kind, name in theme.KIND_NAMES.items():
        of_kind = rows["kind"].eq(kind).to_numpy()
        if not of_kind.any():
            continue
        colour = theme.tint(theme.stage_colour(stage, dark), theme.KIND_OPACITY[kind])
        fig.add_scatter(
            x=x[of_kind], y=figures["mean_change"][of_kind], mode="markers", name=name, customdata=rows.loc[of_kind, ["layer", "label"]].to_numpy(),
            marker=theme.marker(stage, dark=dark, size=8) | {"color": colour, "line": {"color": colour, "width": 1.5}},
            error_y={"array": (figures["max_change"] - figures["mean_change"])[of_kind], "arrayminus": np.zeros(of_kind.sum()),
                     "thickness": 1, "width": 3, "color": colour},
            hovertemplate="<b>%{customdata[0]}</b><br>mean %{y:.3g}, maximum %{error_y.array:.3g} above it<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
    return theme.legend_below(fig.update_yaxes(rangemode="tozero"))


def _layers_title(rows: pd.DataFrame) -> str:
    means = rows.set_index("layer")["mean_change"].astype(float).dropna() if len(rows) else pd.Series(dtype=float)
    if means.empty or means.max() == 0:
        return "What does pruning change in each layer?"
    return f"{means.idxmax()} changes its output most: by {theme.number(means.max())}"


def slack(row: pd.Series, *, lambda1: float, lambda2: float, dark: bool = False, keep: object = True) -> go.Figure:
    """How much the objective falls at least when one layer's R goes, against λ₂ at the given λ₁; the change of sign is marked.

    `row` is one of the table certificate_layers. The point is the chosen λ₂, where it lies within the chart.
    """
    budget, frobenius2, l1 = (float(row[name]) if row[name] is not None else np.nan for name in ("budget", "frobenius2", "l1"))
    turn = float(bounds.smallest_lambda2(budget, frobenius2, l1, lambda1))
    unit = "" if row["label"] == bounds.BOUND else ", per unit L"
    fig = theme.figure(_slack_title(row, turn, lambda1), dark=dark, height=360, x="λ₂, log scale", y=f"Slack (nats{unit})", keep=(keep, row["layer"]))
    if not row["disjoint"] or not np.isfinite(turn):
        return fig
    centre = turn or max(lambda2, 1e-9)
    grid = np.geomspace(centre / 100, centre * 3, 120)
    values = bounds.elastic_net_slack(budget, frobenius2, l1, lambda1, grid)
    colour, quiet = theme.stage_colour(row["stage"], dark), theme.ink(dark, quiet=True)
    fig.add_scatter(
        x=grid, y=values, mode="lines", line={"color": colour, "width": 2}, name="slack", showlegend=False,
        hovertemplate="λ₂ %{x:.3g}<br>slack %{y:.3g}<extra></extra>",
    )  # fmt: skip
    fig.add_hline(y=0, line={"color": quiet, "width": 1})
    if turn > 0:
        fig.add_vline(x=turn, line={"color": quiet, "width": 1})
        fig.add_annotation(  # on a log axis Plotly wants the exponent here, and the value itself for a line
            x=np.log10(turn), y=1, yref="paper", xanchor="right", yanchor="top", text=f"λ₂ = {theme.number(turn)}", showarrow=False,
            font={"size": 12, "color": quiet},
        )  # fmt: skip
    if grid[0] <= lambda2 <= grid[-1]:
        fig.add_scatter(
            x=[lambda2], y=[float(bounds.elastic_net_slack(budget, frobenius2, l1, lambda1, lambda2))], mode="markers", name="chosen λ₂",
            marker=theme.marker(row["stage"], dark=dark, size=11), cliponaxis=False, showlegend=False,
            hovertemplate="chosen λ₂ %{x:.3g}<br>slack %{y:.3g}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(type="log", exponentformat="power", range=np.log10(grid[[0, -1]]).tolist())
    return fig.update_layout(margin_t=48)


def _slack_title(row: pd.Series, turn: float, lambda1: float) -> str:
    if not row["disjoint"]:
        return "No inequality here: weights that stay have moved"
    if np.isnan(turn):
        return "This layer has no figures"
    if np.isinf(turn):
        return "Nothing was removed here"
    found = f"λ₁ = {lambda1:.3g} alone certifies the removal" if turn == 0 else f"certified where λ₂ exceeds {theme.number(turn)}"
    return theme.sentence(found if row["label"] == bounds.BOUND else f"if L were 1: {found}")


def _share(fraction: float) -> str:
    """A share in whole percent; what is nearly none or nearly all says so."""
    percent = 100 * fraction
    if 0 < percent < 1:
        return "under 1 %"
    if 99 < percent < 100:
        return "over 99 %"
    return f"{percent:.0f} %"
