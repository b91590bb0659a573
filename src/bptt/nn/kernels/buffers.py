"""Large buffers, used again: a fresh one costs a page fault every 4 KiB, a tenth to a quarter of a training step."""

import ctypes
import threading
import weakref
from collections import OrderedDict

import torch
from torch import Tensor

SMALL = 2**18
"""Bytes below which torch's own allocator has no page to ask for."""
LIMIT = 2**29
"""Most bytes kept for later use."""

_free: OrderedDict[int, list[Tensor]] = OrderedDict()
_held = 0
_lock = threading.RLock()  # a finalizer may run inside


def empty(*shape: int, like: Tensor | None = None) -> Tensor:
    """A tensor of `shape`, in the dtype and on the device of `like` or float32 on the CPU, values undefined.

    Its memory comes back here when the last tensor that shares it goes.
    """
    global _held
    dtype = torch.float32 if like is None else like.dtype
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if nbytes < SMALL or (like is not None and like.device.type != "cpu"):
        return torch.empty(shape, dtype=dtype, device=None if like is None else like.device)
    step = 1 << (nbytes.bit_length() - 4)  # so that lengths that vary find one another's
    room = -(-nbytes // step) * step
    with _lock:
        block = None
        if room in _free:
            block = _free[room].pop()
            _held -= room
            if not _free[room]:
                del _free[room]
    if block is None:
        block = torch.empty(room, dtype=torch.uint8)
    lease = (ctypes.c_char * nbytes).from_address(block.data_ptr())
    weakref.finalize(lease, _back, block).atexit = False
    return torch.frombuffer(lease, dtype=dtype).view(shape)


def _back(block: Tensor) -> None:
    global _held
    with _lock:
        _free.setdefault(block.numel(), []).append(block)
        _free.move_to_end(block.numel())
        _held += block.numel()
        while _held > LIMIT:  # the sizes not used for longest go first
            room, blocks = next(iter(_free.items()))
            blocks.pop()
            _held -= room
            if not blocks:
                del _free[room]
