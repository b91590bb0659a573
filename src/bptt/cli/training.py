"""The training loop: updates, validation with carried state, weights saved, and every way a run can end."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

import bptt
from bptt.cli.folder import RunFolder
from bptt.cli.history import History, Validation
from bptt.cli.interrupt import Interrupt
from bptt.cli.jobs.job import Job
from bptt.cli.jobs.own import said
from bptt.cli.printing import UserError, brief, fields, no_memory, quantity, user_errors
from bptt.cli.progress import Display
from bptt.cli.reading import Read, Reading, Stopping
from bptt.cli.resuming import noise, set_noise, versions
from bptt.cli.train_config import TrainConfig

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


@dataclasses.dataclass(eq=False)
class Training:
    """One run.

    Arguments:
        job: its model on the device to train on.
    """

    config: TrainConfig
    reading: Reading
    job: Job
    device: torch.device
    folder: RunFolder

    def __post_init__(self) -> None:
        config, self.model = self.config, self.job.model
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.history = History(config.clip, self.job.measure)
        self.optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.lr)  # pyright: ignore[reportCallIssue]
        self.saved_step: int | None = None
        self._validated, self._before, self.began = 0, 0.0, 0.0
        self._loaded: dict[str, Any] = {}
        self._updates: Any = None
        self._in_a_row = 0

    def state(self) -> dict[str, Any]:
        """All that the run needs to go on after its last update; its records are in the metrics."""
        stream, run = self._loaded.get("stream"), self._loaded.get("run")
        if self._updates is not None:
            stream, run = (
                (self._read.state_dict(), None) if self.reading.sequences else (None, self._updates.state_dict())
            )
        return {
            "config": self.config.recorded(),
            "data": self.job.source.digest,
            "code": self.job.code,
            "versions": versions(),
            "seconds": self.seconds(),
            "validated": self._validated,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": noise(self.device),
            "stream": stream,
            "run": run,
        }

    def load(self, state: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Go on from there, before `run`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_noise(state["noise"], self.device)
        self.history.restore(records)
        self._validated, self._before, self._loaded = state["validated"], state["seconds"], state
        points = self.history.validations
        if points:
            self.saved_step = points[-1].step if self._best() is None else self._best()
        if points and points[-1].step == self.history.step:  # the run may have been killed before it had written them
            self._save()

    def begin(self) -> None:
        """Make the folder that of this run, with a checkpoint of its start."""
        self.folder.publish(self.config, self.job, 0, self.state())

    def run(self, display: Display, interrupt: Interrupt) -> None:
        """Train until the end that the configuration sets, or Ctrl-C; validate and save on the way and at the end.

        Raises: NonFinite; UserError for what the library refuses.
        """
        self.began = saved = time.monotonic()
        self._say = display.say
        updates = self._stream(interrupt)
        due = int(self._fraction() * self.job.validations)
        self._validated = min(self._validated, due)  # the run may have been lengthened
        self._validate_if_due(display, interrupt)  # one that the run before was stopped at
        while self._fraction() < 1 and not interrupt.asked:
            before = time.monotonic()
            update = next(updates, None)
            if update is None:
                break
            try:
                record, read = self._step(update)
            except NonFinite as error:
                self._leave_out(error)
                continue
            self._in_a_row = 0
            display.show(self._fraction(), self.history.numbers(record, read, time.monotonic() - before))
            if self._fraction() < 1 and not interrupt.asked:
                self._validate_if_due(display, interrupt)
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                self._keep()
        if not interrupt.asked and self._validated < self.job.validations:
            self._validate(display, interrupt, self.job.validations)
        if interrupt.asked:
            self._save()

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
            "initial_state": self.job.start(self.job.source.rows),
            "generator": torch.Generator().manual_seed(self.config.seed),
        }
        length, epochs = self.reading.chunk_length, self.config.epochs
        self._read = Read(self.job.source.stream(length, epochs), self.device, lambda: interrupt.asked)
        if self.reading.sequences and self._loaded.get("stream"):
            self._read.load_state_dict(self._loaded["stream"])
        saved = self._loaded.get("run")
        with user_errors():
            for sequence in self._sequences():
                self._updates = bptt.unroll(self.model, self.job.loss, sequence, **options)
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
        policy = self.config.non_finite
        if policy == "stop" or self._in_a_row >= IN_A_ROW or (policy == "back" and not self.folder.published):
            raise error
        self._in_a_row += 1
        self.optimizer.zero_grad()
        told = "left out"
        if policy == "back":
            found = self.folder.saved()
            self.model.load_state_dict(found.state["model"])
            self.optimizer.load_state_dict(found.state["optimizer"])
            told = f"left out, weights and optimizer as they were after update {found.step:,}"
        history = self.history
        record = {"kind": "left_out", "step": history.step, history.measure.key: history.total, "reason": str(error)}
        self.folder.log({**record, "elapsed": round(self.seconds(), 3)})
        history.left_out += 1
        self._say(f"update {history.step + 1:>5,}  {str(error).rstrip('.')}: {told}")

    def _next(self) -> Any:
        try:
            return next(self._updates, None)
        except Stopping:
            return None
        except bptt.NonFiniteError as error:
            raise NonFinite(str(error)) from error
        except (UserError, bptt.BudgetError):
            raise
        except Exception as error:  # whatever the user's model stumbles over
            if not self.job.code or no_memory(error):
                raise
            told = f"{self.job.name}: failed at update {self.history.step + 1:,} ({said(error)})"
            raise UserError(told, 1 if self.history.step else 2) from error

    def _step(self, update: Any) -> tuple[dict[str, Any], int]:
        config, history = self.config, self.history
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        # One transfer for all three, so that an accelerator is waited for once.
        mean_loss, grad_norm, cotangent_norm = torch.stack(
            [value.float() for value in (update.mean_loss, norm, update.cotangent_norm)]
        ).tolist()
        if not math.isfinite(grad_norm):
            raise NonFinite(f"the gradient of steps {update.t0} to {update.t1 - 1} is not finite (norm {grad_norm})")
        self.optimizer.step()
        self.optimizer.zero_grad()
        read = update.steps * self.job.source.rows
        record = history.update(update, read, mean_loss, grad_norm, cotangent_norm)
        self.folder.log({**record, "elapsed": round(self.seconds(), 3)})
        return record, read

    def _fraction(self) -> float:
        """How much of the run is done, 1 at its end."""
        config, history, source = self.config, self.history, self.job.source
        if config.minutes is not None:
            return min(1.0, self.seconds() / (60 * config.minutes))
        if config.epochs is not None:
            return history.total / (config.epochs * source.steps * source.rows)
        return history.step / config.steps if config.steps else 0.0

    def _validate(self, display: Display, interrupt: Interrupt, number: int) -> None:
        """Measure what is held out with the state carried through each of its lanes, and save the weights."""
        history, held_out = self.history, self.job.source.held_out()
        if held_out is not None:
            loss = self._held_out_loss(Read(held_out, self.device, lambda: interrupt.asked))
            if loss is None:
                return
            point = Validation(history.step, history.total, loss, self.seconds())
            history.validations.append(point)
            record = {"kind": "valid", "step": point.step, history.measure.key: point.read}
            record |= history.measure.record(loss)
            self.folder.log({**record, "elapsed": round(point.seconds, 3)})
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
        rows = self.job.source.held_out_rows
        mode = self.model.training
        try:
            result = bptt.evaluate(self.model.eval(), self.job.loss, read, initial_state=self.job.start(rows))
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
        step, kept = self.history.step, self._best()
        self.folder.save(self.config, self.job, step, self.state(), weights=kept in (None, step))
        self.saved_step = step if kept is None else kept

    def _best(self) -> int | None:
        """The update whose weights stay, where those of the lowest validation do; None for the last ones."""
        points = self.history.validations if self.job.keeps_best else []
        return min(points, key=lambda point: point.loss).step if points else None

    def _keep(self) -> None:
        """A checkpoint alone; none of weights that aren't finite, which the next loss will tell of."""
        if self.folder.published and self._finite():
            self.folder.keep(self.history.step, self.state())

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
