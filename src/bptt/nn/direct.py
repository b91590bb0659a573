"""The shortest way from a layer's call to the kernels, for the plainest calls: one layer and direction, padded."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _torch, _units
from bptt.nn import fits, kernels
from bptt.nn.cells import CELLS
from bptt.nn.kernels.native import FEW, Native, plain_call
from bptt.nn.kernels.sequence import Maybe, Plan
from bptt.nn.layer import on_kernels

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
    if graph or T > FEW or B > FEW or _units.listened():
        y, last = on_kernels(Plan(mode, T, B), (x, h, c, *found))
    else:
        h, c = (None if s is None else s.contiguous() for s in (h, c))
        y, last = _few(native, mode, x.contiguous(), h, c, found)
    return y, last if lstm else last[0]


def _few(native: Native, mode: str, x: Tensor, h: Any, c: Any, given: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs (T, B, H) and the last states for few steps and rows; nothing else is kept."""
    (T, B, inputs), H, cell = x.shape, given[1].shape[1], CELLS[mode]
    hn: Any = x.new_empty((1, B, H)) if h is None else torch.empty_like(h)
    cn: Any = torch.empty_like(hn) if mode == "LSTM" else None
    y = torch.empty_like(hn) if T == 1 else x.new_empty((T, B, H))
    at, before = y.data_ptr(), plain_call(mode, T, B, inputs, H, torch.get_num_threads())
    native.plain(
        before, x.data_ptr(), 0 if h is None else h.data_ptr(), 0 if c is None else c.data_ptr(), *places(given),
        0, 0, 0, 0 if cell.keeps else at, 0, at, hn.data_ptr(), 0 if cn is None else cn.data_ptr(),
    )  # fmt: skip
    return y, (hn,) if cn is None else (hn, cn)


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
