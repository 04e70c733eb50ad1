"""Which shapes the zeros may take, one pattern a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starfish_lab.pruning.masks import Masks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MaskResult:
    """Masks of all prunable layers, the layers left wholly dense with the reason, and remarks for the person.

    `weights` are new values of those layers that a solver worked on, already zero where their mask is False, `biases` of those whose
    bias it found anew; `rows` has what the solver says of each (layer, cost, cost_magnitude, saved …).
    """

    masks: Masks
    left_dense: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)
