"""The recurrent layers that the models here are made of, and the state that these start from."""

from typing import Any

import torch
from torch import Tensor, nn

import bptt

CELLS: dict[str, Any] = {"rnn": bptt.nn.RNN, "gru": bptt.nn.GRU, "lstm": bptt.nn.LSTM}

State = Tensor | tuple[Tensor, Tensor]


def layers_of(cell: str, inputs: int, hidden: int, layers: int) -> Any:
    """Recurrent layers on top of each other. Raises ValueError for a cell that doesn't exist."""
    if cell not in CELLS:
        raise ValueError(f"cell={cell!r}: must be one of {', '.join(CELLS)}.")
    return CELLS[cell](inputs, hidden, layers)


def zeros(layer: Any, batch: int) -> State:
    """The state (layers, batch, H) that a recurrent layer starts from; for an LSTM two of them."""
    state: Tensor = layer.weight_hh_l0.new_zeros(layer.num_layers, batch, layer.hidden_size)
    return (state, torch.zeros_like(state)) if isinstance(layer, nn.LSTM) else state
