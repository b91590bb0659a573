"""How a training run reads its text: by which strategy, and in which pieces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bptt import Chunk
from bptt.cli.config import flag
from bptt.cli.printing import UserError
from bptt.cli.strategies import LAWFUL, first, parse_strategy
from bptt.cli.train_config import TrainConfig
from bptt.data import chunks, continuous
from bptt.strategies import says

CHUNK = 64
"""Characters read at once where nobody knows how many losses an update will have."""


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


class Text:
    """Lanes of ids as chunks on a device, at a place that can be saved.

    lanes, length, epochs: as `bptt.data.chunks` takes them.
    stopping: asked before each chunk; True raises Stopping.
    """

    def __init__(
        self, lanes: torch.Tensor, length: int, epochs: int | None, device: torch.device, stopping: Callable[[], bool]
    ) -> None:
        self._chunks = chunks(lanes, length, epochs)
        self._device, self._stopping = device, stopping
        self.state_dict, self.load_state_dict = self._chunks.state_dict, self._chunks.load_state_dict

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in continuous(self._until_asked()):
            yield Chunk(*(None if t is None else t.to(self._device, non_blocking=True) for t in chunk))

    def _until_asked(self) -> Iterator[Chunk]:
        while not self._stopping():
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            yield chunk
        raise Stopping
