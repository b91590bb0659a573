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
from bptt.cli.model import CharModel, loss
from bptt.cli.printing import bits, brief, fields, quantity, user_errors
from bptt.cli.progress import Display
from bptt.cli.reading import Reading, until
from bptt.cli.train_config import TrainConfig
from bptt.data import Vocabulary, chunks, continuous

VALIDATIONS = 8
VALIDATION_CHUNK = 256
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
        lanes, validation: lanes (T, B) of ids, on the CPU.
        model: on the device to train on.
    """

    config: TrainConfig
    reading: Reading
    model: CharModel
    vocabulary: Vocabulary
    lanes: torch.Tensor
    validation: torch.Tensor
    folder: RunFolder

    def __post_init__(self) -> None:
        config, parameters = self.config, self.model.parameters()
        self.history = History(config.clip)
        self.device = self.model.decoder.weight.device
        self.optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.lr)  # pyright: ignore[reportCallIssue]
        self.saved_step: int | None = None

    def run(self, display: Display, interrupt: Interrupt) -> None:
        """Train until the end that the configuration sets, or Ctrl-C; validate and save on the way and at the end.

        Raises: NonFinite; UserError for what the library refuses.
        """
        self.began = time.monotonic()
        done = 0
        before = self.began
        for update in self._updates(interrupt):
            record, chars = self._step(update)
            now = time.monotonic()
            display.show(self._fraction(), self.history.numbers(record, chars, now - before))
            if self._fraction() >= 1 or interrupt.asked:
                break
            if int(self._fraction() * VALIDATIONS) > done:
                done = int(self._fraction() * VALIDATIONS)
                self._validate(display, interrupt)
                if interrupt.asked:
                    break
            before = time.monotonic()
        if not interrupt.asked:
            self._validate(display, interrupt)
        if interrupt.asked:
            self._save()

    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self.began

    def _updates(self, interrupt: Interrupt) -> Iterator[Any]:
        """The updates of the run; every chunk of `--strategy full` is a sequence of its own.

        The stream ends at Ctrl-C, so that a window which is still being read becomes the last update.
        """
        options: dict[str, Any] = {
            "strategy": self.reading.strategy,
            "memory": self.config.memory,
            "initial_state": self.model.initial_state(self.lanes.shape[1]),
            "generator": torch.Generator().manual_seed(self.config.seed),
        }
        endless = chunks(self.lanes, self.reading.chunk_length, self.config.epochs)
        stream = self._on_device(until(continuous(endless), lambda: interrupt.asked))
        # A sequence starts from the initial state as it is; marking that as a reset would cut its last cotangent off.
        sequences = ([chunk._replace(is_start=None)] for chunk in stream) if self.reading.sequences else [stream]
        with user_errors():
            for sequence in sequences:
                updates = bptt.unroll(self.model, loss, sequence, **options)
                while (update := self._next(updates)) is not None:
                    yield update

    def _next(self, updates: Iterator[Any]) -> Any:
        try:
            return next(updates, None)
        except bptt.NonFiniteLossError as error:
            raise NonFinite(str(error)) from error

    def _on_device(self, stream: Iterator[bptt.Chunk]) -> Iterator[bptt.Chunk]:
        for chunk in stream:
            yield bptt.Chunk(*(None if t is None else t.to(self.device, non_blocking=True) for t in chunk))

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
        chars = update.steps * self.lanes.shape[1]
        record = history.update(update, chars, mean_loss, grad_norm, cotangent_norm)
        self.folder.log({**record, "elapsed": round(self.seconds(), 3)})
        return record, chars

    def _fraction(self) -> float:
        """How much of the run is done, 1 at its end."""
        config, history = self.config, self.history
        if config.minutes is not None:
            return min(1.0, self.seconds() / (60 * config.minutes))
        if config.epochs is not None:
            return history.total_chars / (config.epochs * (len(self.lanes) - 1) * self.lanes.shape[1])
        return history.step / config.steps if config.steps else 0.0

    def _validate(self, display: Display, interrupt: Interrupt) -> None:
        """Measure the validation text with the state carried through each of its lanes, and save the weights."""

        def stream() -> Iterator[bptt.Chunk]:
            for chunk in self._on_device(chunks(self.validation, VALIDATION_CHUNK)):
                if interrupt.asked:
                    raise KeyboardInterrupt
                yield chunk

        try:
            result = bptt.evaluate(
                self.model, loss, stream(), initial_state=self.model.initial_state(self.validation.shape[1])
            )
        except KeyboardInterrupt:
            if not interrupt.asked:  # the second Ctrl-C
                raise
            return
        except bptt.NonFiniteLossError as error:
            raise NonFinite(f"in validation, {error}") from error
        history = self.history
        point = Validation(history.step, history.total_chars, result.mean_loss.item(), self.seconds())
        if not math.isfinite(point.loss):
            raise NonFinite(f"the validation loss is not finite ({point.loss})")
        history.validations.append(point)
        record = {"kind": "valid", "step": point.step, "chars": point.chars, "loss": point.loss, "bpc": point.bpc}
        self.folder.log({**record, "elapsed": round(point.seconds, 3)})
        self._save()
        shown = [
            f"update {point.step:>5,}",
            f"validation {bits(point.bpc)} bits/char",
            f"training {bits(history.recent_bpc())}",
            f"{quantity(point.chars)} chars",
            brief(point.seconds),
        ]
        display.say(fields(shown, display.width), fit=False)

    def _save(self) -> None:
        if not self.folder.save_weights(self.model, self.config, self.vocabulary):
            raise NonFinite("a weight is not finite")
        self.saved_step = self.history.step
