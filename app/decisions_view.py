"""What people think of runs: a decision with its reason, and notes. Shown and taken here, kept by the store."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, results, state
from starfish_lab.store import Run
from starfish_lab.store.people import VERDICTS

COLOURS = {"accepted": "green", "rejected": "red", "needs work": "orange"}
ICONS = {"accepted": ":material/check_circle:", "rejected": ":material/cancel:", "needs work": ":material/build:"}
UNDECIDED = "undecided"
ANONYMOUS = "Your name stands beside it. It is asked for once and kept until this browser tab closes."


def section(run: Run) -> None:
    """On the page of a run: what was decided and remarked, and where to say more."""
    of_runs([run.id])


def of_runs(ids: list[int]) -> None:
    """The latest decision and the notes of these runs, and the controls to add to them, for all of them at once."""
    store = state.store()
    decisions, remarks = store.decisions(ids), store.remarks(ids)
    with st.container(border=True):
        _said()
        if decisions.empty and remarks.empty:
            st.caption(f"Nobody has decided on {results.runs(ids)} or left a note.")
        for row in newest(decisions).itertuples():
            _decision(row, several=len(ids) > 1)
        if state.person().may("runner"):
            with frame.actions():
                controls(ids)
        rest = decisions[decisions.duplicated("run")] if len(decisions) else decisions
        _history(rest, remarks, several=len(ids) > 1)


def controls(ids: list[int]) -> None:
    """Buttons to decide on these runs and to leave a note."""
    with st.popover("Decide", icon=":material/gavel:", key="decide", on_change="rerun"):
        st.markdown(f"Decide on {results.runs(ids)}. The newest decision counts, earlier ones stay on record.")
        st.segmented_control("Decision", VERDICTS, key="verdict", format_func=str.capitalize)
        st.text_area("Why", key="verdict_why", placeholder="What the decision rests on", height=80, max_chars=2000)
        _who("verdict_who")
        st.button("Keep the decision", type="primary", key="keep_decision", on_click=_decide, args=(ids,))
    with st.popover("Add a note", icon=":material/edit_note:", key="remark", on_change="rerun"):
        st.text_area(f"Note on {results.runs(ids)}", key="remark_text", height=120, max_chars=5000)
        _who("remark_who")
        st.button("Keep the note", type="primary", key="keep_note", on_click=_remark, args=(ids,))


def newest(decisions: pd.DataFrame) -> pd.DataFrame:
    """The decision that counts of each run; `decisions` are newest first."""
    return decisions.drop_duplicates("run") if len(decisions) else decisions


def _decide(ids: list[int]) -> None:
    """As the fields stand at the click: what was typed last may not have been drawn yet."""
    verdict, why, who = (st.session_state.get(key) for key in ("verdict", "verdict_why", "verdict_who"))
    with frame.guard():
        who = _kept_name(who)
        if not _complete({"a decision": verdict, "a reason": why, "your name": who}):
            return
        for run in ids:
            state.store().decide(run, verdict, why, who)
        _kept(f"Kept: {results.runs(ids)} {verdict}.", verdict=None, verdict_why="", decide=False)


def _remark(ids: list[int]) -> None:
    text, who = (st.session_state.get(key) for key in ("remark_text", "remark_who"))
    with frame.guard():
        who = _kept_name(who)
        if not _complete({"a note": text, "your name": who}):
            return
        for run in ids:
            state.store().remark(run, text, who)
        _kept(f"Kept: a note on {results.runs(ids)}.", remark_text="", remark=False)


def _complete(given: dict[str, str | None]) -> bool:
    """Whether all of it was given; else what is missing is said on the next run."""
    missing = [name for name, value in given.items() if not (value or "").strip()]
    if missing:
        st.session_state["decision_said"] = f"Nothing was kept: give {results.listing(missing)} too."
    return not missing


def _kept(text: str, **cleared: object) -> None:
    """Says so on the next run, empties the fields and closes what they stood in."""
    st.session_state["decision_said"] = text
    for key, value in cleared.items():
        st.session_state[key] = value


def _said() -> None:
    if text := st.session_state.pop("decision_said", None):
        st.info(text, icon=":material/info:")


def _who(key: str) -> None:
    """Where nobody signs in, the field for a name, which is kept in this session."""
    if state.store().signs_in:
        return
    if st.session_state.get(key) is None:
        st.session_state[key] = st.session_state.get("reviewer", "")
    st.text_input("Your name", key=key, max_chars=80, help=ANONYMOUS)


def _kept_name(typed: str | None) -> str:
    """Who is speaking: the signed-in person, else the name typed, which from now on stands in both fields."""
    if state.store().signs_in:
        return state.person().who
    name = (typed or "").strip() or st.session_state.get("reviewer", "")
    st.session_state.update(reviewer=name, verdict_who=name, remark_who=name)
    return name


def _decision(row, *, several: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if several:
            st.markdown(f"Run {row.run}", width="content")
        st.badge(row.decision.capitalize(), icon=ICONS[row.decision], color=COLOURS[row.decision])
        st.text(f"{row.why} ({row.who}, {_when(row.t)})", width="stretch")  # plain text: nothing that was typed is read as Markdown


def _history(decisions: pd.DataFrame, remarks: pd.DataFrame, *, several: bool) -> None:
    """Notes, and decisions that no longer count, closed until asked for."""
    if decisions.empty and remarks.empty:
        return
    said = [results.count(len(remarks), "note")] if len(remarks) else []
    said += [results.count(len(decisions), "earlier decision")] if len(decisions) else []
    with st.expander(" and ".join(said)):
        for row in remarks.itertuples():
            st.text(f"{f'Run {row.run}: ' if several else ''}{row.text}\n{row.who}, {_when(row.t)}")
        for row in decisions.itertuples():
            st.text(f"{f'Run {row.run}: ' if several else ''}{row.decision}: {row.why}\n{row.who}, {_when(row.t)}")


def _when(t: float) -> str:
    return pd.to_datetime(t, unit="s", utc=True).strftime("%Y-%m-%d %H:%M UTC")
