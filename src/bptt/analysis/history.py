"""What a training run measured: a record per update and per validation, as it grows or out of a file."""

import dataclasses
import importlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bptt.analysis.numbers import duration
from bptt.analysis.shown import Shown, Table, axes

RECENT = 50
"""Updates whose mean loss is what training has reached."""
TINY = torch.finfo(torch.float32).tiny


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
        """A loss as it is shown, the number alone; shorter where a run has diverged."""
        value = loss * self.factor
        return (f"{value:.3f}" if value < 1000 else f"{value:.3g}") if self.in_bits else f"{value:.4g}"

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


@dataclasses.dataclass
class History(Shown):
    """Everything that a run has measured so far; `History.read_from` takes it out of a run folder's `metrics.jsonl`.

    In a notebook it is a table of the validations, `plot` draws the losses, and `records` makes a DataFrame.

    clip: the largest norm that a gradient was left with, 0 where it was never clipped. measure: how losses are shown.
    read, losses, grad_norm: of each update: what was read up to it, its mean loss, and the norm before clipping.
    validations: in order. clipped: updates whose gradient was. left_out, overflowed: windows and steps that were left
        out as they weren't finite, or overflowed in fp16.

    >>> history = History(clip=1.0, measure=LOSS)
    >>> for loss in (0.9, 0.7, 0.5):
    ...     history.add(read=64, loss=loss, grad_norm=2 * loss)
    >>> history.validations.append(Validation(3, 192, 0.6, seconds=1.5))
    >>> print(history)
    update  steps  loss   time
         3    192   0.6  1.5 s
    validation: loss 0.6 after update 3
    training: loss 0.7, mean of the last 3 updates
    updates: 3, on 192 steps
    clipped: 67% of the updates
    """

    clip: float = 0.0
    measure: Measure = BITS
    read: list[int] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    grad_norm: list[float] = dataclasses.field(default_factory=list)
    validations: list[Validation] = dataclasses.field(default_factory=list)
    clipped: int = 0
    left_out: int = 0
    overflowed: int = 0

    @classmethod
    def read_from(cls, path: str | Path, clip: float = 0.0) -> Self:
        """The history of a run folder of `bptt train`, or of its `metrics.jsonl`.

        clip: of the run, for the plot of norms. Raises: OSError; ValueError for a file that isn't one.
        """
        path = Path(path)
        file = path / "metrics.jsonl" if path.is_dir() else path
        try:
            records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found = cls(clip, BITS if any(BITS.key in record for record in records) else LOSS)
            found.restore(records)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} holds no metrics of a run ({type(error).__name__}: {error}).") from error
        return found

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        """Take in records, as lines of `metrics.jsonl` hold them."""
        for record in records:
            if record["kind"] == "train":
                self.clipped += record["clipped"]
                self.read.append(record[self.measure.key])
                self.losses.append(math.nan if record["loss"] is None else record["loss"])
                self.grad_norm.append(math.nan if record["grad_norm"] is None else record["grad_norm"])
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

    def add(self, read: int, loss: float, grad_norm: float) -> None:
        """Take in an update, over so many characters or steps."""
        self.clipped += 0 < self.clip < grad_norm
        self.read.append(self.total + read)
        self.losses.append(loss)
        self.grad_norm.append(grad_norm)

    def update(
        self, updates: Sequence[Any], read: int, loss: float, grad_norm: float, cotangent_norm: float
    ) -> dict[str, Any]:
        """Take in the `bptt.Update`s of a step, over `read` characters or steps; its record for the metrics file."""
        before = self.clipped
        self.add(read, loss, grad_norm)
        return {
            "kind": "train",
            "step": self.step,
            self.measure.key: self.total,
            **self.measure.record(loss),
            "grad_norm": grad_norm,
            "clipped": self.clipped > before,
            "cotangent_norm": cotangent_norm,
            "window": updates[-1].t1 - updates[-1].start,
            "forward_steps": sum(update.forward_steps for update in updates),
            "memory_bytes": max(update.memory_bytes for update in updates),
        }

    def recent(self) -> float:
        """Mean loss of the last 50 updates."""
        last = self.losses[-RECENT:]
        return sum(last) / max(1, len(last))

    @property
    def best(self) -> Validation | None:
        """The validation with the lowest loss."""
        return min(self.validations, key=lambda point: point.loss, default=None)

    def summary(self) -> dict[str, str]:
        """What the run has reached, by name."""
        rows, measure = {}, self.measure
        if (best := self.best) is not None:
            last = self.validations[-1]
            lower = (last.loss - best.loss) * measure.factor > 5e-4
            better = f" (lowest: {measure.number(best.loss)} after update {best.step})" if lower else ""
            rows["validation"] = f"{measure.text(last.loss)} after update {last.step}{better}"
        if self.step:
            recent = min(RECENT, self.step)
            rows["training"] = f"{measure.text(self.recent())}, mean of the last {recent} updates"
            rows["updates"] = f"{self.step:,}, on {self.total:,} {measure.unit}s"
            rows["clipped"] = f"{self.clipped / self.step:.0%} of the updates" if self.clip else "never"
        return rows

    def verdict(self) -> str:
        """What the run has reached, a line each."""
        return "\n".join(f"{name}: {told}" for name, told in self.summary().items())

    def table(self) -> Table:
        """The validations."""
        measure = self.measure
        rows = [[f"{v.step:,}", f"{v.read:,}", measure.number(v.loss), duration(v.seconds)] for v in self.validations]
        return Table(("update", f"{measure.unit}s", measure.per, "time"), rows, words=0)

    def records(self) -> list[dict[str, Any]]:
        """One for each update: step, read, loss, grad_norm."""
        each = zip(self.read, self.losses, self.grad_norm, strict=True)
        return [{"step": i, "read": r, "loss": loss, "grad_norm": g} for i, (r, loss, g) in enumerate(each, 1)]

    def plot(self, ax: Any = None) -> Any:
        """Draw training and validation losses, in bits for a text, over what was read; returns the axes."""
        ax, measure = axes(ax), self.measure
        points = [v.loss * measure.factor for v in self.validations]
        if self.losses:
            losses = torch.tensor(self.losses, dtype=torch.float64) * measure.factor
            ax.plot(self.read, losses, color="C0", alpha=0.4, linewidth=0.8, label="training, each update")
            ax.plot(self.read, _smooth(losses), color="C0", linewidth=1.6, label="training, running mean")
            shown = losses[len(losses) // 50 :]  # the first steep drop would flatten all that follows
            low, high = min([shown.min().item(), *points]), max([shown.max().item(), *points])
            margin = 0.06 * (high - low) or 0.5
            ax.set_ylim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
        if self.validations:
            label = f"validation, last {measure.number(self.validations[-1].loss)}"
            read = [v.read for v in self.validations]
            ax.plot(read, points, "o-", color="C1", markersize=5, linewidth=1, label=label)
        return self._finished(ax, measure.per)

    def plot_norms(self, ax: Any = None) -> Any:
        """Draw the norm of the gradient before clipping, over what was read; returns the axes."""
        ax = axes(ax)
        norms = torch.tensor(self.grad_norm, dtype=torch.float64)
        norms = norms.where(norms > TINY, math.nan)  # zero has no place on a logarithmic axis
        known = norms[~norms.isnan()]
        if len(known):
            low, high = known.min().item(), known.max().item()
            ax.set_yscale("log")
            ax.set_ylim(low / 1.3, max(high, self.clip if high > self.clip / 10 else 0) * 1.3)
            ax.plot(self.read, norms, color="C0", alpha=0.4, linewidth=0.8, label="each update")
            ax.plot(self.read, _smooth(norms.log()).exp(), color="C0", linewidth=1.6, label="running mean")
            if high < 100 * low:  # within a decade or two, plain numbers read better
                plain = importlib.import_module("matplotlib.ticker").ScalarFormatter
                ax.yaxis.set_major_formatter(plain())
                ax.yaxis.set_minor_formatter(plain())
        if self.clip > 0:
            label = f"clipped above {self.clip:g}: {self.clipped / max(1, self.step):.0%} of updates"
            ax.axhline(self.clip, color="C1", linestyle="--", linewidth=1.2, label=label)
        return self._finished(ax, "gradient norm before clipping")

    def _finished(self, ax: Any, label: str) -> Any:
        ax.xaxis.set_major_formatter(importlib.import_module("matplotlib.ticker").EngFormatter(sep=""))
        ax.set_xlim(left=0)
        ax.set_xlabel(f"{self.measure.unit}s read in training")
        ax.set_ylabel(label)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return ax


def _smooth(values: Tensor) -> Tensor:
    """Mean over a centred stretch of about a fiftieth of the run, shorter at both ends; NaN counts as nothing."""
    half = max(1, len(values) // 100)
    known = ~values.isnan()
    total, count = (
        torch.cat([values.new_zeros(1), each.cumsum(0)]) for each in (values.nan_to_num(0.0), known.double())
    )
    at = torch.arange(len(values))
    low, high = (at - half).clamp(min=0), (at + half + 1).clamp(max=len(values))
    return (total[high] - total[low]) / (count[high] - count[low]).clamp(min=1)
