"""Grids of cases, thinned for CI."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest


def grid(rows: Mapping[str, Any], columns: Mapping[str, Any], each: int = 3) -> list[Any]:
    """Pairs of a row and a column: one in `each` by diagonals, the others in the deep profile.

    Every row meets some column and every column some row in CI, so neither may be shorter than `each`.
    """
    assert min(len(rows), len(columns)) >= each
    pairs = product(enumerate(rows.items()), enumerate(columns.items()))
    return [
        pytest.param(row, column, id=f"{a}-{b}", marks=[pytest.mark.deep] * ((i + j) % each != 0))
        for (i, (a, row)), (j, (b, column)) in pairs
    ]
