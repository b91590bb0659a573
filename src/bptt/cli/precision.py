"""Numbers of half the bytes: autocast around what is computed, and a scale on losses whose gradients would vanish."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from bptt.cli.printing import UserError

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How a run computes its gradients, and steps by them.

    name: of the option. parts: windows whose gradients are added up, each counting as one of so many.
    """

    def __init__(self, name: str, device: torch.device, parts: int) -> None:
        self._half, self._device, self._parts = HALVES.get(name), device.type, parts
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def cast(self) -> contextlib.AbstractContextManager[object]:
        """A block in which the model computes."""
        return contextlib.nullcontext() if self._half is None else torch.autocast(self._device, self._half)

    @property
    def scale(self) -> Any:
        """As `bptt.unroll` takes it."""
        scaler = self.scaler
        return 1 / self._parts if scaler is None else lambda value: scaler.scale(value) / self._parts

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale of the losses."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def update(self) -> None:
        """Choose the scale of the next losses: half of it after gradients that weren't finite."""
        if self.scaler is not None:
            self.scaler.update()

    def state(self) -> Any:
        """What a run goes on with."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load(self, state: Any) -> None:
        """Go on with that."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)


def check(name: str, model: nn.Module, device: torch.device) -> None:
    """Raise UserError for a model that can't compute so."""
    if name not in HALVES:
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--precision {name}: applies on cpu and cuda, not on {device.type}")
    if any(p.dtype == torch.float64 for p in model.parameters()):
        raise UserError(f"--precision {name}: the model has parameters in float64, which stay so. Leave it out")
    if name == "fp16" and device.type == "cpu" and any(isinstance(module, nn.LSTM) for module in model.modules()):
        raise UserError("--precision fp16: torch has no LSTM in fp16 on a CPU. Give --cell gru, or --precision bf16")
