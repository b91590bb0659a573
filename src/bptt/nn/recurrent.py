"""RNN, GRU and LSTM: torch.nn's layers on fused kernels."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from bptt import arguments
from bptt.nn import fits, plain
from bptt.nn.kernels import sequence as kinds
from bptt.nn.layer import Layer, Plan

State = Any
"""(layers, B, H), for an LSTM a pair of such tensors; (layers, H) unbatched; layers times two if bidirectional."""

_CELLS = {"LSTM": kinds.LSTM, "GRU": kinds.GRU}
_M = TypeVar("_M", bound=nn.Module)


class _Fused(nn.RNNBase):
    """What the three have in common: a node of autograd for each layer and direction, or torch.nn's own forward."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Any,
        hx: State = None,
        is_start: Tensor | None = None,
        cotangent_weight: Tensor | None = None,
    ) -> tuple[Any, State]:
        """Outputs and the last state, as torch.nn's layer returns them.

        is_start: bool (T, B) or (T,): rows whose state is set to zeros before that step.
        cotangent_weight: (T,) or (T, B), w of equation (1): entry t multiplies the cotangent that comes to the state
            after step t from step t+1, the last entry that of the returned state, and never that of the outputs.
        """
        asked = is_start is not None or cotangent_weight is not None
        if asked:
            is_start, cotangent_weight = arguments.sequence_keywords(self, input, is_start, cotangent_weight)
        self._update_flat_weights()
        fused = fits.fused(self, input, hx, asked)
        if not fused and not asked and self.mode != "RNN_IDENTITY":
            torchs: Any = super().forward
            return torchs(input, hx)
        run = _outside_the_graph if fused and torch.compiler.is_compiling() else _run
        return run(self, input, hx, is_start, cotangent_weight, fused)


def _run(
    layer: _Fused, input: Any, hx: State, start: Tensor | None, weight: Tensor | None, fused: bool
) -> tuple[Any, State]:
    packed = isinstance(input, PackedSequence)
    x, sizes, order, back = input if packed else (input, None, None, None)
    single = not packed and x.dim() == 2
    swapped = layer.batch_first and not packed and not single
    x = x.unsqueeze(1) if single else x.transpose(0, 1) if swapped else x
    states: tuple[Tensor, ...] | None = None
    if hx is not None:
        states = tuple(hx) if layer.mode == "LSTM" else (hx,)
        states = tuple(s.unsqueeze(1) for s in states) if single else states
        if order is not None:
            states = tuple(s.index_select(1, order) for s in states)
    if not fused:
        states = fits.checked(layer, x, states, sizes)
    y, last = _layers(layer, x, states, sizes, start, weight, fused)
    if back is not None:
        last = tuple(s.index_select(1, back) for s in last)
    last = tuple(s.squeeze(1) for s in last) if single else last
    if packed:
        y = PackedSequence(y, sizes, order, back)
    else:
        y = y.squeeze(1) if single else y.transpose(0, 1) if swapped else y
    return y, last if layer.mode == "LSTM" else last[0]


_outside_the_graph = torch.compiler.disable(_run)


def _layers(
    layer: _Fused,
    x: Tensor,
    states: tuple[Tensor, ...] | None,
    sizes: Tensor | None,
    start: Tensor | None,
    weight: Tensor | None,
    fused: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers and directions on x (T, B, I) or packed (N, I): outputs, and the last states (layers, B, H)."""
    directions = 2 if layer.bidirectional else 1
    flat: list[Any] = layer._flat_weights
    each = len(flat) // (layer.num_layers * directions)
    ends: list[tuple[Tensor, ...]] = []
    for i in range(layer.num_layers):
        outputs: list[Tensor] = []
        for d in range(directions):
            k = i * directions + d
            state = None if states is None else tuple(s[k] for s in states)
            run: Any = _on_kernels if fused else plain.run
            y, last = run(layer.mode, x, state, flat[k * each : (k + 1) * each], sizes, d == 1, start, weight)
            outputs.append(y)
            ends.append(last)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if layer.dropout and i < layer.num_layers - 1:
            x = functional.dropout(x, layer.dropout, layer.training)
    if len(ends) == 1:
        return x, tuple(s[None] for s in ends[0])
    return x, tuple(torch.stack(column) for column in zip(*ends, strict=True))


def _on_kernels(
    mode: str,
    x: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: list[Tensor],
    sizes: Tensor | None,
    reverse: bool,
    start: Tensor | None,
    weight: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`plain.run` on the kernels, for a state that is zeros where it is None."""
    sizes = None if sizes is None else sizes.contiguous()
    offsets = None if sizes is None else sizes.cumsum(0) - sizes
    steps, rows = (len(sizes), int(sizes[0])) if sizes is not None else x.shape[:2]
    activation = kinds.ACTIVATIONS.index(mode[4:].lower()) if mode not in _CELLS else 0

    def differentiable(x: Tensor, h0: Any, c0: Any, *weights: Any) -> tuple[Tensor, ...]:
        zeros = x.new_zeros(rows, weights[1].shape[1])
        first = [zeros if s is None else s for s in ((h0, c0) if mode == "LSTM" else (h0,))]
        shaped = x if sizes is not None else x.view(steps, rows, -1)
        given = [w for w in weights if w is not None]
        y, last = plain.run(mode, shaped, tuple(first), given, sizes, reverse, start, weight)
        return y.reshape(len(x), -1), *last

    plan = Plan(
        _CELLS.get(mode, kinds.RNN), activation, reverse, steps, rows, differentiable, sizes, offsets, start, weight
    )
    h0, c0 = (None, None) if state is None else (state[0], state[1] if mode == "LSTM" else None)
    biases = weights[2:] or [None, None]
    y, *last = Layer.apply(plan, x if sizes is not None else x.reshape(steps * rows, -1), h0, c0, *weights[:2], *biases)
    return y if sizes is not None else y.view(steps, rows, -1), tuple(last)


class RNN(_Fused, nn.RNN):
    """torch.nn.RNN, fused; its nonlinearity may also be "identity"."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        names = ("input_size", "hidden_size", "num_layers", "nonlinearity")
        identity = "identity" in (args[3] if len(args) > 3 else None, keywords.get("nonlinearity"))
        if identity:
            keywords = {**dict(zip(names, args, strict=False)), **keywords, "nonlinearity": "tanh"}
            args = args[4:]
        super().__init__(*args, **keywords)
        if identity:
            self.nonlinearity, self.mode = "identity", "RNN_IDENTITY"


class GRU(_Fused, nn.GRU):
    """torch.nn.GRU, fused."""


class LSTM(_Fused, nn.LSTM):
    """torch.nn.LSTM, fused."""


def convert(model: _M) -> _M:
    """The model, its torch.nn layers made fused ones."""
    fused = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
    for module in model.modules():
        if type(module) in fused:
            module.__class__ = fused[type(module)]
    return model
