"""A few steps without a graph, by the shortest way from a call to the kernels."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _torch
from bptt.nn import fits, kernels
from bptt.nn.cells import CELLS
from bptt.nn.kernels.native import FEW, plain_call

PLAIN, FLOAT = frozenset(fits.PLAIN), torch.float32


def call(layer: nn.RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """Outputs and the last state of one layer and direction; None for a call that isn't the plainest."""
    native = kernels.chosen
    if native is None or not fits.served(x) or x.dtype is not FLOAT or x.dim() != 3 or not x.is_contiguous():
        return None
    T, B, inputs = x.shape
    H, mode = layer.hidden_size, layer.mode
    lstm = mode == "LSTM"
    if (
        not 0 < T <= FEW or not 0 < B <= FEW or layer.num_layers > 1 or layer.bidirectional or layer.batch_first
        or layer.proj_size or layer.input_size != inputs or (found := weights(layer, 0)) is None
    ):  # fmt: skip
        return None
    last = (1, B, H)
    h: Any = None
    c: Any = None
    if hx is None:
        hn, cn = x.new_empty(last), x.new_empty(last) if lstm else None
    else:
        if lstm and (type(hx) is not tuple or len(hx) != 2):
            return None
        h, c = hx if lstm else (hx, None)
        if not _fits(h, last) or (lstm and not _fits(c, last)):
            return None
        hn, cn = torch.empty_like(h), torch.empty_like(c) if lstm else None
    y = torch.empty_like(hn) if T == 1 else x.new_empty((T, B, H))
    at = y.data_ptr()
    native.plain(
        plain_call(mode, T, B, inputs, H, torch.get_num_threads()),
        x.data_ptr(), 0 if h is None else h.data_ptr(), 0 if c is None else c.data_ptr(), *found, 0, 0, 0,
        0 if lstm or mode == "GRU" else at, 0, at, hn.data_ptr(), 0 if cn is None else cn.data_ptr(),
    )  # fmt: skip
    return y, hn if cn is None else (hn, cn)


def weights(layer: nn.RNNBase, number: int) -> list[int] | None:
    """Where the parameters of the layer of that number lie, 0 for no bias; None unless they are as the kernels need."""
    known, H = _torch.parameters(layer), layer.hidden_size
    found: list[int] = []
    for name, shape in _shapes(number, CELLS[layer.mode].gates * H, H if number else layer.input_size, H, layer.bias):
        w: Any = known.get(name)  # None where it is parametrised
        if type(w) not in PLAIN or w.dtype is not FLOAT or w.shape != shape or not w.is_cpu or not w.is_contiguous():
            return None
        found.append(w.data_ptr())
    return found if layer.bias else [*found, 0, 0]


@functools.lru_cache(256)
def _shapes(number: int, wide: int, inputs: int, units: int, bias: bool) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The parameters of a layer by name, and their shapes."""
    matrices = ((f"weight_ih_l{number}", (wide, inputs)), (f"weight_hh_l{number}", (wide, units)))
    return (*matrices, *((f"bias_{of}_l{number}", (wide,)) for of in ("ih", "hh") if bias))


def _fits(s: Any, shape: tuple[int, ...]) -> bool:
    if type(s) not in PLAIN or s.dtype is not FLOAT or s.shape != shape:
        return False
    return s.is_cpu and s.is_contiguous() and not s.is_neg()
