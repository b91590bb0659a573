"""Gradients by plain autograd, step by step, written without `bptt`: what every engine test is compared with.

Everything is one call of the model a step, one explicit graph a window, one `torch.autograd.grad`. Slow and plain.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


def tree_map(f, tree, *others):
    """Map over tuples, lists, dicts and named tuples; anything else is a leaf."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(f, *xs) for xs in zip(tree, *others, strict=True)))
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(f, *xs) for xs in zip(tree, *others, strict=True))
    if isinstance(tree, dict):
        return {k: tree_map(f, tree[k], *(o[k] for o in others)) for k in tree}
    return f(tree, *others)


def leaves(tree) -> list:
    out: list = []
    tree_map(out.append, tree)
    return out


def detach(tree):
    return tree_map(lambda t: t.detach(), tree)


def steps(tree, a: int, b: int):
    return tree_map(lambda t: t[a:b], tree)


def differentiable(t) -> bool:
    return t.is_floating_point() or t.is_complex()


def along_rows(v: torch.Tensor, like: torch.Tensor, dim: int) -> torch.Tensor:
    """A vector over rows (or a scalar), shaped to multiply `like`, whose rows lie on axis `dim`."""
    return v if v.dim() == 0 else v.reshape([-1 if d == dim % like.dim() else 1 for d in range(like.dim())])


def gate(t: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The value of t, w times its cotangent: the difference is an exact zero."""
    return t.detach() + w.to(t.real.dtype) * (t - t.detach()) if differentiable(t) else t


class ClipRows(torch.autograd.Function):
    """Identity whose backward scales each row's cotangent, over all leaves together, down to norm c."""

    @staticmethod
    def forward(ctx, c, dims, *tensors):
        ctx.c, ctx.dims = c, dims
        return tuple(t.clone() for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        square = sum(
            g.abs().square().movedim(d, 0).flatten(1).sum(1) if g.dim() > 1 else g.abs().square()
            for g, d in zip(grads, ctx.dims, strict=True)
        )
        factor = (ctx.c / square.sqrt().clamp_min(1e-300)).clamp_max(1.0)
        return None, None, *(g * along_rows(factor, g, d) for g, d in zip(grads, ctx.dims, strict=True))


class Window(NamedTuple):
    start: int
    first: int
    stop: int
    keep: int
    weights: dict[int, float]


@dataclass
class Problem:
    """A model, its data and where it starts. `initial` is called afresh for every window that uses it."""

    model: Callable
    loss: Callable
    xs: Any
    ys: Any
    state: Any = None
    initial: Callable | None = None
    batch_dim: Any = 1
    is_start: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    clip: float | None = None
    length: int = field(init=False)

    def __post_init__(self):
        self.length = len(leaves(self.xs)[0])

    def dims(self, state):
        return tree_map(lambda _: self.batch_dim, state) if isinstance(self.batch_dim, int) else self.batch_dim

    def beginning(self):
        return self.state if self.state is not None else self.initial()


class Pass(NamedTuple):
    total: torch.Tensor
    state: Any
    kept: Any
    entering: list
    losses: list


def crossing(problem: Problem, state, w):
    """What lies between s_{t-1} and step t: backward, the weight, and then the clip of each row."""
    dims = problem.dims(state)
    if problem.clip is not None:
        flat, order = leaves(state), leaves(dims)
        chosen = [i for i, t in enumerate(flat) if differentiable(t)]
        clipped = ClipRows.apply(problem.clip, [order[i] for i in chosen], *(flat[i] for i in chosen))
        flat = [clipped[chosen.index(i)] if i in chosen else t for i, t in enumerate(flat)]
        refill = iter(flat)
        state = tree_map(lambda _: next(refill), state)
    return (
        state
        if w is None
        else tree_map(lambda t, d: gate(t, along_rows(torch.as_tensor(w, dtype=torch.float64), t, d)), state, dims)
    )


def reset(problem: Problem, state, rows: torch.Tensor, fresh):
    """`rows` of the state replaced by those of the initial state."""

    def replace(t, new, d):
        return torch.where(along_rows(rows, t, d), new.to(t.dtype), t)

    return tree_map(replace, state, fresh, problem.dims(state))


def forward(problem: Problem, window: Window, carried) -> Pass:
    """One window's graph. `carried` is the state before `window.start` and is used unless that is step 0."""
    fresh = problem.initial() if problem.initial is not None and problem.is_start is not None else None
    state = problem.beginning() if window.start == 0 else detach(carried)
    state = tree_map(lambda t: t.detach().requires_grad_() if differentiable(t) and not t.requires_grad else t, state)
    entering = [t for t in leaves(state) if differentiable(t)]
    total, kept, losses = torch.zeros((), dtype=torch.float64), detach(state), []
    for t in range(window.start, window.stop):
        if t == window.keep:
            kept = detach(state)
        state = crossing(problem, state, window.weights.get(t))
        if problem.is_start is not None and problem.is_start[t].any():
            state = reset(problem, state, problem.is_start[t], fresh)
        out, state = problem.model(steps(problem.xs, t, t + 1), state)
        if t < window.first:
            continue
        loss = problem.loss(out, None if problem.ys is None else steps(problem.ys, t, t + 1))
        loss = loss[0] if isinstance(loss, tuple) else loss
        if problem.mask is not None:
            m = problem.mask[t : t + 1]
            loss = torch.where(m.reshape(m.shape + (1,) * (loss.dim() - m.dim())), loss, torch.zeros_like(loss))
        losses.append(loss.mean())
        total = total + losses[-1]
    if window.keep >= window.stop:
        kept = detach(state)
    return Pass(total, detach(state), kept, entering, losses)


def run(problem: Problem, windows, divisor: float = 1.0, update: Callable[[], None] = lambda: None) -> Iterator[Pass]:
    """Accumulate every window's gradient in `.grad`, calling `update` after each (an optimiser's step, say)."""
    carried = None
    for window in windows:
        done = forward(problem, window, carried)
        if done.total.requires_grad:
            (done.total / divisor).backward()
        carried = done.kept
        yield done
        update()


# The windows of each strategy ------------------------------------------------------------------------------------


def truncated(k1: int, k2: int, length: int) -> list[Window]:
    """Losses of [a, a + k1) through a graph that starts at max(0, a - (k2 - k1))."""
    blocks = range(0, length, k1)
    return [Window(max(0, a - (k2 - k1)), a, min(a + k1, length), max(0, a + k1 - (k2 - k1)), {}) for a in blocks]


def full(length: int) -> list[Window]:
    return [Window(0, 0, length, length, {})]


def boundary_probability(law, last: int, t: int, cut: int) -> float:
    """The probability of a cut before step t: the draw before was at `last`, the last cut at `cut`."""
    survive = 1.0
    for k in range(last - cut + 1, t - cut + 1):
        survive *= 1.0 - law(k)
    return 1.0 - survive


def randomised(law, every: int, length: int, cuts) -> tuple[list[Window], float]:
    """ARTBP's windows when the boundaries in `cuts` are cut, and the probability of just that."""
    windows, weights, start, probability = [], {}, 0, 1.0
    for t in range(every, length, every):
        p = boundary_probability(law, max(start, t - every), t, start)
        if t in cuts:
            windows.append(Window(start, start, t, t, weights))
            probability, start, weights = probability * p, t, {}
        else:
            probability *= 1.0 - p
            weights[t] = 1.0 / (1.0 - p)
    return [*windows, Window(start, start, length, length, weights)], probability


# Comparing -------------------------------------------------------------------------------------------------------


def gradients(tensors) -> list[torch.Tensor | None]:
    """The gradients, which are cleared."""
    out = []
    for t in tensors:
        out.append(None if t.grad is None else t.grad.detach().clone())
        t.grad = None
    return out


def gradient_of(problem: Problem, windows, tensors, divisor: float = 1.0) -> list[torch.Tensor | None]:
    gradients(tensors)
    for _ in run(problem, windows, divisor):
        pass
    return gradients(tensors)


def assert_close(got, expected, rtol: float = 1e-12) -> None:
    """Tensor by tensor, relative to its own norm (or to a thousandth of the whole's, where that is more)."""
    got, expected = leaves(got), leaves(expected)
    assert len(got) == len(expected)
    assert any(e is not None for e in expected), "there is nothing to compare"
    assert [g is None for g in got] == [e is None for e in expected], "a gradient is missing on one side"
    pairs = [(g.detach(), e.detach()) for g, e in zip(got, expected, strict=True) if e is not None]
    whole = sum(float(e.to(torch.complex128).abs().square().sum()) for _, e in pairs) ** 0.5
    for i, (g, e) in enumerate(pairs):
        assert g.shape == e.shape, f"leaf {i}: {tuple(g.shape)} != {tuple(e.shape)}"
        error = float((g.to(torch.complex128) - e.to(torch.complex128)).abs().square().sum()) ** 0.5
        size = max(float(e.to(torch.complex128).abs().square().sum()) ** 0.5, 1e-3 * whole)
        assert error <= rtol * size, f"leaf {i}: relative error {error / max(size, 1e-300):.2e} > {rtol:.0e}"
