"""One direction of a recurrent layer in torch's own operators: any device and dtype, differentiable twice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from bptt._boundary import scale_gradient
from bptt.nn.cells.base import Given
from bptt.nn.kernels.sequence import Plan
from bptt.nn.noise import normals

State = tuple[Tensor, ...]


def run(
    plan: Plan, x: Tensor, state: State, weights: Sequence[Tensor], starts: State = (), by_unit: Tensor | None = None
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and the last state of one layer, as in the plan except for its ids.

    x: (T, B, I); with plan.sizes packed, (N, I). state: (h0,) or (h0, c0), (1, B, H), as the last state.
    weights: w_ih, w_hh, then the biases and the projection, if there are any.
    starts: (start_h,) or (start_h, start_c), (H,), none for zeros. by_unit: (P, H), for a cell that has them.
    """
    noise = None
    if plan.noise is not None:
        noise = normals(*plan.noise, plan.steps, plan.rows, weights[1].shape[1], x)
    start, weight = plan.start, plan.weight
    if start is None and weight is None:
        return _call(plan, x, state, weights, by_unit, noise)
    T = len(x)
    begins = set() if start is None else {int(t) for t in start.any(1).nonzero()}
    weights_at = {} if weight is None else {t: w for t, w in enumerate(weight.unbind()) if not bool((w == 1).all())}
    edges = sorted({0, T} | begins | {t + 1 for t in weights_at})
    outputs: list[Tensor] = []
    for a, b in pairwise(edges):
        if start is not None and a in begins:
            anew = starts or [torch.zeros_like(s[0, 0]) for s in state]
            state = tuple(torch.where(start[a][:, None], new, s) for new, s in zip(anew, state, strict=True))
        y, state = _call(plan, x[a:b], state, weights, by_unit, None if noise is None else noise[a:b])
        outputs.append(y)
        if b - 1 in weights_at:
            state = scale_gradient(state, weights_at[b - 1], 1)
    return torch.cat(outputs), state


def _call(
    plan: Plan, x: Tensor, state: State, weights: Sequence[Tensor], by_unit: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, State]:
    cell, sizes, reverse = plan.cell, plan.sizes, plan.reverse
    if not cell.torchs:
        return _steps(plan, x, state, weights, by_unit, noise)
    call = getattr(torch, cell.torchs)
    both = [s.expand(1 + reverse, -1, -1).contiguous() for s in state]
    hx = both if cell.states == 2 else both[0]
    flat = [*weights, *weights] if reverse else list(weights)  # the second of two directions is the reverse one
    settings = (len(weights) > 3, 1, 0.0, False, reverse)
    with _without_onednn():
        if sizes is None:
            y, *last = call(x, hx, flat, *settings, False)
        else:
            y, *last = call(x, sizes, hx, flat, *settings)
    if reverse:
        y = y[..., y.shape[-1] // 2 :]
    return y, tuple(s[-1:] for s in last)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN's LSTM can't be differentiated twice. (mkldnn.flags warns of what it sets besides.)"""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _steps(
    plan: Plan, x: Tensor, state: State, weights: Sequence[Tensor], by_unit: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, State]:
    sizes, reverse = plan.sizes, plan.reverse
    w_ih, w_hh, *biases = weights
    driven = functional.linear(x, w_ih, sum(biases) if biases else None)  # pyright: ignore[reportArgumentType]
    steps = list(driven.unbind() if sizes is None else driven.split(sizes.tolist()))
    outputs: list[Tensor] = []
    states = [s[0] for s in state]
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        a = steps[t]
        given = Given(w_hh, None, by_unit, None if noise is None else noise[t])
        now = plan.cell.step(a, [s[: len(a)] for s in states], given)
        states = [torch.cat([new, s[len(a) :]]) for new, s in zip(now, states, strict=True)]
        outputs.append(now[0])
    if reverse:
        outputs.reverse()
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), tuple(s[None] for s in states)
