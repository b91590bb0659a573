"""A network that forecasts numbers in their own units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bptt.models import saved
from bptt.models.layers import State, layers_of, zeros

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SERIES_MOST = 2**20
"""Bytes of a file that describes a series."""


class Forecaster(nn.Module):
    """Normalised columns, recurrent layers, and a forecast of each target for each horizon, in the data's own units.

        z_t = (x_t - mean) / deviation,  h_t = cell(z_t, h_{t-1}),  y_{t+k} = base_t + unit_k (V_k h_t + b_k)        (1)

    base_t is the target's value at t, so that a network that has learned nothing says that nothing will change, and
    unit_k how much it changes in k steps (root mean square): of that forecast the loss is 1, at every horizon. Where
    targets aren't among the columns they are its mean and deviation. A missing value stands for its column's mean.
    `bptt.forecast.forecaster` makes one with the scales of a series; without, means are 0 and scales 1.

    Arguments:
        columns: how many numbers per step are read.
        places: where the targets are among them; None for targets of a different series.
        targets, horizons: how many of each.
        cell: "rnn", "gru" or "lstm". hidden: units of a layer. layers: layers on top of each other.
        dtype: of sums with the data: float64, so that no number of theirs is rounded; the layers are in float32.

    Call: numbers (T, B, columns), NaN where one is missing, state -> forecasts (T, B, horizons, targets), state.
    Raises ValueError for a cell that doesn't exist.

    >>> model = Forecaster(3, (0,), targets=1, horizons=24, cell="gru", hidden=8)
    >>> outputs, state = model(torch.tensor([[[21.0, float("nan"), 3.0]]]))
    >>> outputs.shape, outputs[0, 0, :2, 0].tolist()
    (torch.Size([1, 1, 24, 1]), [21.0, 21.0])
    """

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    unit: Tensor

    def __init__(
        self,
        columns: int,
        places: Sequence[int] | None,
        targets: int,
        horizons: int,
        cell: str = "lstm",
        hidden: int = 64,
        layers: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.places, self.shape = None if places is None else list(places), (horizons, targets)
        for name, count in (("mean", columns), ("target_mean", targets)):
            self.register_buffer(name, torch.zeros(count, dtype=dtype))
        self.register_buffer("deviation", torch.ones(columns, dtype=dtype))
        self.register_buffer("unit", torch.ones(horizons, targets, dtype=dtype))
        self.recurrent = layers_of(cell, columns, hidden, layers)
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

    @classmethod
    def load(cls, folder: str | Path) -> tuple[Forecaster, dict[str, Any]]:
        """The forecaster that `bptt train` left in a folder, in evaluation mode, and what its `series.json` says.

        That has the names of "columns" and "targets", "paired" (whether targets are of a different file), "horizons",
        "season", "dtype" of the data, and "computed_in", the forecaster's. The data need not be there.
        Raises: ValueError for a folder that holds none, or whose files are damaged or don't fit each other;
            ImportError without safetensors and PyYAML.
        """
        folder = Path(folder)
        saved.must_hold(folder, "no run on numbers", saved.WEIGHTS, saved.CONFIG, saved.SERIES)
        of = f"{saved.CONFIG} and {saved.SERIES}"
        with saved.damaged(folder):
            known, (cell, hidden, layers) = saved.plain(folder, saved.SERIES, SERIES_MOST), saved.shape(folder)
            try:
                columns, targets, horizons = known["columns"], known["targets"], len(known["horizons"])
                places = None if known["paired"] else [columns.index(name) for name in targets]
                dtype, _ = DTYPES[known["computed_in"]], DTYPES[known["dtype"]]
                stamp = {"series": ",".join(targets)}
            except (KeyError, TypeError, ValueError, AttributeError):
                raise ValueError(f"{of} don't fit") from None

            def make() -> Forecaster:
                return cls(len(columns), places, len(targets), horizons, cell, hidden, layers, dtype)

            return saved.filled(folder, make, layers, stamp, of), known

    def initial_state(self, batch: int) -> State:
        """Zeros (layers, batch, hidden); for an LSTM two of them."""
        return zeros(self.recurrent, batch)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error of each step (T, B) in units, its mean over horizons and targets."""
        return (((outputs - targets) / self.unit) ** 2).flatten(2).mean(2)

    @torch.no_grad()
    def read(self, inputs: Tensor, state: State | None = None, block: int = 1) -> tuple[Tensor, State]:
        """Forecasts for `inputs` (T >= 1, B, columns) without a graph, `block` steps per call, the state carried.

        With `block=1` the numbers are those of a forecaster that is fed as the data arrive, to the bit.
        """
        if not len(inputs):
            raise ValueError("read(inputs): has no steps; give (T, B, columns) with at least one.")
        outputs, carried = [], self.initial_state(inputs.shape[1]) if state is None else state
        for piece in inputs.split(block):
            output, carried = self(piece, carried)
            outputs.append(output)
        return torch.cat(outputs), carried
