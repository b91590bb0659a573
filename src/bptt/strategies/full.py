"""Full back-propagation through time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bptt.strategies.base import Draw, Strategy, Upto
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class FullBPTT(Strategy):
    """The exact gradient of the whole stream: one window, every weight one.

        c_t = ∂l_t/∂s_t + c_{t+1} · ∂s_{t+1}/∂s_t,  t = T-1 .. 0                          (1)

    One update, at the stream's end; `reduction="mean"` divides by the steps of the stream.
    Cost: one forward and one backward of T steps; memory for T steps, or any `memory=`, with replays.

    >>> import bptt, torch
    >>> model, loss = torch.nn.RNN(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> update = bptt.backward(model, loss, (torch.zeros(9, 2, 3), torch.zeros(9, 2, 4)), strategy=bptt.FullBPTT())
    >>> update.start, update.t0, update.t1
    (0, 0, 9)

    Source: Werbos 1990, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78(10).
    """

    @property
    def words(self) -> str:
        """In a phrase."""
        return "exact: one update per sequence, each loss through all steps before it"

    @property
    def kind(self) -> str:
        """Exact."""
        return "exact"

    @property
    def sequences(self) -> bool:
        """True: it takes the whole stream."""
        return True

    @property
    def reach(self) -> float:
        """All there are."""
        return math.inf

    @property
    def spec(self) -> str:
        """ "full"."""
        return "full"

    def windows(self, upto: Upto, draw: Draw, progress: Any = None) -> Iterator[Window]:
        """One window over all there is."""
        if progress is None:
            end = upto(math.inf)
            yield Window(start=0, first=0, stop=end, keep=end, progress=end)

    def divisor(self, window: Window) -> float:
        """T."""
        return window.steps
