"""What a person sees on the terminal while a command works."""

from __future__ import annotations

import sys

from starfish_lab.progress import Reporter


class TerminalBars(Reporter):
    """Progress bars on standard error, one a stage."""

    def __init__(self):
        self._bar = None

    def stage(self, name: str) -> None:
        try:
            from tqdm import tqdm
        except ImportError:  # a machine that only measures may not have it
            return
        self.close()
        self._bar = tqdm(desc=name, total=1, leave=True, file=sys.stderr, disable=not sys.stderr.isatty())

    def progress(self, step: int, steps: int) -> None:
        if self._bar is not None:
            self._bar.total = steps
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
