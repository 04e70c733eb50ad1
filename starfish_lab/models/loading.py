"""From a ModelChoice to a Network."""

from __future__ import annotations

import difflib
import urllib.error
import urllib.request
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo, resolve_data_config
from torch import nn

from starfish_lab.errors import RecipeError, WeightsError
from starfish_lab.models import FAMILIES, starter
from starfish_lab.models.checkpoints import PREPROCESSING_KEYS, Notes, fit, notes_beside, sha256_of, state_dict_from
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.recipe import ModelChoice

__all__ = ["bundled", "load", "state_dict_from", "supported_names", "wrap"]

HUB_TIMEOUT = 5  # seconds to find out whether weights can be downloaded at all


def wrap(module: nn.Module, *, name: str, **known: object) -> Network:
    """A timm module as a Network; its family tells blocks and units. Raises WeightsError for other modules."""
    for family in FAMILIES.names():
        described = FAMILIES.get(family)(module)
        if described is not None:
            return Network(module=module, name=name, **{**described, **known})
    raise WeightsError(f"{type(module).__name__} is of no family the lab knows ({', '.join(FAMILIES.names())}). Use Network.of(module, blocks=[…]).")


def supported_names(pattern: str | None = None) -> list[str]:
    """timm names that can be loaded; those with a tag after a dot say which pretrained weights. `pattern` is a glob."""
    names = [*timm.list_models(), *_tagged()]
    return sorted(name for name in names if fnmatchcase(name, pattern or "*") and _family_of(name))


def load(choice: ModelChoice) -> Network:
    """The network that is chosen, in evaluation mode on the CPU, float32.

    `facts` say how to build the module again: {'vit': arguments of VisionTransformer} for the starter,
    {'timm_name', 'arguments'} for others, and 'class_ids' where the file's notes give them.
    Raises WeightsError with what is wrong and what to do: unknown name, no download, a file that does not fit.
    """
    choice.validate()
    if choice.weights == "bundled":
        network = bundled()
    else:
        _check_name(choice.name)
        network = {"pretrained": _pretrained, "file": _from_file, "random": _random}[choice.weights](choice)
    network.module.eval().float()
    return network


def bundled(folder: Path = starter.FOLDER) -> Network:
    """The starter with the weights that lie in `folder`."""
    path = folder / "starter.safetensors"
    module = starter.build()
    fit(module, state_dict_from(path), source=path.name, name="the starter")
    origin = "bundled: trained by this project on scikit-learn's handwritten digits"
    return wrap(
        module, name="starter", preprocessing=starter.PREPROCESSING, num_classes=10, class_names=tuple("0123456789"),
        origin=origin, weights_sha256=sha256_of(path), facts={"vit": starter.ARGUMENTS},
    )  # fmt: skip


def _pretrained(choice: ModelChoice) -> Network:
    from huggingface_hub import constants

    if not timm.get_pretrained_cfg(choice.name).has_weights:
        tagged = supported_names(choice.name.partition(".")[0] + ".*")
        instead = f"Choose one of: {', '.join(tagged[:6])}" if tagged else "Choose 'file' or 'random' weights"
        raise WeightsError(f"timm has no pretrained weights of {choice.name}. {instead}.")
    asked_offline = constants.HF_HUB_OFFLINE
    try:
        # without this a machine off the network waits a minute in retries, even for weights it has in its cache
        constants.HF_HUB_OFFLINE = asked_offline or not _reachable(constants.ENDPOINT)
        return _timm(choice, Notes(), origin="pretrained, from timm", pretrained=True)
    except WeightsError:
        raise
    except Exception as error:  # whatever the hub, the network or the disk raise: the person needs the way out, not the trace
        offline = constants.HF_HUB_OFFLINE
        why = (
            "no weights can be downloaded here"
            if offline
            else f"the download failed ({type(error).__name__}: {str(error).partition(chr(10))[0][:160]})"
        )
        raise WeightsError(
            f"The pretrained weights of {choice.name} are not on this machine and {why}. Give a local file (weights 'file' and its path), "
            "copy the Hugging Face cache from a machine that has them and set HF_HOME to it, or choose 'random' knowingly."
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = asked_offline


def _from_file(choice: ModelChoice) -> Network:
    path = Path(choice.path).expanduser()
    tensors = state_dict_from(path)
    heads = timm.get_pretrained_cfg(choice.name).classifier
    head = heads if isinstance(heads, str) else heads[0]
    weight = tensors.get(f"{head}.weight")
    if weight is None:
        known = ", ".join(list(tensors)[-3:])
        raise WeightsError(
            f"{path.name} has no tensor '{head}.weight', the classification head of {choice.name}; its last tensors are {known}. "
            "Choose the timm name these weights were made with, and weights that classify."
        )
    notes, classes = notes_beside(path), weight.shape[0]
    for what, listed in (("class ids", notes.class_ids), ("class names", notes.class_names)):
        if listed and len(listed) != classes:
            raise WeightsError(f"The notes beside {path.name} list {len(listed)} {what}, and its head has {classes} classes. They must agree.")
    network = _timm(choice, notes, origin=f"local file {path.name}", num_classes=classes)
    fit(network.module, tensors, source=path.name, name=choice.name)
    return replace(network, weights_sha256=sha256_of(path))


def _random(choice: ModelChoice) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(choice.seed)
        return _timm(choice, Notes(), origin=f"random weights (seed {choice.seed})")


def _timm(choice: ModelChoice, notes: Notes, *, origin: str, pretrained: bool = False, **arguments: object) -> Network:
    """Build by timm, with what the family, the notes and the choice say; later ones win."""
    config = timm.get_pretrained_cfg(choice.name)
    preprocessing = _preprocessing(resolve_data_config(pretrained_cfg=config.to_dict()), {**notes.preprocessing, **choice.preprocessing})
    if config.fixed_input_size and preprocessing.input_size != tuple(config.input_size):
        arguments["img_size"] = preprocessing.input_size[-1]
    module = timm.create_model(choice.name, pretrained=pretrained, **arguments)
    if not module.num_classes:
        raise WeightsError(f"{choice.name} has no classification head, so there is no accuracy to keep. Choose a network that classifies.")
    facts = {"timm_name": choice.name, "arguments": {"num_classes": module.num_classes, **arguments}}
    if notes.class_ids:
        facts["class_ids"] = list(notes.class_ids)
    class_names = notes.class_names or (tuple(ImageNetInfo().label_descriptions()) if module.num_classes == 1000 else ())
    return wrap(
        module, name=choice.name, preprocessing=preprocessing, num_classes=module.num_classes, class_names=class_names,
        origin=origin, weights_sha256=sha256_of(module.state_dict()), facts=facts,
    )  # fmt: skip


def _preprocessing(timms: dict[str, object], changes: dict[str, object]) -> Preprocessing:
    unknown = sorted(set(changes) - set(PREPROCESSING_KEYS))
    if unknown:
        raise RecipeError(f"model.preprocessing.{unknown[0]} is not known. Known: {', '.join(PREPROCESSING_KEYS)}.")
    values = {key: {**timms, **changes}[key] for key in asdict(Preprocessing())}
    made = Preprocessing(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    for key, what in (("input_size", int), ("mean", int | float), ("std", int | float)):
        value = getattr(made, key)
        if not (isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, what) for v in value)):
            raise RecipeError(f"model.preprocessing.{key} is {value!r}: give a list of three numbers, such as {list(timms[key])}.")
    if made.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise RecipeError(f"model.preprocessing.interpolation is {made.interpolation!r}. Choose nearest, bilinear, bicubic or lanczos.")
    if not (isinstance(made.crop_pct, int | float) and 0 < made.crop_pct <= 1):
        raise RecipeError(f"model.preprocessing.crop_pct is {made.crop_pct!r}: give a fraction above 0, up to 1.")
    return made


def _reachable(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False


def _check_name(name: str) -> None:
    if _family_of(name):
        return
    patterns = ", ".join(pattern for family in FAMILIES.names() for pattern in FAMILIES.module(family).NAMES)
    base, _, tag = name.partition(".")
    if tag and _family_of(base):
        raise WeightsError(f"timm has no weights '{tag}' of {base}. It has: {', '.join(supported_names(base + '.*')) or 'none'}.")
    if timm.is_model(base):
        raise WeightsError(
            f"timm's {name} is of a family the lab does not support. Supported: {patterns}, where timm builds a plain network of that kind."
        )
    close = difflib.get_close_matches(name, supported_names(), n=4, cutoff=0.5)
    meant = f" Close to it: {', '.join(close)}." if close else ""
    raise WeightsError(f"timm has no network '{name}'.{meant} Supported: {patterns}; `python -m starfish_lab models 'vit_*'` lists them.")


def _family_of(name: str) -> str:
    """The family that timm's network of this name belongs to; '' if there is none or no such network."""
    base = name.partition(".")[0]
    if not timm.is_model(base) or (base != name and name not in _tagged()):
        return ""
    file = timm.model_entrypoint(base).__module__.rpartition(".")[2]
    for family in FAMILIES.names():
        known = FAMILIES.module(family)
        if file in known.TIMM_FILES and any(fnmatchcase(base, pattern) for pattern in known.NAMES):
            return family
    return ""


@cache
def _tagged() -> frozenset[str]:
    return frozenset(timm.list_models(pretrained=True))
