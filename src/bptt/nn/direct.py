"""The shortest way from a layer's call to the kernels, for the plainest calls: one layer and direction, padded."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _torch, _units
from bptt.nn import fits, kernels
from bptt.nn.cells import CELLS
from bptt.nn.kernels.buffers import empty, empty_like
from bptt.nn.kernels.native import FEW, Native, plain_call
from bptt.nn.kernels.sequence import Maybe, Plan
from bptt.nn.layer import Layer, backward, differentiated, on_kernels, overwritten, remember
from bptt.nn.uncompiled import uncompiled

PLAIN, FLOAT = frozenset(fits.PLAIN), torch.float32


def call(layer: nn.RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """Outputs and the last state of one layer and direction; None for any but the plainest calls."""
    native = kernels.chosen
    if native is None or not fits.served(x) or x.dtype is not FLOAT or x.dim() != 3:
        return None
    T, B, inputs = x.shape
    H, mode, graph = layer.hidden_size, layer.mode, torch.is_grad_enabled()
    if (
        layer.num_layers > 1 or layer.bidirectional or layer.batch_first or layer.proj_size or not T * B
        or layer.input_size != inputs or not native.pays(CELLS[mode], T, B, graph)
    ):  # fmt: skip
        return None
    states, lstm = () if hx is None else hx if mode == "LSTM" else (hx,), mode == "LSTM"
    if type(states) is not tuple or len(states) not in (0, 1 + lstm):
        return None
    for s in states:
        if type(s) not in PLAIN or s.dtype is not FLOAT or s.shape != (1, B, H) or not s.is_cpu or s.is_neg():
            return None
    found = weights(layer, 0)
    if found is None:
        return None
    h, c = states if len(states) == 2 else (states[0] if states else None, None)
    if T > FEW or B > FEW or (_units.listened() and not graph):
        y, last = on_kernels(Plan(mode, T, B), (x, h, c, *found))
        return y, last if lstm else last[0]
    if graph:
        y, *last = _torch.apply(LayerOfFew, Plan(mode, T, B), x, h, c, *found)
    else:
        y, *last, _, _ = _few(native, mode, x, h, c, found, keep=False)
    return y, (last[0], last[1]) if lstm else last[0]


def _few(native: Native, mode: str, x: Tensor, h: Any, c: Any, given: Any, keep: bool) -> tuple[Any, ...]:
    """Outputs (T, B, H), the last states, and gates and cells, for few steps and rows.

    keep: whether gates and cells are wanted; without, they are None.
    """
    x, h, c = x.contiguous(), None if h is None else h.contiguous(), None if c is None else c.contiguous()
    (T, B, inputs), H, cell = x.shape, given[1].shape[1], CELLS[mode]
    hn: Any = x.new_empty((1, B, H)) if h is None else torch.empty_like(h)
    y = torch.empty_like(hn) if T == 1 else x.new_empty((T, B, H))
    gates: Any = None if cell.keeps else y
    cn = cells = None
    if keep and cell.keeps:
        gates = empty((T, B, cell.saved * H), y)
    if mode == "LSTM":
        cn, cells = torch.empty_like(hn), empty_like(y) if keep else None
    before = plain_call(mode, T, B, inputs, H, torch.get_num_threads())
    native.plain(before, *places((x, h, c, *given)), 0, 0, 0, *places((gates, cells, y, hn, cn)))
    return (y, hn, gates, cells) if cn is None else (y, hn, cn, gates, cells)


class LayerOfFew(Layer):
    """`Layer` for few steps and rows, where what surrounds the kernels takes longer than they do."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *given: Any) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, h, c, *weights = given
        native: Any = kernels.chosen
        *results, gates, cells = _few(native, plan.mode, x, h, c, weights, keep=True)
        remember(ctx, plan, given, results[0], gates, cells)
        return tuple(results)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, d_outputs: Maybe, d_hn: Maybe, d_cn: Maybe = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        plan, native = ctx.plan, kernels.chosen
        saved = ctx.saved_tensors
        x, h, c, *weights, outputs, gates, cells, _, _, _ = saved
        if native is None or differentiated(d_outputs, d_hn, d_cn) or overwritten(ctx, outputs):
            return backward(ctx, saved, (d_outputs, d_hn, d_cn))
        given = [None if s is None else s.contiguous() for s in (x, h, c)] + weights
        d = [None if s is None else s.contiguous() for s in (d_outputs, d_hn, d_cn)]
        wanted = [empty_like(s) if need else None for s, need in zip(given, ctx.needs_input_grad[1:], strict=True)]
        gates = outputs if gates is None else gates
        before = plain_call(plan.mode, plan.steps, plan.rows, x.shape[2], outputs.shape[2], torch.get_num_threads())
        native.plain_backward(
            before, *places(given), 0, 0, 0, *places((gates, cells, outputs)), 0, 0, *places(d), 0,
            *places(wanted), 0, 0, 0,
        )  # fmt: skip
        return None, *wanted


def places(given: Any) -> list[int]:
    """The addresses of tensors; 0 for each that is None."""
    return [0 if x is None else x.data_ptr() for x in given]


def weights(layer: nn.RNNBase, number: int) -> list[Maybe] | None:
    """The four parameters of the layer with that number; None unless all are as the kernels need them."""
    known, H = _torch.parameters(layer), layer.hidden_size
    found: list[Maybe] = []
    for name, shape in _shapes(number, CELLS[layer.mode].gates * H, H if number else layer.input_size, H, layer.bias):
        w: Any = known.get(name)  # None if it is parametrised
        if type(w) not in PLAIN or w.dtype is not FLOAT or w.shape != shape or not w.is_cpu or not w.is_contiguous():
            return None
        found.append(w)
    return found if layer.bias else [*found, None, None]


@functools.lru_cache(256)
def _shapes(number: int, wide: int, inputs: int, units: int, bias: bool) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The parameters of a layer by name, and their shapes."""
    matrices = ((f"weight_ih_l{number}", (wide, inputs)), (f"weight_hh_l{number}", (wide, units)))
    return (*matrices, *((f"bias_{of}_l{number}", (wide,)) for of in ("ih", "hh") if bias))
