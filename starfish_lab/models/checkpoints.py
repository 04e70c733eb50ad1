"""Weights in a local file: reading them safely, fitting them to a network, and the notes that may stand beside them."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from starfish_lab.errors import WeightsError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
NESTS = ("state_dict", "model", "model_state_dict", "module")  # keys under which trainers put the tensors
PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and of compiled modules
PREPROCESSING_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct")


@dataclass(frozen=True)
class Notes:
    """What the JSON beside a weights file says. `class_ids` and `class_names` follow the order of the head."""

    preprocessing: dict[str, object] = field(default_factory=dict)
    class_ids: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def state_dict_from(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch checkpoint that holds nothing which could run code.

    Tensors under 'state_dict' or 'model' are found, and the prefixes of data-parallel and compiled modules taken off.
    Raises WeightsError for a file that is absent, damaged, unsafe or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Give the path of a {', '.join(SUFFIXES)} file.")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path.name} is no weights file the lab reads. It reads {', '.join(SUFFIXES)}.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _tensors_only(path)
    except UnpicklingError as error:
        found = re.search(r"(?i:global):? (?:GLOBAL )?([\w.]+)", str(error))
        what = f"it asks for {found[1]}" if found else "it is damaged, or a pickle of something else"
        raise WeightsError(
            f"{path.name} was refused: {what}, and only tensors are safe to open. "
            "Save the weights alone, as .safetensors or by torch.save(model.state_dict())."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = re.split(r"\. |\n", str(error))[0] or "it is empty"
        raise WeightsError(f"{path.name} is damaged or no {path.suffix} file: {reason}. Copy or download it again.") from None
    tensors = _unwrapped(content)
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors by name. Save a state dict: torch.save(model.state_dict()).")
    return tensors


def _tensors_only(path: Path) -> object:
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # trainers keep their arguments so
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: object) -> dict[str, Tensor]:
    while isinstance(content, dict) and (nest := next((k for k in NESTS if isinstance(content.get(k), dict)), None)):
        content = content[nest]
    if not isinstance(content, dict):
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def fit(module: nn.Module, tensors: dict[str, Tensor], *, source: str, name: str) -> None:
    """Load the tensors into the module, every one of them, or raise WeightsError naming the first that do not fit or are not finite."""
    expected = module.state_dict()
    wrong = [
        f"{key} is {_shape(tensors[key])} where {name} has {_shape(expected[key])}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    # older checkpoints lack the counters of batch norms, which evaluation does not use
    wrong += [f"{key} {_shape(expected[key])} is missing" for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    wrong += [f"{key} {_shape(tensors[key])} is unknown to {name}" for key in tensors if key not in expected]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{source} does not fit {name}: {'; '.join(wrong[:3])}{more}. Choose the timm name these weights were made with.")
    odd = next((key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if odd is not None:
        raise WeightsError(f"{source} holds numbers that are not finite, first in {odd}. Save the weights again, or choose another file.")
    module.load_state_dict(tensors, strict=False)


def notes_beside(path: Path) -> Notes:
    """The notes of `weights.json` beside `weights.safetensors`, or of `config.json` in its folder; empty without either.

    {"preprocessing": {"input_size": [3, 224, 224], "mean": […], "std": […], "interpolation": "bicubic", "crop_pct": 0.9},
     "class_ids": […], "class_names": […]}. The keys of preprocessing may also stand at the top or, as timm writes them,
    under "pretrained_cfg"; `label_names`, `logit_wnids`, `logit_names` and `label_descriptions` are understood as well.
    """
    found = next((p for p in (path.with_suffix(".json"), path.parent / "config.json") if p.is_file()), None)
    if found is None:
        return Notes()
    try:
        content = json.loads(found.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{found.name} beside {path.name} is not valid JSON: {error}. Mend it or take it away.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{found.name} beside {path.name} must be an object of fields. Mend it or take it away.")
    parts = [part for part in (content, content.get("pretrained_cfg"), content.get("preprocessing")) if isinstance(part, dict)]
    merged = {key: value for part in parts for key, value in part.items()}
    return Notes(
        preprocessing={key: merged[key] for key in PREPROCESSING_KEYS if merged.get(key) is not None},
        class_ids=_texts(merged, "class_ids", "logit_wnids", "label_names"),
        class_names=_texts(merged, "class_names", "logit_names", "label_descriptions"),
    )


def _texts(content: dict[str, object], *keys: str) -> tuple[str, ...]:
    """The first of these lists there is."""
    return next((tuple(map(str, content[key])) for key in keys if isinstance(content.get(key), list)), ())


def sha256_of(weights: Path | dict[str, Tensor]) -> str:
    """Of a file, or of a state dict in the order of its names."""
    if isinstance(weights, Path):
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {_shape(tensor)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
