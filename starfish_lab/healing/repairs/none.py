"""No repair: training starts from the pruned network as it is."""

from __future__ import annotations

from starfish_lab.healing.session import Session

DEFAULTS = {}


def repair(session: Session) -> None:
    """Nothing to repair: the student stays as it was pruned."""
