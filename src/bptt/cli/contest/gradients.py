"""Each strategy's gradient of a held-out sequence against the exact one, by `bptt.compare`, as plain numbers."""

from __future__ import annotations

from typing import Any

import torch

import bptt
from bptt.cli.contest.settings import Setting
from bptt.cli.printing import user_errors
from bptt.cli.writing import jsonable

WHEN = ("start", "end")
"""Where gradients are measured: at the first weights of seed 0, and at the end of the run with the lowest loss."""

COSTS = ("seconds", "memory_bytes", "updates", "forward_steps", "backward_steps")


def measure(setting: Setting, model: Any, strategy: Any, draws: int, memory: str | None) -> dict[str, Any]:
    """What `bptt.compare` finds for one strategy: [value, low, high] of each estimate, and the costs; None for NaN.

    Raises: UserError for what the library refuses; bptt.NonFiniteLossError.
    """
    with user_errors():
        found = bptt.compare(
            model,
            setting.loss,
            setting.measured,
            strategies=[strategy],
            draws=draws,
            memory=memory,
            generator=torch.Generator().manual_seed(0),
            **setting.begin(model, setting.measured.inputs),
        )
    (entry,) = found.entries
    numbers = {
        "steps": found.steps,
        "norm": found.norm,
        "draws": entry.draws,
        **_estimates(entry),
        "parameters": {name: _estimates(each) for name, each in entry.parameters.items()},
        **{name: getattr(entry, name) for name in COSTS},
    }
    return jsonable(numbers)


def _estimates(deviation: Any) -> dict[str, list[float]]:
    return {name: list(getattr(deviation, name)) for name in ("bias", "signed_bias", "cosine", "variance")}
