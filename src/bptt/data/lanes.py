"""A long text or series as contiguous lanes, read side by side, with the state carried from chunk to chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bptt import Chunk
from bptt.data.series import Series, lane_steps
from bptt.data.stream import Reading, check_counts


def lanes(series: Any, batch: int) -> torch.Tensor:
    """Cut one text or series into `batch` contiguous stretches, each a column.

    Arguments:
        series: (N,) or (N, features...), any dtype: ids of a text or numbers in order, as a tensor, a NumPy array or a
            memmap. All of it is copied into memory; `Lanes` reads larger series piece by piece.
        batch: number of lanes.

    Returns: (T, batch) or (T, batch, features...), T = N // batch, where column b is `series[b*T : (b+1)*T]`. The last
        N % batch steps are left out.

    Raises: ValueError if `batch` is less than 1, a lane would hold fewer than two steps (one and the next), or there is
        no time axis; TypeError for anything but an array of numbers. One line says what to pass.

    >>> lanes(torch.arange(7), batch=2)
    tensor([[0, 3],
            [1, 4],
            [2, 5]])
    >>> lanes(torch.zeros(1000, 3), batch=4).shape
    torch.Size([250, 4, 3])
    """
    whole = Series(series, "series")
    steps = lane_steps(whole, batch, f"lanes(batch={batch})")
    table = whole.read(0, steps * batch).reshape(batch, steps, *whole.shape)
    return table.transpose(0, 1).contiguous()


def chunks(lanes: torch.Tensor, length: int, epochs: int | None = 1) -> Reading:
    """The stream of chunks over `lanes`; the target of each character or step is the next one in its lane.

    Every character of a lane but its first is a target exactly once per epoch; the last chunk of an epoch may be short.
    Each epoch starts the lanes afresh, which is a jump in the text: its first step is marked in `is_start`, so that no
    state and no cotangent crosses it.

    Arguments:
        lanes: (T, B) or (T, B, features...), T >= 2.
        length: steps per chunk; the last one of an epoch holds what is left.
        epochs: how often the lanes are read; None reads them for ever.

    Returns: an iterator, with `state_dict` and `load_state_dict`, of `bptt.Chunk(inputs, targets, is_start)`: inputs
        and targets (length, B, ...), is_start (length,) in the first chunk of an epoch and None in the others.

    Raises: ValueError, at the call, for lanes shorter than two steps, or length or epochs below 1.

    >>> stream = list(chunks(lanes(torch.arange(5), batch=1), length=3))
    >>> [chunk.inputs.flatten().tolist() for chunk in stream]
    [[0, 1, 2], [3]]
    >>> [chunk.targets.flatten().tolist() for chunk in stream]
    [[1, 2, 3], [4]]
    """
    if lanes.ndim < 2 or len(lanes) < 2:
        raise ValueError(f"chunks(lanes): needs shape (T, B, ...) with T >= 2, but this is {tuple(lanes.shape)}.")
    check_counts("chunks", length, epochs)
    return Reading(lambda start, stop: (lanes[start:stop], lanes[start + 1 : stop + 1]), len(lanes) - 1, length, epochs)


def continuous(stream: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass a next-step stream on, and raise at the first chunk that doesn't continue where the one before it ended.

    Carrying the state over a jump in the data (a shuffled loader, lanes cut as rows) trains on nonsense without any
    error. If targets are the next inputs, jumps can be seen: a chunk's first inputs must be the targets that ended the
    chunk before it, in every row that `is_start` doesn't reset there.

    Arguments:
        stream: chunks whose inputs and targets are tensors (T, B, ...) of one dtype.

    Returns: the same chunks. On an accelerator each chunk costs a synchronisation, so check before moving them there.

    Raises: ValueError that names the chunk and the row.

    >>> ids = torch.arange(6)
    >>> chunk = lambda a, b: Chunk(ids[a:b, None], ids[a + 1 : b + 1, None])
    >>> len(list(continuous([chunk(0, 2), chunk(2, 4)])))
    2
    >>> list(continuous([chunk(0, 2), chunk(3, 5)]))
    Traceback (most recent call last):
    ...
    ValueError: chunk 1, row 0: starts with 3, but chunk 0 ended with target 2. Rows of one stream must be contiguous: \
don't shuffle, or mark the jump in is_start.
    """
    ended: torch.Tensor | None = None
    for number, chunk in enumerate(stream):
        if ended is not None:
            first = chunk.inputs[0]
            if first.shape != ended.shape:
                raise ValueError(f"chunk {number}: has {len(first)} rows, but chunk {number - 1} had {len(ended)}.")
            jumps = (first != ended) & ~((first != first) & (ended != ended))  # NaN may follow NaN
            jumps = jumps.reshape(len(jumps), -1).any(1)
            if chunk.is_start is not None:
                jumps = jumps & ~chunk.is_start[0]
            if jumps.any():
                row = int(jumps.nonzero()[0, 0])
                raise ValueError(
                    f"chunk {number}, row {row}: starts with {first[row].tolist()}, but chunk {number - 1} ended with "
                    f"target {ended[row].tolist()}. Rows of one stream must be contiguous: don't shuffle, or mark the "
                    "jump in is_start."
                )
        ended = chunk.targets[-1]
        yield chunk
