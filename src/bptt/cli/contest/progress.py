"""What a comparison shows while it runs: two bars on a terminal, a line for each finished run everywhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from bptt.cli.contest.runner import Run
from bptt.cli.printing import printable


class Bars(Progress):
    """A bar for the whole comparison and one for what runs now.

    Arguments:
        parts: runs and measurements, finished ones included.
    """

    def __init__(self, parts: int) -> None:
        console = Console(markup=False, highlight=False, emoji=False)
        super().__init__(
            TextColumn("{task.description:<26.26}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            expand=True,
        )
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

    def say(self, text: str = "") -> None:
        """Print a line that stays, control characters escaped."""
        self.console.print(Text(printable(text)), soft_wrap=True)
