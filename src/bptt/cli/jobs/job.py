"""What a run trains and what it reads, as one value, whatever the data and whoever wrote the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import nn

from bptt import Chunk
from bptt.analysis.history import Measure
from bptt.cli.train_config import TrainConfig


class Source(Protocol):
    """Data as lanes that are read side by side.

    rows, held_out_rows: lanes of the training data, and of what is held out. steps: that each lane of training predicts
        in an epoch; None where nobody knows.
    digest: of all that is read, "" where it can't be known. unit: what a step of one row is called.
    """

    rows: int
    held_out_rows: int
    steps: int | None
    digest: str
    unit: str

    def stream(self, length: int, epochs: int | None) -> Any:
        """Chunks of so many steps of the training data, for ever if `epochs` is None."""
        ...

    def measured(self, steps: int | None, rows: int | None) -> Chunk:
        """The first steps of some lanes of what is held out, or else of what is trained on, to look at a gradient.

        Raises: UserError where there are fewer.
        """
        ...

    def held_out(self) -> Iterable[Chunk] | None:
        """Chunks of the data that nothing is trained on, from its start; None where there are none."""
        ...


@dataclasses.dataclass(frozen=True)
class Job:
    """A model with its loss and data.

    name: the model in a phrase, such as "lstm of 256 units".
    config: the options, those filled in that depend on the data.
    told: what is said of the data before training, by name.
    facts: further rows of the report's table.
    files: that the run folder gets beside the weights, by name.
    stamp: text that the file of weights carries, to tell weights of one run from those of another.
    code: the digest of the user's own file, "" without one.
    keeps_best: whether the weights of the lowest validation are those that stay, instead of the last ones.
    validations: how many a run has.
    kept: numbers that a window keeps for its backward pass, at the least, for each of its steps.
    seed: of what is drawn to show.
    """

    name: str
    model: nn.Module
    loss: Any
    source: Any
    measure: Measure
    config: TrainConfig
    told: Mapping[str, str]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stamp: Mapping[str, str] = dataclasses.field(default_factory=dict)
    code: str = ""
    keeps_best: bool = False
    validations: int = 8
    kept: float = 1.0
    seed: int = 0

    @property
    def trained(self) -> tuple[nn.Module, Any]:
        """Model and loss as training and validation call them, on the same parameters."""
        return self.model, self.loss

    def start(self, rows: int) -> Any:
        """The state before the first step; None for what the model starts from by itself."""
        return None

    def results(self, folder: Any) -> Results:
        """What the trained model shows; files of it go into `folder`, a `RunFolder` with the weights of now."""
        return Results()

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.model.parameters())


@dataclasses.dataclass(frozen=True)
class Results:
    """What is shown of a trained model.

    title, table: of what was measured, names and rows. text: what it wrote. notes: sentences.
    more: what a command to go on with is called, its name, and its options.
    plots: files of pictures, with what they show.
    """

    title: str = ""
    table: tuple[list[str], list[list[str]]] | None = None
    text: str = ""
    notes: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    plots: Mapping[str, str] = dataclasses.field(default_factory=dict)
