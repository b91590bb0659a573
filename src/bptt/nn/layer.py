"""One direction of a recurrent layer as one autograd node: weight gradients are formed once, over all steps.

gates = x W_ih^T + b                          all steps in one product                (1)
s_t = cell(gates_t, s_{t-1} W_hh^T)           step by step                            (2)
dgates_t                                      step by step, backward                  (3)
dW_ih = dgates^T x,  dW_hh = dgates^T h_{t-1},  dx = dgates W_ih   all steps at once  (4)

If x_t is a row of an embedding, (1) is computed once for each row of the embedding, and the input's part of (4) from
the sums of dgates over the steps that use a row.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from bptt import _torch, _units
from bptt.nn import kernels, plain
from bptt.nn.by_unit import units_of
from bptt.nn.kernels.buffers import empty, empty_like
from bptt.nn.kernels.sequence import Maybe, Plan, Sequence, Tensors, Wanted
from bptt.nn.uncompiled import uncompiled

_NOTHING = torch.empty(0, device="cpu")
_PLAIN = 7
"""How many of `Tensors` torch.nn's cells have."""
_BY_ROW = ("start_h", "start_c", "by_unit")


def evaluate(plan: Plan, *tensors: Maybe) -> Sequence:
    """Equations (1) and (2) of `Tensors`."""
    given = contiguous(tensors)
    cell, x, H = plan.cell, given.x, given.w_hh.shape[1]
    shape, last = (*(x.shape[:-1] if plan.ids is None else plan.ids.shape), H), (1, plan.rows, H)
    hn = x.new_empty(last) if given.h0 is None else empty_like(given.h0)
    outputs, two = empty_like(hn) if shape == last else empty(shape, hn), cell.states == 2
    gates = empty((*shape[:-1], cell.saved * H), hn) if cell.keeps else outputs
    cells, cn = (empty_like(outputs), empty_like(hn)) if two else (None, None)
    q = Sequence(plan, given, gates, outputs, cells, hn, cn)
    kernels.implementation(x).forward(q)
    return q


class Layer(torch.autograd.Function):
    """`Tensors` -> outputs (T, B, H) or (N, H), hn (1, B, H), and cn for a cell with two states."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, plan: Plan, *given: Any
    ) -> tuple[Tensor, ...]:
        q = evaluate(plan, *given)
        remember(ctx, plan, given, q.outputs, q.gates, q.cells)
        return q.results

    @staticmethod
    @uncompiled
    def backward(ctx: Any, d_outputs: Maybe, d_hn: Maybe, d_cn: Maybe = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Equations (3) and (4)."""
        return backward(ctx, ctx.saved_tensors, (d_outputs, d_hn, d_cn))


def backward(ctx: Any, saved: tuple[Any, ...], cotangents: tuple[Maybe, Maybe, Maybe]) -> tuple[Maybe, ...]:
    """Equations (3) and (4), from what `remember` saved, which may be read only once."""
    plan: Plan = ctx.plan
    *tensors, outputs, gates, cells, _, _, _ = saved  # the plan's too: so changes in place are seen
    needed = ctx.needs_input_grad[1:]
    if differentiated(*cotangents):
        return None, *_differentiable(plan, Tensors(*tensors), needed, cotangents)
    if overwritten(ctx, outputs):
        q = evaluate(plan, *tensors)
        outputs, gates, cells = q.outputs, None if q.gates is q.outputs else q.gates, q.cells
    given = contiguous(tensors)
    wanted = Wanted(*[empty_like(a) if need else None for a, need in zip(given, needed, strict=False)])
    summed = any(x is not None for x in wanted[_PLAIN:])
    into = _by_row(plan, wanted) if summed else wanted
    d_gates = empty((outputs.numel() // outputs.shape[-1], plan.cell.saved * outputs.shape[-1]), outputs)
    d_y, d_h, d_c = (None if d is None else d.contiguous() for d in cotangents)
    q = Sequence(
        plan, given, outputs if gates is None else gates, outputs, cells, None, None,
        d_y, d_h, d_c, d_gates, into,
    )  # fmt: skip
    kernels.implementation(outputs).backward(q)
    return None, *(_summed(into) if summed else into)[: len(needed)]


def remember(ctx: Any, plan: Plan, given: Any, outputs: Tensor, gates: Maybe, cells: Maybe) -> None:
    """Save what the backward pass of `Layer` needs, and whether the outputs change until then."""
    ctx.plan = plan
    ctx.set_materialize_grads(False)
    ctx.version = _version_of(outputs)
    ctx.unchanged = _torch.version(ctx.version)
    same = outputs.data  # the same memory: the caller may change it in place, and autograd must not object
    gates = None if gates is outputs else gates
    ctx.save_for_backward(*given, same, gates, cells, plan.ids, plan.start, plan.weight)


def differentiated(*cotangents: Maybe) -> bool:
    """Whether the backward pass is itself differentiated or vectorised: create_graph=True, vmap."""
    return torch.is_grad_enabled() or any(map(_torch.is_wrapped, cotangents))


def overwritten(ctx: Any, outputs: Tensor) -> bool:
    """Whether the outputs that `remember` saved have been changed in place or freed."""
    return _torch.version(ctx.version) != ctx.unchanged or outputs.untyped_storage().nbytes() < outputs.nbytes


def on_kernels(plan: Plan, given: tuple[Maybe, ...]) -> tuple[Tensor, plain.State]:
    """Outputs and the last states from `Tensors`, which may end before by_unit; with a graph if one is wanted."""
    if torch.is_grad_enabled():
        y, *last = _torch.apply(Layer, plan, *given)
        return y, tuple(last)
    q = evaluate(plan, *given)
    if _units.listened() and not plan.reverse and plan.sizes is None:
        _units.tell(lambda: units_of(q))
    y, *last = q.results
    return y, tuple(last)


def _by_row(plan: Plan, wanted: Wanted) -> Wanted:
    """The same tensors, with zeros for the sums that the kernels take row by row."""
    rows = {
        name: x.new_zeros(plan.rows, *x.shape)
        for name, x in wanted._asdict().items()
        if x is not None and name in _BY_ROW
    }
    return wanted._replace(**rows)


def _summed(into: Wanted) -> Wanted:
    """The sums over rows of what `_by_row` made."""
    sums = {name: x.sum(0) for name, x in into._asdict().items() if x is not None and name in _BY_ROW}
    return into._replace(**sums)


def _version_of(x: Tensor) -> Tensor:
    """A tensor without memory that counts changes in place as x does, and all that share the memory of x."""
    counter = x.detach()
    counter.data = _NOTHING
    return counter


def contiguous(tensors: Iterable[Maybe]) -> Tensors:
    values: Any = [None if x is None else x.contiguous() for x in tensors]
    return Tensors(*values)


def _differentiable(plan: Plan, given: Tensors, needed: Any, cotangents: tuple[Any, ...]) -> list[Any]:
    """The same vjp in operators that can be differentiated and vectorised: forward once more, then torch.autograd.grad.

    It has a graph if one is asked for. The views give a weight that is passed twice two gradients.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        views: Any = [None if a is None else a.view_as(a) for a in given]
        given = Tensors(*views)
        zeros = given.x.new_zeros(1, plan.rows, given.w_hh.shape[1])
        states = plan.cell.states
        state = tuple(zeros if s is None else s for s in (given.h0, given.c0)[:states])
        starts = tuple(s for s in (given.start_h, given.start_c)[:states] if s is not None)
        weights = [w for w in given[3:7] if w is not None]
        inputs = given.x if plan.ids is None else functional.embedding(plan.ids, given.x)
        y, last = plain.run(plan, inputs, state, weights, starts, given.by_unit)
    pairs = [(r, c) for r, c in zip((y, *last), cotangents, strict=False) if c is not None]
    wanted: Any = [a for a, need in zip(given, needed, strict=False) if need]
    found = torch.autograd.grad(
        [r for r, _ in pairs], wanted, [c for _, c in pairs], create_graph=again, allow_unused=True
    )
    grads = iter(found)
    return [next(grads) if need else None for need in needed]


def sequence_keywords(layer: Any, input: Any, start: Maybe, weight: Maybe) -> tuple[Maybe, Maybe]:
    """For a recurrent layer's call, `is_start` as bool (T, B) and `cotangent_weight` as (T,) or (T, B)."""
    name = type(layer).__name__
    if not isinstance(input, Tensor) or layer.bidirectional:
        what = "a bidirectional layer" if isinstance(input, Tensor) else "a PackedSequence"
        raise ValueError(
            f"{name}: is_start and cotangent_weight are not for {what}: use a one-directional layer on a padded tensor."
        )
    if input.dim() == 3:
        T, B = input.shape[:2][::-1] if layer.batch_first else input.shape[:2]
    else:
        T, B = len(input), 1
    fitting = [(T, B), (T,)] if input.dim() == 3 else [(T,), (T, 1)]
    for keyword, value in (("is_start", start), ("cotangent_weight", weight)):
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) not in fitting):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"{name}: {keyword} is {got}; inputs of {T} steps need a tensor {fitting[0]} or {fitting[1]}."
            )
    if start is not None:
        start = start.to(input.device, torch.bool).reshape(T, start[0].numel()).expand(T, B).contiguous()
    if weight is not None:
        weight = weight.detach().to(input.device, input.dtype).contiguous()
    return start, weight


def embedded(layer: Any, input: Any, embedding: Any) -> Any:
    """What a recurrent layer's ids (...) become by the lookup in `embedding` (V, I), with undefined values."""
    name, width = type(layer).__name__, layer.input_size
    if not isinstance(embedding, Tensor) or embedding.dim() != 2 or embedding.shape[1] != width or not len(embedding):
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else repr(embedding)
        raise ValueError(
            f"{name}: embedding is {got}, not (V, {width}), a row for each id: pass nn.Embedding's weight."
        )
    ids = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name}: with embedding= the input is ids, int64 or int32, not {got}.")
    rows = embedding.detach()[0].expand(*ids.shape, width)
    return input._replace(data=rows) if isinstance(input, PackedSequence) else rows
