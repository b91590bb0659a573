"""Numbers, tables and sections as plain data: what text, page and notebook all show."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from bptt.analysis.numbers import printable
from bptt.analysis.shown import Table, Titled

LEVELS = 8
"""Shades of a heat map; each is a factor of two below the next."""


class Term(NamedTuple):
    """One term (t, k) written out."""

    t: int
    k: int
    path: str
    tables: tuple[Titled, ...]


class Section(NamedTuple):
    """A step of the derivation: equations, then what they say, then the numbers.

    texts: prose, with notation, and code between backticks. source: plain words, a file name among them.
    """

    name: str
    title: str
    equations: tuple[str, ...]
    texts: tuple[str, ...]
    tables: tuple[Titled, ...]
    source: str = ""


def titled(title: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[str]]) -> Titled:
    """A table of `cells`; `columns` begins with what stands above the names of the rows."""
    return Titled(title, Table(columns, [(name, *row) for name, row in zip(rows, cells, strict=True)]))


def number(value: float) -> str:
    """Four decimals, or as many digits as matter, in at most 8 characters.

    >>> number(0.0), number(-0.12345), number(12.34567), number(0.00012345), number(123456), number(float("nan"))
    ('0', '-0.1235', '12.346', '1.23e-4', '1.23e5', '–')
    """
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if 0.001 <= size < 9999.5:
        return f"{value:.4f}" if size < 1 else f"{value:#.5g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def tiny(value: float) -> str:
    """A rounding error.

    >>> tiny(0.0), tiny(2.22e-16)
    ('0', '2.2e-16')
    """
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-")


def given(value: float, decimals: int = 2) -> str:
    """A number as it was given: with that many decimals, or more digits where it has more.

    >>> given(0.5), given(-1.25), given(0.031415), given(0.25, 3)
    ('0.50', '-1.25', '0.031415', '0.250')
    """
    return f"{value:.{decimals}f}" if round(value, decimals) == value else f"{value:.6g}"


def letter(character: str) -> str:
    r"""A character of a text as a label that can be seen.

    >>> letter("a"), letter(" "), letter("\n"), letter("\x1b")
    ('a', '␣', '\\n', '\\x1b')
    """
    return {" ": "␣", "\n": "\\n", "\t": "\\t"}.get(character) or printable(character)


def labels(characters: str) -> tuple[str, ...]:
    """Labels of x's and o's components where they stand for characters, else none."""
    return tuple(map(letter, characters))


def matrix(
    title: str,
    values: Tensor,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    show: Callable[[float], str] = number,
) -> Titled:
    """A table of a matrix (n, m), its rows and columns numbered from 0 unless they have names."""
    n, m = values.shape
    cells = [[show(value) for value in row] for row in values.tolist()]
    return titled(title, ("", *(columns or _count(m))), rows or _count(n), cells)


def by_step(title: str, rows: Sequence[str], cells: Sequence[Sequence[str]]) -> Titled:
    """A table whose columns are the steps, as in the drawing."""
    return titled(title, ("t", *_count(len(cells[0]))), rows, cells)


def triangle(title: str, values: Tensor, *, show: Callable[[float], str] = number, chosen: bool = False) -> Titled:
    """A table of a value for each (t, k), k <= t, given as (T, T)."""
    steps = _count(len(values))
    largest = values.abs().max().item()
    entries = values.tolist()
    cells = [[show(v) if k <= t else "" for k, v in enumerate(row)] for t, row in enumerate(entries)]
    levels = tuple(tuple(level(v, largest) for v in row) for row in entries)
    return titled(title, ("t \\ k", *steps), steps, cells)._replace(levels=levels, chosen=chosen)


def weight(value: float) -> str:
    """A weight: 0, 1 and 2 in one digit.

    >>> weight(0.0), weight(1.0), weight(1.3333)
    ('0', '1', '1.333')
    """
    return f"{value:.4g}"


def level(value: float, largest: float) -> int:
    """The shade: LEVELS for the upper half of the range, one less for each factor of two below, 1 for all the rest.

    >>> level(1.0, 1.0), level(0.6, 1.0), level(0.5, 1.0), level(1e-9, 1.0), level(0.0, 1.0)
    (8, 8, 7, 1, 0)
    """
    if value == 0:
        return 0
    part = max(abs(value) / largest, 2.0**-LEVELS)
    return max(1, LEVELS - math.floor(-math.log2(part)))


def _count(length: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(length))
