"""Where figures come from: everything that must be equal for two of them to be comparable."""

from __future__ import annotations

from datetime import UTC, datetime

from starfish_lab.measure import hardware
from starfish_lab.models.network import Network
from starfish_lab.recipe import Recipe


def facts(recipe: Recipe, dense: Network, device: str) -> dict[str, object]:
    """{name: value} of recipe, weights, device, versions, seeds and the moment."""
    return {
        "recipe": recipe.fingerprint(), "model": dense.name, "weights": dense.origin, "weights_sha256": dense.weights_sha256,
        "device": device, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"hardware.{k}": v for k, v in hardware.fingerprint(device).items()}, **{f"version.{k}": v for k, v in hardware.versions().items()},
        "seed.images": recipe.images.seed, "seed.start": recipe.start.seed, "seed.pruning": recipe.pruning.seed, "seed.healing": recipe.healing.seed,
    }  # fmt: skip
