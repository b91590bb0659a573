"""What a comparison shows while it runs: two bars on a terminal, a line for each finished run everywhere."""

from __future__ import annotations

from bptt.analysis import number
from bptt.analysis.numbers import duration
from bptt.analysis.race import Run, Watch
from bptt.cli import progress
from bptt.runs import Interrupt


class Bars(Watch):
    """A bar for the whole comparison and one for what runs now; entered while it runs.

    Arguments:
        parts: runs and measurements, finished ones included. parameter: the name of a model's only one.
        interrupt: what asks the comparison to stop.
    """

    def __init__(self, parts: int, parameter: str | None, interrupt: Interrupt) -> None:
        self._bars = progress.Bars("{task.description:<34.34}")
        self._whole = self._bars.add_task("comparison", total=parts)
        self._now = self._bars.add_task("", total=1.0)
        self._done, self._parameter, self._interrupt = 0, parameter, interrupt
        self.say = self._bars.say

    def __enter__(self) -> Bars:
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, what: str) -> None:
        """Something new runs."""
        self._bars.reset(self._now, description=what)

    def move(self, fraction: float, run: Run) -> None:
        """Of the run that runs."""
        self._bars.update(self._now, completed=fraction)
        self._bars.update(self._whole, completed=self._done + fraction)

    def ran(self, run: Run) -> None:
        """A line for it."""
        loss = f"loss {number(run.last.loss):<8}" if run.points and not run.diverged else ""
        parameter = f"{self._parameter} {number(run.points[-1].parameter or 0.0):<8}" if self._parameter else ""
        ended = f"diverged {run.diverged}" if run.diverged else f"{run.updates:>6,} updates  {duration(run.seconds)}"
        self.say(f"{run.strategy:<14} seed {run.seed}  {loss}{parameter}  {ended}")

    def several(self, done: int, most: int) -> None:
        """Of those that run side by side, so many are done."""
        self._bars.update(self._now, completed=done / most)
        self._bars.update(self._whole, completed=self._done + done)

    def finish(self) -> None:
        """A part is done, or was."""
        self._done += 1
        self._bars.update(self._whole, completed=self._done)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._interrupt.asked
