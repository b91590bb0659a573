"""What a strategy is: a value that yields the windows of a stream, and describes itself."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from bptt._errors import check_count
from bptt.strategies.windows import Carry, Probe, Window

Upto = Callable[[float], int]
"""`upto(t)`: read on until t steps exist or the stream ends; how far it then reaches, at most t."""

Draw = Callable[..., Any]
"""`draw()`: the next uniform number in [0, 1) of the run's generator; `draw(each_row=True)`: a list of one per row."""


class Strategy(Protocol):
    """Which gradient is wanted: a frozen dataclass that yields windows. Inherit from it to have the defaults below.

    Values that change during a run are local variables of `windows`, never fields, and what it needs to continue after
    a window is in `Window.progress`. A strategy is plain Python and sees neither tensors nor the model.

    >>> import bptt
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Growing(bptt.Strategy):  # windows of 1, 2, 3, ... steps
    ...     def windows(self, upto, draw, progress=None):
    ...         a, length = progress or (0, 1)
    ...         while (b := upto(a + length)) > a:
    ...             yield bptt.Window(start=a, first=a, stop=b, keep=b, progress=[b, length + 1])
    ...             a, length = b, length + 1
    >>> [window.stop for window in Growing().windows(lambda t: min(t, 7), None)]
    [1, 3, 6, 7]
    """

    @property
    def kind(self) -> str:
        """What the gradient is at fixed parameters: "exact", "unbiased" (in expectation) or "biased"."""
        return "biased"

    @property
    def words(self) -> str:
        """What it does, in a phrase; by default the first line of its docstring."""
        return (type(self).__doc__ or type(self).__name__).strip().splitlines()[0].rstrip(".")

    @property
    def sequences(self) -> bool:
        """Whether it needs the end of the stream before it yields anything, and so finite sequences."""
        return False

    @property
    def lengths_known(self) -> bool:
        """Whether its windows follow from the stream's length and the draws alone, before anything is run."""
        return True

    @property
    def reach(self) -> float | None:
        """The steps of its longest windows, or their mean if windows are drawn; None if unknown."""
        return None

    @property
    def spec(self) -> str | None:
        """The text from which `bptt.strategies.parse` makes this value, such as "tbptt:5:50"; None if there is none."""
        return None

    @property
    def carries(self) -> Carry | None:
        """What it carries across the edges of windows that follow one another without overlap; None for nothing."""
        return None

    @abstractmethod
    def windows(self, upto: Upto, draw: Draw, progress: Any = None) -> Iterator[Window | Probe]:
        """The windows of a stream, one per update, each yielded before more of the stream is read.

        progress: that of the last window of an earlier run, to continue after; None for the stream's start.
        A generator may yield a `Probe` that starts where its next window will; it is sent a `Credit` back.
        """
        ...

    def divisor(self, window: Window) -> float:
        """What `reduction="mean"` divides the window's losses by; raises ValueError if there is no such constant."""
        raise ValueError(f'{self!r} has no constant to divide by: use reduction="sum".')


class Online(Strategy):
    """Windows of k1 steps, one after the other, across whose edges an influence is carried."""

    k1: int

    def __post_init__(self) -> None:
        check_count(self.k1, f"{self!r}: k1")

    @property
    def reach(self) -> int:
        """The steps whose graph is held, k1."""
        return self.k1

    def spelled(self, name: str) -> str:
        """The text of a strategy, k1 = 1 left out."""
        return name if self.k1 == 1 else f"{name}:{self.k1}"

    def windows(self, upto: Upto, draw: Draw, progress: int | None = None) -> Iterator[Window]:
        """Blocks of k1 losses, each through its own graph."""
        a = progress or 0
        while (b := upto(a + self.k1)) > a:
            yield Window(a, a, b, b, progress=b)
            a = b

    def divisor(self, window: Window) -> float:
        """k1, for a short last block too."""
        return self.k1


def says(strategy: Any, what: str) -> Any:
    """A property of a strategy, or its default for one that doesn't inherit from `Strategy`.

    >>> import bptt
    >>> bptt.strategies.says(bptt.TruncatedBPTT(k1=5, k2=50), "reach"), bptt.strategies.says(object(), "kind")
    (50, 'biased')
    """
    default = getattr(Strategy, what).fget(strategy)
    return getattr(strategy, what, default)


def plain(number: float) -> str:
    """A number as it is written, which reads back as the same: `50`, `0.5`."""
    return str(int(number)) if number == int(number) else repr(number)
