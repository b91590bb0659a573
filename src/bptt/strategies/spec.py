"""Strategies as text: the grammar of the command line, and the inverse of `Strategy.spec`."""

import contextlib
import math
import re
from typing import TypeVar

from bptt.strategies.adaptive import AdaptiveTruncatedBPTT
from bptt.strategies.artbp import ARTBP
from bptt.strategies.base import Strategy
from bptt.strategies.full import FullBPTT
from bptt.strategies.laws import PolynomialLaw
from bptt.strategies.online import RTRL
from bptt.strategies.snap import SnAp
from bptt.strategies.truncated import TruncatedBPTT
from bptt.strategies.uoro import UORO

GRAMMAR = (
    "full, tbptt:K1, tbptt:K1:K2, tbptt:K1:K2:N, artbp:L, random:L, adaptive:TOL, rtrl, rtrl:K1, uoro, uoro:K1, "
    "snap:ORDER and snap:ORDER:K1"
)
NUMBERS = {
    "full": (0,), "tbptt": (1, 2, 3), "artbp": (1,), "random": (1,), "adaptive": (1,),
    "rtrl": (0, 1), "uoro": (0, 1), "snap": (1, 2),
}  # fmt: skip
WHOLE = {"full": FullBPTT, "tbptt": TruncatedBPTT, "rtrl": RTRL, "uoro": UORO, "snap": SnAp}
"""Strategies all of whose numbers are whole."""
N = TypeVar("N", int, float)


def parse(spec: str) -> Strategy:
    """The strategy that a text names; `parse(strategy.spec) == strategy`.

    full                the exact gradient
    tbptt:K1[:K2[:N]]   truncated: an update every K1 steps, through the last K2, after a burn-in of N steps
    artbp:L             cut at random, L steps apart on average, with the factors that make it unbiased
    random:L            cut in the same way, without the factors: biased
    adaptive:TOL        truncated where the relative error is estimated to stay below TOL
    rtrl[:K1]           an update every K1 steps (1), the influence of what came before carried on exactly
    uoro[:K1]           the same, carried on as a random product of two vectors: unbiased
    snap:ORDER[:K1]     the same, carried on as far as it reaches within ORDER steps: biased

    Raises ValueError, which shows the grammar, if the text is none of these.

    >>> from bptt.strategies import parse
    >>> parse("tbptt:5:50")
    TruncatedBPTT(k1=5, k2=50)
    """
    kind, *numbers = spec.split(":") if isinstance(spec, str) else ("",)
    if len(numbers) not in NUMBERS.get(kind, ()):
        raise ValueError(
            f"{spec!r}: the strategies are {GRAMMAR}, with numbers for K1, K2, N, L, TOL and ORDER, such as tbptt:64."
        )
    if kind in WHOLE:
        return WHOLE[kind](*(_number(word, int) for word in numbers))
    number = _number(numbers[0], float)
    if kind == "adaptive":
        return AdaptiveTruncatedBPTT(number)
    return ARTBP(PolynomialLaw(mean_length=number), compensate=kind == "artbp")


def _number(word: str, kind: type[N]) -> N:
    number = kind(-1)
    if re.fullmatch(r"[0-9.eE+-]{1,40}", word):  # Python reads more: spaces, underscores, digits of other scripts
        with contextlib.suppress(ValueError):
            number = kind(word)
    if not 0 <= number < math.inf:
        raise ValueError(f"{word!r} is not a {'whole number' if kind is int else 'number'}.")
    return number
