"""Recurrent layers over whole sequences: which implementation runs, and why."""

import os
from pathlib import Path
from types import ModuleType

from torch import Tensor, float32

from bptt.nn.kernels import eager
from bptt.nn.kernels.native import Native, load

natives, reason = load([Path(folder) for folder in __path__])
"""The kernels this machine can run, the best last; and, where there are none, why."""

_asked = os.environ.get("BPTT_KERNELS")
chosen: Native | None = natives[-1] if natives else None
if _asked is not None:
    chosen = next((native for native in natives if native.name == _asked), None)
    reason = reason or f"BPTT_KERNELS={_asked}"


def implementation(like: Tensor) -> Native | ModuleType:
    """What runs a sequence in the dtype and on the device of `like`."""
    return chosen if chosen is not None and like.dtype == float32 and like.device.type == "cpu" else eager
