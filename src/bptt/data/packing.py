"""Sequences of different lengths side by side: packed into lanes with resets, or padded in one row each."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import Chunk
from bptt.data.series import Series


def pack(inputs: Sequence[Any], targets: Sequence[Any], batch: int | None = None) -> Chunk:
    """Documents or episodes of different lengths as one chunk: end to end in `batch` lanes, or padded in one row each.

    The longest goes first, each into the lane that is shortest so far, so that little is padded. Where a sequence
    begins, its row is reset, so gradients are those of each sequence run alone from the initial state: under the full
    gradient and `reduction="sum"`, `batch` times the chunk's gradient is their sum.

    Arguments:
        inputs: a list of tensors or arrays (T_i,) or (T_i, features...), T_i >= 1, one per sequence, of one dtype.
        targets: as many, of the same lengths.
        batch: lanes, at most as many as sequences; None gives each sequence a row of its own, in the order given.

    Returns: `Chunk(inputs, targets, is_start, mask)`, T being the longest lane's: inputs and targets (T, batch, ...),
        zeros where a lane has ended; is_start bool (T, batch), True where a sequence begins; mask bool (T, batch),
        False where a lane has ended, or None where all are equally long.

    Cost: a copy of all of it.

    Raises: ValueError or TypeError for lists that don't go together, an empty sequence, or a batch that leaves lanes
        empty.

    >>> documents = [torch.arange(1, 3), torch.arange(3, 8), torch.arange(8, 11)]
    >>> chunk = pack(documents, documents, batch=2)
    >>> chunk.inputs.t()
    tensor([[ 3,  4,  5,  6,  7],
            [ 8,  9, 10,  1,  2]])
    >>> chunk.is_start[:, 1].tolist(), chunk.mask
    ([True, False, False, True, False], None)
    >>> pack(documents, documents).mask.sum(0)
    tensor([2, 5, 3])
    """
    given, wanted = _sequences(inputs, "inputs"), _sequences(targets, "targets")
    lengths = _lengths(given, wanted)
    if batch is not None and not 1 <= batch <= len(given):
        raise ValueError(f"pack(batch={batch}): must be from 1 to {len(given)}, the number of sequences.")
    rows = [[i] for i in range(len(given))] if batch is None else _longest_first(lengths, batch)
    steps = max(sum(lengths[i] for i in row) for row in rows)
    is_start = torch.zeros(steps, len(rows), dtype=torch.bool, device=given[0].device)
    mask = torch.zeros_like(is_start)
    for b, row in enumerate(rows):
        stop = 0
        for i in row:
            is_start[stop, b] = True
            stop += lengths[i]
        mask[:stop, b] = True
    return Chunk(_table(given, rows, steps), _table(wanted, rows, steps), is_start, None if mask.all() else mask)


def _sequences(parts: Any, name: str) -> list[Tensor]:
    if not isinstance(parts, list | tuple):
        raise TypeError(f"{name} is a {type(parts).__name__}: pass a list of tensors (T_i, ...), one per sequence.")
    return Series(parts, name).parts()


def _lengths(inputs: list[Tensor], targets: list[Tensor]) -> list[int]:
    """The steps of each sequence; raises unless its targets have as many, and there is at least one."""
    if len(targets) != len(inputs):
        raise ValueError(f"targets holds {len(targets)} sequences and inputs {len(inputs)}: pass one for each.")
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        if len(y) != len(x):
            raise ValueError(f"targets[{i}] has {len(y)} steps and inputs[{i}] {len(x)}: every step needs its own.")
        if len(x) == 0:
            raise ValueError(f"inputs[{i}] is a sequence without any steps: leave it out.")
    return [len(x) for x in inputs]


def _longest_first(lengths: list[int], batch: int) -> list[list[int]]:
    """The sequences of each lane, in order; among equally long sequences or lanes the first comes first."""
    rows: list[list[int]] = [[] for _ in range(batch)]
    filled = [(0, b) for b in range(batch)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        steps, b = filled[0]
        rows[b].append(i)
        heapq.heapreplace(filled, (steps + lengths[i], b))
    return rows


def _table(parts: list[Tensor], rows: list[list[int]], steps: int) -> Tensor:
    """(steps, rows, ...), zeros after the end of a row."""
    lanes = []
    for row in rows:
        pieces = [parts[i] for i in row]
        rest = steps - sum(map(len, pieces))
        lanes.append(torch.cat([*pieces, pieces[0].new_zeros(rest, *pieces[0].shape[1:])]))
    return torch.stack(lanes, 1)
