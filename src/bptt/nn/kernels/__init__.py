"""Recurrent layers over whole sequences: which implementation runs, and why."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from bptt.nn.kernels import eager
from bptt.nn.kernels.native import Native, load

natives, reason = load([Path(folder) for folder in __path__])
"""The kernels that this machine can run, the best last, and why there are none, if so."""

chosen: Native | None = natives[-1] if natives else None
"""The kernels that run; None for PyTorch alone. BPTT_KERNELS=generic, avx2, avx512 or none chooses others."""

if (_asked := os.environ.get("BPTT_KERNELS")) is not None:
    chosen = next((native for native in natives if native.name == _asked), None)
    reason = reason or f"BPTT_KERNELS={_asked}"


def implementation(like: Tensor) -> Any:
    """What runs in the dtype and on the device of `like`: a `Native`, or the module `eager`."""
    return chosen if chosen is not None and chosen.serves(like) else eager


def describe() -> str:
    """Which kernels run float32 on the CPU, on which threads, and why not better ones."""
    if chosen is None:
        return f"PyTorch alone, slower ({reason})"
    threads = "threads of torch's OpenMP" if chosen.threaded else "one thread, as torch's OpenMP runtime was not found"
    why = "" if chosen is natives[-1] else f" ({reason})"
    return f"{chosen.name}{why}, {threads}"
