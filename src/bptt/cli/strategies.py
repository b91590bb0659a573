"""Strategies as text: one grammar for `--strategy` and `--strategies` of every command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bptt
from bptt.cli.printing import UserError, user_errors

LAWFUL = ("artbp", "random")
"""Kinds with a law of where to cut."""


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
