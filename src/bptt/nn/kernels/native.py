"""The kernels in C++, behind a plain C interface; see native/sequence.h."""

import ctypes
import os
import threading
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from bptt.nn.kernels.sequence import Joint, Sequence

_NUMBERS = {
    "cell": c_int32, "activation": c_int32, "reverse": c_int32, "threads": c_int32,
    "steps": c_int64, "rows": c_int64, "units": c_int64,
}  # fmt: skip
_POINTERS = (
    "sizes", "offsets", "start", "weight", "weight_rows", "recurrent", "bias_n", "packed", "gates", "cells", "outputs",
    "h0", "c0", "hn", "cn", "d_outputs", "d_hn", "d_cn", "d_gates", "carry", "d_h0", "d_c0",
)  # fmt: skip


class _Struct(Structure):
    _fields_ = [*_NUMBERS.items(), *((name, c_int64 if name == "weight_rows" else c_void_p) for name in _POINTERS)]


class _Product(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("threads", "a_transposed", "b_transposed", "add")),
        *((name, c_int64) for name in ("m", "n", "k", "lda", "ldb", "ldc")),
        *((name, c_void_p) for name in ("a", "b", "bias", "c", "sums", "packed")),
        *((name, c_int64) for name in ("n2", "ld2", "ldc2", "split")),
        *((name, c_void_p) for name in ("first2", "then2", "skip2", "c2")),
    ]


_TENSORS = tuple(name for name in _POINTERS if name not in ("weight_rows", "packed"))


class Native:
    """The kernels of one instruction set, in float32 on the CPU.

    library: the loaded library. isa: which of its instruction sets, and its name.
    threaded: whether it has found threads to share.
    """

    def __init__(self, library: ctypes.CDLL, isa: int, name: str, threaded: bool) -> None:
        self.library, self.isa, self.name, self.threaded = library, isa, name, threaded
        self._rooms: dict[tuple[int, ...], int] = {}  # floats of scratch by cell and units, or by columns
        self._own = threading.local()

    def forward(self, sequence: Sequence) -> None:
        """Fill gates, cells, outputs, hn and cn."""
        self._call(self.library.bptt_forward, sequence)

    def backward(self, sequence: Sequence) -> None:
        """Fill d_gates, d_h0 and d_c0."""
        self._call(self.library.bptt_backward, sequence)

    def product(
        self,
        out: Tensor | None,
        a: Tensor,
        b: Tensor | None,
        bias: Tensor | None = None,
        add: bool = False,
        sums: Tensor | None = None,
        joint: Joint | None = None,
    ) -> None:
        """`out` (m, n) = a b + bias, or `out` and that; `sums` (m,) gets those of a transposed a over its columns.

        joint: another product with a. out and b may be None then.
        """
        m, k = a.shape
        n, n2 = 0 if b is None else b.shape[1], 0 if joint is None else joint.out.shape[1]
        a = a if 1 in a.stride() else a.contiguous()
        b = b if b is None or 1 in b.stride() else b.contiguous()
        a_transposed = a.stride(1) != 1 or sums is not None
        b_transposed = b is not None and b.stride(1) != 1
        threads = torch.get_num_threads() if m * (n + n2) * k > 1_000_000 else 1
        p = _Product(threads, a_transposed, b_transposed, add, m, n, k, a.stride(int(a_transposed)), a=a.data_ptr())
        if b is not None and out is not None:
            p.ldb, p.ldc, p.b, p.c = b.stride(int(b_transposed)), out.stride(0), b.data_ptr(), out.data_ptr()
        if bias is not None:
            p.bias = bias.data_ptr()
        if sums is not None:
            p.sums = sums.data_ptr()
        if joint is not None:
            p.n2, p.ld2, p.ldc2, p.c2, p.split = n2, n2, joint.out.stride(0), joint.out.data_ptr(), joint.split
            p.first2, p.then2, p.skip2 = (None if x is None else x.data_ptr() for x in (*joint[1:3], joint.skip))
        key = (n, n2, 0)
        if key not in self._rooms:
            self._rooms[key] = self.library.bptt_product_packed(self.isa, ctypes.byref(p))
        p.packed = self._scratch(self._rooms[key])
        self.library.bptt_product(self.isa, ctypes.byref(p))

    def _call(self, function: "ctypes._NamedFuncPointer", sequence: Sequence) -> None:
        weight_rows = int(sequence.weight is not None and sequence.weight.dim() == 2)
        tensors = [getattr(sequence, name) for name in _TENSORS]
        pointers = dict(zip(_TENSORS, [None if x is None else x.data_ptr() for x in tensors], strict=True))
        key = (sequence.cell, sequence.units)
        if key not in self._rooms:
            self._rooms[key] = self.library.bptt_packed(self.isa, *key)
        packed = self._scratch(self._rooms[key])
        numbers = [getattr(sequence, name) for name in _NUMBERS]
        s = _Struct(*numbers, weight_rows=weight_rows, packed=packed, **pointers)
        function(self.isa, ctypes.byref(s))

    def _scratch(self, floats: int) -> int:
        """Where so many floats lie that are this thread's own until its next call."""
        held: Tensor | None = getattr(self._own, "floats", None)
        if held is None or held.numel() < floats:
            held = self._own.floats = torch.empty(floats)
        return held.data_ptr()


def load(folders: list[Path]) -> tuple[list[Native], str]:
    """The kernels in the package's folders, one for each instruction set this machine has; and, where none, why."""
    path = next((folder / "libbptt.so" for folder in folders if (folder / "libbptt.so").exists()), None)
    if path is None:
        return [], "no C++ compiler was found when bptt was installed"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return [], f"the library doesn't load: {error}"
    library.bptt_isa.restype = c_char_p
    library.bptt_isa.argtypes = [c_int32]
    library.bptt_packed.restype = c_int64
    library.bptt_packed.argtypes = [c_int32, c_int32, c_int64]
    library.bptt_use_openmp.argtypes = [c_void_p, c_void_p, c_void_p]
    for function in (library.bptt_forward, library.bptt_backward):
        function.restype = None
        function.argtypes = [c_int32, POINTER(_Struct)]
    library.bptt_product.restype = None
    library.bptt_product_packed.restype = c_int64
    for function in (library.bptt_product, library.bptt_product_packed):
        function.argtypes = [c_int32, POINTER(_Product)]
    threaded = _share_threads(library)
    found: list[Native] = []
    while name := library.bptt_isa(len(found)):
        found.append(Native(library, len(found), name.decode(), threaded))
    return found, ""


def _share_threads(library: ctypes.CDLL) -> bool:
    """Take threads from the OpenMP runtime that torch has loaded; a second one would fight it for the cores."""
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
