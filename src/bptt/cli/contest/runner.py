"""One run: a model trained by one strategy until its budget is used up, measured on the way."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

import bptt
from bptt.cli.contest.config import Budget
from bptt.cli.contest.settings import Setting
from bptt.cli.printing import UserError, user_errors
from bptt.cli.room import FLOAT, must_have_room
from bptt.strategies import says

STEPS_MOST = 10_000_000
"""Steps of a window that any budget of memory makes an update of within hours."""
POINTS = 25
"""Validations of a run, evenly over its budget, besides the one before training."""


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass
class Run:
    """What a run gave.

    windows: steps differentiated in an update -> how many updates. forward_steps: all that were run, replays included.
    decisions: of an adaptive strategy, (update, K) whenever K changed. diverged: how, or None.
    """

    strategy: str
    seed: int
    points: list[Point] = dataclasses.field(default_factory=list)
    windows: Counter[int] = dataclasses.field(default_factory=Counter)
    decisions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
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


@dataclasses.dataclass(eq=False)
class Runner:
    """Trains `strategy` of `setting` from the first weights and the data of `seed`.

    Arguments:
        show: called after each update with the part of the budget that is used up, and the run so far.
        stopping: asked after each update.
    """

    setting: Setting
    name: str
    strategy: Any
    seed: int
    budget: Budget
    lr: float
    clip: float
    memory: str | None
    show: Callable[[float, Run], object]
    stopping: Callable[[], bool]

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = self.setting.build()
        self.optimizer: Any = self.setting.optimizer(self.model.parameters(), lr=self.lr)  # pyright: ignore[reportCallIssue]
        self.run = Run(self.name, self.seed)
        self._losses: list[float] = []

    def train(self) -> Run | None:
        """The run; None if it was asked to stop before its end. The model is then that of the end.

        Raises: UserError for what the library refuses.
        """
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

    def _updates(self) -> Iterator[Any]:
        """Those of the stream, or of one sequence after another for a strategy that takes sequences."""
        setting = self.setting
        if not says(self.strategy, "sequences"):
            stream = _limited(setting.stream(self.seed), self.budget.steps)
            yield from self._unroll(_until(stream, self.stopping))
            return
        for chunk in setting.sequences(self.seed):
            yield from self._unroll([chunk])
            if self.budget.steps is not None and self.run.steps + setting.sequence > self.budget.steps:
                return

    def _unroll(self, stream: Any) -> Iterator[Any]:
        with user_errors():
            yield from unroll(self.setting, self.model, stream, self.strategy, self.memory, self.seed)

    def _step(self, update: Any) -> None:
        run, setting = self.run, self.setting
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf).item()
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


def unroll(setting: Setting, model: Any, stream: Any, strategy: Any, memory: str | None, seed: int) -> Iterator[Any]:
    """The updates of `model` on a stream that begins at the start state."""
    return bptt.unroll(
        model,
        setting.loss,
        stream,
        strategy=strategy,
        memory=memory,
        initial_state=setting.start(model, setting.rows),
        state_batch_dim=setting.state_batch_dim,
        reduction=setting.reduction,
        generator=torch.Generator().manual_seed(seed),
    )


def validation_loss(setting: Setting, model: Any) -> float:
    """Mean loss of a valid step of the held-out data."""
    begin = setting.begin(model, setting.validation[0].inputs)
    return bptt.evaluate(model, setting.loss, setting.validation, **begin).mean_loss.item()


def must_fit(setting: Setting, strategies: dict[str, Any], budget: Budget, memory: str | None) -> None:
    """Make an update by each strategy, thrown away.

    Raises: UserError for a budget of steps or memory that is too little, with the least that isn't.
    """
    whole = next((name for name, strategy in strategies.items() if says(strategy, "sequences")), None)
    if whole and budget.steps is not None and budget.steps < setting.sequence:
        raise UserError(
            f"--budget {budget.steps}: {whole} needs at least the {setting.sequence} steps of a sequence. Give that or "
            f"more, or leave {whole} out of --strategies"
        )
    for name, strategy in strategies.items():
        _ends(setting, name, strategy, budget, memory)
    torch.manual_seed(0)
    try:
        model = setting.build()
    except (RuntimeError, MemoryError, TypeError, OverflowError):  # torch has no error of its own for too large a size
        raise UserError("no memory for a model of this size. Give a smaller --hidden") from None
    least: dict[str, int] = {}
    for name, strategy in strategies.items():
        stream = itertools.islice(setting.sequences(0), 1)  # full reads a stream to its end
        if not says(strategy, "sequences"):
            stream = _limited(setting.stream(0), budget.steps)
        with user_errors():
            try:
                next(unroll(setting, copy.deepcopy(model), stream, strategy, memory, seed=0))
            except bptt.BudgetError as error:
                least[name] = error.least
    if not least:
        return
    if len(least) == len(strategies):
        name = min(least, key=least.__getitem__)
        raise UserError(f"--memory {memory}: no strategy fits. The least that would is {least[name]}B, for {name}")
    needs = ", ".join(f"{name} (the least is {count}B)" for name, count in least.items())
    raise UserError(f"--memory {memory}: too little for {needs}. Give more, or leave these out of --strategies")


def _ends(setting: Setting, name: str, strategy: Any, budget: Budget, memory: str | None) -> None:
    """Raise UserError for windows that a run's budget, its data or memory has no room for: no update comes of them."""
    whole = says(strategy, "sequences")
    steps = 0 if whole else says(strategy, "reach") or 0
    for most, of in ((budget.steps, f"--budget {budget.steps}"), (setting.whole, "one pass through the text")):
        if most is not None and steps > most and says(strategy, "lengths_known"):
            raise UserError(
                f"--strategies {name}: windows of {steps:,.0f} steps, but {of} has only {most:,}; give that or less"
            )
    if memory is None:
        steps = setting.sequence if whole else steps
        what = f"a window of {steps:,.0f} steps"
        must_have_room(FLOAT * steps * setting.kept, f"--strategies {name}", what, "Give --memory, or smaller sizes")
    elif steps > STEPS_MOST:
        raise UserError(f"--strategies {name}: windows of {steps:,.0f} steps; give {STEPS_MOST:,} or less")


def _limited(stream: Iterator[bptt.Chunk], steps: int | None) -> Iterator[bptt.Chunk]:
    """The first so many steps of a stream."""
    left = math.inf if steps is None else steps
    for chunk in stream:
        if len(chunk.inputs) >= left:
            yield bptt.Chunk(*(None if value is None else value[: int(left)] for value in chunk))
            return
        left -= len(chunk.inputs)
        yield chunk


def _until(stream: Iterator[bptt.Chunk], stopping: Callable[[], bool]) -> Iterator[bptt.Chunk]:
    """The stream up to where `stopping` says so, one chunk at the least: what was read then is the last window."""
    for chunk in stream:
        yield chunk
        if stopping():
            return
