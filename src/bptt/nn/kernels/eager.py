"""The kernels in PyTorch, step by step: for float64, and where there was no compiler."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from bptt._units import Absorbed
from bptt.nn.cells.base import Cell, Given
from bptt.nn.kernels.sequence import Maybe, Plan, Sequence
from bptt.nn.noise import by_step

name = "pytorch"
FEW, RUN = 4096, 256
"""Below FEW numbers BLAS adds up a product in one long sum, which rounds too often; so we sum RUN terms at a time."""


def serves(x: Tensor) -> bool:
    """Any dtype, any device."""
    return True


def pays(cell: Cell, steps: int, rows: int, graph: bool) -> bool:
    """False where torch is faster than step by step: its LSTM, and any of its cells without a graph."""
    return not cell.torchs or (graph and cell.states == 1)


def forward(q: Sequence) -> None:
    """Fill gates, outputs, cells, hn and cn."""
    plan, cell, wide = q.plan, q.plan.cell, len(q.given.w_hh)
    gates, given, noise = _flat(q.gates), Given(q.given.w_hh, q.given.b_hh, q.given.by_unit), _noise(q)
    driven = gates[:, :wide] if plan.ids is None else gates.new_empty(len(q.given.x), wide)
    _product(driven, _flat(q.given.x), q.given.w_ih.t(), _bias(q))
    if plan.ids is not None:
        gates[:, :wide] = driven.index_select(0, plan.ids.flatten())
    gates_at = _by_step(plan, gates)
    after_at = [_by_step(plan, _flat(values)) for values in q.states]
    states = [_state(q, initial) for initial in (q.given.h0, q.given.c0)[: cell.states]]
    for t in _order(plan):
        g = gates_at[t]
        n = len(g)
        if plan.start is not None:
            states = [
                _anew(s, plan.start[t], start)
                for s, start in zip(states, (q.given.start_h, q.given.start_c), strict=False)
            ]
        if noise is not None:
            given = given._replace(noise=noise(t))
        after = [at[t] for at in after_at]
        cell.forward(g, after, states if n == plan.rows else [s[:n] for s in states], given)
        states = [_with(new, s) for new, s in zip(after, states, strict=True)]
    for last, state in zip((q.hn, q.cn), states, strict=False):
        if last is not None:
            last[0] = state


def backward(q: Sequence) -> None:
    """Fill d_gates and what is wanted of the gradients: equation (1), then the products of all steps at once."""
    assert q.d_gates is not None
    plan, cell, noise = q.plan, q.plan.cell, None if q.wanted.by_unit is None else _noise(q)
    given = Given(q.given.w_hh, q.given.b_hh, q.given.by_unit, None, q.wanted.by_unit)
    gates, states = _flat(q.gates), [_flat(values) for values in q.states]
    before = before_each(q, states)
    more = cell.factors(q.d_gates, gates, states, before, given)
    d_at, gates_at = _by_step(plan, q.d_gates), _by_step(plan, gates)
    more_at = None if more is None else _by_step(plan, more)
    outputs_at = None if q.d_outputs is None else _by_step(plan, _flat(q.d_outputs))
    arriving = [
        _state(q, end) for end in (q.d_hn, q.d_cn)[: cell.states]
    ]  # what reaches the states of each row from the step after
    for t in reversed(_order(plan)):
        d = d_at[t]
        c = [a[: len(d)] for a in arriving]
        if plan.weight is not None:
            w = plan.weight[t][..., None]
            c = [torch.where(w == 0, torch.zeros_like(x), x * w) for x in c]
        if outputs_at is not None:
            c[0] = c[0] + outputs_at[t]
        if noise is not None:
            given = given._replace(noise=noise(t))
        new = cell.backward(d, c, gates_at[t], None if more_at is None else more_at[t], given)
        if plan.start is not None:
            start = plan.start[t, :, None]
            for wanted, x in zip((q.wanted.start_h, q.wanted.start_c), new, strict=False):
                if wanted is not None:
                    wanted += x.masked_fill(~start, 0)
            new = [x.masked_fill(start, 0) for x in new]
        arriving = [_with(x, old) for x, old in zip(new, arriving, strict=True)]
    for wanted, state in zip((q.wanted.h0, q.wanted.c0), arriving, strict=False):
        if wanted is not None:
            wanted[0] = state
    _weights(q, before[cell.operand])


def absorb(keep: Tensor, parts: list[Absorbed]) -> None:
    """E ← D E + I, as `bptt._units.Passes` says: D over all steps of the call, I by one product over them."""
    later, whole = _products(keep)
    gone = whole.flatten(1, 2).eq(0).all(1)
    factors: dict[int, Tensor] = {}
    for entries, factor, operand in parts:
        if bool(gone.any()):  # 0 times an infinite entry isn't 0
            entries.masked_fill_(gone[:, None, None, :, None], 0)
        if id(factor) not in factors:  # (B, d G H, T): what each step's factor has become at the call's end
            factors[id(factor)] = torch.einsum("tbklh,tblgh->bkght", later, factor).flatten(1, 3)
        flat = factors[id(factor)]
        if len(whole[0]) == 1:
            entries.mul_(whole[:, :, :, :, None])
        else:
            entries.copy_(torch.einsum("bklh,blghj->bkghj", whole, entries))
        rows = entries.view(len(flat), flat.shape[1], -1)
        if operand is None:
            rows.add_(flat.sum(2, keepdim=True))
        else:
            rows.baddbmm_(flat, operand.movedim(0, 1))


def _products(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The product of `keep` over the steps after each step (T, B, d, d, H), and over all steps (B, d, d, H)."""
    if keep.shape[2] == 1:
        whole = keep.flip(0).cumprod(0).flip(0)
        return torch.cat([whole[1:], torch.ones_like(whole[:1])]), whole[0]
    found = [torch.eye(keep.shape[2], dtype=keep.dtype, device=keep.device)[..., None].expand(keep.shape[1:])]
    for step in reversed(keep.unbind()):
        found.append(torch.einsum("bklh,blmh->bkmh", found[-1], step))
    *later, whole = found
    return torch.stack(later[::-1]), whole


def pull(c: Tensor, entries: list[Tensor]) -> list[Tensor]:
    """c · E, as `bptt._units.Passes` says."""
    dead = c.eq(0)
    if bool(dead.any()):
        entries = [x.masked_fill(dead[:, :, None, :, None], 0) for x in entries]
    return [(c[:, :, None, :, None] * x).sum((0, 1)) for x in entries]


def _bias(q: Sequence) -> Maybe:
    """What is added to the input's part of the gates: both biases, except where the recurrent part has its own."""
    if q.given.b_ih is None or q.given.b_hh is None:
        return q.given.b_ih
    cell, H = q.plan.cell, q.units
    together = sum(a == b for a, b in zip(cell.by_input, cell.by_state, strict=True)) * H  # the first ones
    bias = q.given.b_ih + q.given.b_hh
    bias[together:] = q.given.b_ih[together:]
    return bias


def _weights(q: Sequence, before: Tensor) -> None:
    """d_x, and the gradients of weights and biases."""
    assert q.d_gates is not None
    plan, x, d = q.plan, _flat(q.given.x), q.d_gates
    by_input = d if plan.ids is None else _sums(d, plan.ids.flatten(), len(x))
    of_input, of_state = _blocks(q, plan.cell.by_input, by_input), _blocks(q, plan.cell.by_state, d)
    if q.wanted.x is not None:
        for rows, part in of_input:
            _product(_flat(q.wanted.x), part, q.given.w_ih[rows], add=rows.start > 0)
    for parts, d_w, d_b, other in (
        (of_input, q.wanted.w_ih, q.wanted.b_ih, x),
        (of_state, q.wanted.w_hh, q.wanted.b_hh, before),
    ):
        for rows, part in parts:
            if d_w is not None:
                _product(d_w[rows], part.t(), other)
            if d_b is not None:
                torch.sum(part, 0, out=d_b[rows])


def _blocks(q: Sequence, arrays: tuple[int, ...], d: Tensor) -> list[tuple[slice, Tensor]]:
    """Rows of the weights, and the columns of d that are their cotangents, for gates that are adjacent in both."""
    H, edges = q.units, [0]
    edges += [gate for gate in range(1, len(arrays)) if arrays[gate] != arrays[gate - 1] + 1] + [len(arrays)]
    return [(slice(a * H, b * H), d[:, arrays[a] * H : (arrays[a] + b - a) * H]) for a, b in pairwise(edges)]


def _sums(d: Tensor, ids: Tensor, rows: int) -> Tensor:
    """(rows, ...): for each id the sum of its rows of d, in parts of RUN rows, since a long sum rounds too often."""
    parts = max(1, len(d) // (RUN * rows))
    part = torch.arange(len(d), device=d.device) % parts
    return d.new_zeros(parts * rows, d.shape[1]).index_add_(0, ids + rows * part, d).unflatten(0, (parts, rows)).sum(0)


def _product(out: Tensor, a: Tensor, b: Tensor, bias: Maybe = None, add: bool = False) -> None:
    """`out` (m, n) = a b + bias, or that added to `out`."""
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
    return q.outputs.new_zeros(q.plan.rows, q.units) if given is None else given[0]


def _noise(q: Sequence) -> Callable[[int], Tensor] | None:
    """The numbers (B, H) that the cell draws at a step, or None."""
    plan = q.plan
    return None if plan.noise is None else by_step(plan.noise, plan.steps, plan.rows, q.units, q.outputs)


def _anew(state: Tensor, rows: Tensor, start: Maybe) -> Tensor:
    """The state, with some rows anew from `start`, or from zeros."""
    return state.masked_fill(rows[:, None], 0) if start is None else torch.where(rows[:, None], start, state)


def _with(new: Tensor, state: Tensor) -> Tensor:
    """The state with its first rows replaced: the other rows have ended, or not yet begun."""
    return new if len(new) == len(state) else torch.cat([new, state[len(new) :]])


def before_each(q: Sequence, states: list[Tensor]) -> list[Tensor]:
    """For each state (N, H) the values before each step, (N, H)."""
    initial, starts = (q.given.h0, q.given.c0), (q.given.start_h, q.given.start_c)
    return [_before(q, *of) for of in zip(states, initial, starts, strict=False)]


def _before(q: Sequence, values: Tensor, initial: Maybe, start: Maybe) -> Tensor:
    """(N, H): for each row of `values` the one at the step before, else its initial state, or its start."""
    plan, first = q.plan, _state(q, initial)
    if plan.sizes is None:
        kept = values[plan.rows :] if plan.reverse else values[: -plan.rows]
        before = torch.cat([kept, first] if plan.reverse else [first, kept])
        return before if plan.start is None else _anew(before, plan.start.flatten(), start)
    steps = _by_step(plan, values)
    found: list[Tensor] = []
    for t, step in enumerate(steps):
        at = t + 1 if plan.reverse else t - 1
        there = steps[at][: len(step)] if 0 <= at < len(steps) else values[:0]
        found += [there, first[len(there) : len(step)]]
    return torch.cat(found)
