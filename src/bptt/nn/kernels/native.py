"""The kernels in C++, behind a plain C interface; see native/sequence.h."""

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from ctypes import c_char_p, c_int32, c_void_p
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bptt._units import Absorbed
from bptt.nn.cells import CELLS
from bptt.nn.cells.base import Cell
from bptt.nn.kernels import eager
from bptt.nn.kernels.sequence import NOTHING, Maybe, Sequence, Tensors, Wanted

_NUMBERS = 14
_OF_PLAN = ("sizes", "offsets", "start", "weight", "ids")
_TENSORS = ("gates", "cells", "outputs", "hn", "cn", "d_outputs", "d_hn", "d_cn", "d_gates")
_of_plan: Callable[[Any], tuple[Maybe, ...]] = attrgetter(*_OF_PLAN)
_tensors: Callable[[Any], tuple[Maybe, ...]] = attrgetter(*_TENSORS)
_ALL = _NUMBERS + len(_OF_PLAN) + len(Tensors._fields) + len(_TENSORS) + len(Wanted._fields)
_ZEROS = (0,) * len(Wanted._fields)
_pack = struct.Struct(f"{_ALL}q").pack
_BEFORE, _PLAIN = _NUMBERS + len(_OF_PLAN), len(Tensors._fields) + 5
_pack_readout = struct.Struct("17q").pack
_pack_plain = struct.Struct(f"{_PLAIN}q").pack
_pack_tensors = struct.Struct(f"{_ALL - _BEFORE}q").pack
_pack_influence = struct.Struct("13q").pack
_NONE = (None,) * len(_OF_PLAN)
_AFTER = bytes(8 * (_ALL - _BEFORE - _PLAIN))
WHOLE = 1024
"""Up to this many classes, a readout holds all scores of a row at once, as in native/losses.cpp."""
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
"""As in native/sequence.h."""
KEPT = 2**18
"""Up to so many weights, a readout's packed weights and each thread's part of their gradient stay in the cache."""
FEW = 8
"""Up to this many steps and rows, the kernels read the weights in place, instead of packing them first."""


class Native:
    """The kernels of one instruction set, in float32 on the CPU.

    library: the loaded library. isa: which of its instruction sets, and its name.
    threaded: whether it has found torch's threads.
    """

    def __init__(self, library: ctypes.CDLL, isa: int, name: str, threaded: bool) -> None:
        self.library, self.isa, self.name, self.threaded = library, isa, name, threaded

    def serves(self, x: Tensor) -> bool:
        """float32 on the CPU."""
        return x.dtype == torch.float32 and x.device.type == "cpu"

    def pays(self, cell: Cell, steps: int, rows: int, graph: bool) -> bool:
        """As measured: for few rows, which need no packed weights at few steps, or enough steps to pay for packing."""
        return not cell.torchs or rows <= FEW or steps >= (4 if graph else 8)

    def forward(self, q: Sequence) -> None:
        """Fill gates, cells, outputs, hn and cn."""
        self._call(self.library.bptt_forward, q)

    def backward(self, q: Sequence) -> None:
        """Fill d_gates and what is wanted of the gradients."""
        self._call(self.library.bptt_backward, q)

    def plain(self, before: bytes, *pointers: int) -> None:
        """`forward` for few steps and rows.

        before: from `plain_call`. pointers: to x, h0, c0, w_ih, w_hh, b_ih, b_hh, start_h, start_c, by_unit, gates,
        cells, outputs, hn and cn; 0 for none. Gates and cells are 0 where no gradient is wanted, unless gates are the
        outputs.
        """
        if self.library.bptt_forward(self.isa, before + _pack_plain(*pointers) + _AFTER):
            raise MemoryError("bptt.nn: no memory for the gates of a few steps.")

    def plain_backward(self, before: bytes, *pointers: int) -> None:
        """`backward` for few steps and rows.

        pointers: those of `plain`, gates and cells among them; then to d_outputs, d_hn, d_cn, d_gates, 0 where they
        aren't wanted, and the gradients that are, in the order of `Tensors`.
        """
        if self.library.bptt_backward(self.isa, before + _pack_tensors(*pointers)):
            raise MemoryError("bptt.nn: no memory for the gradients of a few steps.")

    def keeps(self, classes: int, inputs: int) -> bool:
        """Whether a readout keeps its scores' cotangents, as measured; they take no more memory than the inputs."""
        return classes <= inputs and inputs * classes <= KEPT

    def readout(
        self, given: Any, how: tuple[int, str], d: Maybe, losses: Maybe, norms: Maybe, grads: Any, kept: Maybe
    ) -> bool:
        """The cross entropy of the scores x W^T + b, row by row or reduced; False if a target isn't a class.

        given: x (N, I), w (V, I), b (V,) or None, targets (N,); N may be several axes.
        how: the target of rows without a loss, and "none", "sum" or "mean".
        losses, norms: (N,), to be written; or losses is None and norms, log Σ exp of each row's scores, are known.
        d: (N,), the cotangents of the losses, None for 1. Reduced, d and losses are single numbers.
        grads: as x, w, b, None if not wanted.
        kept: (N, V), the scores' cotangents for losses of cotangent 1, written with the losses and then given for the
        grads, in place of norms; None: they aren't kept.
        """
        N, (V, wide), (ignored, reduction) = given[3].numel(), given[1].shape, how
        pointers = [0 if t is None else t.data_ptr() for t in (*given, d, losses, norms, *grads, kept)]
        failed = self.library.bptt_readout(
            self.isa, _pack_readout(torch.get_num_threads(), N, wide, V, ignored, REDUCTIONS[reduction], *pointers)
        )
        if failed == 1:
            raise MemoryError(f"bptt.nn: no memory for blocks of the scores of {V} classes.")
        return not failed

    def absorb(self, keep: Tensor, parts: list[Absorbed]) -> None:
        """E ← D E + I over all steps, as `bptt._units.Passes` says."""
        T, B, d, _, H = keep.shape
        if d > 2 or not all(self.serves(x) for x in (keep, *chain(*parts)) if x is not None):
            eager.absorb(keep, parts)
            return
        keep = keep.contiguous()
        for entries, factor, operand in parts:
            factor, operand = factor.contiguous(), None if operand is None else operand.contiguous()
            pointers = [0 if x is None else x.data_ptr() for x in (entries, keep, factor, operand)]
            sizes = T, B, d, entries.shape[2], H, entries.shape[4]
            self.library.bptt_absorb(self.isa, _pack_influence(torch.get_num_threads(), *sizes, *pointers, 0, 0))

    def pull(self, c: Tensor, entries: list[Tensor]) -> list[Tensor]:
        """c · E, as `bptt._units.Passes` says."""
        if not all(self.serves(x) for x in (c, *entries)):
            return eager.pull(c, entries)
        (B, d, H), c = c.shape, c.contiguous()
        found = [x.new_empty(x.shape[2:]) for x in entries]
        for x, sums in zip(entries, found, strict=True):
            sizes, pointers = (0, B, d, x.shape[2], H, x.shape[4]), (c.data_ptr(), sums.data_ptr())
            given = _pack_influence(torch.get_num_threads(), *sizes, x.data_ptr(), 0, 0, 0, *pointers)
            self.library.bptt_pull(self.isa, given)
        return found

    def _call(self, function: Callable[[int, bytes], int], q: Sequence) -> None:
        failed = function(self.isa, _packed(q))
        if failed == 1:
            raise MemoryError(f"bptt.nn: no memory for the packed weights of {q.units} units.")
        if failed:
            raise IndexError(
                f"bptt.nn: the input has ids below 0 or above {len(q.given.x) - 1}, the last row of embedding=."
            )


def _packed(q: Sequence) -> bytes:
    """`struct Sequence` of native/sequence.h. The tensors live as long as q."""
    plan = q.plan
    cell, weight = plan.cell, plan.weight
    units, inputs = q.units, q.given.w_ih.shape[1]
    total = q.outputs.numel() // units
    distinct = total if plan.ids is None else len(q.given.x)
    given = (*q.given, *_tensors(q)) if q.wanted is NOTHING else (*q.given, *_tensors(q), *q.wanted)
    pointers = [0 if x is None else x.data_ptr() for x in given]
    if q.wanted is NOTHING:
        pointers += _ZEROS
    threads = torch.get_num_threads()
    if plan.noise is None and not plan.reverse and _of_plan(plan) == _NONE:
        return plain_call(plan.mode, plan.steps, plan.rows, inputs, units, threads) + _pack_tensors(*pointers)
    before = [0 if x is None else x.data_ptr() for x in _of_plan(plan)]
    return _pack(
        cell.number, cell.activation, plan.reverse, threads, plan.steps, plan.rows, inputs, units,
        total, distinct, weight is not None and weight.dim() == 2, plan.noise is not None,
        *(plan.noise or (0, 0)), *before, *pointers,
    )  # fmt: skip


@functools.lru_cache(256)
def plain_call(mode: str, steps: int, rows: int, inputs: int, units: int, threads: int) -> bytes:
    """The beginning of `struct Sequence`, for a call with nothing but inputs, weights and states."""
    cell, total = CELLS[mode], steps * rows
    numbers = (cell.number, cell.activation, 0, threads, steps, rows, inputs, units, total, total)
    return struct.pack(f"{_BEFORE}q", *numbers, *[0] * (_BEFORE - len(numbers)))


def load(folders: list[Path]) -> tuple[list[Native], str]:
    """The kernels in the package's folders, one for each instruction set of this machine; if none, also why."""
    path = next((folder / "libbptt.so" for folder in folders if (folder / "libbptt.so").exists()), None)
    if path is None:
        return [], "no C++ compiler was found when bptt was installed"
    try:
        if _cut_short(path):
            return [], f"{path.name} is cut short. Install bptt again to build it anew"
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return [], f"the library doesn't load: {error}"
    try:
        numbers = library.bptt_numbers()
        found = _kernels(library) if numbers == _ALL else []
    except AttributeError:  # it lacks a function
        numbers, found = None, []
    if numbers != _ALL:
        return [], f"{path.name} is of another version. Install bptt again to build it anew"
    return found, "" if found else f"{path.name} has no kernels for this machine"


def _cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections, which comes last: loading it kills the process."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return False
    (table,), (size, count) = struct.unpack_from("=Q", head, 0x28), struct.unpack_from("=HH", head, 0x3A)
    return path.stat().st_size < table + size * count


def _kernels(library: ctypes.CDLL) -> list[Native]:
    """The kernels of a library, with its functions' types declared. Raises AttributeError if it lacks a function."""
    library.bptt_isa.restype = c_char_p
    library.bptt_isa.argtypes = [c_int32]
    library.bptt_use_openmp.argtypes = [c_void_p, c_void_p, c_void_p]
    for name in ("forward", "backward", "readout", "absorb", "pull"):
        function = getattr(library, f"bptt_{name}")
        function.restype = c_int32
        function.argtypes = [c_int32, c_char_p]  # the bytes of a struct
    threaded = _share_threads(library)
    found: list[Native] = []
    while name := library.bptt_isa(len(found)):
        found.append(Native(library, len(found), name.decode(), threaded))
    return found


def _share_threads(library: ctypes.CDLL) -> bool:
    """Take threads from the OpenMP runtime that torch has loaded; a second runtime would compete for the cores."""
    places = [*(Path(torch.__file__).parent / "lib").glob("lib*omp*"), None]
    for place in places:
        try:
            mode = getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW
            runtime = ctypes.CDLL(str(place), mode=mode) if place else ctypes.CDLL(None)
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            pointers = [ctypes.cast(getattr(runtime, name), c_void_p) for name in names]
        except (OSError, AttributeError):
            continue
        library.bptt_use_openmp(*pointers)
        return True
    return False
