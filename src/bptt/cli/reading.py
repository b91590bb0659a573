"""How a training run reads its text: by which strategy, and in which pieces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import bptt
from bptt.cli.config import flag
from bptt.cli.printing import UserError
from bptt.cli.strategies import LAWFUL, parse_strategy
from bptt.cli.train_config import TrainConfig

T = TypeVar("T")
CHUNK = 64
"""Characters read at once where the strategy doesn't say how many it needs."""


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
    for owners, names in ((LAWFUL, ("law", "alpha", "every")), (("full",), ("sequence_length",))):
        for name in names:
            if kind not in owners and getattr(config, name) is not None:
                raise UserError(f"{flag(name)} applies only to --strategy {owners[0]}, not to {config.strategy}")
    if config.law == "constant" and config.alpha is not None:
        raise UserError("--alpha applies only to --law polynomial, not to constant")
    if kind == "full":
        if config.sequence_length is None:
            raise UserError("--strategy full takes finite sequences: give --sequence-length too, such as 500")
        return Reading(strategy, config.sequence_length, sequences=True)
    if isinstance(strategy, bptt.TruncatedBPTT):
        return Reading(strategy, strategy.k1)
    if isinstance(strategy, bptt.ARTBP):
        return Reading(strategy, max(strategy.every, math.ceil(float(config.strategy.split(":")[1]))))
    return Reading(strategy, CHUNK)


def until(stream: Iterator[T], stopping: Callable[[], bool]) -> Iterator[T]:
    """The stream up to where `stopping` says so, one chunk at the least: what was read then is the last window."""
    for chunk in stream:
        yield chunk
        if stopping():
            return
