"""What else there is to choose, behind one button on Explore: the start, merging, the order of inputs, the solver's options, what MP edges do."""

from __future__ import annotations

import streamlit as st

from app import results, state
from app.charts import theme
from app.choice import IMPORTANCES, order_options, solver_options
from starfish_lab import whatif
from starfish_lab.pruning import PERMUTATIONS, SOLVERS, STARTS
from starfish_lab.pruning.budgets.mp_edge import SIGNALS
from starfish_lab.whatif import Profile

FIRST = ("dense", "file", "magnitude", "ser", "hybrid")  # starts that are named first; the others follow
STARTS_NAMES = {"dense": "The dense network", "file": "A pruned network's file", "sub_edge": "Without what lies under the edge"}
SIGNAL_NAMES = {"auto": "By regime", "sigma_plus": "MP edge σ₊", "hill_alpha": "Hill's α"}
MERGE_HELP = (
    "Tokens that become one with their most similar neighbour, between attention and MLP of every block (ToMe). "
    "They really go: later blocks have less to do. 0: none."
)
MOST_TOLD = 3  # settings that the button names; of more it says how many
IMPORTANCE_NAMES = {"activation": "Activation: W² · a²", "absolute": "Absolute: |W| · a", "energy": "Energy: W²"}
IMPORTANCE_HELP = "What the order tries to keep: W is a weight, a how large its input is on the calibration images. Energy needs no images."
GATHER_HELP = (
    "On: where no earlier layer's rows can move instead, the layer gathers its inputs whenever the network runs, which takes time. "
    "Off: such layers keep their order."
)
SOLVER_HELP = {
    "alpha": "How much it costs to leave the start's own mask; 0 leaves it freely. The paper takes 0.5 after a hybrid start.",
    "prior": "What α is multiplied by: the mean cost over all patterns of the group (the authors' code), or the group's mean energy (their text).",
    "free_restoration": "On: a weight that the start had removed may come back with its dense value. Off: it comes back as 0.",
    "sequential": "Later layers see what earlier ones have become. Takes a pass over the images for every layer.",
    "update": "What stays makes up for what goes. Off: chosen by the same costs, values left alone.",
    "damping": "Share of the mean diagonal that is added to the inputs' second moments before they are inverted.",
}
PRIOR_NAMES = {"mean_cost": "Mean cost", "mean_energy": "Mean energy"}
MULTIPLES = (1, 8, 16, 32, 64)
MULTIPLE_HELP = (
    "Of each group, and of each head's dimensions, as many stay as are a multiple of this: matrix units of GPUs take 8 or 16 at a time, and sizes "
    "between them are no faster than the next one up. 1: any number. Groups smaller than this keep any number."
)


def popover(profile: Profile) -> None:
    """The button and what is behind it; its label says what was chosen there."""
    chosen = state.choice()
    with st.container(width="content", gap="xxsmall"):
        st.markdown(":small[Further choices]")
        told = settings(chosen)
        hint = f"Set here: {', '.join(told)}." if told else "Where pruning starts, token merging, order of inputs, sizes, the solver's options."
        opened = st.popover(_label(told), icon=":material/more_horiz:", help=hint)
    with opened:
        _start(chosen)
        _merging(profile, chosen)
        _order(chosen)
        _solver(chosen)
        if chosen.budget == "mp_edge":
            _edge_signal()
        if chosen.pattern == "structured":
            known = sorted({*MULTIPLES, chosen.multiple})
            st.selectbox("Sizes in steps of", known, help=MULTIPLE_HELP, **state.tie("multiple"))


def settings(chosen: state.Choice) -> list[str]:
    """Everything behind the button that is not as by default, in short words.

    >>> settings(state.Choice(start="hybrid", merge=8, pattern="n_m", permutation="search", gather=False))
    ['hybrid start', 'r = 8', 'search order', 'no gather']
    """
    usual, solver, order = state.Choice(), solver_options(chosen), order_options(chosen)
    words = {
        "alpha": f"α = {chosen.alpha:g}", "prior": PRIOR_NAMES.get(chosen.prior, chosen.prior).lower(), "free_restoration": "no restoration",
        "sequential": "sequential", "update": "no update", "damping": f"damping {chosen.damping:g}",
        "importance": f"{chosen.importance} importance", "gather": "no gather",
    }  # fmt: skip
    said = [
        "" if chosen.start == "dense" else f"{results.name(chosen.start)} start",
        f"r = {chosen.merge}" if chosen.merge else "",
        "" if chosen.permutation == "none" else f"{results.name(chosen.permutation)} order",
        *(words[name] for name in (*order, *solver) if getattr(chosen, name) != getattr(usual, name)),
        "" if chosen.signal == "auto" else SIGNAL_NAMES[chosen.signal],
        "" if chosen.multiple == 1 else f"steps of {chosen.multiple}",
    ]
    return [word for word in said if word]


def _label(told: list[str]) -> str:
    rest = len(told) - MOST_TOLD
    named = ", ".join(told[:MOST_TOLD] if rest > 1 else told)
    return "More" + (f" · {named}" if told else "") + (f" and {rest} others" if rest > 1 else "")


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
    elif order_options(chosen):
        left, right = st.columns(2, vertical_alignment="bottom")
        kept = _with(IMPORTANCES, chosen.importance)
        left.selectbox("Importance", kept, format_func=_importance_name, help=IMPORTANCE_HELP, **state.tie("importance"))
        right.toggle("Gather inputs", help=GATHER_HELP, **state.tie("gather"))


def _importance_name(name: str) -> str:
    return IMPORTANCE_NAMES.get(name, name)


def _solver(chosen: state.Choice) -> None:
    """What the solver may be told; nothing where a score decides."""
    options = solver_options(chosen)
    if not options:
        return
    st.markdown(f":small[**{results.name(chosen.score)}**, the solver]")
    left, right = st.columns(2, vertical_alignment="bottom")
    if "alpha" in options:
        left.number_input("Prior α", 0.0, None, step=0.1, format="%.3g", help=SOLVER_HELP["alpha"], **state.tie("alpha"))
        priors = _with(SOLVERS.constant("cast", "PRIORS"), chosen.prior)
        right.selectbox("Prior scale", priors, format_func=_prior_name, disabled=not chosen.alpha, help=SOLVER_HELP["prior"], **state.tie("prior"))
    if "damping" in options:
        left.number_input("Damping", 1e-9, None, step=0.01, format="%.3g", help=SOLVER_HELP["damping"], **state.tie("damping"))
    toggles = ((left, "free_restoration", "Free restoration"), (right, "update", "Weight update"), (right, "sequential", "Sequential"))
    for place, name, label in toggles:
        if name in options:
            place.toggle(label, help=SOLVER_HELP[name], **state.tie(name))


def _prior_name(name: str) -> str:
    return PRIOR_NAMES.get(name, name)


def _with(known: tuple[str, ...], chosen: str) -> list[str]:
    """The known names, and a recipe's own where it is another."""
    return [*known, *([] if chosen in known else [chosen])]


def _edge_signal() -> None:
    """What the budget by MP edges takes as its signal."""
    st.selectbox("Edge signal", ["auto", *SIGNALS], format_func=SIGNAL_NAMES.get, **state.tie("signal"))
