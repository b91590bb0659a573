"""What a strategy yields, as plain data: windows, each the stretch of time behind one update's gradient, and probes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Window:
    """One update's share of the stream, as plain data.

    start: the graph starts from the state before this step.
    first, stop: the losses of steps [first, stop) are differentiated, start <= first < stop.
    keep: the next window continues from the state before this step, start - burn_in <= keep <= stop.
    weights: w of equation (1) by boundary: the weight at t multiplies the cotangent that goes back from step t to step
        t - 1; it is 1 where absent. A number, or a tensor (B,) of one weight per batch row.
    burn_in: steps before `start` that are run first, without a graph, from the state that is known before them.
    decision: why the window is as long as it is, for the update's record; None if nothing was decided.
    progress: where the strategy stands after this window, made of numbers, strings, lists and dicts that can be stored
        as JSON: `Strategy.windows` takes it to give the windows that follow. None if the run can't be continued there.

    >>> Window(start=0, first=2, stop=4, keep=2).steps
    2
    """

    start: int
    first: int
    stop: int
    keep: int
    weights: Mapping[int, Any] = field(default_factory=dict)
    burn_in: int = field(default=0, kw_only=True)
    decision: Any = None
    progress: Any = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        """The number of losses."""
        return self.stop - self.first

    def __eq__(self, other: object) -> bool:
        """Whether they are the same apart from their progress; tensors of weights are compared by their values."""
        return isinstance(other, Window) and self._plain() == other._plain()

    def _plain(self) -> tuple[Any, ...]:
        weights = {t: w.tolist() if hasattr(w, "tolist") else w for t, w in self.weights.items()}
        return self.start, self.first, self.stop, self.keep, weights, self.burn_in, self.decision


class Carry(NamedTuple):
    """How a strategy carries the influence J = ∂s/∂θ across a window's edge, instead of cutting it off.

    kind: "exact", J itself; "masked", its entries within `order` steps; "product", a random product of two vectors.
    epsilon: prevents division by zero in a product.
    """

    kind: str
    order: int = 0
    epsilon: float = 0.0


class Probe(NamedTuple):
    """A question in place of a window: how the credit of the last `losses` of the steps [start, stop) fades with lag.

    start is that of the next window. The answer, a `Credit`, is sent back into the generator of windows.
    """

    start: int
    stop: int
    losses: int

    @property
    def lags(self) -> int:
        """How many lags each of the losses reaches back."""
        return self.stop - self.start - self.losses + 1


class Credit(NamedTuple):
    """What a probe found, lag by lag; lag k of loss l_s belongs to step s - k, measured at the state it starts from.

    norms[k]: φ_k, the mean over losses and batch rows of the norm of ∂l_s/∂s_{s-k-1}.
    sums[k]: the norm of the mean over losses and rows of Σ_{j<=k} ∂l_s/∂s_{s-j-1}.
    """

    norms: list[float]
    sums: list[float]
