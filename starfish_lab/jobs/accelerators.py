"""Which device a run asks for, and whether a device is one of those: the one definition, for workers, Ray and pages alike."""

from __future__ import annotations

import re

GPU = "gpu:"  # a GPU by name, wherever one is
DEVICE = r"auto|cpu|mps|cuda(:\d{1,2})?|gpu:[A-Za-z0-9][A-Za-z0-9._\-]{0,15}"


def valid(wanted: str) -> bool:
    """Whether a text is a device that a run can ask for.

    >>> [valid(text) for text in ("auto", "cuda:1", "gpu:A40", "tpu", "gpu:")]
    [True, True, True, False, False]
    """
    return re.fullmatch(DEVICE, wanted) is not None


def fits(wanted: str, device: str, title: str = "") -> bool:
    """Whether a run that asks for `wanted` may run on `device` (cpu, mps, cuda, cuda:N) with that title.

    >>> fits("cuda", "cuda:1"), fits("gpu:A40", "cuda:1", "NVIDIA A40 (cuda:1)"), fits("gpu:A40", "cpu", "Some CPU (cpu, 8 threads)")
    (True, True, False)
    """
    kind = device.partition(":")[0]
    return wanted in ("auto", device, kind) or (wanted.startswith(GPU) and kind == "cuda" and matches(wanted, title))


def matches(wanted: str, title: str) -> bool:
    """Whether a device's title is that of a GPU of the wanted name: its words, whole and in this order, stand in the title.

    A memory size in the name narrows it down, in the driver's spelling (80GB) or Ray's (80G). What stands in brackets (which device,
    which machine) does not count.

    >>> matches("gpu:A100", "NVIDIA A100-SXM4-80GB (cuda:0)"), matches("gpu:A100-40GB", "NVIDIA A100-SXM4-80GB (cuda:0)")
    (True, False)
    >>> matches("gpu:A100-80GB", "A100-80G (node lab-3, 2 GPUs)"), matches("gpu:A100-80G", "NVIDIA A100 80GB PCIe (cuda:0)")
    (True, True)
    >>> matches("gpu:A10", "NVIDIA A100-SXM4-80GB (cuda:0)"), matches("gpu:a40", "A40 (node lab-3, 2 GPUs)")
    (False, True)
    """
    words = iter(_words(title))
    return all(word in words for word in _words(wanted.removeprefix(GPU)))  # `in` uses up the title's words as far as the match


def short(title: str) -> str:
    """The name that asks for such a GPU again, '' of what is none: the first word with a number, and the word before a bare number.

    >>> [short(title) for title in ("NVIDIA A100-SXM4-80GB (cuda:0)", "NVIDIA GeForce RTX 4090", "Apple GPU (mps)", "Xeon 6 (cpu, 8 threads)")]
    ['A100', 'RTX-4090', '', '']
    """
    words = _words(title)
    for i, word in enumerate(words):
        if word.isdigit() and i:
            return f"{words[i - 1]}-{word}"
        if any(map(str.isdigit, word)):
            return word
    return ""


def _words(title: str) -> list[str]:
    """The words of a GPU's name in capitals, a memory size as Ray spells it; none of a CPU's."""
    words = [] if "(cpu" in title else re.findall(r"[A-Z0-9]+", re.sub(r"\(.*", "", title).upper())
    return [re.sub(r"^(\d+)GB$", r"\1G", word) for word in words]
