"""The kernels in PyTorch, step by step: for float64, and where there was no compiler."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bptt.nn.kernels.sequence import ACTIVATIONS, GATES, GRU, LSTM, RNN, Joint, Sequence

name = "pytorch"
FEW, RUN = 4096, 256
"""BLAS adds up a product of fewer numbers than FEW in one long sum, which rounds too often; so RUN terms at a time."""


def forward(q: Sequence) -> None:
    """Fill gates, cells, outputs, hn and cn."""
    transposed = q.recurrent.t()
    for s in range(q.steps):
        here = _rows(q, s)
        n, H = here.stop - here.start, q.units
        gates, h = q.gates[here], q.outputs[here]
        before, cell = _before(q, s, n, q.outputs, q.h0), None
        if q.cell == RNN:
            a = gates.addmm_(before, transposed)
            if ACTIVATIONS[q.activation] != "identity":
                a.tanh_() if ACTIVATIONS[q.activation] == "tanh" else a.relu_()
        elif q.cell == GRU:
            product = torch.mm(before, transposed)
            inner = gates[:, 3 * H :]
            inner.copy_(product[:, 2 * H :])
            if q.bias_n is not None:
                inner += q.bias_n
            r, z, fresh = _parts(gates[:, : 3 * H], H)
            gates[:, : 2 * H].add_(product[:, : 2 * H]).sigmoid_()
            fresh.addcmul_(r, inner).tanh_()
            torch.lerp(fresh, before, z, out=h)
        else:
            assert q.cells is not None
            gates.addmm_(before, transposed)
            i, f, g, o = _parts(gates, H)
            gates[:, : 2 * H].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            cell = q.cells[here]
            torch.mul(f, _before(q, s, n, q.cells, q.c0), out=cell).addcmul_(i, g)
            torch.mul(o, cell.tanh(), out=h)
        _copy_ended(q, s, n, h, cell)


def backward(q: Sequence) -> None:
    """Fill d_gates, d_h0 and d_c0: equation (1)."""
    assert q.d_gates is not None
    dh, dc = _zeros(q), _zeros(q)  # what comes to the state of each row from the step after
    past = _zeros(q)  # of a GRU, past its gates
    for s in reversed(range(q.steps)):
        here, after = _rows(q, s), _count(q, s + 1)
        n, H = here.stop - here.start, q.units
        for row, given in ((dh, q.d_hn), (dc, q.d_cn)):
            if given is not None and n > after:
                row[after:n] = given[after:n]
        c = dh[:n]
        if q.weight is not None:
            w = q.weight[_t(q, s)]
            c, dc = (torch.where(w[..., None] == 0, torch.zeros_like(x), x * w[..., None]) for x in (c, dc))
        if q.d_outputs is not None:
            c = c + q.d_outputs[here]
        gates, d = q.gates[here], q.d_gates[here]
        if q.cell == RNN:
            kind, h = ACTIVATIONS[q.activation], q.outputs[here]
            d.copy_(c if kind == "identity" else c * (1 - h * h) if kind == "tanh" else c * (h > 0))
        elif q.cell == GRU:
            r, z, fresh, inner = _parts(gates, H)
            dr, dz, dnr, dn = _parts(d, H)
            torch.mul(c * (1 - z), 1 - fresh * fresh, out=dn)
            torch.mul(dn * inner, r * (1 - r), out=dr)
            torch.mul(c * (_before(q, s, n, q.outputs, q.h0) - fresh), z * (1 - z), out=dz)
            torch.mul(dn, r, out=dnr)
            past[:n] = c * z
        else:
            assert q.cells is not None
            i, f, g, o = _parts(gates, H)
            di, df, dg, do = _parts(d, H)
            squashed = q.cells[here].tanh()
            cell = dc[:n] + c * o * (1 - squashed * squashed)
            torch.mul(cell * g, i * (1 - i), out=di)
            torch.mul(cell * _before(q, s, n, q.cells, q.c0), f * (1 - f), out=df)
            torch.mul(cell * i, 1 - g * g, out=dg)
            torch.mul(c * squashed, o * (1 - o), out=do)
            dc[:n] = cell * f
        dh[:n] = torch.mm(d[:, : GATES[q.cell] * H], q.recurrent)
        if q.cell == GRU:
            dh[:n] += past[:n]
        if q.start is not None:
            rows = q.start[_t(q, s)][:, None]
            dh, dc = dh.masked_fill(rows, 0), dc.masked_fill(rows, 0)
        began = slice(_count(q, s - 1), n)  # rows without a step before
        for given, row in ((q.d_h0, dh), (q.d_c0, dc)):
            if given is not None:
                given[began] = row[began]


def product(
    out: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    bias: Tensor | None = None,
    add: bool = False,
    sums: Tensor | None = None,
    joint: Joint | None = None,
) -> None:
    """`out` (m, n) = a b + bias, or `out` and that; `sums` (m,) gets those of a over its columns.

    joint: another product with a. out and b may be None then.
    """
    if sums is not None:
        torch.sum(a, 1, out=sums)
    if joint is not None:
        joint.out.zero_()
        for rows, part in ((slice(0, joint.split), joint.first), (slice(joint.split, None), joint.then)):
            if part is not None:
                used = part if joint.skip is None else part.masked_fill(joint.skip[rows, None], 0)
                _add(joint.out, a[:, rows], used)
    if b is None or out is None:
        return
    if add:
        _add(out, a, b)
    elif bias is None and _rounds_often(out, a):
        _add(out.zero_(), a, b)
    elif bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


def _rounds_often(out: Tensor, a: Tensor) -> bool:
    return a.shape[1] > 2 * RUN and out.numel() < FEW


def _add(out: Tensor, a: Tensor, b: Tensor) -> None:
    if _rounds_often(out, a):
        out += torch.stack([torch.mm(x, y) for x, y in zip(a.split(RUN, 1), b.split(RUN), strict=True)]).sum(0)
    else:
        out.addmm_(a, b)


def _t(q: Sequence, s: int) -> int:
    return q.steps - 1 - s if q.reverse else s


def _count(q: Sequence, s: int) -> int:
    """Rows of the s-th step in the order of evaluation; 0 before the first and after the last."""
    if not 0 <= s < q.steps:
        return 0
    return q.rows if q.sizes is None else int(q.sizes[_t(q, s)])


def _rows(q: Sequence, s: int) -> slice:
    first = _t(q, s) * q.rows if q.offsets is None else int(q.offsets[_t(q, s)])
    return slice(first, first + _count(q, s))


def _before(q: Sequence, s: int, n: int, values: Tensor, initial: Tensor | None) -> Tensor:
    """The state (n, H) before step s: of rows that have a step before from `values`, else from `initial`."""
    old = min(n, _count(q, s - 1))
    first = _zeros(q)[old:n] if initial is None else initial[old:n]
    if old:
        start = _rows(q, s - 1).start
        continued = values[start : start + old]
        first = continued if old == n else torch.cat([continued, first])
    return first if q.start is None else first.masked_fill(q.start[_t(q, s)][:, None], 0)


def _parts(gates: Tensor, units: int) -> Iterator[Tensor]:
    return iter(gates.split(units, 1))


def _copy_ended(q: Sequence, s: int, n: int, h: Tensor, c: Tensor | None) -> None:
    ended = slice(_count(q, s + 1), n)
    if q.hn is not None and ended.start < n:
        q.hn[ended] = h[ended]
        if q.cell == LSTM and q.cn is not None and c is not None:
            q.cn[ended] = c[ended]


def _zeros(q: Sequence) -> Tensor:
    return q.outputs.new_zeros(q.rows, q.units)
