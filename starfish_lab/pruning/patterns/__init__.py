"""Which shapes the zeros may take, one pattern a file."""

from __future__ import annotations

from dataclasses import dataclass, field

from starfish_lab.pruning.masks import Masks


@dataclass(frozen=True)
class MaskResult:
    """Masks of all prunable layers, the layers left wholly dense with the reason, and remarks for the person."""

    masks: Masks
    left_dense: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
