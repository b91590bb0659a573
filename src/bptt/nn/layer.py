"""One direction of a recurrent layer as one node of autograd: weight gradients are formed once, over all steps.

gates = x W_ih^T + b                          all steps in one product                (1)
s_t = cell(gates_t, s_{t-1} W_hh^T)           step by step                            (2)
dgates_t                                      step by step, backward                  (3)
dW_ih = dgates^T x,  dW_hh = dgates^T h_{t-1},  dx = dgates W_ih   all steps at once  (4)

Where x_t is a row of an embedding, (1) is taken once of each row of it, and the input's part of (4) of the sums of
dgates over the steps that have one row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from bptt import _torch
from bptt.nn import kernels, plain
from bptt.nn.kernels.buffers import empty
from bptt.nn.kernels.sequence import Maybe, Plan, Sequence
from bptt.nn.uncompiled import uncompiled

_NOTHING = torch.empty(0, device="cpu")


def evaluate(
    plan: Plan, x: Tensor, h0: Maybe, c0: Maybe, w_ih: Tensor, w_hh: Tensor, b_ih: Maybe, b_hh: Maybe
) -> Sequence:
    """Equations (1) and (2): x (T, B, I), packed (N, I) or with plan.ids (V, I); h0, c0 (1, B, H), None for zeros.

    Biases: None for none.
    """
    cell, H = plan.cell, w_hh.shape[1]
    shape, last = (*(x.shape[:-1] if plan.ids is None else plan.ids.shape), H), (1, plan.rows, H)
    outputs, two = empty(shape, x), cell.states == 2
    q = Sequence(
        plan, x.contiguous(), w_ih.contiguous(), w_hh.contiguous(), _contiguous(b_ih), _contiguous(b_hh),
        _contiguous(h0), _contiguous(c0), empty((*shape[:-1], cell.saved * H), x) if cell.keeps else outputs, outputs,
        empty(shape, x) if two else None, x.new_empty(last), x.new_empty(last) if two else None,
    )  # fmt: skip
    kernels.implementation(x).forward(q)
    return q


class Layer(torch.autograd.Function):
    """The arguments of `evaluate` -> outputs (T, B, H) or (N, H), hn (1, B, H), and of an LSTM cn."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, plan: Plan, *given: Any
    ) -> tuple[Tensor, ...]:
        q = evaluate(plan, *given)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.version = _version_of(q.outputs)
        ctx.unchanged = _torch.version(ctx.version)
        outputs = q.outputs.data  # the same memory, which the caller may change in place: not autograd's to refuse
        gates = None if q.gates is q.outputs else q.gates
        ctx.save_for_backward(*given, outputs, gates, q.cells, plan.ids, plan.start, plan.weight)
        return q.results

    @staticmethod
    @uncompiled
    def backward(ctx: Any, d_outputs: Maybe, d_hn: Maybe, d_cn: Maybe = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Equations (3) and (4)."""
        plan: Plan = ctx.plan
        *given, outputs, gates, cells, _, _, _ = ctx.saved_tensors  # of the plan too: so a change in place is seen
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or any(map(_torch.is_wrapped, (d_outputs, d_hn, d_cn))):  # create_graph=True, vmap
            return None, *_differentiable(plan, given, needed, (d_outputs, d_hn, d_cn))
        if _torch.version(ctx.version) != ctx.unchanged or outputs.untyped_storage().nbytes() < outputs.nbytes:
            q = evaluate(plan, *given)
            outputs, gates, cells = q.outputs, None if q.gates is q.outputs else q.gates, q.cells
        contiguous: Any = [_contiguous(a) for a in given]
        x, h0, c0, w_ih, w_hh, b_ih, b_hh = contiguous
        grads = [empty(a.shape, a) if need else None for a, need in zip(given, needed, strict=True)]
        d_x, d_h0, d_c0, d_w_ih, d_w_hh, d_b_ih, d_b_hh = grads
        d_gates = empty((outputs.numel() // w_hh.shape[1], plan.cell.saved * w_hh.shape[1]), outputs)
        q = Sequence(
            plan, x, w_ih, w_hh, b_ih, b_hh, h0, c0, outputs if gates is None else gates, outputs, cells, None, None,
            _contiguous(d_outputs), _contiguous(d_hn), _contiguous(d_cn), d_gates,
            d_x, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_h0, d_c0,
        )  # fmt: skip
        kernels.implementation(outputs).backward(q)
        return None, *grads


def _version_of(x: Tensor) -> Tensor:
    """A tensor without memory that counts the changes in place of x, and of all that share its memory, as x does."""
    counter = x.detach()
    counter.data = _NOTHING
    return counter


def _contiguous(x: Maybe) -> Maybe:
    return None if x is None else x.contiguous()


def _differentiable(plan: Plan, given: Any, needed: Any, cotangents: tuple[Any, ...]) -> list[Any]:
    """The same vjp in operators that can be differentiated and vectorised: forward once more, then torch.autograd.grad.

    A graph where one is asked for. The views are so that a weight given twice has two gradients.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x, h0, c0, *weights = given = [None if a is None else a.view_as(a) for a in given]
        zeros = x.new_zeros(1, plan.rows, weights[1].shape[1])
        state = tuple(zeros if s is None else s for s in (h0, c0)[: plan.cell.states])
        weights = [w for w in weights if w is not None]
        inputs = x if plan.ids is None else functional.embedding(plan.ids, x)
        y, last = plain.run(plan, inputs, state, weights)
    pairs = [(r, c) for r, c in zip((y, *last), cotangents, strict=False) if c is not None]
    wanted = [a for a, need in zip(given, needed, strict=True) if need]
    found = torch.autograd.grad(
        [r for r, _ in pairs], wanted, [c for _, c in pairs], create_graph=again, allow_unused=True
    )
    grads = iter(found)
    return [next(grads) if need else None for need in needed]


def sequence_keywords(layer: Any, input: Any, start: Maybe, weight: Maybe) -> tuple[Maybe, Maybe]:
    """`is_start` as bool (T, B) and `cotangent_weight` as (T,) or (T, B) of a recurrent layer's call."""
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
                f"{name}: {keyword} is {got}, inputs of {T} steps need a tensor {fitting[0]} or {fitting[1]}."
            )
    if start is not None:
        start = start.to(input.device, torch.bool).reshape(T, start[0].numel()).expand(T, B).contiguous()
    if weight is not None:
        weight = weight.detach().to(input.device, input.dtype).contiguous()
    return start, weight


def embedded(layer: Any, input: Any, embedding: Any) -> Any:
    """What a recurrent layer's ids (...) are after the lookup in `embedding` (V, I); the values undefined."""
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
