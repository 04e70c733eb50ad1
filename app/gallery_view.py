"""Images whose answer changed, by what became of it and by class; and what pruning and healing did to each class."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, image_cards, results, state
from app.charts import damage as charts
from app.image_cards import Answer, Card
from starfish_lab import settings
from starfish_lab.gallery.groups import GROUPS, STAGES, images
from starfish_lab.store import Run

ROOM = 24  # cards on a page
ANY = -1
CAPTIONS = {
    "images": "● dense, ✕ pruned, ◆ healed: each network's answer and its own confidence in it; ✓ marks the label's class. "
    "A group says whether an answer changed, not whether it was right: pruning also flips wrong answers.",
    "classes": "A row is a class with the number of its images, what lost most against dense on top; lines are 95 % Wilson intervals. "
    "'Resolved' is McNemar's test on the images of a class, corrected for as many tests as there are classes (Holm): "
    "of few images it resolves only large losses, and what it does not resolve may still be one.",
}
COLUMNS = {
    "name": "Class", "images": "Images", "difference_pp": st.column_config.NumberColumn("Last − dense (pp)", format="%+.1f"),
    "verdict": "Against dense",
    **{stage: st.column_config.NumberColumn(f"{stage.capitalize()}", format="percent") for stage in STAGES},
    "p_value": st.column_config.NumberColumn("p (Holm)", format="%.3g"),
}  # fmt: skip


@st.cache_data(max_entries=4, show_spinner="Reading the run's answers")
def tables(url: str, run_id: int) -> dict[str, pd.DataFrame]:
    """What a finished run kept for the gallery, which never changes: images (a row an image), names, damage, thumbnails. `url` keeps stores apart."""
    store = state.store()
    found = {name: store.table([run_id], name).drop(columns="run", errors="ignore") for name in ("answers", "classes", "class_damage", "thumbnails")}
    found["images"] = images(found.pop("answers"))
    return found


def of(run: Run) -> dict[str, pd.DataFrame]:
    """The tables of a run."""
    return tables(settings.database_url(), run.id)


def show_images(run: Run, found: dict[str, pd.DataFrame]) -> None:
    """The cards of one group, a page at a time."""
    every, names = found["images"], _names(found)
    counts = every["group"].value_counts()
    st.markdown(f"**{_story(counts, 'healed' in every)}**")
    there = [group for group in GROUPS if group in counts and group != "kept"]
    if there:
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            group = st.segmented_control(
                "What became of the answer", there, format_func=lambda group: f"{GROUPS[group]} ({counts[group]:,})", required=True,
                **state.tie_value("became", there[0], allowed=there),
            )  # fmt: skip
            of_group = every[every["group"] == (group or there[0])]
            chosen = _of_class(of_group, names)
        _cards(of_group if chosen == ANY else of_group[of_group["label"] == chosen], found["thumbnails"], names)
        st.caption(CAPTIONS["images"])
    details = st.expander("Every image", on_change="rerun", key="every_image")
    if details.open:
        with details:
            frame.table(_readable(every, names), key=f"run_{run.id}_answers", height=400)


def show_classes(run: Run, found: dict[str, pd.DataFrame]) -> None:
    """Accuracy of each class, and all classes as a table."""
    damage = found["class_damage"]
    damage = damage.assign(name=damage["label"].map(_names(found)))
    fig = charts.by_class(damage, dark=frame.dark(), keep=run.id)
    more = f" The worst {charts.MOST} of {len(damage)} classes are drawn; all are below." if len(damage) > charts.MOST else ""
    frame.chart(fig, key=f"run_{run.id}_classes", caption=CAPTIONS["classes"] + more, data=charts.worst_first(damage))
    unresolved = damage[~damage["resolved"].astype(bool)]
    if len(unresolved):
        low, high = int(unresolved["images"].min()), int(unresolved["images"].max())
        n = f"n = {low}" if low == high else f"n = {low} to {high}"
        st.markdown(f"{len(unresolved)} of {len(damage)} classes: not resolved from dense ({n}).")
    details = st.expander("Every class", on_change="rerun", key="every_class")
    if details.open:
        with details:
            frame.table(charts.worst_first(damage), key=f"run_{run.id}_damage", column_config=COLUMNS, column_order=list(COLUMNS))


def _names(found: dict[str, pd.DataFrame]) -> dict[int, str]:
    return dict(zip(found["classes"]["place"], found["classes"]["name"]))


def _story(counts: pd.Series, healed: bool) -> str:
    """What happened to the answers, in a sentence.

    >>> _story(pd.Series({"kept": 90, "back": 8, "never": 2}), True)
    'Pruning flipped 10 of 100 answers; healing brought 8 of them back and broke 0 others.'
    """
    total, n = int(counts.sum()), {group: int(counts.get(group, 0)) for group in GROUPS}
    flipped = n["back"] + n["never"] + n["flipped"]
    if not healed:
        return f"Pruning flipped {flipped:,} of {total:,} answers; this run was not healed."
    broken = results.count(n["broken"], "other")
    return f"Pruning flipped {flipped:,} of {total:,} answers; healing brought {n['back']:,} of them back and broke {broken}."


def _of_class(of_group: pd.DataFrame, names: dict[int, str]) -> int:
    """The class chosen among those of the group's images, or ANY."""
    counts = of_group["label"].value_counts().sort_index()
    options = [ANY, *(int(label) for label in counts.index)]
    asked = state.get("of_class", ANY)
    if asked not in options:  # of another group or run
        state.put("of_class", None)
    return st.selectbox(
        "Class", options, width=260, **state.tie_value("of_class", ANY),
        format_func=lambda label: "All classes" if label == ANY else f"{names.get(label, f'class {label}')} ({counts.get(label, 0):,})",
    )  # fmt: skip


def _cards(chosen: pd.DataFrame, thumbnails: pd.DataFrame, names: dict[int, str]) -> None:
    kept = dict(zip(thumbnails.get("image", ()), thumbnails.get("jpeg", ())))
    shown = chosen[chosen["image"].isin(kept)]
    if shown.empty:
        st.info("No image of this choice was kept as a picture. Every image is listed below.", icon=":material/hide_image:")
        return
    pages = -(-len(shown) // ROOM)
    page = min(max(state.get("gallery_page", 1), 1), pages)
    state.put("gallery_page", page, default=1)
    files = dict(zip(thumbnails["image"], thumbnails["name"]))
    rows = shown.iloc[(page - 1) * ROOM : page * ROOM].to_dict("records")
    image_cards.draw(_card(row, files[row["image"]], kept[row["image"]], names) for row in rows)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if pages > 1:
            st.number_input(f"Page of {pages}", 1, pages, width=140, **state.tie_value("gallery_page", 1))
        if len(shown) < len(chosen):
            st.caption(f"{len(shown):,} of these {len(chosen):,} images were kept as pictures, by turns of group and class; all are listed below.")


def _card(row: dict[str, object], file: str, jpeg: str, names: dict[int, str]) -> Card:
    answers = tuple(
        Answer(stage, stage, names.get(row[stage], f"class {row[stage]}"), row[f"{stage}_confidence"], row[stage] == row["label"])
        for stage in STAGES if stage in row
    )  # fmt: skip
    return Card(file, names.get(row["label"], f"class {row['label']}"), jpeg, answers)


def _readable(every: pd.DataFrame, names: dict[int, str]) -> pd.DataFrame:
    """The images with classes by name."""
    columns = {stage: every[stage].map(names) for stage in STAGES if stage in every}
    table = every.assign(label=every["label"].map(names), group=every["group"].map(GROUPS), **columns)
    return table.rename(columns=lambda name: name.replace("_", " ").capitalize())
