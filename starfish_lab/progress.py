"""How a running experiment talks to whoever watches it."""

from __future__ import annotations

from starfish_lab.errors import Cancelled


class Reporter:
    """Receives what happens during a run. This one stays silent; a job's writes rows, the terminal's draws bars."""

    def stage(self, name: str) -> None:
        """A new stage began, e.g. 'heal'."""

    def progress(self, step: int, steps: int) -> None:
        """`step` of `steps` within the stage are done."""

    def metric(self, name: str, step: int, value: float) -> None:
        """A figure worth plotting live, e.g. loss at a healing step."""

    def note(self, text: str) -> None:
        """Something the person should know: an image skipped, a layer left dense."""

    def cancel_requested(self) -> bool:
        """True once the owner asked the run to stop."""
        return False

    def check(self) -> None:
        """Raise Cancelled if the owner asked the run to stop."""
        if self.cancel_requested():
            raise Cancelled
