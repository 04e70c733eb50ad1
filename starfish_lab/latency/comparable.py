"""Whether two latency rows may be compared, and if not, why. Plain rows in, words out; no torch here."""

from __future__ import annotations

from collections.abc import Mapping

# What must be equal, in the order in which a person asks, and what it is called.
EQUAL = {
    "device_name": "device", "fingerprint": "machine or versions (the fingerprint)", "model": "network", "batch": "batch size",
    "scenario": "scenario", "precision": "precision", "compiled": "compilation", "channels_last": "channels last", "tokens": "tokens merged a block",
}  # fmt: skip
PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}  # of a dtype, in rows from before precisions had names


def comparable(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """The reasons why the times of two rows may not be set against each other; none: they may.

    Rows of the latency table, old or new, or of the literature (which have a source). What neither row or only one of them tells is
    taken to be equal. Where what differs is what is being asked about, a ratio may still be of interest: 'speedup_best' compares across
    precisions, and says so.

    >>> row = {"device_name": "A40", "batch": 8, "dtype": "float32", "fingerprint": "0123456789ab"}
    >>> comparable(row, row | {"batch": 64, "precision": "tf32"})
    ['batch size: 8 and 64', 'precision: float32 and tf32']
    """
    if _get(a, "source") or _get(b, "source"):
        return ["published figures: the state of their machine, their versions and their protocol are not known"]
    a, b = _told(a), _told(b)
    equal = {key: words for key, words in EQUAL.items() if key != "fingerprint" or a["device_name"] == b["device_name"]}  # another device: no news
    reasons = [f"{words}: {_say(a[key])} and {_say(b[key])}" for key, words in equal.items() if None not in (a[key], b[key]) and a[key] != b[key]]
    reasons += [f"throttled while it was timed: {reason}" for reason in dict.fromkeys([a["throttle"], b["throttle"]]) if reason]
    return reasons + ["not timed: it was refused"] * (a["refused"] or b["refused"])


def badge(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    """In a few words.

    >>> badge({"batch": 1}, {"batch": 8})
    'not comparable (batch size: 1 and 8)'
    """
    reasons = comparable(a, b)
    return f"not comparable ({'; '.join(reasons)})" if reasons else "comparable"


def covered(row: Mapping[str, object]) -> str:
    """What the interval of a row knows of, in words; '' for what has none.

    >>> covered({"images_per_s": 9.0, "starts": 8}), covered({"images_per_s": 9.0})
    ('8 fresh starts', 'rounds within one process')
    """
    if _get(row, "source") or _get(row, "images_per_s") is None:
        return ""
    starts = int(_get(row, "starts") or 1)  # older rows do not tell: all were timed in one process
    return f"{starts} fresh starts" if starts > 1 else "rounds within one process"


def caution(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    """What to keep in mind of the intervals of two rows, in a sentence; '' for nothing.

    Their times may be compared all the same: an interval from one process is only narrower than what another process would find.

    >>> caution({"images_per_s": 9.0, "starts": 8}, {"images_per_s": 8.0})
    'the interval of the second covers rounds within one process and not how processes differ: measured again, a ratio may land outside'
    """
    narrow = [place for place, row in (("first", a), ("second", b)) if covered(row).startswith("rounds")]
    if not narrow:
        return ""
    whose = f"interval of the {narrow[0]} covers" if len(narrow) == 1 else "intervals of both cover"
    return f"the {whose} rounds within one process and not how processes differ: measured again, a ratio may land outside"


def _told(row: Mapping[str, object]) -> dict[str, object]:
    """What a row says of everything that counts; None where it says nothing."""
    found = {key: _get(row, key) for key in EQUAL}
    dtype, merged = _get(row, "dtype"), bool(_get(row, "merged")) or _get(row, "execution") == "merged"
    return {
        **found,
        "precision": found["precision"] or PRECISIONS.get(dtype, dtype),
        "compiled": bool(found["compiled"]),
        "channels_last": bool(found["channels_last"]),
        "tokens": found["tokens"] if found["tokens"] is not None or not merged else "some",
        "throttle": _get(row, "throttle"),
        "refused": "images_per_s" in row and _get(row, "images_per_s") is None,
    }


def _get(row: Mapping[str, object], key: str) -> object:
    """A value; None also where a table has a gap (NaN is not equal to itself)."""
    value = row.get(key)
    return None if isinstance(value, float) and value != value else value


def _say(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) or "none"
