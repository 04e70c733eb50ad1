"""What a person chooses on Explore: the pattern and its measure, and the sliders that move the budget of all layers at once."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import before_controls, edge_view, frame, results, state
from app.charts import theme
from app.choice import by_name, suits
from starfish_lab.pruning import BUDGETS, SCORES, SOLVERS
from starfish_lab.whatif import Profile

PATTERNS = {"unstructured": "Unstructured", "n_m": "N:M", "structured": "Structured", "kept": "As started"}
BUDGET_NAMES = {"uniform": "Uniform", "global": "Global", "mp_edge": "By MP edge", "sensitivity": "By sensitivity"}
UNITS = {"mlp": "MLP units", "qk": "Q/K dimensions"}
STRENGTHS = ("auto", *(f"{step / 4:g}" for step in range(17)))  # β, from 0 to 4
SLIDER = 205  # pixels: two of them fit beside each other in a narrow window
PATTERN_HELP = (
    "Unstructured: any weight may go. N:M: N of every M weights in a row stay. Structured: whole units go. "
    "As started: what the start lacks, and no more (choose a start or merging under More)."
)
SPARSITY_HELP = "Share of the prunable weights (structured: of the units) that goes. Arrow keys move it by one percent."
BUDGET_HELP = (
    "Who loses how much. Uniform: every layer the same share. Global: the least important weights, wherever they are. "
    "By MP edge: more where a layer's bulk reaches further up, less where it does not. "
    "By sensitivity: where it is missed least, by curves in an opened recipe, else by the squared scores that go; measured curves are spent below, "
    "under 'Which layers can bear it?'."
)
STRENGTH_HELP = "β: how strongly the edges move the budget. 0 is the global budget; by regime is what the authors use at this sparsity."


def draw(profile: Profile) -> DeltaGenerator:
    """Two rows: what is pruned, who pays and by which measure; then how much. Rows wrap where a window is narrow, no control alone.

    Returns room for the page's action, at the right of the second row: on the first screen.
    """
    chosen = state.choice()
    patterns = [name for name in PATTERNS if name != "kept" or chosen.start != "dense" or chosen.merge]
    with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
        st.segmented_control("Pattern", patterns, format_func=PATTERNS.get, required=True, help=PATTERN_HELP, **state.tie("pattern"))
        if chosen.pattern == "unstructured":
            budgets = [*BUDGET_NAMES, *(name for name in BUDGETS.names() if name not in BUDGET_NAMES)]
            st.selectbox("Budget", budgets, format_func=_budget_name, width=150, help=BUDGET_HELP, **state.tie("budget"))
        if chosen.pattern != "kept":
            _score(chosen)
        before_controls.popover(profile)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="sliders"):
        if chosen.pattern != "kept":
            _amount(chosen)
        place = frame.actions()
    if told := said_by_hand(chosen):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(f"Set by hand: {told}.", width="content")
            hint = "Forget what was set by hand: every layer follows the budget again."
            forget = {"layers": (), "edges": ()}
            st.button("Back to the rule", icon=":material/undo:", type="tertiary", help=hint, on_click=state.change, kwargs=forget)
    return place


def _amount(chosen: state.Choice) -> None:
    """How much goes, as the pattern counts it, and how strongly edges move it."""
    if chosen.pattern == "n_m":
        st.number_input("Keep N", 1, 63, step=1, width=110, help="Weights that stay in every group.", **state.tie("keep"))
        st.number_input("of M", 2, 64, step=1, width=110, help="Size of a group: consecutive input weights.", **state.tie("group"))
        return
    st.slider("Sparsity", 0.05, 0.99, step=0.01, format="percent", width=SLIDER, help=SPARSITY_HELP, **state.tie("sparsity"))
    if chosen.pattern == "structured":
        st.pills("Units", list(UNITS), selection_mode="multi", format_func=UNITS.get, **state.tie("units"))
    if chosen.budget == "mp_edge":
        idle = edge_view.idle()
        why = f"{STRENGTH_HELP} At this sparsity edges move nothing: choose a lower one." if idle else STRENGTH_HELP
        known = [*STRENGTHS, *([] if chosen.beta in STRENGTHS else [chosen.beta])]
        st.select_slider("Edge strength β", known, format_func=_strength, disabled=idle, width=SLIDER, help=why, **state.tie("beta"))


def said_by_hand(chosen: state.Choice) -> str:
    """What a person set for single layers, in words; '' where the rule alone decides.

    >>> said_by_hand(state.Choice(layers=("blocks.0.*~0.5",), edges=("blocks.1.mlp.fc1~0.8",)))
    'sparsity of `blocks.0.*`; edge of `blocks.1.mlp.fc1`'
    """
    parts = []
    for what, words in (("sparsity", chosen.layers), ("edge", chosen.edges)):
        names = [f"`{name}`" for name in by_name(words)]
        if names:
            parts.append(f"{what} of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    return "; ".join(parts)


def _budget_name(name: str) -> str:
    return BUDGET_NAMES.get(name, name)


def _strength(beta: str) -> str:
    return "by regime" if beta == "auto" else beta


def _score(chosen: state.Choice) -> None:
    """Scores, then solvers, as far as they go with the pattern."""
    entries = {name: SCORES for name in SCORES.names()} | {name: SOLVERS for name in SOLVERS.names()}
    names = [name for name in entries if chosen.pattern in suits(name)]
    described = [f"**{_score_name(name)}** {entries[name].describe(name).partition(': ')[2] or entries[name].describe(name)}" for name in names]
    hint = "A score says which weights matter least; a solver chooses them together with new values for the others.\n\n" + "\n\n".join(described)
    st.selectbox("Score", names, format_func=_score_name, width=185, help=hint, **state.tie("score"))


def _score_name(name: str) -> str:
    return f"{theme.sentence(results.name(name))} (solver)" if name in SOLVERS.names() else theme.sentence(results.name(name))
