"""The network that `bptt train` trains on numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bptt.cli.model import CELLS, State, zeros


class Forecaster(nn.Module):
    """Normalised columns, recurrent layers, and a forecast of each target for each horizon, in the data's own units.

        z_t = (x_t - mean) / deviation,  h_t = cell(z_t, h_{t-1}),  y_{t+k} = base_t + unit_k (V_k h_t + b_k)        (1)

    base_t is the target's value at t, so that a network that has learned nothing says that nothing will change, and
    unit_k how much it changes in k steps (root mean square): of that forecast the loss is 1, at every horizon. Where
    targets are another file's they are its mean and deviation. A missing value stands for its column's mean.

    Arguments:
        columns: of the inputs. places: where the targets are among them; None for targets of another file.
        targets, horizons: how many of each. cell, hidden, layers: as the character model's.
        dtype: of sums with the data: float64, so that no number of theirs is rounded; the layers are in float32.
    """

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    unit: Tensor

    def __init__(
        self,
        columns: int,
        places: tuple[int, ...] | None,
        targets: int,
        horizons: int,
        cell: str,
        hidden: int,
        layers: int,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.places, self.shape = None if places is None else list(places), (horizons, targets)
        for name, count in (("mean", columns), ("target_mean", targets)):
            self.register_buffer(name, torch.zeros(count, dtype=dtype))
        self.register_buffer("deviation", torch.ones(columns, dtype=dtype))
        self.register_buffer("unit", torch.ones(horizons, targets, dtype=dtype))
        self.recurrent = CELLS[cell](columns, hidden, layers)
        self.decoder = nn.Linear(hidden, horizons * targets)
        nn.init.zeros_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(
        self, inputs: Tensor, state: State | None = None, cotangent_weight: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Forecasts (T, B, horizons, targets) after each of `inputs` (T, B, columns); and the state."""
        inputs = inputs.to(self.mean.dtype)
        known = torch.where(torch.isnan(inputs), self.mean, inputs)
        hidden, last = self.recurrent(
            ((known - self.mean) / self.deviation).to(self.decoder.weight.dtype),
            zeros(self.recurrent, inputs.shape[1]) if state is None else state,
            cotangent_weight=cotangent_weight,
        )
        change = self.decoder(hidden).unflatten(-1, self.shape)
        base = self.target_mean if self.places is None else known[..., self.places].unsqueeze(-2)
        return base + self.unit * change, last

    def initial_state(self, batch: int) -> State:
        """Zeros."""
        return zeros(self.recurrent, batch)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error of each step (T, B) in units, its mean over horizons and targets."""
        return (((outputs - targets) / self.unit) ** 2).flatten(2).mean(2)


def step_by_step(model: Any, inputs: Tensor, state: Any, block: int) -> tuple[Tensor, Any]:
    """Outputs for `inputs` (T, B, columns), `block` steps a call, the state carried; no graph."""
    outputs = []
    with torch.no_grad():
        for piece in inputs.split(block):
            output, state = model(piece, state)
            outputs.append(output)
    return torch.cat(outputs), state
