"""Every number that is shown, as tensors: by the equations, by autograd, and by the engine."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import bptt
from bptt import equations
from bptt.cli.explanation.example import Example
from bptt.equations import ARTBPPattern, Gradient, Trace


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What stands in for the full gradient: the weights ω (T, T) of its terms, its sum, the same by the engine."""

    name: str
    weights: Tensor
    gradient: Gradient
    by_engine: Gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Expectation:
    """ARTBP's gradient over all patterns of cuts: its mean as `flat` has it, its deviation relative to |dL/dθ|."""

    patterns: int
    mean: Tensor
    deviation: float


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """The example worked through.

    tau: of the truncations. jacobians: ∂h_t/∂h_k, (T, T, H, H). cotangents: ∂l_t/∂h_k, (T, T, H). terms: arrays
    (T, T, ...). All have entry [t, k], zero for k > t. full, by_recursion, by_autograd, by_engine: one gradient in four
    ways. truncated (one if tau = 1), draw: what stands in for it. pattern: the cuts of `draw`.
    """

    example: Example
    trace: Trace
    tau: int
    jacobians: Tensor
    cotangents: Tensor
    terms: Gradient
    full: Gradient
    by_recursion: Gradient
    by_autograd: Gradient
    by_engine: Gradient
    truncated: tuple[Estimate, ...]
    draw: Estimate
    pattern: ARTBPPattern
    expectation: Expectation


def work(example: Example, tau: int, law: Callable[[int], float], generator: torch.Generator) -> Work:
    """Compute everything.

    Arguments:
        tau: terms kept by truncation, and the length of subsequences.
        law: the hazard of ARTBP's cuts, which are drawn from `generator`.
    """
    network, (x, y, *_) = example.network, example.sequence
    trace = equations.forward(network, x, y)
    steps = trace.steps
    terms, full = equations.pair_terms(trace), equations.gradient_by_double_sum(trace)
    zero = torch.zeros_like(network.W)
    chains = [[equations.jacobian(trace, t, k) if k <= t else zero for k in range(steps)] for t in range(steps)]
    by_draw, cuts = _engine(example, bptt.ARTBP(law=law), generator)
    pattern = ARTBPPattern(steps, cuts, law)
    return Work(
        example=example,
        trace=trace,
        tau=tau,
        jacobians=torch.stack([torch.stack(row) for row in chains]),
        cotangents=equations.state_cotangents(trace),
        terms=terms,
        full=full,
        by_recursion=equations.gradient_by_recursion(trace),
        by_autograd=_autograd(example),
        by_engine=_engine(example, bptt.FullBPTT())[0],
        truncated=tuple(_truncated(example, trace, tau)),
        draw=Estimate("ARTBP's draw", pattern.weights, equations.artbp_gradient(trace, pattern), by_draw),
        pattern=pattern,
        expectation=_expectation(terms, full, steps, law),
    )


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


def _model(example: Example) -> tuple[bptt.nn.SimpleRNN, Any]:
    """The network as a module, and its loss as a function: what a user trains."""
    network = example.network
    (hidden, inputs), outputs = network.U.shape, len(network.V)
    model = bptt.nn.SimpleRNN(
        inputs, hidden, outputs, network.nonlinearity, network.b is not None, dtype=network.U.dtype
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(getattr(network, name))
    return model, equations.LOSSES[network.loss].value


def _collected(model: bptt.nn.SimpleRNN) -> Gradient:
    return Gradient(**{name: parameter.grad for name, parameter in model.named_parameters()})  # pyright: ignore[reportArgumentType]


def _autograd(example: Example) -> Gradient:
    """dL/dθ by torch alone: forward, sum, backward."""
    model, loss = _model(example)
    outputs, _ = model(example.sequence.x)
    loss(outputs, example.sequence.y).sum().backward()
    return _collected(model)


def _engine(
    example: Example, strategy: Any, generator: torch.Generator | None = None
) -> tuple[Gradient, tuple[int, ...]]:
    """What `bptt.unroll` adds up over the sequence, and the boundaries at which it yielded."""
    model, loss = _model(example)
    chunk = bptt.Chunk(example.sequence.x, example.sequence.y)
    updates = bptt.unroll(model, loss, [chunk], strategy=strategy, reduction="sum", generator=generator)
    *ends, _ = (update.t1 for update in updates)
    return _collected(model), tuple(ends)


def _truncated(example: Example, trace: Trace, tau: int) -> Iterator[Estimate]:
    """The last `tau` terms of each sum, and subsequences of `tau` steps; for tau = 1 these are the same."""
    kinds: list[Any] = [(bptt.TruncatedBPTT(1, tau), equations.truncated_weights, equations.truncated_gradient)]
    if tau > 1:
        kinds.append((bptt.TruncatedBPTT(tau, tau), equations.subsequence_weights, equations.subsequence_gradient))
    for strategy, weights, gradient in kinds:
        name = f"TruncatedBPTT({strategy.k1}, {strategy.k2})"
        yield Estimate(name, weights(trace.steps, tau), gradient(trace, tau), _engine(example, strategy)[0])


def _expectation(terms: Gradient, full: Gradient, steps: int, law: Callable[[int], float]) -> Expectation:
    """Every pattern of cuts, its gradient and its chance: no sampling."""
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
