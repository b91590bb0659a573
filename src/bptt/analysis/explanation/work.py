"""Every number that is shown, as tensors: by the equations, by autograd, and by the engine."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import bptt
from bptt import equations
from bptt.equations import ARTBPPattern, Gradient, Network, Trace


@dataclass(frozen=True, eq=False)
class Estimate:
    """What stands in for the full gradient: the weights ω (T, T) of its terms, its sum, the same by the engine."""

    name: str
    weights: Tensor
    gradient: Gradient
    by_engine: Gradient


@dataclass(frozen=True, eq=False)
class Expectation:
    """ARTBP's gradient over all patterns of cuts: its mean as `flat` has it, its deviation relative to |dL/dθ|."""

    patterns: int
    mean: Tensor
    deviation: float


@dataclass(frozen=True, eq=False)
class Work:
    """What was given and drawn, and all that follows from it, computed when it is asked for.

    All arrays by term have entry [t, k], zero for k > t.
    """

    network: Network
    x: Tensor
    y: Tensor
    sources: tuple[str, str]
    characters: str
    tau: int
    term: tuple[int, int]
    law: Any
    cuts: tuple[int, ...]
    drawn: Gradient

    def __post_init__(self) -> None:
        if self.network.loss == "softmax_cross_entropy":
            object.__setattr__(self, "y", self.y.to(torch.int64))  # plain data hold no dtypes

    @cached_property
    def trace(self) -> Trace:
        """The forward pass."""
        return equations.forward(self.network, self.x, self.y)

    @cached_property
    def jacobians(self) -> Tensor:
        """∂h_t/∂h_k, (T, T, H, H)."""
        steps, zero = range(self.trace.steps), torch.zeros_like(self.network.W)
        rows = [[equations.jacobian(self.trace, t, k) if k <= t else zero for k in steps] for t in steps]
        return torch.stack([torch.stack(row) for row in rows])

    @cached_property
    def cotangents(self) -> Tensor:
        """∂l_t/∂h_k, (T, T, H)."""
        return equations.state_cotangents(self.trace)

    @cached_property
    def terms(self) -> Gradient:
        """Every term of the gradients, arrays (T, T, ...)."""
        return equations.pair_terms(self.trace)

    @cached_property
    def full(self) -> Gradient:
        """dL/dθ, the sums of all terms."""
        return equations.gradient_by_double_sum(self.trace)

    @cached_property
    def others(self) -> dict[str, Gradient]:
        """The full gradient in three other ways, by name."""
        return {
            "by recursion": equations.gradient_by_recursion(self.trace),
            "by autograd": _autograd(self.network, self.x, self.y),
            "by bptt.unroll": engine(self.network, self.x, self.y, bptt.FullBPTT())[0],
        }

    @cached_property
    def truncated(self) -> tuple[Estimate, ...]:
        """The last tau terms of each sum, and subsequences of tau steps; one of them for tau = 1, where both agree."""
        return tuple(self._truncated())

    def _truncated(self) -> Iterator[Estimate]:
        tau, trace = self.tau, self.trace
        kinds: list[Any] = [(bptt.TruncatedBPTT(1, tau), equations.truncated_weights, equations.truncated_gradient)]
        if tau > 1:
            kinds.append((bptt.TruncatedBPTT(tau, tau), equations.subsequence_weights, equations.subsequence_gradient))
        for strategy, weights, gradient in kinds:
            name = f"TruncatedBPTT({strategy.k1}, {strategy.k2})"
            by_engine, _ = engine(self.network, self.x, self.y, strategy)
            yield Estimate(name, weights(trace.steps, tau), gradient(trace, tau), by_engine)

    @cached_property
    def pattern(self) -> ARTBPPattern:
        """The cuts that were drawn, with their chances and weights."""
        return ARTBPPattern(self.trace.steps, self.cuts, self.law)

    @cached_property
    def draw(self) -> Estimate:
        """ARTBP's gradient with these cuts."""
        gradient = equations.artbp_gradient(self.trace, self.pattern)
        return Estimate("ARTBP's draw", self.pattern.weights, gradient, self.drawn)

    @cached_property
    def expectation(self) -> Expectation:
        """ARTBP over every pattern of cuts, each by its chance: no sampling."""
        return _expectation(self.terms, self.full, self.trace.steps, self.law)


def flat(gradient: Gradient) -> Tensor:
    """All parameters' numbers in one row."""
    return torch.cat([part.flatten() for part in gradient if part is not None])


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of any entry, as a part of the largest entry of `other`."""
    return (one - other).abs().max().item() / (other.abs().max().item() or 1.0)


def relative_error(estimate: Tensor, full: Tensor) -> float:
    """|estimate - full| / |full|; NaN where the full gradient is zero."""
    size = full.norm().item()
    return (estimate - full).norm().item() / size if size else math.nan


def cosine(estimate: Tensor, full: Tensor) -> float:
    """The cosine of the angle between the two; NaN where one is zero."""
    size = estimate.norm().item() * full.norm().item()
    return (estimate @ full).item() / size if size else math.nan


def engine(
    network: Network, x: Tensor, y: Tensor, strategy: Any, generator: torch.Generator | None = None
) -> tuple[Gradient, tuple[int, ...]]:
    """What `bptt.unroll` adds up over the sequence, and the boundaries at which it yielded."""
    model, loss = _model(network)
    chunk = bptt.Chunk(x, y)
    updates = bptt.unroll(model, loss, [chunk], strategy=strategy, reduction="sum", generator=generator)
    *ends, _ = (update.t1 for update in updates)
    return _collected(model), tuple(ends)


def _model(network: Network) -> tuple[Any, Any]:
    """The network as a module, and its loss as a function: what a user trains."""
    (hidden, inputs), outputs = network.U.shape, len(network.V)
    sizes = inputs, hidden, outputs, network.nonlinearity
    model = bptt.nn.SimpleRNN(*sizes, dtype=network.U.dtype, generator=torch.Generator())
    with torch.no_grad():
        for name in ("U", "W", "V", "b", "c"):  # one bias may be there without the other
            value = getattr(network, name)
            setattr(model, name, None if value is None else torch.nn.Parameter(value.clone()))
    return model, equations.LOSSES[network.loss].value


def _collected(model: Any) -> Gradient:
    return Gradient(**{name: parameter.grad for name, parameter in model.named_parameters()})


def _autograd(network: Network, x: Tensor, y: Tensor) -> Gradient:
    """dL/dθ by torch alone: forward, sum, backward."""
    model, loss = _model(network)
    outputs, _ = model(x)
    loss(outputs, y).sum().backward()
    return _collected(model)


def _expectation(terms: Gradient, full: Gradient, steps: int, law: Callable[[int], float]) -> Expectation:
    every = (cuts for count in range(steps) for cuts in itertools.combinations(range(1, steps), count))
    patterns = [ARTBPPattern(steps, cuts, law) for cuts in every]
    chances = torch.tensor([pattern.probability for pattern in patterns], dtype=torch.float64)
    weights = torch.stack([pattern.weights for pattern in patterns]).flatten(1)
    each = torch.cat([part.flatten(2).flatten(0, 1) for part in terms if part is not None], 1)  # (T², numbers)
    gradients = weights @ each
    away = (gradients - flat(full)).square().sum(1)
    size = flat(full).norm().item()
    deviation = math.sqrt((chances @ away).item()) / size if size else math.nan
    return Expectation(len(patterns), chances @ gradients, deviation)
