"""A layer that keeps its state and runs live, one step after another."""

from typing import Any

import torch
from torch import Tensor, nn

from bptt import _torch
from bptt.nn import direct, fits, kernels
from bptt.nn.cells import CELLS
from bptt.nn.kernels.native import FEW, plain_call
from bptt.nn.uncompiled import uncompiled


class Stepper:
    """A layer that is called step by step, without gradients, and keeps its state: `layer.stepper(batch)` returns it.

    Call: `stepper(inputs)`: inputs (B, I), or (I,) where batch is None, -> outputs (B, H) or (H,), a fresh tensor.
    """

    def __init__(self, layer: nn.RNNBase, batch: int | None) -> None:
        name = type(layer).__name__
        if layer.bidirectional:
            raise ValueError(f"{name}.stepper: a bidirectional layer needs the whole sequence: use one direction.")
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
            raise ValueError(
                f"{name}.stepper(batch={batch!r}): a whole number of at least 1, or None for no batch axis."
            )
        self.layer, self.batch = layer, batch
        self._plain = not (layer.proj_size or (batch or 1) > FEW)
        self.state = None

    @property
    def state(self) -> Any:
        """A copy of the state, (layers, B, H), or two for an LSTM; what is assigned is copied. None: zeros."""
        found = tuple(s.clone() if self.batch else s.squeeze(1).clone() for s in self._states)
        return found if len(found) == 2 else found[0]

    @state.setter
    def state(self, value: Any) -> None:
        layer, rows = self.layer, self.batch or 1
        weight = _torch.flat_weights(layer)[0]
        count = CELLS[layer.mode].states
        widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)[:count]
        states = [weight.new_zeros(layer.num_layers, rows, width, requires_grad=False) for width in widths]
        if value is not None:
            given = list(value) if count == 2 and isinstance(value, tuple | list) else [value]
            shapes = [tuple(s.shape) if self.batch else (layer.num_layers, s.shape[2]) for s in states]
            got = [tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__ for s in given]
            if got != shapes:
                raise ValueError(
                    f"{type(layer).__name__}.stepper: the state is {got}, not {shapes}: layers, rows, units."
                )
            for state, new in zip(states, given, strict=True):
                state.copy_(new.detach().reshape(state.shape))
        self._states = states
        self._outputs = weight.new_zeros((rows, layer.hidden_size) if self.batch else (layer.hidden_size,))

    @uncompiled
    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs of the next step."""
        layer, batch = self.layer, self.batch
        expected = (layer.input_size,) if batch is None else (batch, layer.input_size)
        if not isinstance(inputs, Tensor) or inputs.shape != expected:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"{type(layer).__name__}.stepper: inputs are {got}, not {expected}: one step.")
        y = self._direct(inputs) if self._plain else None
        return self._called(inputs) if y is None else y

    def _direct(self, x: Tensor) -> Tensor | None:
        """The step on the kernels, which write the new state over the old one; None if they don't serve it."""
        layer, native = self.layer, kernels.chosen
        if native is None or not fits.served(x) or x.dtype is not torch.float32 or not x.is_contiguous():
            return None
        if _torch.call_hooks(layer) or (layer.training and layer.dropout and layer.num_layers > 1):
            return None
        H, mode, rows, y = layer.hidden_size, layer.mode, self.batch or 1, x
        size = 4 * rows * H
        threads, keeps = torch.get_num_threads(), CELLS[mode].keeps
        own = (*self._states, self._outputs)
        places = [s.data_ptr() for s in own if s.dtype is torch.float32 and s.is_cpu and s.is_contiguous()]
        found: list[Any] = [direct.weights(layer, number) for number in range(layer.num_layers)]
        if None in found or len(places) < len(own):
            return None
        for number, weights in enumerate(found):
            before = plain_call(mode, 1, rows, y.shape[-1], H, threads)
            h, c = places[0] + number * size, places[1] + number * size if len(own) == 3 else 0
            x, y = y, torch.empty_like(self._outputs)
            at = y.data_ptr()
            native.plain(before, x.data_ptr(), h, c, *direct.places(weights), 0, 0, 0, 0 if keeps else at, 0, at, h, c)  # pyright: ignore[reportGeneralTypeIssues]
        return y

    @torch.no_grad()
    def _called(self, x: Tensor) -> Tensor:
        """The step by a call of the layer."""
        layer = self.layer
        rows = x if self.batch else x[None]
        state = tuple(self._states) if len(self._states) == 2 else self._states[0]
        y, last = layer(rows.unsqueeze(1 if layer.batch_first else 0), state)
        self._states = list(last) if isinstance(last, tuple) else [last]
        y = y.squeeze(1 if layer.batch_first else 0)
        return y if self.batch else y[0]
