"""How the pruned network is healed, on Prune & heal: repair and method, how it trains, and behind one button everything that ablations vary."""

from __future__ import annotations

import streamlit as st

from app import basis, results, state
from app.charts import theme
from starfish_lab.healing import METHODS, REPAIRS, healers
from starfish_lab.registry import Registry

# Values of the form in words.
WORDS = {
    "adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "calibration": "Calibration", "training": "Training",
    "weights": "Pruned layers", "affine": "Those, biases and norms", "all": "Everything",
    "none": "None", "flip": "Flip", "light": "Light crop and flip", "crop": "Crop and flip", "timm": "timm",
    "fixed": "Every epoch alike", "shuffled": "Shuffled", "cosine": "Cosine", "linear": "Line", "constant": "Constant",
    "exact": "float32", "half": "float16", "float32": "float32", "tf32": "TF32", "bf16": "bfloat16",
}  # fmt: skip
FIRST = ("none", "starfish", "starfish_plus")  # methods that are named first; the others follow
MOST_TOLD = 3  # settings that the button names; of more it says how many
# What stands behind the button: name in the address bar → (label, what its tooltip says).
ABLATIONS = {
    "trains": ("Trains", "The weights of the pruned layers that stay; those with biases and norms; or every parameter. What was removed stays 0."),
    "shuffle": ("Calibration batches", "Every epoch in the same order, as the authors do, or shuffled."),
    "schedule": ("Learning rate falls", "After the warm-up: along a cosine, in a line, or not at all."),
    "augment": ("Augmentation", "Random changes of the images: flips, crops of 60 to 100 % or 8 to 100 % of the area, or what timm trains with."),
    "teacher": ("Dense answers kept in", "float16 halves the memory, as the authors do."),
    "precision": ("Precision", "bfloat16 computes in half the memory, TF32 rounds factors on CUDA alone; weights stay in float32."),
}
# Words that an option takes, and what its tooltip says; an option that is not here takes any text, number or switch.
CHOICES = {
    "loss": (("cosine", "relative_l2", "both"), "Cosine sees directions alone, relative L2 lengths too; both: the sum, the second times the weight."),
    "blocks": (("all", "last", "2", "3", "4"), "All blocks, the last alone, or every 2nd, 3rd, 4th."),
    "tokens": (("all", "class"), "All tokens alike, or the class token alone."),
    "target": (("states", "logits"), "What is matched: states of the blocks, as STARFISH does, or softened answers."),
    "inputs": (("dense", "pruned"), "Whose inputs a layer or block is fitted on: the dense network's, or those it will meet."),
    "together": (("layer", "block"), "With pruned inputs: look at them anew for each layer, or once a block."),
    "layers": (("mlp", "all"), "Which layers are shifted."),
    "recalibrate": (("means", "all", "none"), "What of the batch norms is estimated anew: means, variances too, or nothing."),
}
AVERAGE_HELP = "Decay of a moving average of what trains, which is then the result, such as 0.98. 0: the last step's weights."
CLIP_HELP = "Longest gradient that a step takes; longer ones are shortened. 0: none are."
COMPILE_HELP = "torch.compile of the pruned network: the first steps take long, the others less."


def draw() -> None:
    """Repair, method, steps and name; the rest of training; what ablations vary."""
    methods = [*(name for name in FIRST if name in METHODS.names()), *(name for name in METHODS.names() if name not in FIRST)]
    with st.container(key="healer"):
        first, second, third, fourth = st.columns([3, 3, 2, 3])
    _pick(first, "Repair first", "repair", REPAIRS, ["none", *(name for name in REPAIRS.names() if name != "none")])
    _pick(second, "Then train by", "healing", METHODS, methods)
    chosen = state.choice()
    off = chosen.healing == "none"
    third.number_input("Steps", 0, 1_000_000, step=50, disabled=off, help="Optimiser steps. 0: whole epochs, as set below.", **state.tie("steps"))
    fourth.text_input("Name", max_chars=80, placeholder="optional", **state.tie_value("name", ""))
    with st.container(horizontal=True, vertical_alignment="top"):
        st.caption(described(chosen.healing, chosen.repair), width="stretch")
        _popover(off)
    with st.expander("How it trains"), st.container(key="training"):
        _training(off)


def described(method: str, repair: str) -> str:
    """What a repair and a method do, and whether labels are used."""
    name = basis.healer(method, repair)
    return f"{healers.describe(name)} {'Uses the labels of its images.' if healers.labels(name) else 'No labels are used.'}"


def settings() -> list[str]:
    """Everything behind the button that is not as this healer is known, in short words."""
    chosen = state.choice()
    known = basis.usual(chosen.healing, chosen.repair)
    found = {name: _value(name, known) for name in (*ABLATIONS, "average", "clip", "compile")}
    told = [f"{ABLATIONS[name][0].lower()}: {WORDS[found[name]].lower()}" for name in ABLATIONS if found[name] != getattr(known, _field(name))]
    told += [f"average {found['average']:g}"] if found["average"] != known.average else []
    told += [f"clip {found['clip']:g}"] if found["clip"] != known.gradient_clip else []
    told += ["compiled"] if found["compile"] and not known.compile else []
    for kind in basis.OPTIONS:
        for option, default in basis.options(kind).items():
            if (value := state.get(f"{kind}_{option}", default)) != default:
                told.append(f"{results.name(option)} {_shown(value)}")
    return told


def _pick(place, label: str, field: str, entries: Registry, names: list[str]) -> None:
    """A healer's part, with the one-line descriptions of all; options are forgotten with the entry they were for.

    A method comes with the repair that it is known with, in place of the one that the method before was known with.
    """
    tied = state.tie(field)
    keep, kind = tied.pop("on_change"), "heal" if field == "healing" else field

    def changed() -> None:
        basis.forget_options(kind)
        before = state.choice()
        keep()
        now = state.choice()
        if now.repair == before.repair == healers.repair_of(before.healing) != healers.repair_of(now.healing):
            basis.forget_options("repair")
            state.change(repair=healers.repair_of(now.healing))

    hint = "\n\n".join(f"**{results.name(name)}** {entries.describe(name)}{' Uses labels.' if _labelled(entries, name) else ''}" for name in names)
    show = {name: results.name(name) + (" (labels)" if _labelled(entries, name) else "") for name in names}
    place.selectbox(label, names, format_func=show.get, help=hint, on_change=changed, **tied)


def _labelled(entries: Registry, name: str) -> bool:
    return bool(entries.constant(name, "NEEDS_LABELS", False))


def _training(off: bool) -> None:
    """The numbers of the training phase; off where nothing trains."""
    first, second, third, fourth = st.columns(4)
    _number(first, "Batch size", "batch", "Images in a step.", off=off, step=8)
    _number(second, "Learning rate", "lr", "The highest.", off=off, step=1e-4, format="%.1e")
    _number(third, "Last learning rate", "final", "Where it has fallen to after the last step.", off=off, step=1e-6, format="%.1e")
    _number(fourth, "Warm-up steps", "warmup", "Steps in which the learning rate rises to its highest.", off=off, step=100)
    hint = "Passes over the images. They count where Steps is 0."
    _number(first, "Epochs", "epochs", hint, off=off or state.choice().steps > 0, step=1)
    _select(second, "Optimiser", "optimiser", "Adam is what STARFISH heals with, AdamW what the longer distillations use.", off=off)
    _number(third, "Weight decay", "decay", "Pulls what trains towards 0 in every step.", off=off, step=0.01, format="%.3g")
    hint = "Training images are shuffled in every epoch; how many there are stands in the sidebar."
    _select(fourth, "Images", "on", hint, off=off)


def _popover(off: bool) -> None:
    """The button for what ablations vary; its label says what was chosen there."""
    told = settings()
    rest = len(told) - MOST_TOLD
    named = ", ".join(told[:MOST_TOLD] if rest > 1 else told)
    label = "More" + (f" · {named}" if told else "") + (f" and {rest} others" if rest > 1 else "")
    hint = f"Set here: {', '.join(told)}." if told else "What the loss compares, what trains, order, schedule, augmentation, precision, averaging."
    with st.popover(label, icon=":material/more_horiz:", help=hint):
        for kind in basis.OPTIONS:
            _options(kind)
        left, right = st.columns(2)
        for i, (name, (words, hint)) in enumerate(ABLATIONS.items()):
            _select((left, right)[i % 2], words, name, hint, off=off)
        _number(left, "Average of the weights", "average", AVERAGE_HELP, off=off, step=0.01, format="%.5g")
        _number(right, "Clip gradients at", "clip", CLIP_HELP, off=off, step=0.5, format="%.3g")
        st.toggle("Compile the forward pass", disabled=off, help=COMPILE_HELP, **basis.tie("compile"))


def _options(kind: str) -> None:
    """What the chosen repair or method may be told: a switch, a number or a word each."""
    known = basis.options(kind)
    part = basis.OPTIONS[kind][1]
    if not known:
        return
    entry = getattr(state.choice(), "healing" if part == "method" else part)
    st.markdown(f":small[**{theme.sentence(results.name(entry))}**]")
    left, right = st.columns(2, vertical_alignment="bottom")
    for i, (option, default) in enumerate(known.items()):
        place, label = (left, right)[i % 2], theme.sentence(results.name(option))
        tied, (words, hint) = basis.tie_option(kind, option), CHOICES.get(option, ((), None))
        if isinstance(default, bool):
            place.toggle(label, **tied)
        elif isinstance(default, str) and words:
            value = state.get(f"{kind}_{option}", default)
            place.selectbox(label, [*words, *([] if value in words else [value])], format_func=results.name, help=hint, **tied)
        elif isinstance(default, str):
            place.text_input(label, **tied)
        else:
            place.number_input(label, step=1 if isinstance(default, int) else None, format=None if isinstance(default, int) else "%.4g", **tied)


def _number(place, label: str, name: str, hint: str, *, off: bool, **options) -> None:
    place.number_input(label, *basis.HEALING[name][1], disabled=off, help=hint, **options, **basis.tie(name))


def _select(place, label: str, name: str, hint: str, *, off: bool) -> None:
    place.selectbox(label, basis.HEALING[name][1], disabled=off, help=hint, format_func=WORDS.get, **basis.tie(name))


def _field(name: str) -> str:
    return basis.HEALING[name][0]


def _value(name: str, known) -> object:
    return state.get(name, getattr(known, _field(name)))


def _shown(value: object) -> str:
    return "on" if value is True else "off" if value is False else f"{value:g}" if isinstance(value, int | float) else str(value)
