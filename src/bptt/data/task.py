"""What a task is, and how what it draws becomes chunks."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from bptt import Chunk, per_step


class Piece(NamedTuple):
    """Some steps as a task draws them: inputs (n, B, I), targets (n, B, ...), and starts and mask, (n,)."""

    inputs: Tensor
    targets: Tensor
    is_start: Tensor
    mask: Tensor


class Task(ABC):
    """What the tasks have in common: what is known about them, and how their data are streamed."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Size of the input vector of a step."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Size of the output vector of a step, as the loss takes it."""

    @property
    @abstractmethod
    def lag(self) -> int:
        """The most steps from an input to a target that depends on it: a graph of lag + 1 steps sees them all."""

    @property
    @abstractmethod
    def baseline(self) -> float:
        """The smallest mean loss without memory: that of predictions that know which step it is, but no input."""

    @property
    def floor(self) -> float:
        """The smallest mean loss of predictions that know every input so far."""
        return 0.0

    @property
    def sequence(self) -> int | None:
        """Steps of one sequence; None if it has no end."""
        return None

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Loss by step of outputs (T, B, outputs), for `unroll`: cross entropy in nats."""
        return per_step(nn.CrossEntropyLoss())

    def stream(self, batch: int, length: int, steps: int | None = None, seed: int = 0) -> Iterator[Chunk]:
        """The data as chunks in order: the same data whatever the chunks' length, and however many steps are asked for.

        Arguments:
            batch: rows, drawn independently.
            length: steps per chunk; the last one holds what is left.
            steps: steps in all; None never ends.
            seed: of the draws; torch's own random numbers are left alone.

        Returns: an iterator of `bptt.Chunk`: inputs float32 (length, batch, inputs); targets int64 (length, batch)
            for cross entropy, float32 (length, batch, outputs) for squared errors; is_start (length,), None in chunks
            without a start; mask (length,), None in chunks all of whose losses count.

        Raises: ValueError, at the call, for batch, length or steps below 1.
        """
        for name, value in (("batch", batch), ("length", length), ("steps", 1 if steps is None else steps)):
            at_least(1, f"stream({name}=", value)
        return _chunks(self._pieces(batch, torch.Generator().manual_seed(seed)), length, steps)

    @abstractmethod
    def _pieces(self, batch: int, generator: Generator) -> Iterator[Piece]:
        """Endlessly: inputs, targets, is_start and mask of some steps, as many at a time as suits the task."""


def _chunks(pieces: Iterator[Piece], length: int, steps: int | None) -> Iterator[Chunk]:
    """The pieces, cut into chunks."""
    held = next(pieces)
    for start in itertools.count(0, length) if steps is None else range(0, steps, length):
        n = length if steps is None else min(length, steps - start)
        more, there = [held], len(held.inputs)
        while there < n:
            more.append(next(pieces))
            there += len(more[-1].inputs)
        joined = Piece(*map(torch.cat, zip(*more, strict=True))) if len(more) > 1 else held
        inputs, targets, is_start, mask = (column[:n] for column in joined)
        held = Piece(*(column[n:] for column in joined))
        yield Chunk(inputs, targets, is_start if is_start.any() else None, None if mask.all() else mask)


def check(task: Task, **least: int) -> None:
    """Raise unless the named fields are whole numbers of at least that."""
    for name, bound in least.items():
        at_least(bound, f"{type(task).__name__}({name}=", getattr(task, name))


def at_least(bound: int, begun: str, value: Any) -> None:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < bound:
        raise ValueError(f"{begun}{value!r}): must be a whole number of at least {bound}.")
