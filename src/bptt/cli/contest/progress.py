"""What a comparison shows while it runs: two bars on a terminal, a line for each finished run everywhere."""

from __future__ import annotations

from bptt.cli import progress
from bptt.cli.contest.runner import Run


class Bars(progress.Bars):
    """A bar for the whole comparison and one for what runs now.

    Arguments:
        parts: runs and measurements, finished ones included.
    """

    def __init__(self, parts: int) -> None:
        super().__init__("{task.description:<34.34}")
        self._whole = self.add_task("comparison", total=parts)
        self._now = self.add_task("", total=1.0)
        self._done = 0

    def begin(self, what: str) -> None:
        """Something new runs."""
        self.reset(self._now, description=what)

    def move(self, fraction: float, run: Run) -> None:
        """Of the run that runs."""
        self.update(self._now, completed=fraction)
        self.update(self._whole, completed=self._done + fraction)

    def finish(self) -> None:
        """A part is done, or was."""
        self._done += 1
        self.update(self._whole, completed=self._done)
