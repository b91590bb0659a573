"""One direction of a recurrent layer as one node of autograd: weight gradients are formed once, over all steps.

gates = x W_ih^T + b                          all steps in one product                (1)
s_t = cell(gates_t, s_{t-1} W_hh^T)           step by step: the kernel                (2)
dgates_t                                      step by step, backward: the kernel      (3)
dW_ih = dgates^T x,  dW_hh = dgates^T h_{t-1},  dx = dgates W_ih   all steps at once  (4)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.nn import kernels
from bptt.nn.kernels.buffers import empty
from bptt.nn.kernels.sequence import GATES, GRU, LSTM, RNN, SAVED, Joint, Sequence
from bptt.nn.uncompiled import uncompiled


@dataclass(frozen=True)
class Plan:
    """What a call is about, apart from the numbers autograd follows.

    cell, activation, reverse, steps, rows, sizes, offsets, start, weight: see `Sequence`.
    differentiable: `(x, h0, c0, w_ih, w_hh, b_ih, b_hh) -> (outputs, hn, cn)` in operators that can be differentiated
        twice, for a backward pass that is to be differentiated.
    """

    cell: int
    activation: int
    reverse: bool
    steps: int
    rows: int
    differentiable: Callable[..., tuple[Tensor, ...]]
    sizes: Tensor | None = None
    offsets: Tensor | None = None
    start: Tensor | None = None
    weight: Tensor | None = None


class Layer(torch.autograd.Function):
    """(x (N, I), h0, c0 (B, H), w_ih, w_hh, b_ih, b_hh) -> outputs (N, H), hn, cn (B, H); None where there is none."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        plan: Plan,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> tuple[Tensor, ...]:
        N, H, cell = len(x), w_hh.shape[1], plan.cell
        kernel = kernels.implementation(x)
        gates = empty(N, SAVED[cell] * H, like=x)
        bias, bias_n = _biases(b_ih, b_hh, cell, H)
        kernel.product(gates[:, : GATES[cell] * H], x, w_ih.t(), bias)
        q = Sequence(
            cell, plan.activation, plan.reverse, plan.steps, plan.rows, H, w_hh.contiguous(), gates,
            outputs=gates if cell == RNN else empty(N, H, like=x),
            sizes=plan.sizes, offsets=plan.offsets, start=plan.start, weight=plan.weight, bias_n=bias_n,
            cells=empty(N, H, like=x) if cell == LSTM else None,
            h0=_contiguous(h0), c0=_contiguous(c0), hn=x.new_empty(plan.rows, H),
            cn=x.new_empty(plan.rows, H) if cell == LSTM else None,
        )  # fmt: skip
        kernel.forward(q)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x, h0, c0, w_ih, w_hh, b_ih, b_hh, q.outputs, None if cell == RNN else gates, q.cells, bias_n
        )
        assert q.hn is not None
        return (q.outputs, q.hn, q.cn) if q.cn is not None else (q.outputs, q.hn)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, d_outputs: Tensor | None, d_hn: Tensor | None, d_cn: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        plan: Plan = ctx.plan
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, outputs, gates, cells, bias_n = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True
            given = (x, h0, c0, w_ih, w_hh, b_ih, b_hh)
            return None, *_differentiable(plan, given, needed[1:], (d_outputs, d_hn, d_cn))
        cell, H = plan.cell, outputs.shape[1]
        d_gates = empty(len(x), SAVED[cell] * H, like=x)
        q = Sequence(
            cell, plan.activation, plan.reverse, plan.steps, plan.rows, H, w_hh.contiguous(),
            gates=outputs if gates is None else gates, outputs=outputs, cells=cells, bias_n=bias_n,
            sizes=plan.sizes, offsets=plan.offsets, start=plan.start, weight=plan.weight,
            h0=_contiguous(h0), c0=_contiguous(c0),
            d_outputs=_contiguous(d_outputs), d_hn=_contiguous(d_hn), d_cn=_contiguous(d_cn),
            d_gates=d_gates, carry=None if cell == RNN else x.new_empty(plan.rows, H),
            d_h0=x.new_empty(plan.rows, H) if needed[2] else None,
            d_c0=x.new_empty(plan.rows, H) if needed[3] else None,
        )  # fmt: skip
        kernels.implementation(x).backward(q)
        d_x = _through_input(d_gates, w_ih, cell) if needed[1] else None
        d_w_ih, d_w_hh, d_b_ih, d_b_hh = _weights(plan, d_gates, x, outputs, q.h0, needed[4:])
        found = (None, d_x, q.d_h0, q.d_c0, d_w_ih, d_w_hh, d_b_ih, d_b_hh)
        return tuple(grad if need else None for grad, need in zip(found, needed, strict=True))


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _biases(b_ih: Tensor | None, b_hh: Tensor | None, cell: int, units: int) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the input's part of the gates, and to the recurrent part of a GRU's n."""
    if b_ih is None or b_hh is None:
        return None, None
    if cell != GRU:
        return b_ih + b_hh, None
    bias = b_ih.clone()
    bias[: 2 * units] += b_hh[: 2 * units]
    return bias, b_hh[2 * units :].contiguous()


def _through_input(d_gates: Tensor, w_ih: Tensor, cell: int) -> Tensor:
    """dx (N, I) of equation (4)."""
    product = kernels.implementation(d_gates).product
    out = empty(len(d_gates), w_ih.shape[1], like=d_gates)
    if cell != GRU:
        product(out, d_gates, w_ih)
        return out
    units = d_gates.shape[1] // 4
    product(out, d_gates[:, : 2 * units], w_ih[: 2 * units])
    product(out, d_gates[:, 3 * units :], w_ih[2 * units :], add=True)
    return out


def _weights(
    plan: Plan, d_gates: Tensor, x: Tensor, outputs: Tensor, h0: Tensor | None, needed: Any
) -> tuple[Tensor | None, ...]:
    """dW_ih (G H, I) and dW_hh (G H, H) of equation (4), and the gradients (G H,) of both biases."""
    product, units, count = kernels.implementation(x).product, outputs.shape[1], GATES[plan.cell]
    d_w_ih = empty(count * units, x.shape[1], like=x) if needed[0] or needed[2] or needed[3] else None
    d_w_hh = empty(count * units, units, like=x) if needed[1] else None
    sums = x.new_empty(count * units)
    before = None if d_w_hh is None else _before(plan, outputs, h0)
    # gates with the input and the state, with the input alone, with the state alone; and where in d_gates they are
    parts = (
        [(0, 0, count, True, True)]
        if plan.cell != GRU
        else [(0, 0, 2, True, True), (2, 3, 1, True, False), (2, 2, 1, False, True)]
    )
    for gate, at, width, of_input, of_state in parts:
        rows, columns = slice(gate * units, (gate + width) * units), slice(at * units, (at + width) * units)
        joint = Joint(d_w_hh[rows], *before) if of_state and before is not None and d_w_hh is not None else None
        if of_input and d_w_ih is not None:
            product(d_w_ih[rows], d_gates[:, columns].t(), x, sums=sums[rows], joint=joint)
        elif joint is not None:
            product(None, d_gates[:, columns].t(), None, joint=joint)
    if plan.cell == GRU and needed[3]:
        return d_w_ih, d_w_hh, sums, torch.cat([sums[: 2 * units], d_gates[:, 2 * units : 3 * units].sum(0)])
    return d_w_ih, d_w_hh, sums, sums.clone()


def _before(plan: Plan, outputs: Tensor, h0: Tensor | None) -> tuple[Any, ...]:
    """The states before the N rows: the first of two parts, the other, where it begins, rows that start from zeros."""
    B, N = plan.rows, len(outputs)
    if plan.sizes is None:
        skip = None if plan.start is None else plan.start.flatten()
        return (outputs[B:], h0, N - B, skip) if plan.reverse else (h0, outputs[: N - B], B, skip)
    assert plan.offsets is not None
    zeros = outputs.new_zeros(B, outputs.shape[1]) if h0 is None else h0
    previous = _previous(plan.sizes, plan.offsets, plan.reverse, N)
    return None, torch.cat([outputs, zeros])[previous], 0, None


def _previous(sizes: Tensor, offsets: Tensor, reverse: bool, N: int) -> Tensor:
    """For each of the N rows of a packed sequence the row of the step before it; N + b where row b has none."""
    row = torch.arange(N) - offsets.repeat_interleave(sizes)
    none = torch.zeros(1, dtype=torch.int64)
    before = torch.cat([offsets[1:], none] if reverse else [none, offsets[:-1]])
    count = torch.cat([sizes[1:], none] if reverse else [none, sizes[:-1]])
    there = before.repeat_interleave(sizes) + row
    return torch.where(row < count.repeat_interleave(sizes), there, N + row)


def _differentiable(plan: Plan, given: tuple[Any, ...], needed: Any, cotangents: tuple[Any, ...]) -> list[Any]:
    """The same vjp as a graph: forward once more in plain operators, then torch.autograd.grad."""
    given = tuple(None if x is None else x.view_as(x) for x in given)  # so that a weight given twice has two gradients
    results = plan.differentiable(*given)
    pairs = [(r, c) for r, c in zip(results, cotangents, strict=False) if c is not None]
    wanted = [x for x, need in zip(given, needed, strict=True) if need]
    grads = iter(
        torch.autograd.grad([r for r, _ in pairs], wanted, [c for _, c in pairs], create_graph=True, allow_unused=True)
    )
    return [next(grads) if need else None for need in needed]
