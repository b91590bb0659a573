"""A layer's call described unit by unit, from what the kernels keep of it."""

import torch

from bptt._units import Part, Units
from bptt.nn import kernels
from bptt.nn.cells.base import Given
from bptt.nn.kernels import eager
from bptt.nn.kernels.sequence import Sequence


def units_of(q: Sequence) -> Units:
    """What each parameter did to its own unit, of one direction over a padded sequence."""
    plan, cell, given = q.plan, q.plan.cell, q.given
    H, G, sizes = q.units, cell.gates, (plan.steps, plan.rows)
    states = [values.reshape(-1, H) for values in q.states]
    before = eager.before_each(q, states)
    at = Given(given.w_hh, given.b_hh, given.by_unit)
    by_gate, direct = cell.by_unit(q.gates.reshape(-1, cell.saved * H), states, before, at)
    arrays, d = by_gate.view(len(by_gate), -1, cell.saved, H), len(direct)  # (N, d, S, H)
    to_input, to_state = (
        arrays if of == (*range(cell.saved),) else arrays[:, :, list(of)] for of in (cell.by_input, cell.by_state)
    )
    own = given.w_hh.view(G, H, H).diagonal(dim1=1, dim2=2)
    of_first = (to_state * own).sum(2)
    if (slope := cell.operand_slope(before)) is not None:
        of_first *= slope[:, None]
    if direct[0] is not None:
        of_first = of_first + direct[0]
    keep = torch.stack([of_first, *(x for x in direct[1:] if x is not None)], 2)
    to_input, to_state = (x.view(*sizes, d, G, H) for x in (to_input, to_state))
    x = given.x if plan.ids is None else given.x[plan.ids]
    parts = [
        Part(given.w_ih, to_input, x.reshape(*sizes, -1)),
        Part(given.w_hh, to_state, before[cell.operand].view(*sizes, H)),
        *(Part(b, to, None) for b, to in ((given.b_ih, to_input), (given.b_hh, to_state)) if b is not None),
    ]
    begin, end = ([s for s in some[:d] if s is not None] for some in ((given.h0, given.c0), (q.hn, q.cn)))
    return Units(keep.view(*sizes, d, d, H), parts, begin, end, kernels.implementation(keep))
