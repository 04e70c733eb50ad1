"""A person's own picture, shown to the dense, the pruned and the healed network of a run: answers, attention, merged tokens.

The picture travels in the row of a job (shown=31 in the link), which is deleted with the run, or at once by a button.
"""

from __future__ import annotations

import base64
import html

import pandas as pd
import streamlit as st

from app import acts, frame, pictures, state, waiting
from app.charts import attention as attention_charts
from app.charts import theme
from app.charts import tokens as token_charts
from starfish_lab import artefacts
from starfish_lab.errors import ImagesError
from starfish_lab.gallery.plan import PicturePlan
from starfish_lab.report import Report
from starfish_lab.store import Run

STYLE = """<style>
.answers {display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .9rem 1.75rem; align-items: start}
.answers figure {margin: 0}
.answers img {width: 100%; max-width: 224px; border-radius: .25rem}
.answers figcaption {font-size: .85rem; opacity: .8; overflow-wrap: anywhere}
.answers table {width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums}
.answers caption {text-align: left; font-weight: 600; padding-bottom: .2rem; caption-side: top}
.answers td {border: 0; padding: .15rem 0; overflow-wrap: anywhere; vertical-align: baseline}
.answers td + td {text-align: right; white-space: nowrap; padding-left: .5rem}
.answers td:first-child {width: 100%}
.answers i {display: block; height: .3rem; border-radius: .15rem}
</style>"""
FEW = 100  # pixels: a picture narrower than that is drawn larger than it is, and smoothing would only blur it
KNOWN = 200  # newest pictures among which those of a run are looked for
HINT = (
    f"It is made {pictures.LONGEST_SENT} pixels at most and travels in the row of a job, without the place and time that the file may hold. "
    "Whoever uses this store can see it. It goes when the run is deleted, or by 'Forget this picture'."
)
CAPTIONS = {
    "attention": "A patch is as violet as its share, on one scale for all. It shows one block, not what decided the answer.",
    "merges": "Patches inside one outline share a token and are shown in their mean colour; parts of a token need not touch. "
    "Whether merging harms takes many images to tell.",
}


def show(run: Run) -> None:
    """Upload, button, and what came of it."""
    content, name = _uploaded()
    if not run.artefact or not artefacts.reachable(run.artefact):
        st.info(
            "The network that this run saved is not within reach of this machine, so a worker may not find it either.", icon=":material/link_off:"
        )
    job = _job(run)
    if job is None and content is None:
        st.markdown("Upload a picture, then show it to the networks of this run: what each answers, and where a transformer looks, will be here.")
    if job is not None and job.active:
        st.fragment(waiting.picture, run_every="1s")(job.id, does="Showing the picture to the networks", height=340)
    elif job is not None and job.status == "done":
        _found(state.store().report(job.id))
    elif job is not None:
        st.error(f"The picture could not be shown: {job.error or job.status}", icon=":material/error:")
    _actions(run, job, content, name)


def _actions(run: Run, job: Run | None, content: bytes | None, name: str) -> None:
    busy = job is not None and job.active
    with frame.actions():
        if job is not None and not busy and acts.button("Forget this picture", type="tertiary", icon=":material/delete:", key="forget_picture"):
            state.store().delete(job.id)
            state.put("shown", None)
            st.rerun()
        idle = content is None or busy or not run.artefact
        pressed = acts.button("Show it to all three", type="primary", icon=":material/image_search:", key="show_picture", disabled=idle)
    if pressed and content is not None:
        plan = PicturePlan(recipe=run.recipe, run=run.id, artefact=run.artefact, file=name, picture=base64.b64encode(content).decode())
        state.put("shown", state.backend().submit(plan, "picture", parent=run.id))
        st.rerun()


def _uploaded() -> tuple[bytes | None, str]:
    """The picture as it will travel, and its name; (None, '') until there is one that can be read."""
    file = st.file_uploader("Picture", type=list(pictures.KINDS), key="gallery_picture", help=HINT)
    if file is None:
        return None, ""
    if st.session_state.get("gallery_kept", (None,))[0] != file.file_id:
        try:
            st.session_state["gallery_kept"] = (file.file_id, pictures.small(file.getvalue(), file.name))
        except ImagesError as error:
            st.error(str(error), icon=":material/broken_image:")
            return None, ""
    return st.session_state["gallery_kept"][1], file.name[:100]


def _job(run: Run) -> Run | None:
    """The picture chosen among those shown to this run, at first the newest; None where there is none."""
    jobs = state.store().runs(kind="picture", limit=KNOWN)
    names = {int(row.id): row.name for row in jobs[jobs["parent"] == run.id].itertuples()}
    asked = state.get("shown", 0)
    if asked and asked not in names:  # of another run, or deleted
        if asked not in set(jobs["id"]):
            st.warning(f"The link asks for picture {asked}, and there is none. It may have been deleted; upload it again.")
        state.put("shown", None)
    if not names:
        return None
    newest = max(names)
    chosen = state.get("shown", newest)
    if len(names) > 1:
        st.selectbox("Shown before", list(names), format_func=lambda job: f"{names[job]} ({job})", width=320, **state.tie_value("shown", newest))
    return state.store().run(chosen)


def _found(report: Report) -> None:
    """Answers side by side, then where the networks look, then which patches merged."""
    (picture,), top5, looks = report.tables["pictures"], report.frame("top5"), report.frame("attention")
    stages = list(dict.fromkeys(top5["stage"]))
    st.markdown(f"**{_story(top5)}**")
    few = ' style="image-rendering:pixelated"' if picture["width"] < FEW else ""
    seen = f'<img{few} src="data:image/png;base64,{picture["png"]}" alt="The picture as the networks see it">'
    figure = f"<figure>{seen}<figcaption>{html.escape(picture['name'])}, as the networks see it</figcaption></figure>"
    st.html(f'{STYLE}<div class="answers">{figure}{"".join(_answers(stage, top5[top5["stage"] == stage]) for stage in stages)}</div>')
    if len(looks):
        fig = attention_charts.maps(picture, looks, dark=frame.dark(), keep=picture["name"])
        frame.chart(fig, key="attention_maps", caption=f"{theme.sentence(looks['how'].iloc[0])}. {CAPTIONS['attention']}", data=looks)
    if report.tables.get("merges"):
        _merges(picture, report.frame("merges"))
    for note in report.frame("notes").get("note", ()):
        st.caption(note)


def _answers(stage: str, rows: pd.DataFrame) -> str:
    """The five best answers of a network, each with its probability as a bar."""
    colour = theme.stage_colour(stage, frame.dark())
    lines = "".join(
        f'<tr><td>{html.escape(name)}<i style="width:{100 * share:.1f}%;background:{colour}"></i></td><td>{theme.percent(share)}</td></tr>'
        for name, share in zip(rows["name"], rows["probability"])
    )
    return f'<table><caption><span style="color:{colour}" aria-hidden="true">{frame.GLYPHS[stage]}</span> {stage}</caption>{lines}</table>'


def _merges(picture: dict[str, object], merges: pd.DataFrame) -> None:
    stages, last = list(dict.fromkeys(merges["stage"])), int(merges["depth"].max())
    stage = state.get("merged_stage", stages[-1], allowed=stages)
    depth = state.get("merged_after", last // 2, allowed=range(last + 1))
    rows = merges[(merges["stage"] == stage) & (merges["depth"] == depth)]

    def controls() -> None:
        st.segmented_control("Network", stages, required=True, **state.tie_value("merged_stage", stages[-1], allowed=stages))
        if last:
            st.slider("After block", 0, last, width=320, **state.tie_value("merged_after", last // 2, allowed=range(last + 1)))

    fig = token_charts.merge_map(picture, rows, dark=frame.dark(), keep=(stage, depth))
    frame.chart(fig, key="own_merges", caption=CAPTIONS["merges"], data=rows, controls=controls)


def _story(top5: pd.DataFrame) -> str:
    """What the networks say, in a sentence."""
    first = top5[top5["rank"] == 1].set_index("stage")["name"]
    if first.nunique() == 1:
        return f"{'All' if len(first) > 2 else 'Both'} networks say {first.iloc[0]}"
    return theme.sentence(", ".join(f"{stage} says {name}" for stage, name in first.items()))
