"""What a strategy is: a value that yields the windows of a stream, and the constant that the mean divides by."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from bptt.schedules.windows import Probe, Window

Upto = Callable[[float], int]
"""`upto(t)`: read on until t steps exist or the stream ends; how far it then reaches, at most t."""

Draw = Callable[..., Any]
"""`draw()`: the next uniform number in [0, 1) of the run's generator; `draw(each_row=True)`: a list of one a row."""


class Strategy(Protocol):
    """A frozen dataclass with these two methods; running values are their locals, never fields."""

    def windows(self, upto: Upto, draw: Draw) -> Iterator[Window | Probe]:
        """The windows of a stream, one an update, each yielded before more of the stream is read.

        A generator may yield a `Probe` that starts where its next window will; it is sent a `Credit` back.
        """
        ...

    def divisor(self, window: Window) -> float:
        """What `reduction="mean"` divides the window's losses by; ValueError where there is no such constant."""
        ...
