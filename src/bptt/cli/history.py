"""The numbers of a run: one record an update and one a validation, for the metrics file, the bar and the plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from bptt.cli.printing import bits, quantity, size

LN2 = math.log(2)


@dataclasses.dataclass(frozen=True)
class Validation:
    """A validation: after `step` updates and `chars` characters, loss in nats and in bits a character."""

    step: int
    chars: int
    loss: float
    seconds: float

    @property
    def bpc(self) -> float:
        """Bits per character."""
        return self.loss / LN2


class History:
    """Everything measured so far. Loss, speed and memory of the bar are averages over the last 50 or so updates."""

    def __init__(self, clip: float) -> None:
        self.clip = clip
        self.chars: list[int] = []
        self.bpc: list[float] = []
        self.grad_norm: list[float] = []
        self.validations: list[Validation] = []
        self.clipped = self.left_out = 0
        self._smooth: dict[str, float] = {}
        self._shown = 0

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        """Take in the records of a run that goes on."""
        for record in records:
            if record["kind"] == "train":
                self.clipped += record["clipped"]
                self.chars.append(record["chars"])
                self.bpc.append(record["bpc"])
                self.grad_norm.append(record["grad_norm"])
            elif record["kind"] == "left_out":
                self.left_out += 1
            else:
                point = Validation(record["step"], record["chars"], record["loss"], record["elapsed"])
                self.validations.append(point)

    @property
    def step(self) -> int:
        """Updates so far."""
        return len(self.chars)

    @property
    def total_chars(self) -> int:
        """Characters trained on so far."""
        return self.chars[-1] if self.chars else 0

    def update(self, update: Any, chars: int, loss: float, grad_norm: float, cotangent_norm: float) -> dict[str, Any]:
        """Take in a `bptt.Update` over `chars` characters; its record for the metrics file."""
        clipped = 0 < self.clip < grad_norm
        self.clipped += clipped
        self.chars.append(self.total_chars + chars)
        self.bpc.append(loss / LN2)
        self.grad_norm.append(grad_norm)
        return {
            "kind": "train",
            "step": self.step,
            "chars": self.total_chars,
            "loss": loss,
            "bpc": loss / LN2,
            "grad_norm": grad_norm,
            "clipped": clipped,
            "cotangent_norm": cotangent_norm,
            "window": update.t1 - update.start,
            "forward_steps": update.forward_steps,
            "memory_bytes": update.memory_bytes,
        }

    def numbers(self, record: dict[str, Any], chars: int, seconds: float) -> str:
        """What the bar shows after an update of `chars` characters that took `seconds`."""
        self._shown += 1
        weight = min(0.98, 1 - 1 / self._shown)  # the first updates are averaged evenly
        now = {"loss": record["loss"], "chars": chars, "seconds": seconds, "memory": record["memory_bytes"]}
        for name, value in now.items():
            self._smooth[name] = weight * self._smooth.get(name, 0.0) + (1 - weight) * value
        smooth = self._smooth
        speed = quantity(smooth["chars"] / max(smooth["seconds"], 1e-9), "char/s")
        return (
            f"loss {bits(smooth['loss'])}  {bits(smooth['loss'] / LN2)} bits/char  {speed}  gradient "
            f"{record['grad_norm']:.2g}, {self.clipped / self.step:.0%} clipped  {size(smooth['memory'])}"
        )

    def recent_bpc(self) -> float:
        """Mean bits per character of the last 50 updates."""
        last = self.bpc[-50:]
        return sum(last) / max(1, len(last))
