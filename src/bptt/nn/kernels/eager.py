"""The kernels in PyTorch, step by step: for float64, and where there was no compiler."""

import torch
from torch import Tensor

from bptt.nn.kernels.sequence import CELLS, GATES, GRU, RNN, Maybe, Plan, Sequence

name = "pytorch"
FEW, RUN = 4096, 256
"""BLAS adds up a product of fewer numbers than FEW in one long sum, which rounds too often; so RUN terms at a time."""


def forward(q: Sequence) -> None:
    """Fill gates, cells, outputs, hn and cn."""
    plan, H = q.plan, q.w_hh.shape[1]
    cell, activation = CELLS[plan.mode]
    gates, outputs, wide = _flat(q.gates), _flat(q.outputs), len(q.w_hh)
    bias, bias_n = q.b_ih, None
    if q.b_ih is not None and q.b_hh is not None:
        bias, bias_n = (q.b_ih + q.b_hh, None) if cell != GRU else _gru_biases(q.b_ih, q.b_hh)
    driven = gates[:, :wide] if plan.ids is None else gates.new_empty(len(q.x), wide)
    _product(driven, _flat(q.x), q.w_ih.t(), bias)
    if plan.ids is not None:
        gates[:, :wide] = driven.index_select(0, plan.ids.flatten())
    gates_at, outputs_at = _by_step(plan, gates), _by_step(plan, outputs)
    cells_at = None if q.cells is None else _by_step(plan, _flat(q.cells))
    transposed, h, c = q.w_hh.t(), _state(q, q.h0), _state(q, q.c0)
    for t in _order(plan):
        g, out = gates_at[t], outputs_at[t]
        n = len(g)
        if plan.start is not None:
            h, c = (x.masked_fill(plan.start[t, :, None], 0) for x in (h, c))
        before = h if n == plan.rows else h[:n]
        if cell == RNN:
            g.addmm_(before, transposed)
            if activation:
                g.tanh_() if plan.mode == "RNN_TANH" else g.relu_()
        elif cell == GRU:
            product = torch.mm(before, transposed)
            rz, fresh, inner = g.split((2 * H, H, H), 1)
            r, z = rz.add_(product[:, : 2 * H]).sigmoid_().split(H, 1)
            torch.add(product[:, 2 * H :], 0 if bias_n is None else bias_n, out=inner)
            fresh.addcmul_(r, inner).tanh_()
            torch.addcmul(fresh, z, before - fresh, out=out)  # lerp makes NaN of an infinite state
        else:
            assert cells_at is not None
            g.addmm_(before, transposed)
            squashed, fresh, o = g.split((2 * H, H, H), 1)
            i, f = squashed.sigmoid_().split(H, 1)
            torch.mul(f, c[:n], out=cells_at[t]).addcmul_(i, fresh.tanh_())
            torch.mul(o.sigmoid_(), cells_at[t].tanh(), out=out)
            c = _with(cells_at[t], c)
        h = _with(out, h)
    for last, state in ((q.hn, h), (q.cn, c)):
        if last is not None:
            last[0] = state


def backward(q: Sequence) -> None:
    """Fill d_gates and what is wanted of the gradients: equation (1), then the products of all steps at once."""
    assert q.d_gates is not None
    plan, H = q.plan, q.w_hh.shape[1]
    cell = plan.cell
    before = _before(q, _flat(q.outputs), q.h0)
    through = _factors(q, before)  # what the gates' cotangents are multiples of; in d_gates
    d_at, through_at = _by_step(plan, q.d_gates), _by_step(plan, through)
    given_at = None if q.d_outputs is None else _by_step(plan, _flat(q.d_outputs))
    gates_at = _by_step(plan, _flat(q.gates))
    dh, dc = _state(q, q.d_hn), _state(q, q.d_cn)  # what comes to the state of each row from the step after
    for t in reversed(_order(plan)):
        d = d_at[t]
        n = len(d)
        c, cell_c = dh[:n], dc[:n]
        if plan.weight is not None:
            w = plan.weight[t][..., None]
            c, cell_c = (torch.where(w == 0, torch.zeros_like(x), x * w) for x in (c, cell_c))
        if given_at is not None:
            c = c + given_at[t]
        if cell == RNN:
            if plan.mode == "RNN_RELU":  # 0, not 0 · inf, where the unit was off
                torch.ops.aten.threshold_backward.grad_input(c, gates_at[t], 0, grad_input=d)
            else:
                d.mul_(c)
            new = torch.mm(d, q.w_hh)
        elif cell == GRU:
            d.view(n, 4, H).mul_(c[:, None])
            new = torch.addmm(c * gates_at[t][:, H : 2 * H], d[:, : 3 * H], q.w_hh)
        else:
            cell_c = torch.addcmul(cell_c, c, through_at[t])
            d[:, : 3 * H].view(n, 3, H).mul_(cell_c[:, None])
            d[:, 3 * H :].mul_(c)
            new, cell_c = torch.mm(d, q.w_hh), cell_c * gates_at[t][:, H : 2 * H]
        if plan.start is not None:
            new, cell_c = (x.masked_fill(plan.start[t, :, None], 0) for x in (new, cell_c))
        dh, dc = _with(new, dh), _with(cell_c, dc)
    for given, state in ((q.d_h0, dh), (q.d_c0, dc)):
        if given is not None:
            given[0] = state
    _weights(q, before)


def _gru_biases(b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to the input's part of the gates, and to the recurrent part of n."""
    bias, n = b_ih.clone(), len(b_ih) // 3 * 2
    bias[:n] += b_hh[:n]
    return bias, b_hh[n:]


def _factors(q: Sequence, before: Tensor) -> Tensor:
    """∂/∂h of the gates before their activations, by h's own cotangent or c's, into d_gates; and ∂c/∂h of an LSTM."""
    assert q.d_gates is not None
    H, gates, outputs, cell = q.w_hh.shape[1], _flat(q.gates), _flat(q.outputs), q.plan.cell
    if cell == RNN:
        if q.plan.mode == "RNN_TANH":
            torch.mul(outputs, outputs, out=q.d_gates).neg_().add_(1)
        elif q.plan.mode == "RNN_IDENTITY":
            q.d_gates.fill_(1)
        return outputs
    a, b, c, d = q.d_gates.split(H, 1)
    if cell == GRU:
        r, z, fresh, inner = gates.split(H, 1)
        torch.mul(1 - z, 1 - fresh * fresh, out=d)
        torch.mul(d, r, out=c)
        torch.mul(d * inner, r * (1 - r), out=a)
        torch.mul(before - fresh, z * (1 - z), out=b)
        return outputs
    assert q.cells is not None
    i, f, g, o = gates.split(H, 1)
    cells = _flat(q.cells)
    squashed = cells.tanh()
    torch.mul(g, i * (1 - i), out=a)
    torch.mul(_before(q, cells, q.c0), f * (1 - f), out=b)
    torch.mul(i, 1 - g * g, out=c)
    torch.mul(squashed, o * (1 - o), out=d)
    return o * (1 - squashed * squashed)


def _weights(q: Sequence, before: Tensor) -> None:
    """d_x, and the gradients of weights and biases."""
    assert q.d_gates is not None
    H, x, d = q.w_hh.shape[1], _flat(q.x), q.d_gates
    by_input = d if q.plan.ids is None else _sums(d, q.plan.ids.flatten(), len(x))
    of_input, of_state = ([(slice(0, GATES[q.plan.cell] * H), of)] for of in (by_input, d))
    if q.plan.cell == GRU:  # where in the weights, and the cotangents of that part
        both, last = slice(0, 2 * H), slice(2 * H, 3 * H)
        of_input = [(both, by_input[:, both]), (last, by_input[:, 3 * H :])]
        of_state = [(slice(0, 3 * H), d[:, : 3 * H])]
    if q.d_x is not None:
        for rows, part in of_input:
            _product(_flat(q.d_x), part, q.w_ih[rows], add=rows.start > 0)
    for parts, d_w, d_b, other in ((of_input, q.d_w_ih, q.d_b_ih, x), (of_state, q.d_w_hh, q.d_b_hh, before)):
        for rows, part in parts:
            if d_w is not None:
                _product(d_w[rows], part.t(), other)
            if d_b is not None:
                torch.sum(part, 0, out=d_b[rows])


def _sums(d: Tensor, ids: Tensor, rows: int) -> Tensor:
    """(rows, ...): of each id the sum of its rows of d; in parts of some RUN rows, as a long sum rounds too often."""
    parts = max(1, len(d) // (RUN * rows))
    part = torch.arange(len(d), device=d.device) % parts
    return d.new_zeros(parts * rows, d.shape[1]).index_add_(0, ids + rows * part, d).unflatten(0, (parts, rows)).sum(0)


def _product(out: Tensor, a: Tensor, b: Tensor, bias: Maybe = None, add: bool = False) -> None:
    """`out` (m, n) = a b + bias, or `out` and that."""
    if bias is not None:
        torch.addmm(bias, a, b, out=out)
    elif a.shape[1] > 2 * RUN and out.numel() < FEW:
        parts = torch.stack([torch.mm(x, y) for x, y in zip(a.split(RUN, 1), b.split(RUN), strict=True)]).sum(0)
        out.add_(parts) if add else out.copy_(parts)
    else:
        out.addmm_(a, b) if add else torch.mm(a, b, out=out)


def _flat(x: Tensor) -> Tensor:
    """(N, ...) of (T, B, ...)."""
    return x.flatten(0, -2)


def _by_step(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
    """The rows of each step."""
    return x.split(plan.rows if plan.sizes is None else plan.sizes.tolist())


def _order(plan: Plan) -> range:
    """The steps in the order of evaluation."""
    return range(plan.steps - 1, -1, -1) if plan.reverse else range(plan.steps)


def _state(q: Sequence, given: Maybe) -> Tensor:
    return q.outputs.new_zeros(q.plan.rows, q.w_hh.shape[1]) if given is None else given[0]


def _with(new: Tensor, state: Tensor) -> Tensor:
    """The state with its first rows new: the others have ended, or not yet begun."""
    return new if len(new) == len(state) else torch.cat([new, state[len(new) :]])


def _before(q: Sequence, values: Tensor, initial: Maybe) -> Tensor:
    """(N, H): for each row of `values` that of the step before it, else its initial one."""
    plan, first = q.plan, _state(q, initial)
    if plan.sizes is None:
        kept = values[plan.rows :] if plan.reverse else values[: -plan.rows]
        before = torch.cat([kept, first] if plan.reverse else [first, kept])
        return before if plan.start is None else before.masked_fill(plan.start.flatten()[:, None], 0)
    steps = _by_step(plan, values)
    found: list[Tensor] = []
    for t, step in enumerate(steps):
        at = t + 1 if plan.reverse else t - 1
        there = steps[at][: len(step)] if 0 <= at < len(steps) else values[:0]
        found += [there, first[len(there) : len(step)]]
    return torch.cat(found)
