"""What measured gradients come to, in a line each: every name and number computed from what was found."""

import math
from collections.abc import Mapping, Sequence

from bptt.analysis.estimates import Compared
from bptt.analysis.numbers import share, size
from bptt.strategies.base import says

EXACT = 1e-4
"""Relative bias below which a gradient counts as exact: float32 sums over other windows differ by that little."""


def verdicts(measured: Mapping[str, Sequence[Compared]]) -> dict[str, str]:
    """Title -> sentence: which are exact, which of the others is the least biased, which the cheapest.

    measured: name -> what was found for that strategy, once or at several weights.
    """
    names = [name for name, found in measured.items() if is_exact(found)]
    said = {"exact gradient": ", ".join(names) or "none of these", "least biased of the others": _least(measured)}
    wrong = [name for name, found in measured.items() if _is_wrong(found)]
    if wrong:
        said["biased, whatever it says"] = ", ".join(f"{name} ({_signed(measured[name])})" for name in wrong)
    return said | {"cheapest": _cheapest(measured)}


def is_exact(found: Sequence[Compared]) -> bool:
    """Whether a strategy draws nothing and was the exact gradient, wherever it was measured."""
    return all(each.draws == 1 and each.bias.value < EXACT for each in found)


def _is_wrong(found: Sequence[Compared]) -> bool:
    return any(each.kind == "biased" != says(each.strategy, "kind") for each in found)


def _signed(found: Sequence[Compared]) -> str:
    worst = max((each.signed_bias for each in found), key=lambda bias: abs(bias.value))
    return f"along the exact gradient {worst.value:+.2g} of it, from {worst.low:+.2g} to {worst.high:+.2g}"


def _least(measured: Mapping[str, Sequence[Compared]]) -> str:
    """By the upper end of the interval of the bias, the largest where it was measured several times."""
    ends = {
        name: (max(each.bias.low for each in found), max(each.bias.high for each in found))
        for name, found in measured.items()
        if not is_exact(found) and not any(math.isnan(each.bias.high) for each in found)
    }
    if not ends:
        return "there is no other"
    best = min(ends, key=lambda name: ends[name][1])
    near = [name for name, (low, _) in ends.items() if name != best and low < ends[best][1]]
    said = [f"{name}, off by {_between(*ends[name])}{_draws(measured[name])}" for name in (best, *near)]
    return f"undecided between {'; '.join(said)}" if near else f"{said[0]} of the gradient's norm"


def _between(low: float, high: float) -> str:
    if low == high:
        return share(high)
    return f"{share(low)} to {share(high)}" if low > 0 else f"at most {share(high)}"


def _draws(found: Sequence[Compared]) -> str:
    draws = max(each.draws for each in found)
    return f" ({draws} draws)" if draws > 1 else ""


def _cheapest(measured: Mapping[str, Sequence[Compared]]) -> str:
    seconds = {name: max(each.seconds for each in found) for name, found in measured.items()}
    held = {name: max(each.memory_bytes for each in found) for name, found in measured.items()}
    fast, small = min(seconds, key=seconds.__getitem__), min(held, key=held.__getitem__)
    time, memory = f"{seconds[fast] * 1e3:.3g} ms", size(held[small])
    if fast == small:
        return f"{fast}, in time ({time}) and in memory ({memory})"
    return f"{fast} in time ({time}), {small} in memory ({memory})"
