"""What `bptt plan`, `diagnose` and `verify` look at: a model, its loss, and the first steps of its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import bptt
from bptt.cli.data_options import DataOptions
from bptt.cli.jobs.own import loss_of, make, rows_of, source_of, tried
from bptt.cli.printing import one_line
from bptt.cli.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is looked at.

    state: before `chunk`; both are where the model is. rows_at: `state_batch_dim=`. told: of the data, by name.
    trained: how the model was trained; None for first weights.
    """

    model: Any
    loss: Any
    chunk: bptt.Chunk
    state: Any
    rows_at: Any
    title: str
    told: dict[str, str]
    unit: str
    trained: TrainConfig | None = None

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.model.parameters())

    def given(self, function: Callable[..., Any], **more: Any) -> Any:
        """The answer of one of the library's calls, which all take these first."""
        return function(self.model, self.loss, self.chunk, self.state, state_batch_dim=self.rows_at, **more)


def own(config: DataOptions, device: torch.device, batch: int | None, first: Callable[[Any], bptt.Chunk]) -> Subject:
    """A model of the user's, as it is made. first: the steps to look at, of a source. Raises UserError."""
    made = make(config.model or "", TrainConfig.seed)
    source = source_of(config, made, batch)
    loss = loss_of(made, source)
    made.model.to(device)
    tried(made, loss, source, device)
    chunk, name = on(first(source), device), one_line(made.named)
    told = f"{one_line(config.data)}, what is kept for validation" if config.data else f"the first chunk of {name}"
    kind = {"text" if config.kind == "text" else "data": told}
    return Subject(made.model, loss, chunk, None, rows_of(made.model, chunk.inputs), name, kind, source.unit)


def on(chunk: bptt.Chunk, device: torch.device) -> bptt.Chunk:
    """The chunk on a device."""
    return bptt.Chunk(*(None if each is None else each.to(device) for each in chunk))
