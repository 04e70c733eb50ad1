"""Saving a network so that one call loads it again: network.safetensors + recipe.json, no pickle.

recipe.json holds the recipe that made the network, how to build its architecture, the shapes that slicing left,
and the sha256 of the weights. Loading builds only architectures of timm that the lab knows, from numbers, names and
flags; nothing in the files is run, and a zip is never unpacked to disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from starfish_lab import tokens
from starfish_lab.artefacts import DESCRIPTION, WEIGHTS
from starfish_lab.errors import StoreError, WeightsError
from starfish_lab.execution import slicing
from starfish_lab.models.gather import gathered, is_permutation
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.pruning.masks import Masks
from starfish_lab.recipe import Recipe

VERSION = 1
LONGEST_DESCRIPTION = 16 * 2**20  # bytes

# What may be passed on to a constructor: sizes, names and flags. Above all no path and no address.
ARGUMENTS = frozenset(
    ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "class_token", "global_pool")
)


def save(folder: Path, network: Network, recipe: Recipe, *, masks: Masks, facts: dict[str, object]) -> Path:
    """Write the network and its recipe to `folder`, each file whole or not at all. Returns the folder.

    masks : those the network was pruned with; their sparsity is written down, the zeros are in the weights
    facts : what else should stand beside the network, e.g. the report's summary
    Raises WeightsError if the network could not be built again, StoreError if it cannot be written.
    """
    _check_facts(network.facts, network.name)
    weights = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in network.module.state_dict().items()})
    description = {
        "starfish_lab_network": VERSION,
        "name": network.name,
        "network": network.facts,
        "structure": slicing.shapes(network),
        "merging": tokens.facts(network),
        "num_classes": network.num_classes,
        "class_names": list(network.class_names),
        "preprocessing": dataclasses.asdict(network.preprocessing),
        "origin": network.origin,
        "dense_weights_sha256": network.weights_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "sparsity": {layer: 1 - mask.float().mean().item() for layer, mask in masks.items()},
        "facts": facts,
        "recipe": recipe.to_dict(),
    }
    _write(folder / WEIGHTS, weights)
    _write(folder / DESCRIPTION, json.dumps(description, indent=2).encode())
    return folder


def load_pruned(path: Path | str) -> Network:
    """The network that `save` wrote, from its folder or zip; it answers bit for bit as the saved one did.

    Raises WeightsError if a file is missing, damaged, altered, or not of the lab.

    >>> load_pruned("runs/14/healed").module(images)                                          # doctest: +SKIP
    """
    path = Path(path)
    description = _description(_read(path, DESCRIPTION, at_most=LONGEST_DESCRIPTION), path)
    weights = _read(path, WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != description["weights_sha256"]:
        raise WeightsError(f"The weights in {path} are not those that were saved: their sha256 differs. Copy or export the network again.")
    try:
        return _rebuilt(description, safetensors.torch.load(weights))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{DESCRIPTION} in {path} does not fit its weights ({_first_line(error)}). Export the network again.") from error


def _rebuilt(description: dict, weights: dict[str, Tensor]) -> Network:
    _check_facts(description["network"], description["name"])
    with torch.device("meta"):  # shapes alone: a lying description costs no memory
        module = _construct(description["network"])
    preprocessing = {key: tuple(value) if isinstance(value, list) else value for key, value in description["preprocessing"].items()}
    network = wrap(
        module, name=description["name"], num_classes=description["num_classes"], class_names=tuple(description["class_names"]),
        preprocessing=Preprocessing(**preprocessing), origin=description["origin"], weights_sha256=description["dense_weights_sha256"],
        facts=description["network"],
    )  # fmt: skip
    network = slicing.reshape_like(network, description["structure"])
    tokens.merge_like(network, description.get("merging"))
    network.module.load_state_dict(weights, strict=True, assign=True)
    for name, layer in gathered(network.module).items():
        if not is_permutation(layer.order, layer.weight.shape[1]):
            raise WeightsError(f"The saved order of the inputs of '{name}' does not name each of them once. Export the network again.")
    network.module.eval()
    return network


def _construct(facts: dict) -> nn.Module:
    if "vit" in facts:
        return VisionTransformer(**facts["vit"])
    return timm.create_model(facts["timm_name"], pretrained=False, **facts["arguments"])


def _check_facts(facts: object, name: str) -> None:
    """Raise WeightsError unless the facts build a network of timm from plain sizes, names and flags."""
    if not isinstance(facts, dict) or ("vit" not in facts and not timm.is_model(str(facts.get("timm_name", "")))):
        raise WeightsError(f"{name} cannot be built again by name: only networks of timm and the starter can be. Keep its state_dict instead.")
    arguments = facts["vit"] if "vit" in facts else facts.get("arguments")
    plain = isinstance(arguments, dict) and all(isinstance(value, int | float | str | list | tuple | None) for value in arguments.values())
    if not plain or set(arguments) - ARGUMENTS:
        raise WeightsError(f"The constructor arguments of {name} are not allowed: {arguments!r:.200}. Known: {', '.join(sorted(ARGUMENTS))}.")


def _description(content: bytes, path: Path) -> dict:
    try:
        description = json.loads(content)
    except ValueError as error:
        raise WeightsError(f"{DESCRIPTION} in {path} is damaged ({_first_line(error)}). Export the network again.") from error
    if not isinstance(description, dict) or description.get("starfish_lab_network") != VERSION or "weights_sha256" not in description:
        raise WeightsError(f'{DESCRIPTION} in {path} describes no saved network: expected an object with "starfish_lab_network": {VERSION}.')
    return description


def _read(path: Path, name: str, *, at_most: int | None = None) -> bytes:
    """One of the two files, from a folder or from the top of a zip."""
    try:
        if path.is_dir():
            with open(path / name, "rb") as file:
                content = file.read() if at_most is None else file.read(at_most + 1)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                content = file.read() if at_most is None else file.read(at_most + 1)
    except (OSError, KeyError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        expected = f"Expected a folder or zip with {WEIGHTS} and {DESCRIPTION} in it."
        raise WeightsError(f"{name} cannot be read from {path} ({_first_line(error)}). {expected}") from error
    if at_most is not None and len(content) > at_most:
        raise WeightsError(f"{name} in {path} is larger than {at_most >> 20} MB, which no description is. Export the network again.")
    return content


def _write(path: Path, content: bytes) -> None:
    """The whole file under its name, or no file: written beside it and renamed."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise _not_written(path, partial, error) from error


def _not_written(path: Path, partial: Path, error: OSError) -> StoreError:
    with contextlib.suppress(OSError):
        partial.unlink()
    return StoreError(f"{path} was not written: {error.strerror or error}. Make room or choose another folder; what was there before is untouched.")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
