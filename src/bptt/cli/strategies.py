"""`--strategy` and the options that belong to it, as a strategy of the library and a way to cut the text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import bptt
from bptt.cli.config import TrainConfig, flag
from bptt.cli.printing import UserError, user_errors

N = TypeVar("N", int, float)
FORMS = "tbptt:K1, tbptt:K1:K2, artbp:L or full"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run reads its text: the strategy, steps a chunk, and whether each chunk is a sequence of its own."""

    strategy: Any
    chunk_length: int
    sequences: bool = False


def plan(config: TrainConfig) -> Plan:
    """Read `--strategy` and its options.

    Raises: UserError for a strategy that doesn't exist or can't be, and for options that don't apply to it.
    """
    kind, *numbers = config.strategy.split(":")
    shown = f"--strategy {config.strategy}"
    belongs = {"artbp": ("law", "alpha", "every"), "full": ("sequence_length",), "tbptt": ()}
    counts = {"artbp": (1,), "full": (0,), "tbptt": (1, 2)}
    if kind not in belongs or len(numbers) not in counts[kind]:
        raise UserError(f"{shown}: the strategies are {FORMS}, with numbers for K1, K2 and L, such as tbptt:64")
    for owner, names in belongs.items():
        for name in names:
            if owner != kind and getattr(config, name) is not None:
                raise UserError(f"{flag(name)} applies only to --strategy {owner}, not to {config.strategy}")
    with user_errors(prefix=f"{shown}: "):
        if kind == "tbptt":
            k1, *k2 = [_number(number, int) for number in numbers]
            return Plan(bptt.TruncatedBPTT(k1, *k2), k1)
        if kind == "artbp":
            return _artbp(config, _number(numbers[0], float))
    if config.sequence_length is None:
        raise UserError("--strategy full takes finite sequences: give --sequence-length too, such as 500")
    return Plan(bptt.FullBPTT(), config.sequence_length, sequences=True)


def _artbp(config: TrainConfig, mean_length: float) -> Plan:
    if config.law == "constant":
        if config.alpha is not None:
            raise UserError("--alpha applies only to --law polynomial, not to constant")
        law = bptt.ConstantLaw(mean_length=mean_length)
    else:
        law = bptt.PolynomialLaw(mean_length=mean_length, **({} if config.alpha is None else {"alpha": config.alpha}))
    every = config.every or 1
    return Plan(bptt.ARTBP(law=law, every=every), max(every, math.ceil(mean_length)))


def _number(word: str, kind: type[N]) -> N:
    try:
        number = kind(word)
    except ValueError:
        number = kind(-1)
    if not 0 <= number < math.inf:
        raise ValueError(f"{word!r} is not a {'whole number' if kind is int else 'number'}")
    return number
