"""The training loop: updates, validation with carried state, weights saved, and every way a run can end."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

import bptt
from bptt.analysis.history import History, Validation
from bptt.analysis.numbers import quantity
from bptt.cli.jobs.job import Job
from bptt.cli.jobs.own import rows_of, said
from bptt.cli.precision import Precision
from bptt.cli.printing import UserError, brief, fields, no_memory, user_errors
from bptt.cli.progress import Averages, Display
from bptt.cli.ranks import Ranks, gone
from bptt.cli.reading import Read, Reading, Stopping
from bptt.cli.resuming import versions
from bptt.cli.train_config import TrainConfig
from bptt.runs import Interrupt, random_state, set_random_state

IN_A_ROW = 20
"""So many windows that aren't finite, one after the other, end any run."""
SAVE_SECONDS = 300
"""Between two checkpoints, if no validation comes before."""
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


class NonFinite(Exception):
    """A loss or gradient that is no number ended the run; the message names where."""


class Overflowed(NonFinite):
    """A gradient in fp16 that was too large: the step is left out, and the next losses are scaled less."""


@dataclasses.dataclass(eq=False)
class Training:
    """One run.

    Arguments:
        job: its model on the device to train on.
        folder: that of the first rank, None on the others. ranks: the processes that train together.
    """

    config: TrainConfig
    reading: Reading
    job: Job
    device: torch.device
    folder: Any
    ranks: Ranks

    def __post_init__(self) -> None:
        config, self.model = self.config, self.job.model
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.history = History(config.clip, self.job.measure)
        fused = config.optimizer.startswith("adam") and all(p.is_floating_point() and p.is_cpu for p in parameters)
        more = {"fused": True} if fused else {}
        self.optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.lr, **more)  # pyright: ignore[reportCallIssue]
        self.saved_step: int | None = None
        self._validated, self._before, self.began = 0, 0.0, 0.0
        self._loaded: dict[str, Any] = {}
        self._updates: Any = None
        self._in_a_row = 0
        self._precision = Precision(config.precision, self.device, config.accumulate)
        self._axes: Any = 1
        if self.ranks.size > 1:
            if self.job.code:
                inputs = self.job.source.measured(1, None).inputs.to(self.device)
                self._axes = rows_of(copy.deepcopy(self.model), inputs)
            torch.manual_seed(config.seed + self.ranks.rank)  # from here on noise is a rank's own

    def state(self) -> dict[str, Any]:
        """All that the run needs to go on after its last update; its records are in the metrics.

        It holds the rows of all ranks: as many as ever may go on.
        """
        stream, run = self._loaded.get("stream"), self._loaded.get("run")
        if self._updates is not None:
            stream, run = (
                (self._read.state_dict(), None) if self.reading.sequences else (None, self._updates.state_dict())
            )
            if run is not None and self.ranks.group is not None:
                run = bptt.distributed.gather_state(run, self._axes, self.ranks.group)
        self.ranks.same_buffers(self.model, self.job.name)
        return {
            "config": self.config.recorded(),
            "data": self.job.source.digest,
            "code": self.job.code,
            "versions": versions(self.ranks.size),
            "seconds": self.seconds(),
            "validated": self._validated,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._precision.state(),
            "noise": self.ranks.all(random_state(self.device)),
            "stream": stream,
            "run": run,
        }

    def load(self, state: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Go on from there, before `run`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._precision.load(state["scaler"])
        if self.ranks.rank < len(state["noise"]):
            set_random_state(state["noise"][self.ranks.rank], self.device)
        self.history.restore(records)
        self._validated, self._before, self._loaded = state["validated"], state["seconds"], state
        points = self.history.validations
        if points:
            self.saved_step = points[-1].step if self._best() is None else self._best()
        if points and points[-1].step == self.history.step:  # the run may have been killed before it had written them
            self._save()

    def begin(self) -> None:
        """Make the folder that of this run, with a checkpoint of its start."""
        state = self.state()
        self.ranks.told(lambda: self.folder.publish(self.config, self.job, 0, state), tell=False)

    def run(self, display: Display, interrupt: Interrupt) -> None:
        """Train until the end that the configuration sets, or Ctrl-C; validate and save on the way and at the end.

        Raises: NonFinite; UserError for what the library refuses.
        """
        self.began = saved = time.monotonic()
        bar = Averages(self.history)
        self._say = display.say
        updates = self._stream(interrupt)
        due = int(self._fraction() * self.job.validations)
        self._validated = min(self._validated, due)  # the run may have been lengthened
        self._validate_if_due(display, interrupt)  # one that the run before was stopped at
        while self._fraction() < 1 and not interrupt.asked:
            before = time.monotonic()
            if not self._gather(updates):
                break
            try:
                record, read = self._step(self._pending)
            except NonFinite as error:
                self._leave_out(error)
                continue
            self._in_a_row = 0
            display.show(self._fraction(), bar.numbers(record, read, time.monotonic() - before))
            if self._fraction() < 1 and not interrupt.asked:
                self._validate_if_due(display, interrupt)
            if self.ranks.most(time.monotonic() - saved) > SAVE_SECONDS:
                saved = time.monotonic()
                self._keep()
        if not interrupt.asked and self._validated < self.job.validations:
            self._validate(display, interrupt, self.job.validations)
        if interrupt.asked:
            self._save()

    def _gather(self, updates: Iterator[Any]) -> bool:
        """Whether there are updates to step by: as many as are accumulated, fewer at the stream's end."""
        self._pending: list[Any] = []
        with contextlib.suppress(Stopping):
            for update in updates:
                self._pending.append(update)
                if len(self._pending) == self.config.accumulate:
                    break
        return bool(self._pending)

    def seconds(self) -> float:
        """Since training began, without the time between two runs of it."""
        return self._before + (time.monotonic() - self.began if self.began else 0.0)

    def _validate_if_due(self, display: Display, interrupt: Interrupt) -> None:
        due = int(self._fraction() * self.job.validations)
        if due > self._validated and self._fraction() < 1:
            self._validate(display, interrupt, due)

    def _stream(self, interrupt: Interrupt) -> Iterator[Any]:
        """The updates of the run; every chunk of `--strategy full` is a sequence of its own.

        At Ctrl-C a window that is still being read is left: it is read again when the run goes on.
        """
        options: dict[str, Any] = {
            "strategy": self.reading.strategy,
            "memory": self.config.memory,
            "initial_state": self.job.start(self.job.source.rows // self.ranks.size),
            "generator": torch.Generator().manual_seed(self.config.seed),
            "scale": self._precision.scale,
            "group": self.ranks.group,
        }
        length, epochs, lanes = self.reading.chunk_length, self.config.epochs, self.ranks.share(self.job.source.rows)
        stream = self.job.source.stream(length, epochs)
        # Of a step that is half done nothing is left: it ends first.
        self._read = Read(stream, self.device, lambda: not self._pending and interrupt.asked, lanes)
        if self.reading.sequences and self._loaded.get("stream"):
            self._read.load_state_dict(self._loaded["stream"])
        saved = self._loaded.get("run")
        if saved is not None:
            saved = bptt.distributed.narrow_state(saved, lanes, self._axes)
        with user_errors():
            for sequence in self._sequences():
                self._updates = bptt.unroll(*self.job.trained, sequence, **options)
                if saved is not None:
                    self._updates.load_state_dict(saved)
                    saved = None
                try:
                    while (update := self._next()) is not None:
                        yield update
                except NonFinite as error:
                    self._leave_out(error)

    def _sequences(self) -> Iterator[Any]:
        """What is unrolled one after the other: the data, and the rest of it wherever a stretch was left out."""
        if self.reading.sequences:
            # It starts from the initial state as it is; marking that as a reset would cut its last cotangent off.
            yield from ([chunk._replace(is_start=None)] for chunk in self._read)
            return
        known = -1
        while known < self.history.left_out:
            known = self.history.left_out
            yield self._read

    def _leave_out(self, error: NonFinite) -> None:
        """Go on behind what isn't finite, as `--non-finite` says; the state starts afresh there. Raises `error`."""
        overflowed = isinstance(error, Overflowed)
        policy = "skip" if overflowed else self.config.non_finite
        found = self.ranks.told(self._last) if policy == "back" else None
        if policy == "stop" or self._in_a_row >= IN_A_ROW or (policy == "back" and found is None):
            raise error
        self._in_a_row += 1
        self._pending = []
        self.optimizer.zero_grad()
        told = "its step is left out" if overflowed else "left out"
        if found is not None:
            self.model.load_state_dict(found.state["model"])
            self.optimizer.load_state_dict(found.state["optimizer"])
            told = f"left out, weights and optimizer as they were after update {found.step:,}"
        history = self.history
        kind = "overflowed" if overflowed else "left_out"
        record = {"kind": kind, "step": history.step, history.measure.key: history.total, "reason": str(error)}
        self._log(record, self.seconds())
        history.add_left_out(kind)
        self._say(f"update {history.step + 1:>5,}  {str(error).rstrip('.')}: {told}")

    def _last(self) -> Any:
        """The last checkpoint; None where there is none."""
        return self.folder.saved() if self.folder.published else None

    def _log(self, record: dict[str, Any], seconds: float) -> None:
        if self.folder is not None:
            self.folder.log({**record, "elapsed": round(seconds, 3)})

    def _next(self) -> Any:
        try:
            with self._precision.cast():
                return next(self._updates, None)
        except Stopping:
            return None
        except bptt.NonFiniteError as error:
            raise NonFinite(str(error)) from error
        except (UserError, bptt.BudgetError):
            raise
        except Exception as error:  # whatever the user's model stumbles over
            if not self.job.code or no_memory(error) or gone(error):
                raise
            told = f"{self.job.name}: failed at update {self.history.step + 1:,} ({said(error)})"
            raise UserError(told, 1 if self.history.step else 2) from error

    def _step(self, updates: list[Any]) -> tuple[dict[str, Any], int]:
        config, history, ranks, last = self.config, self.history, self.ranks, updates[-1]
        if ranks.size > 1:
            bptt.distributed.average_gradients(self.model.parameters(), ranks.group)
        self._precision.unscale(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        losses, weights = ([getattr(update, name) for update in updates] for name in ("loss", "weight"))
        # One transfer for all, so that an accelerator is waited for once.
        values = [norm, last.cotangent_norm, *losses, *weights]
        grad_norm, cotangent_norm, *values = torch.stack(
            [torch.as_tensor(v, dtype=torch.float32, device=norm.device) for v in values]
        ).tolist()
        loss, weight, square = ranks.sums([sum(values[: len(updates)]), sum(values[len(updates) :]), cotangent_norm**2])
        if not math.isfinite(grad_norm):
            told = f"the gradient of steps {updates[0].t0} to {last.t1 - 1} is not finite (norm {grad_norm})"
            if self._precision.scaler is None:
                raise NonFinite(told)
            self._precision.update()
            raise Overflowed(told)
        self.optimizer.step()
        self._precision.update()
        self.optimizer.zero_grad()
        read = sum(update.steps for update in updates) * self.job.source.rows
        record = history.update(
            updates, read, loss / weight if weight else 0.0, grad_norm, math.sqrt(square) / ranks.size
        )
        self._log(record, self.seconds())
        if history.step == 1:
            ranks.same_buffers(self.model, self.job.name)
        self._pending = []
        return record, read

    def _fraction(self) -> float:
        """How much of the run is done, 1 at its end."""
        config, history, source = self.config, self.history, self.job.source
        if config.minutes is not None:
            return min(1.0, self.ranks.most(self.seconds()) / (60 * config.minutes))
        if config.epochs is not None:
            return history.total / (config.epochs * source.steps * source.rows)
        return history.step / config.steps if config.steps else 0.0

    def _validate(self, display: Display, interrupt: Interrupt, number: int) -> None:
        """Measure what is held out with the state carried through each of its lanes, and save the weights."""
        history, held_out = self.history, self.job.source.held_out()
        if held_out is not None:
            lanes = self.ranks.share(self.job.source.held_out_rows)
            loss = self._held_out_loss(Read(held_out, self.device, lambda: interrupt.asked, lanes))
            if loss is None:
                return
            point = Validation(history.step, history.total, loss, self.seconds())
            history.validations.append(point)
            record = {"kind": "valid", "step": point.step, history.measure.key: point.read}
            record |= history.measure.record(loss)
            self._log(record, point.seconds)
        self._validated = number
        self._save()
        display.say(fields(self._line(), display.width), fit=False)

    def _line(self) -> list[str]:
        """What is shown at a validation."""
        history = self.history
        measure = history.measure
        unit = " bits/char" if measure.in_bits else ""
        shown = [f"update {history.step:>5,}"]
        if self.job.source.held_out() is not None:
            shown.append(f"validation {measure.number(history.validations[-1].loss)}{unit}")
        of = "chars" if measure.in_bits else "steps"
        read = f"{quantity(history.total)} {of}"
        return [*shown, f"training {measure.number(history.recent())}", read, brief(self.seconds())]

    def _held_out_loss(self, read: Read) -> float | None:
        """Mean loss of a step; None where the run is to stop first."""
        whole, mine = self.job.source.held_out_rows, self.ranks.share(self.job.source.held_out_rows)
        rows, mode = mine.stop - mine.start, self.model.training
        options = {"initial_state": self.job.start(rows), "group": self.ranks.group if rows < whole else None}
        try:
            self.model.eval()
            with self._precision.cast():
                result = bptt.evaluate(*self.job.trained, read, **options)
        except Stopping:
            return None
        except bptt.NonFiniteLossError as error:
            raise NonFinite(f"in validation, {error}") from error
        finally:
            self.model.train(mode)
        loss = result.mean_loss.item()
        if not math.isfinite(loss):
            raise NonFinite(f"the validation loss is not finite ({loss})")
        return loss

    def _save(self) -> None:
        """The weights, for who reads them, and a checkpoint."""
        if not self._finite():
            raise NonFinite("a weight is not finite")
        step, kept, state = self.history.step, self._best(), self.state()
        weights = kept in (None, step)
        self.ranks.told(lambda: self.folder.save(self.config, self.job, step, state, weights=weights), tell=False)
        self.saved_step = step if kept is None else kept

    def _best(self) -> int | None:
        """The update whose weights stay, where those of the lowest validation do; None for the last ones."""
        points = self.history.validations if self.job.keeps_best else []
        return min(points, key=lambda point: point.loss).step if points else None

    def _keep(self) -> None:
        """A checkpoint alone; none of weights that aren't finite, which the next loss will tell of."""
        if self.ranks.told(lambda: self.folder.published) and self._finite():
            state = self.state()
            self.ranks.told(lambda: self.folder.keep(self.history.step, state), tell=False)

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
