"""A layer's call described unit by unit, from what the kernels keep of it."""

import torch
from torch import Tensor

from bptt._units import Part, Units
from bptt.nn.cells.base import Given
from bptt.nn.kernels.sequence import Maybe, Sequence


def units_of(q: Sequence) -> Units:
    """What each parameter did to its own unit, of one direction over a padded sequence."""
    plan, cell, given = q.plan, q.plan.cell, q.given
    T, B, H, G = plan.steps, plan.rows, q.units, q.plan.cell.gates
    states = [values.reshape(-1, H) for values in q.states]
    initial, starts = (given.h0, given.c0), (given.start_h, given.start_c)
    before = [_before(q, *of) for of in zip(states, initial, starts, strict=False)]
    at = Given(given.w_hh, given.b_hh, given.by_unit)
    by_gate, direct = cell.by_unit(q.gates.reshape(T * B, -1), states, before, at)
    arrays = torch.stack([d.reshape(T, B, cell.saved, H) for d in by_gate], -1)  # (T, B, S, H, d)
    to_input, to_state = arrays[:, :, list(cell.by_input)], arrays[:, :, list(cell.by_state)]
    own = given.w_hh.reshape(G, H, H).diagonal(dim1=1, dim2=2)
    slope = cell.operand_slope(before)
    of_first = (to_state * own[..., None]).sum(2) * (1 if slope is None else slope.reshape(T, B, H, 1))
    keep = of_first.new_zeros(T, B, H, len(by_gate), len(by_gate))
    keep[..., 0] = of_first
    for k, row in enumerate(direct):
        for i, value in enumerate(row):
            if value is not None:
                keep[..., k, i] += value.expand(T * B, H).reshape(T, B, H)
    x = given.x if plan.ids is None else given.x[plan.ids]
    parts = [
        Part(given.w_ih, to_input, x.reshape(T, B, -1)),
        Part(given.w_hh, to_state, before[cell.operand].reshape(T, B, H)),
        *(Part(b, to, None) for b, to in ((given.b_ih, to_input), (given.b_hh, to_state)) if b is not None),
    ]
    count = len(by_gate)
    begin = [s for s in initial[:count] if s is not None]
    return Units(keep, parts, begin, [s for s in (q.hn, q.cn)[:count] if s is not None])


def _before(q: Sequence, states: Tensor, initial: Maybe, anew: Maybe) -> Tensor:
    """A state before each step, (N, H), with rows that start anew set to their start."""
    first = states.new_zeros(1, q.plan.rows, q.units) if initial is None else initial
    values = torch.cat([first, states.reshape(q.plan.steps, q.plan.rows, -1)[:-1]])
    if q.plan.start is not None:
        values = torch.where(q.plan.start[..., None], values.new_zeros(()) if anew is None else anew, values)
    return values.reshape(-1, q.units)
