"""What comes before pruning, behind one button on Explore: the start, merging, the order of inputs, and what the MP edges do."""

from __future__ import annotations

import streamlit as st

from app import results, state
from app.charts import theme
from starfish_lab import whatif
from starfish_lab.pruning import PERMUTATIONS, STARTS
from starfish_lab.pruning.budgets.mp_edge import SIGNALS
from starfish_lab.whatif import Profile

FIRST = ("dense", "file", "magnitude", "ser", "hybrid")  # starts that are named first; the others follow
STARTS_NAMES = {"dense": "The dense network", "file": "A pruned network's file", "sub_edge": "Without what lies under the edge"}
SIGNAL_NAMES = {"auto": "By regime", "sigma_plus": "MP edge σ₊", "hill_alpha": "Hill's α"}
BETAS = ("auto", "0", "0.5", "1", "1.25", "1.5", "2", "3")
MERGE_HELP = (
    "Tokens that become one with their most similar neighbour, between attention and MLP of every block (ToMe). "
    "They really go: later blocks have less to do. 0: none."
)
BETA_HELP = "How strongly the edges move the budget. 0 is the global budget; auto is what the authors use at this sparsity."


def popover(profile: Profile) -> None:
    """The button and what is behind it; its label says what was chosen there."""
    chosen = state.choice()
    with st.container(width="content", gap="xxsmall"):
        st.markdown(":small[Before pruning]")
        opened = st.popover(_label(chosen), icon=":material/more_horiz:", help="Where pruning starts, token merging, order of inputs")
    with opened:
        _start(chosen)
        _merging(profile, chosen)
        _order(chosen)
        if chosen.budget == "mp_edge":
            _edges(chosen)


def _label(chosen: state.Choice) -> str:
    said = [
        "" if chosen.start == "dense" else results.name(chosen.start),
        f"merges {chosen.merge}" if chosen.merge else "",
        "" if chosen.permutation == "none" else "reordered",
        "" if chosen.signal == chosen.beta == "auto" else "own edges",
    ]
    told = ", ".join(filter(None, said))
    return f"More: {told}" if told else "More"


def _start(chosen: state.Choice) -> None:
    """The network that pruning starts from."""
    names = [name for name in FIRST if name in STARTS.names()] + [name for name in STARTS.names() if name not in FIRST]
    hint = "\n\n".join(f"**{_start_name(name)}** {STARTS.describe(name)}" for name in names)
    st.selectbox("Start from", names, format_func=_start_name, help=hint, **state.tie("start"))
    if chosen.start == "file":
        st.text_input("Its file", placeholder="/path/to/pruned.safetensors", **state.tie("start_path"))
    elif STARTS.constant(chosen.start, "TRAINS", False):
        hint = "Where its cycles end. Each cycle prunes a little further and trains in between, so it takes long."
        st.slider("Sparsity of the start", 0.05, 0.95, step=0.05, format="percent", help=hint, **state.tie("start_sparsity"))
        if not chosen.training:
            st.caption("It trains on the labelled calibration images. More training images can be given in the sidebar.")


def _start_name(name: str) -> str:
    cycles = " cycles" if STARTS.constant(name, "TRAINS", False) else ""
    return STARTS_NAMES.get(name) or theme.sentence(results.name(name)) + cycles


def _merging(profile: Profile, chosen: state.Choice) -> None:
    reason = whatif.cannot_merge(profile)
    st.number_input(
        "Merge tokens in every block", 0, 1024, step=1, disabled=bool(reason) and chosen.merge == 0, help=reason or MERGE_HELP, **state.tie("merge")
    )  # fmt: skip
    if reason:
        st.caption(reason)


def _order(chosen: state.Choice) -> None:
    """In which order a layer meets its inputs: matters to n:m alone."""
    matters = chosen.pattern == "n_m"
    hint = "\n\n".join(map(PERMUTATIONS.describe, PERMUTATIONS.names()))
    st.selectbox("Order of the inputs", PERMUTATIONS.names(), format_func=str.capitalize, disabled=not matters, help=hint, **state.tie("permutation"))
    if not matters:
        st.caption("The order of inputs decides only what an N:M pattern may keep.")


def _edges(chosen: state.Choice) -> None:
    """What the budget by MP edges takes as its signal, and how strongly."""
    left, right = st.columns(2)
    left.selectbox("Edge signal", ["auto", *SIGNALS], format_func=SIGNAL_NAMES.get, **state.tie("signal"))
    known = [*BETAS, *([] if chosen.beta in BETAS else [chosen.beta])]
    right.selectbox("Edge strength β", known, help=BETA_HELP, **state.tie("beta"))
