"""Tokens: which patches of a picture become one token, block by block, and what the network makes of the rest."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from app import acts, basis, frame, merging, pictures, state, waiting
from app.charts import theme
from app.charts import tokens as charts
from starfish_lab import ledger, settings
from starfish_lab.errors import ImagesError, LabError
from starfish_lab.recipe import ImagesChoice, Recipe, TokensChoice
from starfish_lab.report import Report
from starfish_lab.store import Run
from starfish_lab.whatif import Profile

WHOSE = {"source": "From the chosen images", "own": "My own"}
KNOWN = 200  # newest mergings among which the present one is looked for
MAP = (
    "Patches inside one outline share a token and are shown in their mean colour; parts of a token need not touch, so hover to read how many patches "
    "it holds. The picture does not say whether the network still answers right: that takes many images, under Prune & heal."
)
DEPTH = (
    "Upper marks are tokens left after a block, class token included; bars are what the block saves, its MLP working on the tokens left. "
    "The cosines that merging itself computes are left out, and fewer multiply-adds are not yet fewer milliseconds."
)


def page() -> None:
    profile = frame.profile()
    frame.figures(frame.stage_rows(profile))
    work = ledger.work_of(profile)
    if not work.tokens:
        _cannot(profile)
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        most = (work.tokens - work.prefix) // 2
        st.number_input("Tokens merged in every block (r)", 0, 1024, width=220, help=_hint(work, most), **state.tie("merge"))
        tied = state.tie_value("pictures", "source", allowed=list(WHOSE))
        st.segmented_control("Pictures", list(WHOSE), format_func=WHOSE.get, required=True, **tied)
    recipe = _recipe()
    r = recipe.tokens.r if recipe else _tokens().r
    run = _latest(recipe) if recipe else None
    report = _report(settings.database_url(), run.id) if run and run.status == "done" else None
    if report is not None:
        _shown(report)
    elif run is not None and run.active:
        st.fragment(waiting.picture, run_every="1s")(run.id, does="Showing pictures to the network", height=380)
    else:
        _empty(r, work, failed=run)
    with frame.actions():
        pressed = acts.button(
            "Merge tokens", type="primary", icon=":material/grid_view:", key="merge_tokens",
            disabled=recipe is None or not any(r) or report is not None or (run is not None and run.active),
            help="A worker shows a few pictures to the network and writes down which patches share a token.",
        )  # fmt: skip
    if pressed and recipe is not None:
        state.backend().submit(recipe, "merging")
        st.rerun()
    _over_depth(profile, work, TokensChoice(r=r), report)


def _cannot(profile: Profile) -> None:
    with st.container(border=True):
        st.subheader("This network has no tokens to merge", anchor=False)
        st.markdown(
            f"{profile.facts['name']} keeps its features on a grid, where none can go without leaving a hole. Merging is for plain vision "
            "transformers, vit_* and deit_*, whose tokens stand in a row. Choose one in the sidebar."
        )


def _hint(work: ledger.Work, most: int) -> str:
    return (
        f"{work.tokens} tokens enter the network, {work.prefix} of them no patches. A block can merge every second one, {most} at first; "
        "later blocks fewer, as tokens run out. The paper of 2:4 with merging takes 8 of ViT-B's 197."
    )


def _tokens() -> TokensChoice:
    merge = state.choice().merge
    return TokensChoice(r=(merge,) if merge else ())


def _recipe() -> Recipe | None:
    """The merging that the page describes, with nothing in it that does not matter here; None where a picture is yet to come."""
    own, chosen = state.get("pictures", "source") == "own", state.choice()
    if own:
        chosen = replace(chosen, images="starter", images_path="", images_csv="")
    known = merging.merged(basis.base(), state.recipe(chosen))
    if own:
        place = _own_picture()
        if place is None:
            return None
        images = ImagesChoice(source="folder", path=place)
    else:
        i = known.images
        images = ImagesChoice(
            source=i.source, path=i.path, csv=i.csv, file_column=i.file_column, label_column=i.label_column, order=i.order, seed=i.seed
        )
    return Recipe(model=known.model, images=images, tokens=known.tokens, device=known.device)


def _own_picture() -> str | None:
    """Where the uploaded picture lies, or None until there is one. It is kept in the lab's folder, its number in the address bar."""
    hint = f"It is made {pictures.LONGEST_SIDE} pixels at most, kept in the lab's folder on this machine, and seen by its workers alone."
    file = st.file_uploader("Picture", type=list(pictures.KINDS), key="own_picture", help=hint)
    if file is not None and st.session_state.get("kept_picture") != file.file_id:
        try:
            state.put("picture", pictures.keep(file.getvalue(), file.name))
        except ImagesError as error:
            state.put("picture", None)
            st.error(str(error), icon=":material/broken_image:")
            return None
        st.session_state["kept_picture"] = file.file_id
    number = state.get("picture", "")
    if not number:
        return None
    try:
        place = pictures.path(number)
    except ImagesError as error:
        st.warning(str(error), icon=":material/link_off:")
        return None
    if not place.exists():
        st.warning("The picture of this link is not on this machine. Upload it here.", icon=":material/link_off:")
        return None
    return str(place)


def _latest(recipe: Recipe) -> Run | None:
    """The newest run of this very merging."""
    runs = state.store().runs(kind="merging", limit=KNOWN)
    same = runs[runs["recipe_hash"] == recipe.fingerprint()]
    return state.store().run(int(same["id"].iloc[0])) if len(same) else None


@st.cache_data(max_entries=16, show_spinner="Reading which tokens merged")
def _report(url: str, run_id: int) -> Report:
    """What a finished merging found, which never changes; `url` keeps stores apart."""
    return state.store().report(run_id)


def _empty(r: tuple[int, ...], work: ledger.Work, *, failed: Run | None) -> None:
    """What will be here, and what to do for it."""
    if failed is not None and failed.status == "failed":
        st.error(f"Merging stopped: {failed.error}", icon=":material/error:")
        return
    with st.container(border=True):
        st.subheader("Which patches become one?", anchor=False)
        if not any(r):
            usual = max(1, round(work.tokens / 24))
            st.markdown(f"Say how many tokens every block should merge: {usual} would be usual for the {work.tokens} tokens of this network.")
        elif state.get("pictures", "source") == "own" and not state.get("picture", ""):
            st.markdown("Upload a picture, then press Merge tokens to see it as the network does, beside what is left of it in every block.")
        else:
            st.markdown("Press Merge tokens to see the pictures as the network does, beside what is left of them in every block.")


def _shown(report: Report) -> None:
    """The main figure, with its picture and its block, and what the network answers."""
    found, merges = report.frame("pictures"), report.frame("merges")
    image = 0
    if len(found) > 1:
        labels = [str(row.label or row.name) for row in found.itertuples()]
        image = st.segmented_control(
            "Picture", list(range(len(found))), format_func=lambda i: f"{i + 1}: {labels[i]}", required=True, label_visibility="collapsed",
            **state.tie_value("shown", 0, allowed=list(range(len(found)))),
        )  # fmt: skip
    picture, last = found.iloc[image or 0], int(merges["depth"].max())
    usual = last // 2
    depth = state.get("after", usual, allowed=range(last + 1))
    rows = merges[(merges["image"] == picture["image"]) & (merges["depth"] == depth)]

    def slider() -> None:
        st.slider("After block", 0, last, width=420, **state.tie_value("after", usual, allowed=range(last + 1)))

    frame.chart(
        charts.merge_map(picture, rows, dark=frame.dark(), keep=(image, depth)), key="merge_map", caption=MAP, controls=slider if last else None,
        data=rows,
    )  # fmt: skip
    st.markdown(_answers(picture))
    for note in report.frame("notes").get("note", ()):
        st.caption(note)


def _answers(picture: pd.Series) -> str:
    """What both networks say of one picture, in words."""
    dense, merged = (f"**{picture[f'{who}_class']}** ({theme.percent(picture[f'{who}_probability'])})" for who in ("dense", "merged"))
    same = picture["dense_class"] == picture["merged_class"]
    label = f" It is labelled {picture['label']}." if picture["label"] else ""
    return f"With all tokens the network says {dense}, with merging {'also ' if same else ''}{merged}.{label}"


def _over_depth(profile: Profile, work: ledger.Work, tokens: TokensChoice, report: Report | None) -> None:
    """Tokens and multiply-adds over depth, by the schedule; tokens of a finished merging beside it."""
    if not any(tokens.r):
        return
    try:
        table = ledger.of_profile(profile, tokens=tokens)
        left = ledger.schedule(work.tokens, work.prefix, work.blocks, tokens.r)[1:]
    except LabError as error:
        st.warning(str(error), icon=":material/rule:")
        return
    of_blocks = table[table["depth"] >= 0].groupby("depth")[["dense_macs", "true_macs"]].sum()
    estimate = pd.DataFrame({
        "depth": of_blocks.index, "tokens": left, "share_saved": (1 - of_blocks["true_macs"] / of_blocks["dense_macs"]).to_numpy(),
        "macs_g": of_blocks["dense_macs"].to_numpy() / 1e9, "macs_g_merged": of_blocks["true_macs"].to_numpy() / 1e9,
    })  # fmt: skip
    merges = report.frame("merges") if report is not None else pd.DataFrame(columns=["depth", "tokens"])
    as_run, saved = merges.drop_duplicates("depth")[["depth", "tokens"]], 1 - table["true_macs"].sum() / table["dense_macs"].sum()
    fig = charts.tokens_over_depth(estimate, as_run, saved=saved, dark=frame.dark())
    frame.chart(fig, key="tokens_over_depth", caption=DEPTH, data=estimate)


page()
