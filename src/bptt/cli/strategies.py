"""Strategies as text: one grammar for `--strategy` and `--strategies` of every command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bptt
from bptt.cli.printing import UserError, user_errors
from bptt.strategies import says

LAWFUL = ("artbp", "random")
"""Kinds with a law of where to cut."""
NUMBERS = {
    "tbptt": ("K1", "K2", "K2"), "artbp": ("L",), "random": ("L",),
    "rtrl": ("K1",), "uoro": ("K1",), "snap": ("K1", "K1"),
}  # fmt: skip
"""What the grammar calls the numbers of a text that say how long windows are."""
LONG = 10**6
"""Steps of a stream on which strategies are looked at."""


def parse_strategy(text: str, where: str, law: str | None = None, alpha: float | None = None, every: int = 1) -> Any:
    """The strategy that `text` names in the grammar of `bptt.strategies.parse`.

    Arguments:
        where: the option it comes from, to name in an error.
        law: of artbp and random, "polynomial" if None, or "constant". alpha: of the polynomial law.
        every: of artbp and random.

    Raises: UserError, which names the grammar where the text is none of it.
    """
    with user_errors(prefix=f"{where} {text}: "):
        strategy: Any = bptt.strategies.parse(text)
        if text.split(":")[0] not in LAWFUL:
            return strategy
        length, options = strategy.law.mean_length, {} if alpha is None else {"alpha": alpha}
        hazard = bptt.ConstantLaw(length) if law == "constant" else bptt.PolynomialLaw(mean_length=length, **options)
        return replace(strategy, law=hazard, every=every)


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


def long_by(text: str, every: int | None) -> str:
    """What makes windows long: the last number of a strategy's text, as the grammar calls it, or `--every` beyond it.

    >>> long_by("tbptt:5", None), long_by("tbptt:5:50", None), long_by("artbp:50", 1), long_by("artbp:50", 100)
    ('K1', 'K2', 'L', '--every')
    """
    kind, *numbers = text.split(":")
    if kind not in NUMBERS:
        return "a strategy with windows"
    return "--every" if every is not None and every > float(numbers[-1]) else NUMBERS[kind][len(numbers) - 1]


def first(strategy: Any) -> Any:
    """The first window or probe of a strategy on a long stream; None where it draws a random number before.

    >>> first(bptt.TruncatedBPTT(5, 50)).stop, first(bptt.ARTBP())
    (5, None)
    """

    def draw(each_row: bool = False) -> Any:
        raise _Drawn

    try:
        return next(strategy.windows(lambda t: int(min(t, LONG)), draw), None)
    except _Drawn:
        return None


class _Drawn(Exception):
    """A strategy asks for a random number."""


def labelled(name: str, strategy: Any) -> str:
    """The text of a strategy with what everybody should know of it: that it is biased though it draws.

    >>> labelled("random:50", bptt.ARTBP(compensate=False)), labelled("artbp:50", bptt.ARTBP())
    ('random:50 (biased)', 'artbp:50')
    """
    return f"{name} (biased)" if says(strategy, "kind") == "biased" and first(strategy) is None else name
