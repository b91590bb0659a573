"""Strategies as text: one grammar for `--strategy` and `--strategies` of every command."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any, TypeVar

import bptt
from bptt.cli.printing import UserError, user_errors

N = TypeVar("N", int, float)
GRAMMAR = "full, tbptt:K1, tbptt:K1:K2, artbp:L, random:L and adaptive:TOL"
LAWFUL = ("artbp", "random")
"""Kinds with a law of where to cut."""
NUMBERS = {"full": (0,), "tbptt": (1, 2), "artbp": (1,), "random": (1,), "adaptive": (1,)}


def parse_strategy(text: str, where: str, law: str | None = None, alpha: float | None = None, every: int = 1) -> Any:
    """The strategy that `text` names.

    full                the exact gradient
    tbptt:K1[:K2]       truncated: an update every K1 steps, through the last K2
    artbp:L             cut at random, L steps apart on average, with the factors that make it unbiased
    random:L            cut so, without the factors: biased
    adaptive:TOL        truncated where the relative error is estimated to stay below TOL

    Arguments:
        where: the option it comes from, to name in an error.
        law: of artbp and random, "polynomial" if None, or "constant". alpha: of the polynomial law.
        every: of artbp and random.

    Raises: UserError, which names the grammar where the text is none of these.
    """
    kind, *numbers = text.split(":")
    shown = f"{where} {text}"
    if len(numbers) not in NUMBERS.get(kind, ()):
        raise UserError(f"{shown}: the strategies are {GRAMMAR}, with numbers for K1, K2, L and TOL, such as tbptt:64")
    with user_errors(prefix=f"{shown}: "):
        if kind == "full":
            return bptt.FullBPTT()
        if kind == "tbptt":
            return bptt.TruncatedBPTT(*(_number(number, int) for number in numbers))
        number = _number(numbers[0], float)
        if kind == "adaptive":
            return bptt.AdaptiveTruncatedBPTT(number)
        options = {} if alpha is None else {"alpha": alpha}
        hazard = bptt.ConstantLaw(number) if law == "constant" else bptt.PolynomialLaw(mean_length=number, **options)
        return bptt.ARTBP(hazard, every=every, compensate=kind == "artbp")


def parse_strategies(text: str, where: str = "--strategies") -> dict[str, Any]:
    """Strategies by their texts, which commas separate: "full,tbptt:20" -> {"full": FullBPTT(), "tbptt:20": ...}.

    Raises: UserError for what `parse_strategy` refuses, and for none at all or one listed twice.

    >>> list(parse_strategies("full, tbptt:5:50"))
    ['full', 'tbptt:5:50']
    """
    names = [name.strip() for name in text.split(",")]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{where} {text}: {name} is listed twice")
    return {name: parse_strategy(name, where) for name in names}


def reach(strategy: Any) -> tuple[str, float]:
    """What makes the windows of a strategy long, in words, and how many steps they then have, on average.

    >>> reach(bptt.TruncatedBPTT(5, 50)), reach(bptt.ARTBP(every=100)), reach(bptt.FullBPTT())
    (('K2', 50), ('--every', 100), ('a sequence', 0))
    """
    if isinstance(strategy, bptt.TruncatedBPTT):
        return ("K1", strategy.k1) if strategy.k2 is None else ("K2", strategy.k2)
    if isinstance(strategy, bptt.ARTBP):
        mean = strategy.law.mean_length  # pyright: ignore[reportFunctionMemberAccess]
        return ("--every", strategy.every) if strategy.every > mean else ("L", mean)
    if isinstance(strategy, bptt.AdaptiveTruncatedBPTT):
        return "K", 2 * strategy.k_max - 1
    return "a sequence", 0


def labelled(name: str) -> str:
    """The text of a strategy with what everybody should know of it.

    >>> labelled("random:50"), labelled("artbp:50")
    ('random:50 (biased)', 'artbp:50')
    """
    return f"{name} (biased)" if name.startswith("random") else name


def _number(word: str, kind: type[N]) -> N:
    number = kind(-1)
    if re.fullmatch(r"[0-9.eE+-]{1,40}", word):  # Python reads more: spaces, underscores, digits of other scripts
        with contextlib.suppress(ValueError):
            number = kind(word)
    if not 0 <= number < math.inf:
        raise ValueError(f"{word!r} is not a {'whole number' if kind is int else 'number'}")
    return number
