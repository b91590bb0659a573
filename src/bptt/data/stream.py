"""A stream that reads lanes chunk by chunk and knows its place: from a table in memory, or arrays of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import Chunk
from bptt.data.missing import observed
from bptt.data.series import Series, lane_steps

HELD_CHUNKS, HELD_BYTES = 32, 2**24
"""How many chunks, and bytes, are read before a memmap's pages are handed back, which takes half a millisecond."""


class Reading(Iterator[Chunk]):
    """What `chunks` returns: an iterator of chunks with the two methods by which a run is saved and resumed.

    state_dict() is plain numbers: how many epochs were read, and how many steps of this one. load_state_dict(state)
    goes there, in a stream over lanes of as many steps, which may cut them into chunks of a different length. Raises
    ValueError for a state of a different stream.
    """

    _missing = False

    def __init__(self, read: Callable[[int, int], tuple[Tensor, Tensor]], steps: int, length: int, epochs: int | None):
        self._read, self._steps, self._length, self._epochs = read, steps, length, epochs
        self._epoch = self._step = 0

    def __next__(self) -> Chunk:
        if self._epochs is not None and self._epoch >= self._epochs:
            raise StopIteration
        start, stop = self._step, min(self._step + self._length, self._steps)
        inputs, targets = self._read(start, stop)
        is_start = None
        if start == 0:
            is_start = torch.zeros(stop, dtype=torch.bool, device=inputs.device)
            is_start[0] = True
        self._epoch, self._step = (self._epoch, stop) if stop < self._steps else (self._epoch + 1, 0)
        mask = observed(targets) if self._missing else None
        return Chunk(inputs, targets, is_start, None if mask is None or mask.all() else mask)

    def state_dict(self) -> dict[str, int]:
        """The place of the next chunk."""
        return {"epoch": self._epoch, "step": self._step, "steps": self._steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that `state_dict` gave."""
        if not isinstance(state, dict) or state.keys() != {"epoch", "step", "steps"}:
            raise ValueError("load_state_dict: this isn't a state of a stream of lanes; pass what state_dict() gave.")
        if state["steps"] != self._steps:
            raise ValueError(
                f"load_state_dict: the saved stream had lanes of {state['steps']} steps, this one has {self._steps}: "
                f"make it of the same series, batch and horizon."
            )
        self._epoch, self._step = state["epoch"], state["step"]


def check_counts(called: str, length: int, epochs: int | None) -> None:
    """Raise unless there are at least one step per chunk and one epoch."""
    if length < 1:
        raise ValueError(f"{called}(length={length}): must be at least 1.")
    if epochs is not None and epochs < 1:
        raise ValueError(f"{called}(epochs={epochs}): must be at least 1, or None for ever.")


class Lanes(Reading):
    """A stream over `batch` lanes of a series that may be larger than memory, of which it reads a chunk at a time.

    Lane b is steps [b*T, (b+1)*T), T = N // batch, as `lanes` cuts them; with the defaults the chunks are those of
    `chunks(lanes(inputs, batch), length, epochs)`. The first step of an epoch is marked in `is_start`. It is an
    iterator, read once, and `unroll` saves its place: a resumed run has the same bits, and skips what lies before.

    Arguments:
        inputs: (N,) or (N, features...): a tensor, an array, or a memmap such as `np.load(path, mmap_mode="r")`; or a
            list of these, one series in order, whose lanes may begin and end within any of them.
        batch: number of lanes.
        length: steps per chunk; the last one of an epoch holds what is left.
        targets: arrays of N steps in all, as inputs; None for the inputs themselves.
        horizon: how many steps ahead of its input a target lies: that of step t is `targets[t + horizon]`, in the same
            lane, and the last `horizon` steps of a lane have none. None is 1 for the inputs themselves, else 0. Or
            several, such as range(1, 13): a step then has a target for each, and the longest decides which steps have
            none.
        epochs: how often the lanes are read; None reads them for ever.
        missing: True masks the steps whose targets hold NaN, by `observed`; otherwise their losses are an error.

    Yields `bptt.Chunk(inputs, targets, is_start, mask)`: inputs (length, batch, ...) and targets as copies, in the
        arrays' dtype, uint16 and uint32 as int64 since torch has few operators for them; is_start (length,) in the
        first chunk of an epoch, else None; mask (length, batch) if targets are missing, else None. With several
        horizons targets are (length, batch, horizons, ...), in the order given, and a step is masked if one is missing.

    Cost: the memory of one chunk, longer by the longest horizon, whatever N is; pages of a read-only memmap are handed
        back after a few chunks.

    Raises: ValueError or TypeError, at the call: for numbers below 1, arrays that don't go together, or lanes too short
        for two steps and the horizon.

    >>> stream = Lanes(torch.arange(10), batch=2, length=3)
    >>> [chunk.inputs[:, 1].tolist() for chunk in stream]
    [[5, 6, 7], [8]]
    >>> next(Lanes(torch.arange(10), batch=2, length=3, horizon=2)).targets[:, 1].tolist()
    [7, 8, 9]
    >>> next(Lanes(torch.arange(10), batch=2, length=3, horizon=(1, 2))).targets[:, 1].tolist()
    [[6, 7], [7, 8], [8, 9]]
    """

    def __init__(
        self,
        inputs: Any,
        batch: int,
        length: int,
        *,
        targets: Any = None,
        horizon: int | Sequence[int] | None = None,
        epochs: int | None = 1,
        missing: bool = False,
    ) -> None:
        check_counts("Lanes", length, epochs)
        given = Series(inputs, "inputs")
        wanted = given if targets is None else Series(targets, "targets")
        if len(wanted) != len(given):
            raise ValueError(
                f"targets has {len(wanted)} steps and inputs {len(given)}: every step needs a target; horizon= shifts "
                f"targets that come later."
            )
        steps = lane_steps(given, batch, f"Lanes(batch={batch})")
        least = 1 if targets is None else 0
        several = isinstance(horizon, Iterable)
        ahead = _ahead(tuple(horizon) if several else (least if horizon is None else horizon,), least, steps, horizon)
        first, last = min(ahead), max(ahead)

        def read(start: int, stop: int) -> tuple[Tensor, Tensor]:
            rows = _rows(wanted, batch, steps, start + first, stop + last)
            if several:
                rows = torch.stack([rows[h - first : h - first + stop - start] for h in ahead], 2)
            inputs = _rows(given, batch, steps, start, stop)
            self._held = self._held[0] + 1, self._held[1] + inputs.nbytes + rows.nbytes
            if self._held[0] >= HELD_CHUNKS or self._held[1] >= HELD_BYTES:
                self._held = 0, 0
                given.forget()
                wanted.forget()
            return inputs, rows

        self._held = 0, 0
        super().__init__(read, steps - last, length, epochs)
        self._missing = missing


def _ahead(horizons: tuple[int, ...], least: int, steps: int, given: Any) -> tuple[int, ...]:
    """The horizons, whole numbers that leave a lane at least one step; ValueError, which names what was `given`."""
    if not all(isinstance(h, int) and not isinstance(h, bool) and least <= h < steps for h in horizons):
        raise ValueError(f"Lanes(horizon={given}): must be from {least} to {steps - 1}: a lane has {steps} steps.")
    if not horizons or len(set(horizons)) < len(horizons):
        raise ValueError(f"Lanes(horizon={given}): takes one horizon or several, and none twice.")
    return horizons


def _rows(series: Series, batch: int, steps: int, start: int, stop: int) -> Tensor:
    """Steps [start, stop) of every lane, side by side: (stop - start, batch, ...)."""
    return torch.stack([series.read(lane * steps + start, lane * steps + stop) for lane in range(batch)], 1)
