"""Gates on the state between two steps: what multiplies or bounds the second term of equation (1).

c_t = ∂l_t/∂s_t + w_t · c_{t+1} · ∂s_{t+1}/∂s_t                                       (1)
"""

from typing import Any

import torch
from torch import Tensor

from bptt import batch, state
from bptt.state import Tree


class _Scale(torch.autograd.Function):
    """The identity, whose vjp multiplies by w: the w_t of (1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.w = inputs[1] if not isinstance(inputs[1], Tensor) else None
        ctx.save_for_backward(*(w for w in inputs[1:] if isinstance(w, Tensor)))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.w is not None:
            return cotangent * ctx.w, None
        (w,) = ctx.saved_tensors
        return torch.where(w == 0, torch.zeros_like(cotangent), cotangent * w), None  # 0 cuts an infinite one too


class _Clip(torch.autograd.Function):
    """The identity, whose vjp scales each row to a norm of at most `bound` over all leaves together."""

    @staticmethod
    def forward(ctx: Any, bound: Any, dims: list[int], *xs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.bound, ctx.dims = bound, dims
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        squares = [
            c.abs().square().movedim(d, 0).reshape(c.shape[d], -1).sum(1)
            for c, d in zip(cotangents, ctx.dims, strict=True)
        ]
        norms = torch.stack(squares).sum(0).sqrt()
        factor = torch.where(norms > ctx.bound, ctx.bound / norms, torch.ones_like(norms))
        return None, None, *(c * state.along(factor, d, c) for c, d in zip(cotangents, ctx.dims, strict=True))


def scale_gradient(state: Tree, w: float | Tensor, state_batch_dim: Any = None) -> Tree:
    """The gate of equation (1) alone, for a hand-written loop: the same state, its cotangent times w.

        forward: s -> s        backward: c -> w · c                                       (1)

    state: pytree of tensors; integer and boolean leaves pass through.
    w: a number (0 detaches), a 0-d tensor, or a tensor (B,) of one weight a row.
    state_batch_dim: the axis of the rows, an int or a pytree of ints, None for a leaf without rows, which a w of rows
        leaves alone; needed where w has rows.

    Returns the state in the same structure. Raises ValueError for rows without `state_batch_dim`.
    Cost: one multiplication a leaf in the backward pass.

    >>> import bptt, torch
    >>> s = torch.ones(2, requires_grad=True)
    >>> bptt.scale_gradient(s, 1.25).sum().backward(); s.grad
    tensor([1.2500, 1.2500])

    Source: Tallec & Ollivier 2017, proposition 1, https://arxiv.org/abs/1705.08209: with w = 0 at a cut of
    probability p and 1/(1 - p) elsewhere the gradient is unbiased.
    """
    return gate(state, w, batch.rows_weight(state, w, state_batch_dim))


def gate(carried: Tree, w: float | Tensor, batch_dim: Any) -> Tree:
    """`scale_gradient` of a checked state."""
    values, structure = state.flatten(carried)
    if not isinstance(w, Tensor) and w == 0:
        return state.detach(carried)
    gated = [
        _Scale.apply(v, state.along(w, dim, v).to(v.device) if isinstance(w, Tensor) else w)
        if state.carries_cotangent(v) and (dim is not None or not isinstance(w, Tensor) or w.dim() == 0)
        else v
        for v, dim in zip(values, state.by_leaf(batch_dim, carried), strict=True)
    ]
    return state.unflatten(gated, structure)


def clip(carried: Tree, bound: Any, batch_dim: Any) -> Tree:
    """The same state, each row of its cotangent scaled to a norm of at most `bound`; leaves without rows aside."""
    values, structure = state.flatten(carried)
    dims = state.by_leaf(batch_dim, carried)
    floating = [i for i, value in enumerate(values) if state.carries_cotangent(value) and dims[i] is not None]
    if floating:
        clipped = _Clip.apply(bound, [dims[i] for i in floating], *(values[i] for i in floating))
        values = list(values)
        for i, value in zip(floating, clipped, strict=True):
            values[i] = value
    return state.unflatten(values, structure)
