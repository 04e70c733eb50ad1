"""What a bake-off lets through of what its cells say."""

from __future__ import annotations

from dataclasses import dataclass

from starfish_lab.progress import Reporter


@dataclass
class Quiet(Reporter):
    """Nothing but the wish to stop."""

    reporter: Reporter

    def cancel_requested(self) -> bool:
        return self.reporter.cancel_requested()


@dataclass
class Healing(Quiet):
    """The loss, under the cell's name, and progress; a healing's notes would be the same for every cell. `loss` is the latest."""

    label: str
    loss: float | None = None

    def metric(self, name: str, step: int, value: float) -> None:
        if name == "loss":
            self.loss = value
            self.reporter.metric(f"loss:{self.label}", step, value)

    def progress(self, step: int, steps: int) -> None:
        self.reporter.progress(step, steps)


@dataclass
class Looks(Quiet):
    """The accuracy that a look during healing finds, under the cell's name."""

    label: str

    def metric(self, name: str, step: int, value: float) -> None:
        if name == "top1":
            self.reporter.metric(f"accuracy:{self.label}", step, value)
