"""A series out of arrays that may be larger than memory: checked without being read, and read in stretches."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

WANTED = "pass a tensor or an array (N,) or (N, features...), time on the first axis"


class Series:
    """Arrays end to end along their first axis, as one. Their data aren't read before `read`.

    parts: one array or several, in order: tensors, NumPy arrays and memmaps, and anything that gives these when sliced.
    name: what errors call them.
    """

    def __init__(self, parts: Any, name: str) -> None:
        several = isinstance(parts, list | tuple)
        self._parts = list(parts) if several else [parts]
        if not self._parts:
            raise ValueError(f"{name} is an empty list: {WANTED}, or a list of such.")
        names = [f"{name}[{i}]" for i in range(len(self._parts))] if several else [name]
        kinds = [_kind(part, at) for part, at in zip(self._parts, names, strict=True)]
        for at, kind in zip(names, kinds, strict=True):
            if kind != kinds[0]:
                raise ValueError(
                    f"{at} holds {_told(kind)} per step, {names[0]} {_told(kinds[0])}: the arrays of one series "
                    f"continue one another, so give them the same features, dtype and device."
                )
        self.shape, self.dtype, self.device = kinds[0]
        self._stops = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._stops[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """Steps [start, stop), as a tensor: a view of a tensor, a copy of anything else."""
        pieces = [
            _tensor(part[max(start - (end - len(part)), 0) : stop - (end - len(part))])
            for part, end in zip(self._parts, self._stops, strict=True)
            if start < end and stop > end - len(part)
        ]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def parts(self) -> list[Tensor]:
        """Each array as a tensor of its own."""
        return [_tensor(part) for part in self._parts]

    def forget(self) -> None:
        """Hand back the pages of memmaps that were read: the file still has them, and the process no longer needs them.

        Otherwise a pass over a file would count the whole file as memory of the process.
        """
        for part in self._parts:
            if getattr(part, "mode", None) == "r":  # pages that were written to must stay
                for mapped in _maps(part):
                    mapped.madvise(mmap.MADV_DONTNEED)


def lane_steps(series: Series, batch: int, called: str) -> int:
    """Steps of each of `batch` lanes, at least 2."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"{called}: batch must be a whole number of at least 1.")
    if len(series) < 2 * batch:
        text = not series.shape and not series.dtype.is_floating_point
        whole, one = ("text", "characters") if text else ("series", "steps")
        raise ValueError(
            f"a {whole} of {len(series)} {one} is too short for a batch of {batch}: each lane needs two {one}, "
            f"{2 * batch} in all. Use a longer {whole} or a batch of at most {len(series) // 2}."
        )
    return len(series) // batch


def _maps(array: Any) -> Iterable[mmap.mmap]:
    """The file behind a memmap, or a slice of one; None if the system can't hand pages back."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return [array] if array is not None and hasattr(mmap, "MADV_DONTNEED") else []


def _kind(part: Any, name: str) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """(shape of a step, dtype, device) of an array, from an empty slice."""
    if isinstance(part, str):
        raise TypeError(f"{name} is a str: encode a text first, bptt.data.Vocabulary.of(text).encode(text).")
    if not hasattr(part, "shape") or not hasattr(part, "dtype"):
        raise TypeError(
            f"{name} is a {type(part).__name__}: {WANTED}, such as torch.tensor({name}) or a frame's to_numpy()."
        )
    if len(part.shape) == 0:
        raise ValueError(f"{name} of shape () has no time axis: {WANTED}.")
    if isinstance(part, Tensor) and part.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {part.layout}: pass a dense one, {name}.to_dense().")
    none = _tensor(part[:0], name)
    return tuple(none.shape[1:]), none.dtype, none.device


def _told(kind: tuple[tuple[int, ...], torch.dtype, torch.device]) -> str:
    return f"{kind[0]} of {kind[1]} on {kind[2]}"


def _tensor(part: Any, name: str = "series") -> Tensor:
    """A tensor as it is; an array as a writable copy in the machine's byte order, in a dtype that has operators."""
    if isinstance(part, Tensor):
        return part
    if hasattr(part, "mask"):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: fill it, with NaN where values are missing."
        )
    if not hasattr(part, "__array_interface__"):
        raise TypeError(
            f"{name} is a {type(part).__module__}.{type(part).__name__}: {WANTED}, such as its NumPy array."
        )
    try:
        tensor = torch.from_numpy(part.astype(part.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError as error:
        raise TypeError(f"{name} is an array of {part.dtype}: pass numbers that torch has a dtype for.") from error
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32) else tensor
