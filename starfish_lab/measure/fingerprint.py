"""The hash that says which timings may be compared: of facts about machine and versions, and of nothing else. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

HASH = "fingerprint"  # the fact that is the hash of all others


def digest(facts: Mapping[str, object]) -> str:
    """Twelve hex digits of the facts' SHA-256; the hash itself does not count among them.

    >>> digest({"device_name": "A40", "threads": 2}) == digest({"threads": 2, "device_name": "A40", "fingerprint": "anything"})
    True
    """
    content = {name: value for name, value in facts.items() if name != HASH}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
