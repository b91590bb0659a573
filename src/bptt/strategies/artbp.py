"""Randomised truncation with compensation: ARTBP."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from bptt import _errors
from bptt._errors import named
from bptt.strategies.base import Draw, Strategy, Upto, plain
from bptt.strategies.laws import PolynomialLaw, hazard
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class ARTBP(Strategy):
    """Cut at random, and weight what is not cut so that the expectation is the full gradient.

        c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t,
        w_t = 0 with probability p_t, else 1 / (1 - p_t)                                  (1)
        p_t = 1 - Π_k (1 - law(k)) over the steps k since the draw before                 (2)

    law: the hazard of a cut after the k-th step since the last one: `PolynomialLaw`, `ConstantLaw`, or any function of
        k = 1, 2, ... with values in [0, 1).
    every: draw only after steps whose number since the stream's start is a multiple of this. Larger values keep calls
        of the recurrence long, and the mean window grows by about every / 2. Any value is unbiased.
    per_row: each batch row is cut on its own, with its own k. The variance of independent rows adds up; with shared
        cuts the rows' errors are correlated too. For finite sequences: one update, at the stream's end.
    compensate: False leaves the factors out (w_t = 1 where nothing is cut), so that only lengths are random. That is
        biased; it is there to show what the factors are for.

    One update after each cut and one at the stream's end; `reduction="mean"` divides by the law's mean_length, a
    constant, since the random length of the window itself would weigh short windows too much.
    Raises ValueError for every < 1, a law outside [0, 1), and for "mean" with a law that has no mean_length.
    Cost: one forward and one backward per step; memory for one window: mean_length steps in expectation, unbounded
    without `memory=`; per row the whole sequence. A recurrence without native `cotangent_weight` is called once
    between two draws. Unbiased for frozen parameters; with updates in between, states are those of their time.

    >>> import bptt
    >>> strategy = bptt.ARTBP(law=bptt.ConstantLaw(mean_length=4))
    >>> draws = iter([0.9, 0.1, 0.9])
    >>> for w in strategy.windows(lambda t: min(t, 3), lambda: next(draws)): print(w.start, w.stop, w.weights)
    0 2 {1: 1.3333333333333333}
    2 3 {}

    Source: Tallec & Ollivier 2017, "Unbiasing truncated backpropagation through time", proposition 1,
    https://arxiv.org/abs/1705.08209. Deviations: the state is carried over a cut; draw and factor use the same k (in
    the authors' code one is shifted against the other); `every`, `per_row` and `compensate` are ours.
    """

    law: Callable[[int], float] = field(default_factory=PolynomialLaw)
    every: int = 1
    per_row: bool = False
    compensate: bool = True

    def __post_init__(self) -> None:
        _errors.check_count(self.every, f"ARTBP(every={self.every!r}): every")
        _errors.check_callable(self.law, "ARTBP(law=...)")
        for name in ("per_row", "compensate"):
            _errors.check_switch(getattr(self, name), f"ARTBP({name}=...)")

    @property
    def words(self) -> str:
        """In a phrase."""
        often = f", {plain(mean)} steps apart on average" if (mean := getattr(self.law, "mean_length", 0)) else ""
        return f"cut at random{often}, {'with factors that make' if self.compensate else 'and nothing makes'} up for it"

    @property
    def kind(self) -> str:
        """Unbiased, thanks to the factors."""
        return "unbiased" if self.compensate else "biased"

    @property
    def sequences(self) -> bool:
        """Whether rows are cut on their own, which is done within one window."""
        return self.per_row

    @property
    def reach(self) -> float | None:
        """The larger of the law's mean_length and `every`; per row the whole sequence."""
        mean = getattr(self.law, "mean_length", None)
        return math.inf if self.per_row else None if mean is None else max(mean, self.every)

    @property
    def spec(self) -> str | None:
        """ "artbp:L", or "random:L" without the factors; None beyond the default form of the law."""
        length = getattr(self.law, "mean_length", None)
        if length is None or self.law != PolynomialLaw(mean_length=length) or self.every != 1 or self.per_row:
            return None
        return f"{'artbp' if self.compensate else 'random'}:{plain(length)}"

    def windows(self, upto: Upto, draw: Draw, progress: int | None = None) -> Iterator[Window]:
        """Draw after each step that may end a window, read on, and yield the window between two cuts."""
        if self.per_row:
            if progress is None:
                yield from self._whole(upto, draw)
            return
        start = last = progress or 0
        survives = cache(self._survive)
        weights: dict[int, float] = {}
        while (t := upto((last // self.every + 1) * self.every)) > last:
            if t % self.every:  # the stream's end, after which there is nothing to cut
                break
            survive = survives(last - start, t - start)
            last = t
            if draw() < 1 - survive:
                yield Window(start, start, t, t, weights, progress=t)
                start, weights = t, {}
            elif self.compensate:
                weights[t] = 1 / survive
        if t > start:
            weights.pop(t, None)
            yield Window(start, start, t, t, weights, progress=t)

    def _whole(self, upto: Upto, draw: Draw) -> Iterator[Window]:
        """One window over the sequence, with separate weights for each row: 0 where it is cut."""
        stop = upto(math.inf)
        survives = cache(self._survive)
        cut: list[int] = []  # of each row, the last one
        weights: dict[int, Tensor] = {}
        for t in range(self.every, stop + 1, self.every):
            drawn = draw(each_row=True)
            cut = cut or [0] * len(drawn)
            survive = [survives(t - self.every - k, t - k) for k in cut]
            cuts = [u < 1 - s for u, s in zip(drawn, survive, strict=True)]
            kept = [1 / s if self.compensate else 1.0 for s in survive]
            weights[t] = torch.tensor([0.0 if c else w for c, w in zip(cuts, kept, strict=True)], dtype=torch.float64)
            cut = [t if c else k for c, k in zip(cuts, cut, strict=True)]
        weights.pop(stop, None)
        yield Window(0, 0, stop, stop, weights, progress=stop)

    def _survive(self, before: int, after: int) -> float:
        """1 - p of equation (2): that no step of `before` < k <= `after` cuts."""
        survive = 1.0
        for k in range(before + 1, after + 1):
            survive *= 1 - hazard(self.law, k)
        return survive

    def divisor(self, window: Window) -> float:
        """The law's mean_length."""
        value = getattr(self.law, "mean_length", None)
        if value is None:
            raise ValueError(
                f"reduction=\"mean\" divides by the law's mean_length, which {named(self.law)} doesn't have: use "
                f'reduction="sum".'
            )
        return value
