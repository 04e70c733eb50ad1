"""From labels as they are written to places in a network's output."""

from __future__ import annotations

import torch
from torch import LongTensor

from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Network


def indices(labels: list[str] | list[int], network: Network) -> tuple[LongTensor, str]:
    """Class indices (n,), and a remark where the order of the classes had to be assumed.

    Numbers are indices. Names are looked up among the network's class ids, then its class names, then, for 1,000 classes,
    ImageNet's WordNet ids; failing that, numbers as names are indices, and as many names as classes go in sorted order.
    Raises ImagesError for an index out of range and for names that match nothing.
    """
    if isinstance(labels[0], int):
        return _in_range(labels, network), ""
    names = sorted(set(labels))
    for known in _known(network):
        if not known.keys().isdisjoint(names):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ImagesError(
                    f"{len(unknown)} of {len(names)} classes of the images are unknown to {network.name}, the first '{unknown[0]}'; "
                    f"it knows {', '.join(list(known)[:3])} … Take these images out or rename their class."
                )
            return torch.tensor([known[label] for label in labels]), ""
    if all(name.isdecimal() for name in names):
        return _in_range([int(label) for label in labels], network), "Class names are whole numbers and were taken as places in the network's output."
    if len(names) == network.num_classes:
        place = {name: i for i, name in enumerate(names)}
        return torch.tensor([place[label] for label in labels]), f"The classes were taken in sorted order: {names[0]} is the network's class 0."
    raise ImagesError(
        f"The images have {len(names)} classes ({', '.join(names[:3])} …) and {network.name} has {network.num_classes}; none of the names is known. "
        "Give the class order in the JSON beside the weights (class_ids), or labels as numbers in a CSV."
    )


def class_name(place: int, network: Network) -> str:
    """What a class is called: its name, or 'class 7' where none is known."""
    return network.class_names[place] if network.class_names else f"class {place}"


def _known(network: Network) -> list[dict[str, int]]:
    lists = [network.facts.get("class_ids", ()), network.class_names]
    if network.num_classes == 1000:
        from timm.data import ImageNetInfo

        lists.append(ImageNetInfo().label_names())
    return [{str(name): i for i, name in enumerate(names)} for names in lists]


def _in_range(labels: list[int], network: Network) -> LongTensor:
    wrong = next((label for label in labels if not 0 <= label < network.num_classes), None)
    if wrong is not None:
        raise ImagesError(
            f"Label {wrong} is out of range: {network.name} has {network.num_classes} classes, 0 to {network.num_classes - 1}. "
            "Give labels as places in the network's output."
        )
    return torch.tensor(labels)
