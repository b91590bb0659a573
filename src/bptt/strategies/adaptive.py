"""Truncated back-propagation through time whose length follows a tolerance on the gradient's bias."""

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from statistics import fmean
from typing import Any

from bptt._errors import check_count
from bptt.strategies.base import Draw, Strategy, Upto, plain
from bptt.strategies.decay import Decay, Decision
from bptt.strategies.windows import Probe, Window

LOSSES = 8
"""How many losses a probe has, the last ones of its steps."""
AVERAGED = 5
"""How many estimates K is the mean of."""


@dataclass(frozen=True)
class AdaptiveTruncatedBPTT(Strategy):
    """Truncate where the credit that is dropped stays below a share of the gradient, measured during training.

        losses [a, a + K) through the graph of [a - (K - 1), a + K),  a -> a + K          (1)
        K = the smallest with δ(K) < tolerance, δ as in `bptt.strategies.decay`            (2)

    tolerance: the relative bias to allow, > 0; below 1 the truncated gradient still points downhill.
    k_min, k_max: bounds on K, in steps; k_max is also taken if credit doesn't fade.
    probe_every: updates between two probes. window: lags that a probe measures, at least 3.

    A probe runs the next window + 7 steps one by one without training on them, and pulls its last 8 losses back;
    buffers, noise and `.grad` are left alone. K is the mean of the last 5 estimates, and applies from the update after
    a probe. Probes with too few steps ahead or without credit are ignored; before the first one, K is k_max. If K more
    than doubles, one window reaches back only as far as states are kept. `Update.decision` records what was decided.
    One update for each K steps and one for the tail; `reduction="mean"` divides by K.

    Raises ValueError for bounds that no K meets, and under a byte budget too small for a probe of one kept state.
    Cost: (2K - 1) / K forwards and backwards of each step; for a probe two forwards and 8 backwards of its steps, one
    by one; memory for 2K - 1 steps, or for a probe's states and three times the cotangents of 8 losses, which `memory=`
    bounds. The stream is read ahead by a probe's steps.

    >>> import bptt, torch
    >>> fade = bptt.scan(lambda x, s: (0.9 * s + x, 0.9 * s + x))
    >>> x = torch.ones(200, requires_grad=True)
    >>> strategy = bptt.AdaptiveTruncatedBPTT(tolerance=0.5)
    >>> update = next(bptt.unroll(fade, lambda y, _: y, [(x, None)], torch.zeros(()), strategy=strategy))
    >>> update.t0, update.t1, round(update.decision.decay, 4), round(update.decision.bias, 4)
    (0, 7, 0.9, 0.4783)

    Source: Aicher, Foti & Fox 2019, "Adaptively truncating backpropagation through time to control gradient bias",
    https://arxiv.org/abs/1905.07473. Deviations: the cotangent of step t is measured at the state it starts from, since
    no other state of a black box can be seen; if credit fades evenly, that multiplies all lags alike. There is one
    denominator in δ for all K, and several losses per probe.
    """

    tolerance: float = 0.5
    k_min: int = 2
    k_max: int = 100
    probe_every: int = 50
    window: int = 100

    def __post_init__(self) -> None:
        tolerance = self.tolerance
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
            raise ValueError(
                f"{self!r}: tolerance is the relative bias to allow, a number above 0 such as 0.5, not {tolerance!r}."
            )
        for name in ("k_min", "k_max", "probe_every", "window"):
            check_count(getattr(self, name), f"{self!r}: {name}")
        if self.k_max < self.k_min:
            raise ValueError(f"{self!r}: no K lies between them: use k_max={self.k_min} or more.")
        if self.window < 3:
            raise ValueError(f"{self!r}: a slope needs lags to be measured at: use window=3 or more.")

    @property
    def words(self) -> str:
        """In a phrase."""
        return f"cut where what is dropped is estimated to stay below {self.tolerance:.0%} of the gradient"

    @property
    def lengths_known(self) -> bool:
        """False: lengths follow from what probes find."""
        return False

    @property
    def reach(self) -> int:
        """2K - 1 for the largest K."""
        return 2 * self.k_max - 1

    @property
    def spec(self) -> str | None:
        """ "adaptive:TOL"; None unless the bounds are the defaults."""
        same = self == AdaptiveTruncatedBPTT(self.tolerance)
        return f"adaptive:{plain(self.tolerance)}" if same else None

    def windows(self, upto: Upto, draw: Draw, progress: Any = None) -> Generator[Window | Probe, Any, None]:
        """Windows (1), keeping the state that the next one needs, and a probe before each window that is due one."""
        a = start = first = 0
        recent: deque[int] = deque(maxlen=AVERAGED)
        decision: Decision | None = None
        if progress is not None:
            a, start, first, known, (k, step, estimate, bias, decay, norms) = progress
            recent.extend(known)
            decision = Decision(k, step, estimate, bias, decay, tuple(norms))
        for number in count(first):
            if upto(a + 1) == a:
                return
            following = decision
            if number % self.probe_every == 0:
                steps = upto(start + self.window + LOSSES - 1) - start
                if decision is None or steps >= self.window:
                    found = Decay((yield Probe(start, start + steps, max(1, steps - self.window + 1))))
                    following = self._decide(found, start, recent) or decision
            following = following or Decision(self.k_max, start, self.k_max, math.nan, math.nan)
            decision = decision or following
            b = upto(a + decision.k)
            keep = min(b, max(start, b - following.k + 1))
            state = [b, keep, number + 1, list(recent), [*vars(following).values()]]
            yield Window(start, a, b, keep, decision=decision, progress=state)
            a, start, decision = b, keep, following

    def _decide(self, found: Decay, step: int, recent: deque[int]) -> Decision | None:
        """Equation (2), averaged."""
        if not found.known:
            return None
        recent.append(found.smallest(self.tolerance, self.k_min, self.k_max))
        k = round(fmean(recent))
        return Decision(k, step, recent[-1], found.bias(k), found.beta, tuple(found.credit.norms))

    def divisor(self, window: Window) -> float:
        """K, for a short last block too."""
        return window.decision.k
