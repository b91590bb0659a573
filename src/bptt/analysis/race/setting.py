"""What all runs of a race have in common: the model, its loss, the data, the budget."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import bptt
from bptt._tree import leaves, map_leaves
from bptt.analysis.numbers import duration

UNTIL = {"": 1, "s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """How long every run may train: so many steps of the stream, or seconds of training.

    >>> Budget.of(20000), str(Budget.of("1.5min"))
    (Budget(steps=20000, seconds=None), '1 min 30 s of training')
    """

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, value: Any) -> "Budget":
        """Of 20000 or "20000" (steps), "30s", "5min" or "1h". Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|)", str(value)) if isinstance(value, int | str) else None
        number = float(found[1]) * UNTIL[found[2]] if found else 0.0
        if not found or not 0 < number < math.inf or not (found[2] or found[1].isdigit()):
            raise ValueError(
                f'budget={value!r} must be a number of steps, such as 20000, or a time, such as "30s" or "5min".'
            )
        return cls(None, number) if found[2] else cls(int(found[1]), None)

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps is not None else f"{duration(self.seconds or 0.0)} of training"

    def fraction(self, steps: int, seconds: float) -> float:
        """How much is used up, 1 at the end."""
        return min(1.0, steps / self.steps if self.steps is not None else seconds / (self.seconds or 1.0))


@dataclass(frozen=True)
class Setting:
    """Everything that the strategies of a race have in common.

    build: () -> the model with its first weights, from torch's default generator. loss: as `bptt.unroll` takes it.
    stream: seed -> the training data as chunks. optimizer: parameters -> what steps after each update.
    validation, measured: the held-out data, as chunks; the sequence whose gradient is measured.
    begin: initial_state, state_batch_dim, time_dim; memory, reduction: as `bptt.unroll` takes them.
    clip: largest norm of a gradient, None for any. draws: of a strategy that draws, for bias and variance.
    lag: steps back at which a sequence's losses begin to count. title, facts: the race in a phrase, and what is known
        of it. unit: what a step of one row is called. marks: losses to draw lines through, by name.
    parameter, optimum, lost: of a model with a single parameter, its name, what it should become, and beyond which
        size a run counts as diverged.
    """

    build: Callable[[], nn.Module]
    loss: Any
    stream: Callable[[int], Iterator[bptt.Chunk]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    validation: list[bptt.Chunk]
    measured: bptt.Chunk
    begin: dict[str, Any] = field(default_factory=dict)
    memory: Any = None
    reduction: str = "mean"
    clip: float | None = None
    draws: int = 60
    lag: int = 0
    title: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    unit: str = "step"
    marks: dict[str, float] = field(default_factory=dict)
    parameter: str | None = None
    optimum: float | None = None
    lost: float | None = None

    @property
    def time_dim(self) -> int:
        """The axis of time."""
        return self.begin.get("time_dim", 0)

    def steps(self, chunk: bptt.Chunk) -> int:
        """Of a chunk."""
        return leaves(chunk.inputs)[0].shape[self.time_dim]

    def rows(self, chunk: bptt.Chunk) -> int:
        """Of a chunk."""
        return next((x.shape[1 - self.time_dim] for x in leaves(chunk.inputs) if x.dim() > 1), 1)

    def sequences(self, seed: int) -> Iterator[bptt.Chunk]:
        """The training data as sequences of their own, each from the start state, and no loss without its inputs."""
        for chunk in self.stream(seed):
            mask = chunk.mask
            if self.lag:
                known = torch.arange(self.steps(chunk)) >= self.lag
                mask = known if mask is None else known & mask
            yield chunk._replace(is_start=None, mask=mask)

    def first(self, chunk: bptt.Chunk, steps: int) -> bptt.Chunk:
        """The first so many steps of a chunk."""

        def cut(leaf: Any) -> Any:
            return leaf.narrow(min(self.time_dim, leaf.dim() - 1), 0, steps)

        return bptt.Chunk(*(None if part is None else map_leaves(cut, part) for part in chunk))
