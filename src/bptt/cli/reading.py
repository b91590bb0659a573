"""How a training run reads its data: by which strategy, and in which pieces."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bptt.cli.config import flag
from bptt.cli.printing import UserError
from bptt.cli.strategies import LAWFUL, first, parse_strategy
from bptt.cli.train_config import TrainConfig
from bptt.strategies import says

CHUNK = 64
"""Steps read at once where nobody knows how many losses an update will have."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """The strategy, steps a chunk, and whether each chunk is a sequence of its own."""

    strategy: Any
    chunk_length: int
    sequences: bool = False


def reading(config: TrainConfig) -> Reading:
    """Read `--strategy` and its options.

    Raises: UserError for a strategy that doesn't exist or can't be, and for options that don't apply to it.
    """
    strategy = parse_strategy(config.strategy, "--strategy", config.law, config.alpha, config.every or 1)
    kind = config.strategy.split(":")[0]
    sequences = says(strategy, "sequences")
    for applies, owner, names in (
        (kind in LAWFUL, "artbp", ("law", "alpha", "every")),
        (sequences, "full", ("sequence_length",)),
    ):
        for name in names:
            if not applies and getattr(config, name) is not None:
                raise UserError(f"{flag(name)} applies only to --strategy {owner}, not to {config.strategy}")
    if config.law == "constant" and config.alpha is not None:
        raise UserError("--alpha applies only to --law polynomial, not to constant")
    if sequences:
        if config.sequence_length is None:
            raise UserError(f"--strategy {kind} takes finite sequences: give --sequence-length too, such as 500")
        return Reading(strategy, config.sequence_length, sequences=True)
    if not says(strategy, "lengths_known"):
        return Reading(strategy, CHUNK)
    window = first(strategy)
    return Reading(strategy, math.ceil(says(strategy, "reach") or CHUNK) if window is None else window.steps)


class Stopping(Exception):
    """The run is to end before the window that is being read: it is read again when the run goes on."""


class Read:
    """A stream of chunks on a device, at a place that can be saved.

    stream: an iterator of chunks. One without `state_dict` and `load_state_dict` is read again up to its place.
    stopping: asked before each chunk; True raises Stopping. lanes: those of each chunk that are read.
    """

    def __init__(
        self, stream: Any, device: torch.device, stopping: Callable[[], bool], lanes: slice = slice(None)
    ) -> None:
        self._stream, self._device, self._stopping, self._lanes = stream, device, stopping, lanes
        self._iterator: Any = None
        self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """The place of the next chunk."""
        state = self._stream.state_dict() if hasattr(self._stream, "state_dict") else None
        return {"chunks": self._count, "stream": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place that `state_dict` gave."""
        self._count = state["chunks"]
        if state["stream"] is not None:
            self._stream.load_state_dict(state["stream"])
        else:
            self._iterator = itertools.islice(iter(self._stream), self._count, None)

    def __iter__(self) -> Iterator[Any]:
        return (moved(narrowed(chunk, self._lanes), self._device) for chunk in self._until_asked())

    def _until_asked(self) -> Iterator[Any]:
        if self._iterator is None:
            self._iterator = iter(self._stream)
        while not self._stopping():
            chunk = next(self._iterator, None)
            if chunk is None:
                return
            self._count += 1
            yield chunk
        raise Stopping


def narrowed(chunk: Any, lanes: slice) -> Any:
    """Some lanes of a chunk whose fields are tensors (T, B, ...), (T,) or None."""
    if lanes == slice(None):
        return chunk
    return chunk._replace(**{name: v[:, lanes] for name, v in chunk._asdict().items() if v is not None and v.dim() > 1})


def moved(value: Any, device: torch.device) -> Any:
    """What a chunk holds, its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple | list):
        values = [moved(each, device) for each in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return value
