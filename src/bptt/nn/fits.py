"""Which calls the kernels serve, and what torch.nn's layers check."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt import _torch, _units
from bptt.nn import kernels
from bptt.nn.cells import CELLS
from bptt.nn.kernels.sequence import Maybe

PLAIN = (Tensor, nn.Parameter)


def fused(layer: nn.RNNBase, input: Any, hx: Any, asked: bool) -> bool:
    """Whether the kernels serve this call. False for everything that torch.nn refuses, so that torch.nn says so.

    asked: whether it has keywords that torch.nn's layers don't have.
    """
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    if (
        not served(x)
        or x.dim() not in ((2,) if packed else (2, 3))
        or x.shape[-1] != layer.input_size
        or not x.numel()
        or layer.proj_size
        or not _weights_fit(layer, x)
        or (packed and not _sizes_fit(input.batch_sizes, len(x)))
    ):
        return False
    if not asked and not _units.listened() and not _pays(layer, input, packed):
        return False
    if hx is None:
        return True
    pair = CELLS[layer.mode].states == 2
    if pair and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
        return False
    rows = int(input.batch_sizes[0]) if packed else x.shape[0 if layer.batch_first else 1] if x.dim() == 3 else None
    expected = (layer.num_layers * (1 + layer.bidirectional), *([] if rows is None else [rows]), layer.hidden_size)
    states: Any = hx if pair else (hx,)
    return all(
        type(s) in PLAIN and s.shape == expected and s.dtype == x.dtype and s.device == x.device and not s.is_neg()
        for s in states
    )


def served(x: Any) -> bool:
    """Whether the kernels can run on such inputs, here and now."""
    return (
        type(x) in PLAIN
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not _torch.is_watched()
    )


def _sizes_fit(sizes: Tensor, rows: int) -> bool:
    """Whether the rows of a packed sequence's steps decrease and add up to those of its data."""
    fit = sizes.dtype == torch.int64 and len(sizes) > 0 and bool((sizes[1:] <= sizes[:-1]).all())
    return fit and int(sizes[-1]) > 0 and int(sizes.sum()) == rows


def _weights_fit(layer: nn.RNNBase, x: Tensor) -> bool:
    """Whether all weights have the shapes, dtype and device that the kernels take for granted."""
    weights = _torch.flat_weights(layer)
    H = layer.hidden_size
    directions, each = 1 + layer.bidirectional, 2 + 2 * layer.bias
    if len(weights) != layer.num_layers * directions * each:
        return False
    rows = H * CELLS[layer.mode].gates
    for i, weight in enumerate(weights):
        first = i < directions * each
        shape = ((rows, layer.input_size if first else H * directions), (rows, H), (rows,), (rows,))[i % each]
        if type(weight) not in PLAIN or weight.shape != shape or weight.dtype != x.dtype or weight.device != x.device:
            return False
    return True


def _pays(layer: nn.RNNBase, input: Any, packed: bool) -> bool:
    """Whether the kernels are faster than torch.nn."""
    if packed:
        return True
    steps, rows = input.shape[:2] if input.dim() == 3 else (len(input), 1)
    if layer.batch_first and input.dim() == 3:
        steps, rows = rows, steps
    return kernels.implementation(input).pays(CELLS[layer.mode], steps, rows, torch.is_grad_enabled())


def keywords(layer: nn.Module, input: Any, **given: Maybe) -> None:
    """Raise for keywords whose numbers can't be seen, and for inputs without steps."""
    name = type(layer).__name__
    for keyword, value in given.items():
        if value is not None and torch.compiler.is_exporting():
            raise TypeError(f"{name}: torch.export can't take {keyword}=, whose numbers decide what is computed.")
        if isinstance(value, Tensor) and _torch.is_batched(value):
            raise TypeError(
                f"{name}: torch.func.vmap over {keyword}= is impossible: its numbers decide what is computed."
            )
    time = 1 if layer.batch_first is True and isinstance(input, Tensor) and input.dim() == 3 else 0
    if isinstance(input, Tensor) and input.dim() > 1 and input.shape[time] == 0:
        raise ValueError(f"{name}: inputs {tuple(input.shape)} have no steps: a call needs at least one.")


def few(embedding: Tensor, input: Any) -> bool:
    """Whether the input's part of the gates costs less when computed for the embedding's rows than for the input's."""
    return len(embedding) < (input.data if isinstance(input, PackedSequence) else input).numel()


def checked(layer: nn.RNNBase, x: Tensor, states: Any, sizes: Maybe) -> tuple[Tensor, ...]:
    """The states after torch.nn's checks, zeros if none are given. x: (T, B, I), or packed (N, I)."""
    layers = layer.num_layers * (1 + layer.bidirectional)
    rows = x.shape[1] if sizes is None else int(sizes[0])
    if states is None:
        widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if layer.mode == "LSTM" else 1]
        states = tuple(x.new_zeros(layers, rows, width) for width in widths)
    given = x if sizes is not None or not layer.batch_first else x.transpose(0, 1)
    layer.check_forward_args(given, states if layer.mode == "LSTM" else states[0], sizes)  # pyright: ignore[reportArgumentType]
    return states
