"""Randomised truncation with compensation: ARTBP."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bptt import arguments
from bptt.schedules.laws import PolynomialLaw
from bptt.schedules.windows import Window
from bptt.strategies.base import Draw, Upto


@dataclass(frozen=True)
class ARTBP:
    """Cut at random, and weight what is not cut so that the expectation is the full gradient.

        c_t = ∂l_t/∂s_t + w_t · c_{t+1} · ∂s_{t+1}/∂s_t,
        w_t = 0 with probability p_t, else 1 / (1 - p_t)                                  (1)
        p_t = 1 - Π_k (1 - law(k)) over the steps k since the draw before                 (2)

    law: the hazard of a cut after the k-th step since the last one: `PolynomialLaw`, `ConstantLaw`, or any function of
        k = 1, 2, ... with values in [0, 1).
    every: draw only after steps whose number since the stream's start is a multiple of this; larger values keep whole-
        sequence calls long, and the mean window grows by about every / 2. Unbiased for any.

    One update after each cut and one at the stream's end; `reduction="mean"` divides by the law's mean_length, a
    constant, since the random length of the window itself would weigh short windows too much.
    Raises ValueError for every < 1, a law outside [0, 1), and for "mean" with a law that has no mean_length.
    Cost: one forward and one backward a step; memory for one window: mean_length steps in expectation, unbounded
    without `memory=`. Unbiased for frozen parameters; with updates in between, states are those of their time.

    >>> import bptt
    >>> strategy = bptt.ARTBP(law=bptt.ConstantLaw(mean_length=4))
    >>> draws = iter([0.9, 0.1, 0.9])
    >>> for w in strategy.windows(lambda t: min(t, 3), lambda: next(draws)): print(w.start, w.stop, w.weights)
    0 2 {1: 1.3333333333333333}
    2 3 {}

    Source: Tallec & Ollivier 2017, "Unbiasing truncated backpropagation through time", proposition 1,
    https://arxiv.org/abs/1705.08209. Deviations: the state is carried over a cut; draw and factor use the same k (the
    authors' code shifts one against the other); `every` is ours.
    """

    law: Callable[[int], float] = field(default_factory=PolynomialLaw)
    every: int = 1

    def __post_init__(self) -> None:
        arguments.count(self.every, f"ARTBP(every={self.every!r}): every")
        arguments.callable_(self.law, "ARTBP(law=...)")

    def windows(self, upto: Upto, draw: Draw) -> Iterator[Window]:
        """Draw after each step that may end a window, read on, and yield what lies between two cuts."""
        start = last = 0
        weights: dict[int, float] = {}
        while (t := upto((last // self.every + 1) * self.every)) > last:
            if t % self.every:  # the stream's end, after which there is nothing to cut
                break
            survive = 1.0
            for k in range(last - start + 1, t - start + 1):
                survive *= 1 - arguments.hazard(self.law, k)
            last = t
            if draw() < 1 - survive:
                yield Window(start, start, t, t, weights)
                start, weights = t, {}
            else:
                weights[t] = 1 / survive
        if t > start:
            weights.pop(t, None)
            yield Window(start, start, t, t, weights)

    def divisor(self, window: Window) -> float:
        """The law's mean_length."""
        return arguments.mean_length(self.law)
