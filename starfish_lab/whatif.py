"""What pruning would take from each layer, told from a network's profile at once, with no network and no torch.

A profile is made once for each network by a worker (`profile.compute`); `predict` then answers for any PruningChoice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from starfish_lab.errors import LabError, RecipeError, WeightsError
from starfish_lab.pruning import BUDGETS, SOLVERS, STARTS, by_hand, rules
from starfish_lab.recipe import ModelChoice, PruningChoice, StartChoice, TokensChoice
from starfish_lab.token_schedule import schedule

VERSION = 2  # of profiles: those of another are made again. 2: pieces
FRAMES = ("layers", "groups", "attentions", "spectra", "pieces")


@dataclass
class Profile:
    """What the pages know of a network.

    | part       | what                                                                                                    |
    |------------|---------------------------------------------------------------------------------------------------------|
    | facts      | name, parameters, input_size, num_classes, macs_g, origin, weights_sha256, blocks, states, structured_refusal, tokens (that enter every block; 0: no such number), prefix_tokens, matmuls ({attention product: MACs}); profiles made before ledgers lack the last three |
    | layers     | every Linear and Conv2d: layer, block, depth, kind, rows, cols (unfolded), shape, weights, macs_g, default (prunable unless excluded), in_features (weight.shape[1]), conv_groups, magnitudes (257 quantiles of the absolute weights, 0 to 1), sigma_plus, hill_alpha |
    | groups     | removable units: producer, consumer, units, beside (parameters that go with a unit besides its weights)   |
    | attentions | removable Q/K dimensions: name, qkv, heads, head_dim, beside (with a dimension of a head), macs_g (of Q·Kᵀ and A·V) |
    | spectra    | `spectra.layers.spectra_table`                                                                          |
    | pieces     | everything that runs in a forward pass, in order, with its shape: the fields of `prediction.pieces.Piece`; empty in older profiles |
    """  # noqa: E501

    facts: dict[str, object]
    layers: pd.DataFrame
    groups: pd.DataFrame
    attentions: pd.DataFrame
    spectra: pd.DataFrame
    pieces: pd.DataFrame = field(default_factory=pd.DataFrame)

    def to_json(self) -> str:
        """Strict JSON, floats at 6 significant digits, what is not finite as null."""
        frames = {name: getattr(self, name).to_dict("list") for name in FRAMES}
        return json.dumps(_plain({"facts": self.facts, **frames}), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        data = json.loads(text)
        return cls(data["facts"], *(pd.DataFrame(data.get(name, {})) for name in FRAMES))


def _plain(value: object) -> object:
    """Nested values as JSON takes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def profile_key(choice: ModelChoice) -> str:
    """Name under which a network's profile is stored: the same for equal choices and, for a file, equal size and time of change."""
    content: dict[str, object] = {"version": VERSION, **dataclasses.asdict(choice)}
    if choice.path is not None:
        try:
            file = Path(choice.path).expanduser().stat()
        except OSError as error:
            raise WeightsError(
                f"The weights file {choice.path} cannot be read: {error.strerror}. Give the path of a .safetensors, .pt or .pth file."
            ) from None
        content["file"] = [file.st_size, file.st_mtime_ns]
    return f"{choice.name}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class WhatIf:
    """What a pruning choice would leave.

    layers: a prunable layer a row, in depth order: layer, block, depth, kind, weights, removed, sparsity, macs_g,
    macs_g_effective, note, and edge_weight (w_l of the budget 'mp_edge') where that decides. totals: parameters_m and macs_g of
    the dense network; nonzero_parameters_m and macs_g_effective of what is left (structured: of the really smaller network;
    merged tokens: of the layers at the tokens they really work on); sparsity_prunable, sparsity_all. `estimate`: the split
    over layers is an estimate by the rule in `notes[0]`; the number of weights that go in all is exact all the same.
    """

    layers: pd.DataFrame
    totals: dict[str, float]
    estimate: bool
    notes: list[str]


@dataclass(frozen=True)
class _Removal:
    """Weights each layer loses, and what goes with them."""

    removed: dict[str, int]
    left_dense: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    estimate: bool = False
    beside: int = 0  # parameters other than the layers' weights
    dims: dict[str, int] = field(default_factory=dict)  # {attention: Q/K dimensions that go from each head}
    widths: dict[str, float] = field(default_factory=dict)  # w_l, where the edges decide


def predict(profile: Profile, choice: PruningChoice, *, start: StartChoice = StartChoice(), tokens: TokensChoice = TokensChoice()) -> WhatIf:
    """What `make_masks` would remove, after `start` and in a network that merges `tokens`.

    Raises the same RecipeErrors as a run does where the profile suffices to know.
    """
    rules.check(choice)
    layers = _prunable(profile, choice)
    rule = {"unstructured": _unstructured, "n_m": _n_m, "structured": _structured, "kept": _kept}.get(choice.pattern)
    if rule is None:
        raise RecipeError(f"What the pattern '{choice.pattern}' removes cannot be told without running it.")
    removal = rule(profile, layers, choice, start)
    share, saved = _after_merging(profile, tokens)

    rows = layers[["layer", "block", "depth", "kind", "weights"]].reset_index(drop=True)
    rows["removed"] = [removal.removed[layer] for layer in rows["layer"]]
    rows["sparsity"] = rows["removed"] / rows["weights"]
    rows["macs_g"] = layers["macs_g"].to_numpy()
    merged = rows["macs_g"] * rows["layer"].map(share).fillna(1.0)
    rows["macs_g_effective"] = merged * (1 - rows["sparsity"])
    rows["note"] = [removal.left_dense.get(layer, "") for layer in rows["layer"]]
    if removal.widths:
        rows["edge_weight"] = [removal.widths[layer] for layer in rows["layer"]]

    parameters, macs_g, removed = profile.facts["parameters"], profile.facts["macs_g"], int(rows["removed"].sum())
    saved += float((merged - rows["macs_g_effective"]).sum())
    for attention in profile.attentions.itertuples():  # Q·Kᵀ is half of its products, A·V stays
        gone = removal.dims.get(attention.name, 0) / attention.head_dim
        saved += attention.macs_g / 2 * gone * share.get(f"{attention.name}.matmul", 1.0)
    totals = {
        "parameters_m": parameters / 1e6, "nonzero_parameters_m": (parameters - removed - removal.beside) / 1e6,
        "sparsity_prunable": removed / int(rows["weights"].sum()), "sparsity_all": removed / parameters,
        "macs_g": macs_g, "macs_g_effective": macs_g - saved,
    }  # fmt: skip
    return WhatIf(rows, totals, removal.estimate, list(removal.notes))


def cannot_merge(profile: Profile) -> str:
    """Why a network merges no tokens, '' where it can. Profiles of old do not say how many tokens there are; then the layers tell."""
    from starfish_lab import ledger  # which reads profiles itself

    if ledger.work_of(profile).tokens:
        return ""
    return f"{profile.facts['name']} cannot merge tokens: merging is for plain vision transformers (vit_*, deit_*), whose tokens stand in a row."


def _after_merging(profile: Profile, tokens: TokensChoice) -> tuple[dict[str, float], float]:
    """{layer: share of its multiply-adds that merging leaves}, and the GMACs that go in all; ({}, 0) where nothing merges.

    What goes is counted net of what merging itself computes: the cosines of half of the tokens with the other half.
    """
    from starfish_lab import ledger

    if not any(tokens.r):
        return {}, 0.0
    if reason := cannot_merge(profile):
        raise RecipeError(f"{reason} Leave tokens.r empty for this network.")
    table, work = ledger.of_profile(profile, tokens=tokens), ledger.work_of(profile)
    entering = schedule(work.tokens, work.prefix, work.blocks, tokens.r)
    first, second = work.prefix + work.prefix % 2, work.prefix + 1 - work.prefix % 2  # of the tokens compared, as in `tokens.match`
    cosines = 0
    for attention, n, left in zip(profile.attentions.itertuples(), entering, entering[1:]):
        if left < n:
            cosines += len(range(first, n, 2)) * len(range(second, n, 2)) * attention.head_dim  # of whole keys, even where attention is sliced
    share = dict(zip(table["layer"], (table["true_macs"] / table["dense_macs"]).tolist()))
    return share, (float((table["dense_macs"] - table["true_macs"]).sum()) - cosines) / 1e9


def _prunable(profile: Profile, choice: PruningChoice) -> pd.DataFrame:
    """The rows of the layers that `models.network.prunable` would name."""

    def chosen(layer: str, default: bool) -> bool:
        included = default or any(fnmatchcase(layer, pattern) for pattern in choice.include)
        return included and not any(fnmatchcase(layer, pattern) for pattern in choice.exclude)

    table = profile.layers
    rows = table[[chosen(layer, default) for layer, default in zip(table["layer"], table["default"])]]
    if rows.empty:
        name = profile.facts["name"]
        raise LabError(f"No prunable layer is left in {name}: it has none in its blocks, or the excluded patterns {choice.exclude} take them all.")
    return rows


def outside(profile: Profile, choice: PruningChoice) -> pd.DataFrame:
    """The layers that no pattern looks at, a row each: layer, block, depth, kind, weights, macs_g, note (why it stays dense)."""
    table = profile.layers
    rows = table[~table["layer"].isin(_prunable(profile, choice)["layer"])].reset_index(drop=True)
    return rows[["layer", "block", "depth", "kind", "weights", "macs_g"]].assign(note=[_why_outside(row, choice) for row in rows.itertuples()])


def _why_outside(row, choice: PruningChoice) -> str:
    if any(fnmatchcase(row.layer, pattern) for pattern in choice.exclude):
        return "excluded by the recipe"
    if row.conv_groups > 1:
        kind = "depthwise" if row.in_features == 1 else "grouped"
        return f"{kind} convolution: pruned only when the recipe includes it"
    return "outside the blocks: pruned only when the recipe includes it"


def _unstructured(profile: Profile, layers: pd.DataFrame, choice: PruningChoice, start: StartChoice) -> _Removal:
    """Each layer's share by its budget, on quantiles of the magnitudes in place of the scores."""
    flat = np.linspace(0, 1, len(layers["magnitudes"].iloc[0])) if choice.score == "random" else None  # of its scores, in every layer
    removed, widths = _split(layers, choice, flat)
    if choice.budget == "uniform":
        return _Removal(removed)
    if start.method != "dense":
        note = "The split over layers follows the weights that the start leaves, and shows only in a run; here stands that of the dense magnitudes."
    elif choice.score == "magnitude":
        note = "The split over layers is an estimate from 257 quantiles of each layer's weights; the total is exact."
    elif choice.score == "random":
        note = "The split over layers is the one to expect on average; each seed draws its own. The total is exact."
    else:
        what = "solver" if choice.score in SOLVERS.names() else "score"
        note = f"The split over layers under the {what} '{choice.score}' shows only in a run; here stands that of magnitudes. The total is exact."
    return _Removal(removed, notes=(note,), estimate=True, widths=widths)


def _split(layers: pd.DataFrame, choice: PruningChoice, flat: np.ndarray | None = None) -> tuple[dict[str, int], dict[str, float]]:
    """What the budget takes from each layer by its magnitudes (by `flat` quantiles, the same in every layer), and w_l where edges decide."""
    quantiles = np.array(layers["magnitudes"].tolist(), dtype=float)
    if flat is not None:
        quantiles = np.broadcast_to(flat, quantiles.shape)
    middles = (quantiles[:, 1:] + quantiles[:, :-1]) / 2  # each stands for the same number of weights
    signals = layers.set_index("layer")[["kind", "sigma_plus", "hill_alpha"]]
    sizes = dict(zip(layers["layer"], layers["weights"].tolist()))
    scores = dict(zip(layers["layer"], middles.astype(np.float32)))
    entry = BUDGETS.module(choice.budget)
    widths = entry.weights(signals, choice.sparsity, **choice.options) if hasattr(entry, "weights") else {}
    return by_hand.counts(choice, scores, sizes, signals), widths


def _n_m(profile: Profile, layers: pd.DataFrame, choice: PruningChoice, start: StartChoice) -> _Removal:
    reasons = {row.layer: rules.n_m_misfit(row.in_features, row.conv_groups, choice.group, row.rows) for row in layers.itertuples()}
    misfits = {layer: reason for layer, reason in reasons.items() if reason}
    rules.refuse_misfits(misfits, len(layers), choice)
    lost = choice.group - choice.keep
    return _Removal({row.layer: 0 if row.layer in misfits else row.weights // choice.group * lost for row in layers.itertuples()}, misfits)


# Whose split stands for that of a start; others show theirs only in a run.
STANDS_FOR = {"magnitude": "global", "ser": "mp_edge", "hybrid": "mp_edge"}
MAGNITUDE_FIRST = 0.20  # the hybrid start prunes by magnitude up to here (arXiv 2606.02608, Online Resource 2)


def _kept(profile: Profile, layers: pd.DataFrame, choice: PruningChoice, start: StartChoice) -> _Removal:
    """The zeros of the start and no others: exact in total, by the start's rule on the dense weights layer by layer."""
    if start.method == "file":
        raise RecipeError("How many zeros the start's file holds shows only in a run. Its pattern 'kept' has no preview.")
    if not STARTS.constant(start.method, "TRAINS", False):
        return _Removal(dict.fromkeys(layers["layer"], 0), notes=(rules.NO_ZEROS,))
    budget = STANDS_FOR.get(start.method, "global")
    if start.method == "hybrid" and start.sparsity <= MAGNITUDE_FIRST:
        budget = "global"
    removed, widths = _split(layers, PruningChoice(budget=budget, sparsity=start.sparsity))
    rule = "the magnitudes" if budget == "global" else "the MP edges"
    note = f"The start trains between its cycles, so its split over layers shows only in a run; here stands what {rule} of the dense weights say."
    return _Removal(removed, notes=(note,), estimate=True, widths=widths)


def structured_sizes(profile: Profile, choice: PruningChoice) -> rules.Sizes:
    """What the pattern 'structured' leaves of every prunable layer. Raises RecipeError where no units can go."""
    groups, attentions = profile.groups.itertuples(), profile.attentions.itertuples()
    return rules.structured_sizes(choice, groups, attentions, _prunable(profile, choice).itertuples(), profile.facts["structured_refusal"])


def _structured(profile: Profile, layers: pd.DataFrame, choice: PruningChoice, start: StartChoice) -> _Removal:
    """A layer keeps its remaining outputs × remaining inputs."""
    left = structured_sizes(profile, choice)
    sizes = {row.layer: left.outputs[row.layer] * left.inputs[row.layer] * (row.cols // row.in_features) for row in layers.itertuples()}
    removed = {row.layer: row.weights - sizes[row.layer] for row in layers.itertuples()}
    return _Removal(removed, left.plan.left_dense, left.plan.notes, beside=left.beside, dims=left.dims)
