"""One run: a model trained by one strategy until its budget is used up, measured on the way."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import bptt
from bptt.analysis.race.setting import Budget, Setting
from bptt.strategies import says

POINTS = 25
"""Validations of a run, evenly over its budget, besides the one before training."""


@dataclass(frozen=True)
class Point:
    """A validation: updates, time steps and seconds of training so far; mean loss; the model's parameter if it has one.

    training: the mean loss of the updates since the point before, None at the start.
    """

    updates: int
    steps: int
    seconds: float
    loss: float
    training: float | None
    parameter: float | None


@dataclass
class Run:
    """What a run gave.

    windows: steps differentiated in an update -> how many updates. forward_steps: all that were run, replays included.
    decisions: of an adaptive strategy, (update, K) whenever K changed. diverged: how, or None.
    """

    strategy: str
    seed: int
    points: list[Point] = field(default_factory=list)
    windows: dict[int, int] = field(default_factory=Counter)
    decisions: list[tuple[int, int]] = field(default_factory=list)
    updates: int = 0
    steps: int = 0
    seconds: float = 0.0
    forward_steps: int = 0
    memory_bytes: int = 0
    diverged: str | None = None

    @property
    def last(self) -> Point:
        """The last validation, whose loss is a number."""
        return self.points[-1]


class Diverged(Exception):
    """A loss, gradient or parameter that leads nowhere any more; the message says which."""


@dataclass(eq=False)
class Runner:
    """Trains `strategy`, whose name in the race is `name`, from the first weights and the data of `seed`.

    show: called after each update with the part of the budget that is used up, and the run so far.
    stopping: asked after each update.
    """

    setting: Setting
    name: str
    strategy: Any
    seed: int
    budget: Budget
    show: Callable[[float, Run], object]
    stopping: Callable[[], bool]

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = self.setting.build()
        self.optimizer = self.setting.optimizer(self.model.parameters())
        self.run = Run(self.name, self.seed)
        self._losses: list[float] = []

    def train(self) -> Run | None:
        """The run; None if it was asked to stop before its end. The model is then that of the end."""
        run = self.run
        try:
            self._validate()
            began = time.perf_counter()
            for update in self._updates():
                self._step(update)
                run.seconds += time.perf_counter() - began
                fraction = self.budget.fraction(run.steps, run.seconds)
                self.show(fraction, run)
                if fraction * POINTS >= len(run.points):
                    self._validate()
                if self.stopping():
                    return None
                if fraction >= 1:
                    break
                began = time.perf_counter()
            if run.last.updates < run.updates:
                self._validate()
        except (Diverged, bptt.NonFiniteLossError) as error:
            run.diverged = f"after {run.steps:,} steps and {run.updates:,} updates: {str(error).rstrip('.')}"
        return run

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the model's, as they are now."""
        return {name: t.detach().to(copy=True).contiguous() for name, t in self.model.state_dict().items()}

    def _updates(self) -> Iterator[Any]:
        """Those of the stream, or of one sequence after another for a strategy that takes sequences."""
        setting = self.setting
        if not says(self.strategy, "sequences"):
            stream = limited(setting, self.seed, self.budget.steps)
            yield from unroll(setting, self.model, _until(stream, self.stopping), self.strategy, self.seed)
            return
        for chunk in setting.sequences(self.seed):
            yield from unroll(setting, self.model, [chunk], self.strategy, self.seed)
            if self.budget.steps is not None and self.run.steps + setting.steps(chunk) > self.budget.steps:
                return

    def _step(self, update: Any) -> None:
        run, setting = self.run, self.setting
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), setting.clip or math.inf).item()
        if not math.isfinite(norm):
            raise Diverged(f"a gradient is not finite (norm {norm})")
        self.optimizer.step()
        self.optimizer.zero_grad()
        run.updates += 1
        run.steps += update.steps
        run.forward_steps += update.forward_steps
        run.memory_bytes = max(run.memory_bytes, update.memory_bytes)
        run.windows[update.t1 - update.start] += 1
        decision = update.decision
        if decision is not None and (not run.decisions or run.decisions[-1][1] != decision.k):
            run.decisions.append((run.updates, decision.k))
        self._losses.append(update.mean_loss.item())
        value = self._parameter()
        if setting.lost is not None and value is not None and abs(value) > setting.lost:
            self._validate()
            raise Diverged(f"{setting.parameter} is {value:.4g}, beyond {setting.lost:g}")

    def _parameter(self) -> float | None:
        if self.setting.parameter is None:
            return None
        return next(self.model.parameters()).item()

    def _validate(self) -> None:
        loss = validation_loss(self.setting, self.model)
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss is not finite ({loss})")
        run, losses = self.run, self._losses
        training = sum(losses) / len(losses) if losses else None
        run.points.append(Point(run.updates, run.steps, run.seconds, loss, training, self._parameter()))
        self._losses = []


def unroll(setting: Setting, model: Any, stream: Any, strategy: Any, seed: int) -> Iterator[Any]:
    """The updates of `model` on a stream that begins at the start state."""
    return bptt.unroll(
        model,
        setting.loss,
        stream,
        strategy=strategy,
        memory=setting.memory,
        reduction=setting.reduction,
        generator=torch.Generator().manual_seed(seed),
        **setting.begin,
    )


def validation_loss(setting: Setting, model: Any) -> float:
    """Mean loss of a valid step of the held-out data, in evaluation mode where the model has one."""
    training = getattr(model, "training", False)
    try:
        model.eval()
        return bptt.evaluate(model, setting.loss, setting.validation, **setting.begin).mean_loss.item()
    finally:
        model.train(training)


def limited(setting: Setting, seed: int, steps: int | None) -> Iterator[bptt.Chunk]:
    """The first so many steps of the training data."""
    left = math.inf if steps is None else steps
    for chunk in setting.stream(seed):
        count = setting.steps(chunk)
        if count >= left:
            yield setting.first(chunk, int(left))
            return
        left -= count
        yield chunk


def first_of(setting: Setting, strategy: Any, budget: Budget) -> Iterator[bptt.Chunk]:
    """What an update of a strategy is tried on: a sequence, or the stream as far as the budget goes."""
    if says(strategy, "sequences"):
        return itertools.islice(setting.sequences(0), 1)  # full reads a stream to its end
    return limited(setting, 0, budget.steps)


def _until(stream: Iterator[bptt.Chunk], stopping: Callable[[], bool]) -> Iterator[bptt.Chunk]:
    """The stream up to where `stopping` says so, one chunk at the least: what was read then is the last window."""
    for chunk in stream:
        yield chunk
        if stopping():
            return
