"""What a command shows while it runs: bars on a terminal, lines that stay everywhere; and the bar of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from bptt.analysis.history import History
from bptt.analysis.numbers import quantity, size
from bptt.cli.printing import bits
from bptt.cli.screen import Screen


class Bars(Progress):
    """Progress bars that vanish at the end; without a terminal only `say` shows anything.

    Arguments:
        description: format of a bar's name.
    """

    def __init__(self, description: str = "{task.description}") -> None:
        console = Screen().console
        done = TextColumn(description, markup=False), BarColumn(bar_width=None), TextColumn("{task.percentage:>3.0f}%")
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        shown = console.is_terminal
        super().__init__(*done, *times, console=console, transient=True, disable=not shown, expand=True)
        self.say = Screen(console).say

    @property
    def width(self) -> int:
        """Columns that a line may have."""
        return self.console.width


class Averages:
    """Loss, speed and memory as a bar shows them: averages over the last 50 or so updates."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._smooth: dict[str, float] = {}
        self._shown = 0

    def numbers(self, record: dict[str, Any], read: int, seconds: float) -> str:
        """What the bar shows after an update of `read` characters or steps that took `seconds`."""
        self._shown += 1
        weight = min(0.98, 1 - 1 / self._shown)  # the first updates are averaged evenly
        now = {"loss": record["loss"], "read": read, "seconds": seconds, "memory": record["memory_bytes"]}
        for name, value in now.items():
            self._smooth[name] = weight * self._smooth.get(name, 0.0) + (1 - weight) * value
        smooth, history = self._smooth, self._history
        text = history.measure.in_bits
        speed = quantity(smooth["read"] / max(smooth["seconds"], 1e-9), "char/s" if text else "steps/s")
        loss = f"{bits(smooth['loss'] * history.measure.factor)} bits/char  " if text else ""
        return (
            f"loss {bits(smooth['loss'])}  {loss}{speed}  gradient "
            f"{record['grad_norm']:.2g}, {history.clipped / history.step:.0%} clipped  {size(smooth['memory'])}"
        )


class Display(Bars):
    """A progress bar with a line of numbers under it."""

    def __init__(self) -> None:
        self._numbers = ""
        super().__init__()
        self._bar = self.add_task("training", total=1.0)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the numbers on a line of their own: side by side they need more than 80 columns."""
        yield from super().get_renderables()
        yield Text(self._numbers, no_wrap=True, overflow="ellipsis")

    def show(self, fraction: float, numbers: str) -> None:
        """Move the bar."""
        self._numbers = numbers
        self.update(self._bar, completed=fraction)
