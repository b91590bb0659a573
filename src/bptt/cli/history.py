"""The numbers of a run: one record an update and one a validation, for the metrics file, the bar and the plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from bptt.analysis.numbers import quantity
from bptt.cli.printing import bits, size


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a run's losses are shown as.

    unit: what a step of one lane is called. key: the name in the metrics of how many were read.
    per: what is shown, in words. factor: of it to the loss.
    """

    unit: str
    key: str
    per: str
    factor: float

    @property
    def in_bits(self) -> bool:
        """Whether losses are shown as bits."""
        return self.factor != 1

    def text(self, loss: float) -> str:
        """A loss as it is shown, with what it is.

        >>> BITS.text(math.log(2)), LOSS.text(0.25)
        ('1.000 bits per character', 'loss 0.25')
        """
        return f"{self.number(loss)} {self.per}" if self.in_bits else f"{self.per} {self.number(loss)}"

    def number(self, loss: float) -> str:
        """A loss as it is shown, the number alone."""
        return bits(loss * self.factor) if self.in_bits else f"{loss:.4g}"

    def record(self, loss: float) -> dict[str, float]:
        """A loss as the metrics hold it."""
        return {"loss": loss, "bpc": loss * self.factor} if self.in_bits else {"loss": loss}


BITS = Measure("character", "chars", "bits per character", 1 / math.log(2))
LOSS = Measure("step", "read", "loss", 1.0)


@dataclasses.dataclass(frozen=True)
class Validation:
    """A validation: after `step` updates and `read` characters, or steps of a lane, the mean loss."""

    step: int
    read: int
    loss: float
    seconds: float


class History:
    """Everything measured so far. Loss, speed and memory of the bar are averages over the last 50 or so updates."""

    def __init__(self, clip: float, measure: Measure = BITS) -> None:
        self.clip, self.measure = clip, measure
        self.read: list[int] = []
        self.losses: list[float] = []
        self.grad_norm: list[float] = []
        self.validations: list[Validation] = []
        self.clipped = self.left_out = self.overflowed = 0
        self._smooth: dict[str, float] = {}
        self._shown = 0

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        """Take in the records of a run that goes on."""
        for record in records:
            if record["kind"] == "train":
                self.clipped += record["clipped"]
                self.read.append(record[self.measure.key])
                self.losses.append(record["loss"])
                self.grad_norm.append(record["grad_norm"])
            elif record["kind"] in ("left_out", "overflowed"):
                self.add_left_out(record["kind"])
            else:
                point = Validation(record["step"], record[self.measure.key], record["loss"], record["elapsed"])
                self.validations.append(point)

    def add_left_out(self, kind: str) -> None:
        """Count a stretch that was left out as not finite, or a step that was as its gradient overflowed."""
        setattr(self, kind, getattr(self, kind) + 1)

    @property
    def step(self) -> int:
        """Updates so far."""
        return len(self.read)

    @property
    def total(self) -> int:
        """Characters, or steps of a lane, trained on so far."""
        return self.read[-1] if self.read else 0

    def update(
        self, updates: Sequence[Any], read: int, loss: float, grad_norm: float, cotangent_norm: float
    ) -> dict[str, Any]:
        """Take in the `bptt.Update`s of a step, over `read` characters or steps; its record for the metrics file."""
        clipped = 0 < self.clip < grad_norm
        self.clipped += clipped
        self.read.append(self.total + read)
        self.losses.append(loss)
        self.grad_norm.append(grad_norm)
        return {
            "kind": "train",
            "step": self.step,
            self.measure.key: self.total,
            **self.measure.record(loss),
            "grad_norm": grad_norm,
            "clipped": clipped,
            "cotangent_norm": cotangent_norm,
            "window": updates[-1].t1 - updates[-1].start,
            "forward_steps": sum(update.forward_steps for update in updates),
            "memory_bytes": max(update.memory_bytes for update in updates),
        }

    def numbers(self, record: dict[str, Any], read: int, seconds: float) -> str:
        """What the bar shows after an update of `read` characters or steps that took `seconds`."""
        self._shown += 1
        weight = min(0.98, 1 - 1 / self._shown)  # the first updates are averaged evenly
        now = {"loss": record["loss"], "read": read, "seconds": seconds, "memory": record["memory_bytes"]}
        for name, value in now.items():
            self._smooth[name] = weight * self._smooth.get(name, 0.0) + (1 - weight) * value
        smooth = self._smooth
        speed = quantity(smooth["read"] / max(smooth["seconds"], 1e-9), "char/s" if self.measure.in_bits else "steps/s")
        loss = f"{bits(smooth['loss'] * self.measure.factor)} bits/char  " if self.measure.in_bits else ""
        return (
            f"loss {bits(smooth['loss'])}  {loss}{speed}  gradient "
            f"{record['grad_norm']:.2g}, {self.clipped / self.step:.0%} clipped  {size(smooth['memory'])}"
        )

    def recent(self) -> float:
        """Mean loss of the last 50 updates."""
        last = self.losses[-50:]
        return sum(last) / max(1, len(last))
