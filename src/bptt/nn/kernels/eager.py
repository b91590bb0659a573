"""The kernels in PyTorch, step by step: for float64, and where there was no compiler."""

from itertools import pairwise

import torch
from torch import Tensor

from bptt.nn.cells.base import Cell, Given
from bptt.nn.kernels.sequence import Maybe, Plan, Sequence

name = "pytorch"
FEW, RUN = 4096, 256
"""BLAS adds up a product of fewer numbers than FEW in one long sum, which rounds too often; so RUN terms at a time."""


def serves(x: Tensor) -> bool:
    """Any dtype, any device."""
    return True


def pays(cell: Cell, steps: int, graph: bool) -> bool:
    """Step by step torch's LSTM is faster, and any cell of torch's without a graph."""
    return not cell.torchs or (graph and cell.states == 1)


def forward(q: Sequence) -> None:
    """Fill gates, outputs, cells, hn and cn."""
    plan, cell, wide = q.plan, q.plan.cell, len(q.w_hh)
    gates, given = _flat(q.gates), Given(q.w_hh, q.b_hh)
    driven = gates[:, :wide] if plan.ids is None else gates.new_empty(len(q.x), wide)
    _product(driven, _flat(q.x), q.w_ih.t(), _bias(q))
    if plan.ids is not None:
        gates[:, :wide] = driven.index_select(0, plan.ids.flatten())
    gates_at = _by_step(plan, gates)
    after_at = [_by_step(plan, _flat(values)) for values in q.states]
    states = [_state(q, initial) for initial in q.initial]
    for t in _order(plan):
        g = gates_at[t]
        n = len(g)
        if plan.start is not None:
            states = [s.masked_fill(plan.start[t, :, None], 0) for s in states]
        after = [at[t] for at in after_at]
        cell.forward(g, after, states if n == plan.rows else [s[:n] for s in states], given)
        states = [_with(new, s) for new, s in zip(after, states, strict=True)]
    for last, state in zip(q.last, states, strict=True):
        if last is not None:
            last[0] = state


def backward(q: Sequence) -> None:
    """Fill d_gates and what is wanted of the gradients: equation (1), then the products of all steps at once."""
    assert q.d_gates is not None
    plan, cell, given = q.plan, q.plan.cell, Given(q.w_hh, q.b_hh)
    gates, states = _flat(q.gates), [_flat(values) for values in q.states]
    before = [_before(q, values, initial) for values, initial in zip(states, q.initial, strict=True)]
    more = cell.factors(q.d_gates, gates, states, before)
    d_at, gates_at = _by_step(plan, q.d_gates), _by_step(plan, gates)
    more_at = None if more is None else _by_step(plan, more)
    outputs_at = None if q.d_outputs is None else _by_step(plan, _flat(q.d_outputs))
    arriving = [_state(q, end) for end in q.d_last]  # what comes to the states of each row from the step after
    for t in reversed(_order(plan)):
        d = d_at[t]
        c = [a[: len(d)] for a in arriving]
        if plan.weight is not None:
            w = plan.weight[t][..., None]
            c = [torch.where(w == 0, torch.zeros_like(x), x * w) for x in c]
        if outputs_at is not None:
            c[0] = c[0] + outputs_at[t]
        new = cell.backward(d, c, gates_at[t], None if more_at is None else more_at[t], given)
        if plan.start is not None:
            new = [x.masked_fill(plan.start[t, :, None], 0) for x in new]
        arriving = [_with(x, old) for x, old in zip(new, arriving, strict=True)]
    for wanted, state in zip(q.d_initial, arriving, strict=True):
        if wanted is not None:
            wanted[0] = state
    _weights(q, before[0])


def _bias(q: Sequence) -> Maybe:
    """What is added to the input's part of the gates: both biases, but for gates whose recurrent part has its own."""
    if q.b_ih is None or q.b_hh is None:
        return q.b_ih
    cell, H = q.plan.cell, q.w_hh.shape[1]
    together = sum(a == b for a, b in zip(cell.by_input, cell.by_state, strict=True)) * H  # the first ones
    bias = q.b_ih + q.b_hh
    bias[together:] = q.b_ih[together:]
    return bias


def _weights(q: Sequence, before: Tensor) -> None:
    """d_x, and the gradients of weights and biases."""
    assert q.d_gates is not None
    plan, x, d = q.plan, _flat(q.x), q.d_gates
    by_input = d if plan.ids is None else _sums(d, plan.ids.flatten(), len(x))
    of_input, of_state = _blocks(q, plan.cell.by_input, by_input), _blocks(q, plan.cell.by_state, d)
    if q.d_x is not None:
        for rows, part in of_input:
            _product(_flat(q.d_x), part, q.w_ih[rows], add=rows.start > 0)
    for parts, d_w, d_b, other in ((of_input, q.d_w_ih, q.d_b_ih, x), (of_state, q.d_w_hh, q.d_b_hh, before)):
        for rows, part in parts:
            if d_w is not None:
                _product(d_w[rows], part.t(), other)
            if d_b is not None:
                torch.sum(part, 0, out=d_b[rows])


def _blocks(q: Sequence, arrays: tuple[int, ...], d: Tensor) -> list[tuple[slice, Tensor]]:
    """Rows of the weights, and the columns of d that are their cotangents, for gates that lie together in both."""
    H, edges = q.w_hh.shape[1], [0]
    edges += [gate for gate in range(1, len(arrays)) if arrays[gate] != arrays[gate - 1] + 1] + [len(arrays)]
    return [(slice(a * H, b * H), d[:, arrays[a] * H : (arrays[a] + b - a) * H]) for a, b in pairwise(edges)]


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
