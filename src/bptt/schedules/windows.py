"""A window: the stretch of time that one update's gradient is taken through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Window:
    """One update's share of the stream, as plain data.

    start: the graph starts from the state before this step.
    first, stop: the losses of steps [first, stop) are differentiated, start <= first < stop.
    keep: the state before this step starts the next window, start <= keep <= stop.
    weights: w of equation (1) by boundary, the weight at t multiplying the cotangent that goes from step t back to
        step t - 1; 1 where absent. A number, or a tensor (B,) of one weight a batch row.

    >>> Window(start=0, first=2, stop=4, keep=2).steps
    2
    """

    start: int
    first: int
    stop: int
    keep: int
    weights: Mapping[int, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The number of losses."""
        return self.stop - self.first
