"""Large buffers, reused: a fresh one costs a page fault every 4 KiB, a tenth to a quarter of a training step."""

import ctypes
import itertools
import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMALL = 2**20
"""Bytes below which torch's own allocator needs no new pages."""
LIMIT = 2**29
"""The most bytes kept for later use."""

LOOSE = 4
"""How many times too large a buffer may be. The excess isn't touched."""

_free: dict[int, Tensor] = {}  # in the order they came back: the memory of the last one is still in the cache
_turn = itertools.count()
_held = 0
_lock = threading.RLock()  # a finalizer may run inside


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of `shape`, in the dtype and on the device of `like`, values undefined.

    Its memory comes back here when the last tensor that shares it goes.
    """
    global _held
    nbytes = math.prod(shape) * like.itemsize
    if nbytes < SMALL or not like.is_cpu:
        return like.new_empty(shape)
    with _lock:
        for key, block in reversed(list(_free.items())):
            if nbytes <= block.numel() <= LOOSE * nbytes and _free.pop(key, None) is not None:
                _held -= block.numel()
                break
        else:
            block = torch.empty(nbytes, dtype=torch.uint8)
    lease = (ctypes.c_char * nbytes).from_address(block.data_ptr())
    weakref.finalize(lease, _back, block).atexit = False
    return torch.frombuffer(lease, dtype=like.dtype).resize_(shape)  # no view, which autograd would treat as one


def empty_like(tensor: Any) -> Tensor:
    """A tensor like this one but contiguous, with undefined values."""
    return torch.empty_like(tensor) if tensor.nbytes < SMALL else empty(tensor.shape, tensor)


def _back(block: Tensor) -> None:
    global _held
    with _lock:
        _free[next(_turn)] = block
        _held += block.numel()
        while _held > LIMIT:
            _held -= _free.pop(next(iter(_free))).numel()
