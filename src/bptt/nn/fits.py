"""Which calls the kernels serve, and what torch.nn's layers check."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence


def fused(layer: nn.RNNBase, input: Any, hx: Any) -> bool:
    """Whether the kernels serve this call. False for all that torch.nn refuses, so that torch.nn says so."""
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    weight = layer._flat_weights[0]
    if (
        type(x) not in (Tensor, nn.Parameter)
        or x.device.type != "cpu"
        or x.layout is not torch.strided
        or x.dtype not in (torch.float32, torch.float64)
        or x.dim() not in ((2,) if packed else (2, 3))
        or x.shape[-1] != layer.input_size
        or not x.numel()
        or layer.proj_size
        or not isinstance(weight, Tensor)
        or weight.dtype != x.dtype
        or weight.device != x.device
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return False
    if hx is None:
        return True
    pair = layer.mode == "LSTM"
    if pair and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
        return False
    rows = int(input.batch_sizes[0]) if packed else x.shape[0 if layer.batch_first else 1] if x.dim() == 3 else None
    expected = (layer.num_layers * (1 + layer.bidirectional), *([] if rows is None else [rows]), layer.hidden_size)
    return all(
        isinstance(s, Tensor) and s.shape == expected and s.dtype == x.dtype and s.device == x.device
        for s in (hx if pair else (hx,))
    )


def checked(layer: nn.RNNBase, x: Tensor, states: Any, sizes: Tensor | None) -> tuple[Tensor, ...]:
    """The states, zeros if there are none, after torch.nn's checks. x: (T, B, I), or packed (N, I)."""
    layers = layer.num_layers * (1 + layer.bidirectional)
    rows = x.shape[1] if sizes is None else int(sizes[0])
    if states is None:
        widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if layer.mode == "LSTM" else 1]
        states = tuple(x.new_zeros(layers, rows, width) for width in widths)
    given = x if sizes is not None or not layer.batch_first else x.transpose(0, 1)
    layer.check_forward_args(given, states if layer.mode == "LSTM" else states[0], sizes)  # pyright: ignore[reportArgumentType]
    return states
