"""The table of strategies: every common test runs each of its rows, and a new strategy adds one.

`windows` gives the oracle's windows of a run, from the definition; a random strategy's cuts, and an adaptive one's
lengths, are read off the run's updates, everything else (the weights, their k, what is kept) is worked out again.
"""

import itertools

import bptt
from bptt.strategies.base import says
from bptt.strategies.windows import Window
from support import oracle

STRATEGIES = {
    "full": bptt.FullBPTT(),
    "tbptt-1-1": bptt.TruncatedBPTT(k1=1),
    "tbptt-3-3": bptt.TruncatedBPTT(k1=3, k2=3),
    "tbptt-1-4": bptt.TruncatedBPTT(k1=1, k2=4),
    "tbptt-2-5": bptt.TruncatedBPTT(k1=2, k2=5),
    "tbptt-4-99": bptt.TruncatedBPTT(k1=4, k2=99),
    "tbptt-99": bptt.TruncatedBPTT(k1=99),
    "adaptive": bptt.AdaptiveTruncatedBPTT(tolerance=0.3, k_min=1, k_max=9, probe_every=2, window=4),
    "rtrl-1": bptt.RTRL(),
    "rtrl-3": bptt.RTRL(3),
    "snap-99": bptt.SnAp(99, 3),  # of an order at which nothing is dropped
    "artbp-constant": bptt.ARTBP(law=bptt.ConstantLaw(mean_length=4)),
    "artbp-polynomial-3": bptt.ARTBP(law=bptt.PolynomialLaw(alpha=3, mean_length=5), every=3),
    "artbp-function-2": bptt.ARTBP(law=lambda k: 0.5 / k, every=2),
}

CUTTING = {name: strategy for name, strategy in STRATEGIES.items() if not says(strategy, "carries")}
"""For tests of what those that carry ∂s/∂θ refuse (`clip_cotangent`, inputs that carry a graph, plain functions as
models) or do differently: a window runs twice, and its bytes hold J, which test_online.py and test_influence.py look
at."""

ALL = STRATEGIES | {"snap-1": bptt.SnAp(1, 3), "uoro-3": bptt.UORO(3)}
"""For tests that compare a run with itself: the oracle knows neither masks nor noise."""

RANDOM = [name for name, strategy in STRATEGIES.items() if isinstance(strategy, bptt.ARTBP)]
FIXED = [name for name in STRATEGIES if name not in RANDOM and name != "adaptive"]  # lengths known beforehand


def windows(strategy, length: int, updates=()) -> list[oracle.Window]:
    """What the definition says a run over `length` steps is made of."""
    if isinstance(strategy, bptt.FullBPTT):
        return oracle.full(length)
    if isinstance(strategy, bptt.TruncatedBPTT):
        return oracle.truncated(strategy.k1, strategy.k2 or strategy.k1, length)
    if isinstance(strategy, (bptt.RTRL, bptt.SnAp)):  # what J carries is the rest of a graph from the stream's start
        return oracle.truncated(strategy.k1, length + strategy.k1, length)
    if isinstance(strategy, bptt.AdaptiveTruncatedBPTT):
        return adaptive([update.decision.k for update in updates], length)
    cuts = {update.t1 for update in updates if update.t1 < length}
    return oracle.randomised(strategy.law, strategy.every, length, cuts)[0]


def adaptive(lengths, length: int) -> list[oracle.Window]:
    """Blocks of K losses that reach K - 1 steps further back, as far as a state was kept."""
    table, a, start = [], 0, 0
    for k, following in itertools.pairwise([*lengths, lengths[-1]]):
        b = min(a + k, length)
        keep = min(b, max(start, b - following + 1))
        table.append(oracle.Window(start, a, b, keep, {}))
        a, start = b, keep
    return table


class Table:
    """A strategy of one's own: a list of windows, whatever it says."""

    def __init__(self, table):
        self.table = table

    def windows(self, upto, draw):
        """The windows as the engine's own, each asked for before it is given."""
        for window in self.table:
            assert upto(window.stop) == window.stop
            yield Window(*window)


def scripted(law, every: int, cuts):
    """A strategy that differs from ARTBP in its draws and in nothing else: it cuts at `cuts`."""

    class Scripted(bptt.ARTBP):
        def windows(self, upto, draw):
            boundaries = itertools.count(every, every)
            return super().windows(upto, lambda: 0.0 if next(boundaries) in cuts else 1.0 - 1e-16)

    return Scripted(law=law, every=every)
