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
from starfish_lab.pruning import BUDGETS, rules
from starfish_lab.recipe import ModelChoice, PruningChoice

FRAMES = ("layers", "groups", "attentions", "spectra")


@dataclass
class Profile:
    """What the pages know of a network.

    | part       | what                                                                                                    |
    |------------|---------------------------------------------------------------------------------------------------------|
    | facts      | name, parameters, input_size, num_classes, macs_g, origin, weights_sha256, blocks, states, structured_refusal |
    | layers     | every Linear and Conv2d: layer, block, depth, kind, rows, cols (unfolded), shape, weights, macs_g, default (prunable unless excluded), in_features (weight.shape[1]), conv_groups, magnitudes (257 quantiles of the absolute weights, 0 to 1), sigma_plus, hill_alpha |
    | groups     | removable units: producer, consumer, units, beside (parameters that go with a unit besides its weights)   |
    | attentions | removable Q/K dimensions: name, qkv, heads, head_dim, beside (with a dimension of a head), macs_g (of Q·Kᵀ and A·V) |
    | spectra    | `spectra.layers.spectra_table`                                                                          |
    """  # noqa: E501

    facts: dict[str, object]
    layers: pd.DataFrame
    groups: pd.DataFrame
    attentions: pd.DataFrame
    spectra: pd.DataFrame

    def to_json(self) -> str:
        """Strict JSON, floats at 6 significant digits, what is not finite as null."""
        frames = {name: getattr(self, name).to_dict("list") for name in FRAMES}
        return json.dumps(_plain({"facts": self.facts, **frames}), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        data = json.loads(text)
        return cls(data["facts"], *(pd.DataFrame(data[name]) for name in FRAMES))


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
    content = dataclasses.asdict(choice)
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
    macs_g_effective, note. totals: parameters_m and macs_g of the dense network; nonzero_parameters_m and macs_g_effective
    of what is left (structured: of the really smaller network); sparsity_prunable, sparsity_all. `estimate`: the split
    over layers is an estimate by the rule in `notes`; totals are exact all the same.
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
    matmul_macs_g: float = 0.0  # saved in attention


def predict(profile: Profile, choice: PruningChoice) -> WhatIf:
    """What `make_masks` would remove. Raises the same RecipeErrors as it does where the profile suffices to know."""
    rules.check(choice)
    layers = _prunable(profile, choice)
    rule = {"unstructured": _unstructured, "n_m": _n_m, "structured": _structured}.get(choice.pattern)
    if rule is None:
        raise RecipeError(f"What the pattern '{choice.pattern}' removes cannot be told without running it.")
    removal = rule(profile, layers, choice)

    rows = layers[["layer", "block", "depth", "kind", "weights"]].reset_index(drop=True)
    rows["removed"] = [removal.removed[layer] for layer in rows["layer"]]
    rows["sparsity"] = rows["removed"] / rows["weights"]
    rows["macs_g"] = layers["macs_g"].to_numpy()
    rows["macs_g_effective"] = rows["macs_g"] * (1 - rows["sparsity"])
    rows["note"] = [removal.left_dense.get(layer, "") for layer in rows["layer"]]

    parameters, macs_g, removed = profile.facts["parameters"], profile.facts["macs_g"], int(rows["removed"].sum())
    saved = float((rows["macs_g"] - rows["macs_g_effective"]).sum()) + removal.matmul_macs_g
    totals = {
        "parameters_m": parameters / 1e6, "nonzero_parameters_m": (parameters - removed - removal.beside) / 1e6,
        "sparsity_prunable": removed / int(rows["weights"].sum()), "sparsity_all": removed / parameters,
        "macs_g": macs_g, "macs_g_effective": macs_g - saved,
    }  # fmt: skip
    return WhatIf(rows, totals, removal.estimate, list(removal.notes))


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


def _unstructured(profile: Profile, layers: pd.DataFrame, choice: PruningChoice) -> _Removal:
    """Each layer's share by its budget, on quantiles of the magnitudes in place of the scores."""
    quantiles = np.array(layers["magnitudes"].tolist(), dtype=float)
    if choice.score == "random":
        quantiles = np.broadcast_to(np.linspace(0, 1, quantiles.shape[1]), quantiles.shape)  # of its scores, in every layer
    middles = (quantiles[:, 1:] + quantiles[:, :-1]) / 2  # each stands for the same number of weights
    edges = layers.set_index("layer")[["kind", "sigma_plus", "hill_alpha"]]
    sizes = dict(zip(layers["layer"], layers["weights"].tolist()))
    scores = dict(zip(layers["layer"], middles.astype(np.float32)))
    removed = BUDGETS.get(choice.budget)(scores, sizes, choice.sparsity, edges, **choice.options)
    if choice.budget == "uniform":
        return _Removal(removed)
    if choice.score == "magnitude":
        note = "The split over layers is an estimate from 257 quantiles of each layer's weights; the total is exact."
    elif choice.score == "random":
        note = "The split over layers is the one to expect on average; each seed draws its own. The total is exact."
    else:
        note = f"The split over layers under the score '{choice.score}' shows only in a run; here stands that of magnitudes. The total is exact."
    return _Removal(removed, notes=(note,), estimate=True)


def _n_m(profile: Profile, layers: pd.DataFrame, choice: PruningChoice) -> _Removal:
    reasons = {row.layer: rules.n_m_misfit(row.in_features, row.conv_groups, choice.group) for row in layers.itertuples()}
    misfits = {layer: reason for layer, reason in reasons.items() if reason}
    rules.refuse_misfits(misfits, len(layers), choice)
    lost = choice.group - choice.keep
    return _Removal({row.layer: 0 if row.layer in misfits else row.weights // choice.group * lost for row in layers.itertuples()}, misfits)


def _structured(profile: Profile, layers: pd.DataFrame, choice: PruningChoice) -> _Removal:
    """A layer keeps its remaining outputs × remaining inputs."""
    groups, attentions = profile.groups.itertuples(), profile.attentions.itertuples()
    plan = rules.plan_structured(choice, groups, attentions, layers["layer"], profile.facts["structured_refusal"])
    outputs = dict(zip(layers["layer"], layers["rows"].tolist()))
    inputs = dict(zip(layers["layer"], layers["in_features"].tolist()))
    beside, matmul_macs_g = 0, 0.0
    for group in plan.groups:
        gone = rules.units_removed(group.units, choice.sparsity)
        outputs[group.producer] -= gone
        inputs[group.consumer] -= gone
        beside += gone * group.beside
    for attention in plan.attentions:
        gone = rules.units_removed(attention.head_dim, choice.sparsity)
        outputs[attention.qkv] -= 2 * attention.heads * gone
        beside += attention.heads * gone * attention.beside
        matmul_macs_g += attention.macs_g / 2 * gone / attention.head_dim  # Q·Kᵀ is half of it, A·V stays
    removed = {row.layer: row.weights - outputs[row.layer] * inputs[row.layer] * (row.cols // row.in_features) for row in layers.itertuples()}
    return _Removal(removed, plan.left_dense, plan.notes, beside=beside, matmul_macs_g=matmul_macs_g)
