"""Trade-offs: every finished run of the network on show, accuracy against one cost, and which of them nothing beats."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import basis, frame, launch, profiles, published, results, state
from app import trade_offs_rows as rows
from app.charts import compare, theme
from app.charts import trade_offs as charts
from app.latency_rows import spoken
from starfish_lab import literature, presets, settings
from starfish_lab.errors import LabError
from starfish_lab.store import Run

CAPTION = (
    "Up and to the left is better. **The front**: points that no other run beats in both, none is as accurate for less. "
    "Fainter marks are not resolved from it (95 % intervals overlap), the faintest are beaten. Filled was measured here, hollow was published by "
    "others on their images. Click a mark for its recipe. It does not say that runs differ where intervals overlap."
)
LISTED = 100  # runs to choose from without a pointer
TIMED = (
    "Each network stands at its fastest execution that was timed, in a run or on the page Latency. Times of different runs also differ by what "
    "else their machine was doing: Latency compares executions in turns."
)


def page() -> None:
    profile = profiles.find()
    if profile is not None:
        frame.figures(frame.stage_rows(profile))
    chosen = state.choice()
    store, shelf = state.store(), _shelf(settings.database_url(), chosen.model, chosen.weights)
    runs = shelf.runs(store, chosen.model, chosen.weights)
    runs = runs[runs["path"] == chosen.path] if len(runs) else runs  # of a file: only this file's
    if runs.empty:
        _empty(chosen.model)
        return
    cost = st.segmented_control(
        "Accuracy against", list(compare.COSTS), format_func=lambda name: compare.COSTS[name][0], required=True,
        **state.tie_value("cost", "macs_g", allowed=compare.COSTS),
    )  # fmt: skip
    filters = _filters(runs)
    device, batch, precision, latency = "", 1, "", pd.DataFrame()
    if cost == "latency_ms":
        latency = shelf.latency(store, chosen.model, chosen.weights)
        device, batch, precision = _timed_on(latency, chosen.model)
    seconds = shelf.table(store, "seconds") if cost == "healing_s" else pd.DataFrame()
    left = rows.wanted(runs, **filters)
    found = rows.stages(left, cost=cost, latency=latency, seconds=seconds, device=device, batch=batch, precision=precision)
    points = rows.standing(found)
    hollow = _published(runs, cost, device, batch, filters)
    _chart(left, points, hollow, cost=cost, device=device, batch=batch, precision=precision)
    _panel(left, points, hollow, cost)


def _filters(runs: pd.DataFrame) -> dict[str, object]:
    """What is asked for; every answer stands in the link."""
    sources = list(runs["source"].value_counts().index)
    sizes = sorted(int(size) for size in runs["calibration"].unique())
    if state.get("of_images", sources[0]) not in sources:
        state.put("of_images", None)
    if state.get("cal_most", 0) not in (0, *sizes):
        state.put("cal_most", None)
    known = [name for name in rows.PATTERNS if name in set(runs["pattern"])]
    patterns = tuple(name for name in state.get("of_pattern", ()) if name in rows.PATTERNS)
    if patterns != state.get("of_pattern", ()):
        state.put("of_pattern", patterns)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if len(sources) > 1:
            st.selectbox(
                "Images", sources, width=220, help="Accuracies on other images cannot be compared.", **state.tie_value("of_images", sources[0])
            )
        labels = st.segmented_control(
            "Labels used", ["", *rows.LABELS], format_func=lambda name: rows.LABELS.get(name, "Any"), required=True,
            help="Whether healing, a start that trains, or a score that takes gradients had labels.",
            **state.tie_value("label_use", "", allowed=["", *rows.LABELS]),
        )  # fmt: skip
        tied = state.tie_value("of_pattern", ())
        st.pills("Pattern", list(dict.fromkeys([*known, *patterns])), selection_mode="multi", format_func=rows.PATTERNS.get, **tied)
        st.selectbox("Calibration images", [0, *sizes], format_func=_at_most, width=150, **state.tie_value("cal_most", 0))
        hint = "Of the same network, hollow, each with its source. Where a source does not say what a filter asks for, its row is left out."
        st.toggle("Published figures", help=hint, **state.tie_value("published", False))
    return dict(source=state.get("of_images", sources[0]), labels=labels or "", patterns=patterns, most=state.get("cal_most", 0))


def _at_most(size: int) -> str:
    return f"At most {size:,}" if size else "Any"


def _timed_on(latency: pd.DataFrame, model: str) -> tuple[str, int, str]:
    """Device, batch and precision of the latency axis: those that networks were timed on, then cards of the literature."""
    timed = latency.dropna(subset=["latency_ms_p50"]) if len(latency) else pd.DataFrame({"device_name": [], "batch": [], "precision": []})
    known = literature.latencies()
    known = known[known["model"].isin(published.names(model))]
    devices = list(
        dict.fromkeys([*timed["device_name"].value_counts().index, *(sorted(known["gpu"].unique()) if state.get("published", False) else ())])
    )
    if not devices:
        st.caption("No run of this network was timed yet: leave 'latency' on in a recipe's measures, or go to Latency.")
        return "", 1, ""
    device = state.get("timed_on", devices[0])
    if device not in devices:
        state.put("timed_on", None)
        device = devices[0]
    batches = {*timed.loc[timed["device_name"] == device, "batch"].astype(int), *known.loc[known["gpu"].isin(published.cards(device)), "batch"]}
    batches = sorted(int(size) for size in batches) or [1]
    if state.get("timed_batch", batches[0]) not in batches:
        state.put("timed_batch", None)
    with st.container(horizontal=True):
        st.selectbox("Timed on", devices, width=300, **state.tie_value("timed_on", devices[0]))
        batch = st.selectbox("Batch", batches, width=110, **state.tie_value("timed_batch", batches[0]))
        precisions = list(timed.loc[timed["device_name"].eq(device) & timed["batch"].eq(batch), "precision"].value_counts().index) or [""]
        if state.get("timed_in", precisions[0]) not in precisions:
            state.put("timed_in", None)
        precision = precisions[0]
        if len(precisions) > 1:
            precision = st.selectbox("Precision", precisions, width=130, **state.tie_value("timed_in", precision))
    return device, int(batch), precision


def _published(runs: pd.DataFrame, cost: str, device: str, batch: int, filters: dict[str, object]) -> pd.DataFrame:
    """Rows of the literature on this axis, where they were asked for."""
    none = pd.DataFrame(columns=["label", "cost", "top1", "method", "source", "pattern", "trained"])
    if not state.get("published", False):
        return none
    model = state.choice().model
    if cost == "latency_ms":
        known = literature.latencies()
        of_card = known[known["model"].isin(published.names(model)) & known["gpu"].isin(published.cards(device))]
        found = published.timed_accuracies(of_card, batch)
        found = found.assign(method=found["execution"], pattern="", trained="", index=[f"t{i}" for i in range(len(found))]).set_index("index")
    else:
        found = published.accuracies([model], runs.tail(1), cost=cost)
    found = rows.wanted_published(found, **{name: value for name, value in filters.items() if name != "source"})
    if found.empty:
        st.caption(f"No published figure of {model} has a value on this axis and passes the filters.")
    return found


def _chart(left: pd.DataFrame, points: pd.DataFrame, hollow: pd.DataFrame, *, cost: str, device: str, batch: int, precision: str) -> None:
    if points.empty and hollow.empty:
        st.info("No run that the filters leave has both an accuracy and this cost. Accuracy needs labelled images.")
        return
    point = state.get("point", "")
    marks, dots = rows.drawn(points, int(point) if point.isdecimal() else 0) if len(points) else (points, points)
    named = {run: results.short(left.loc[run].to_dict()) for run in marks["run"].unique()}
    where = f"{device}, {precision}" if precision else device
    axis = f"Latency at batch {batch}, p50, on {where} (ms)" if cost == "latency_ms" else ""
    fig = charts.trade_offs(
        marks, dots, hollow, title=rows.finding(points), cost=cost, labels=named, chosen=point, axis=axis, dark=frame.dark(),
        keep=(cost, device, batch, precision),
    )  # fmt: skip
    more = len(points) - len(marks)
    caption = f"{CAPTION} {TIMED if cost == 'latency_ms' else ''}"
    caption += f" {len(marks)} are drawn with their intervals; dots stand for {more:,} more, all in the table." if more else ""
    clicked = frame.chart(fig, key="trade_offs", select=True, caption=caption, data=points)
    clicked = clicked[0] if isinstance(clicked, list | tuple) and clicked else clicked
    if clicked is not None and str(clicked) != point:
        state.put("point", str(clicked))
        st.rerun()


def _panel(left: pd.DataFrame, points: pd.DataFrame, hollow: pd.DataFrame, cost: str) -> None:
    """The chosen point's recipe: a click on its mark away, or chosen by the keyboard from those that stand on the front or close to it."""
    point = state.get("point", "")
    named = {f"{charts.PUBLISHED}{index}": f"{row['label']}, {row['method']} (published)" for index, row in hollow.iterrows()}
    near = points[points["standing"].ne("beaten") & points["stage"].ne("dense")].sort_values("standing", kind="stable").head(LISTED)
    named = {str(run): results.short(left.loc[run].to_dict()) for run in near["run"]} | named
    if point.isdecimal() and int(point) in left.index:
        named.setdefault(point, results.short(left.loc[int(point)].to_dict()))
    if named:
        options = ["", *named] if point in named or not point else ["", point, *named]
        st.selectbox(
            "Recipe of", options, format_func=lambda name: named.get(name, name[:40] or "None chosen"), width=420, **state.tie_value("point", "")
        )
    if point.startswith(charts.PUBLISHED):
        chosen = hollow[[f"{charts.PUBLISHED}{row}" == point for row in hollow.index]]
        if len(chosen):
            _of_paper(chosen.index[0], chosen.iloc[0], cost)
        return
    if not point:
        return
    if not point.isdecimal() or int(point) not in left.index:
        st.caption(f"The link names the point '{point[:40]}', which is none of the runs that the filters leave.")
        return
    run = state.store().run(int(point))
    recipe = run.recipe
    with st.container(border=True, key="point_panel"):
        st.markdown(f"**{results.short(left.loc[run.id].to_dict())}**")
        st.markdown(_in_words(run))
        for row in points[points["run"] == run.id].sort_values("stage", ascending=False).itertuples():
            interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %, n = {int(row.images)}"
            unit = {"macs_g": "G MACs", "parameters_m": "M parameters", "latency_ms": "ms", "healing_s": "s of healing"}[cost]
            how = f" ({spoken(row.execution)})" if cost == "latency_ms" else ""
            cost_said = f"{theme.number(row.cost, unit)}{how}"
            st.markdown(f"{row.stage.capitalize()}: {100 * row.top1:.1f} % ({interval}) at {cost_said}, {rows.STANDINGS[row.standing]}.")
        with frame.actions():
            if st.button("Open in Explore", icon=":material/tune:", key="point_explore"):
                basis.let_go()
                basis.opened(recipe)
                st.switch_page("views/explore.py")
            if st.button("Clone", icon=":material/content_copy:", key="point_clone", help="Open its recipe in the form, to change and launch."):
                launch.clone(run)
            if st.button("Compare", type="primary", icon=":material/compare_arrows:", key="point_compare", help="Adds it to the runs compared."):
                state.put("runs", tuple(dict.fromkeys([*state.ids("runs"), run.id])))
                st.switch_page("views/compare.py")


def _in_words(run: Run) -> str:
    """The recipe of a run, in sentences."""
    recipe, needed = run.recipe, rows.needs(run.recipe.to_dict())
    pruning = recipe.pruning
    rule = "" if pruning.pattern == "kept" else f", {results.name(pruning.score)} score"
    budget = f", {results.name(pruning.budget)} budget" if pruning.pattern == "unstructured" else ""
    labels = {"with": "Labels were used.", "without": "No labels were used."}[needed["labels"]]
    gone = f"Loses {results.pattern(pruning)}{rule}{budget}."
    return " ".join(filter(None, [gone, results.before(recipe), results.healing(recipe), labels]))


def _of_paper(index: object, row: pd.Series, cost: str) -> None:
    """A published row: who says so, and its recipe where the lab has one."""
    with st.container(border=True, key="point_panel"):
        st.markdown(f"**{row['label']}, {row['method']}** · published, not measured here")
        trained = f" Trained: {row['trained']}." if row["trained"] else ""
        st.markdown(f"{100 * row['top1']:.2f} % at {theme.number(row['cost'])} on this axis.{trained} Source: {row['source']}.")
        key = _preset(index)
        if not key:
            st.caption("The lab has no recipe of this row.")
            return
        with frame.actions():
            if st.button("Open in Explore", icon=":material/tune:", key="point_explore"):
                basis.opened(presets.recipe_of(key), preset=key)
                st.switch_page("views/explore.py")
            if st.button("Clone", type="primary", icon=":material/content_copy:", key="point_clone"):
                launch.open_recipe(presets.recipe_of(key), preset=key)


def _preset(index: object) -> str:
    """The key of the recipe that would measure a row of the literature's table; '' where there is none."""
    table = literature.accuracies()
    if index not in table.index or table.loc[index, "source"] != presets.SOURCE:
        return ""
    place = int((table.loc[:index, "source"] == presets.SOURCE).sum()) - 1  # presets are these rows, in their order
    try:
        key = str(presets.presets()["key"].iloc[place])
        presets.recipe_of(key)
    except LabError:
        return ""
    return key


def _empty(model: str) -> None:
    """What will be here, and the button that brings it."""
    with st.container(border=True):
        st.subheader(f"No finished runs of {model} yet", anchor=False)
        st.markdown("Every finished run stands here by its accuracy and one cost, with the front of those that no other beats.")
        if st.button("Go to Prune & heal", type="primary", icon=":material/healing:", key="first"):
            st.switch_page("views/prune_and_heal.py")


@st.cache_resource(max_entries=8, show_spinner=False)
def _shelf(url: str, model: str, weights: str) -> rows.Shelf:
    return rows.Shelf()


page()
