"""No healing: the pruned network as it is."""

from __future__ import annotations

from starfish_lab.healing.session import Session

NEEDS_LABELS = False
DEFAULTS = {}


def objective(session: Session) -> None:
    """Nothing to minimise: the student stays as it was pruned."""
