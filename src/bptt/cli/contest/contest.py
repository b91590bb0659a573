"""The comparison itself: every run and every gradient, those that the folder holds taken from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

import bptt
from bptt.analysis import number
from bptt.cli.contest.config import Budget, CompareConfig
from bptt.cli.contest.folder import ContestFolder
from bptt.cli.contest.gradients import WHEN, measure
from bptt.cli.contest.progress import Bars
from bptt.cli.contest.runner import Run, Runner
from bptt.cli.contest.settings import Setting
from bptt.cli.interrupt import Interrupt
from bptt.cli.printing import duration
from bptt.cli.strategies import labelled


class Stopped(Exception):
    """Ctrl-C, or another wish to end, was answered; what was finished is kept."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Everything that is told of.

    config: resolved. strategies: by name. runs: by strategy, one a seed. gradients: by WHEN and strategy; a missing one
    could not be measured. reference: the run whose weights "end" is, None if all diverged, or if the optimum is known.
    """

    config: CompareConfig
    setting: Setting
    budget: Budget
    strategies: dict[str, Any]
    runs: dict[str, list[Run]]
    gradients: dict[str, dict[str, dict[str, Any]]]
    reference: Run | None

    @property
    def names(self) -> list[str]:
        """The strategies, as they were given."""
        return list(self.runs)

    def label(self, name: str) -> str:
        """A strategy as it is shown."""
        return labelled(name, self.strategies[name])


@dataclasses.dataclass(frozen=True)
class Contest:
    """A comparison, a part at a time; each is kept as soon as it is finished."""

    config: CompareConfig
    setting: Setting
    strategies: dict[str, Any]
    budget: Budget
    folder: ContestFolder
    interrupt: Interrupt

    @property
    def total(self) -> int:
        """Runs, the finished ones too."""
        return len(self.strategies) * (self.config.seeds or 1)

    @property
    def parts(self) -> int:
        """Runs and measurements, the finished ones too."""
        return self.total + len(WHEN) * len(self.strategies)

    def kept(self) -> int:
        """How many runs the folder holds."""
        return sum(self.folder.run(*each) is not None for each in self._each())

    def run(self, bars: Bars) -> Found:
        """All of it. Raises Stopped; UserError."""
        runs: dict[str, list[Run]] = {name: [] for name in self.strategies}
        for name, seed in self._each():
            runs[name].append(self._run(name, seed, bars))
            bars.finish()
        whole = [run for each in runs.values() for run in each if run.diverged is None]
        if self.setting.optimum is not None:  # there the exact gradient vanishes, and nothing is relative to it
            whole = []
        reference = min(whole, key=lambda run: run.last.loss, default=None)
        gradients = {when: self._gradients(when, reference, bars) for when in WHEN}
        return Found(self.config, self.setting, self.budget, self.strategies, runs, gradients, reference)

    def _each(self) -> Iterator[tuple[str, int]]:
        """Strategies of one seed after the other: what is finished can be compared at any time."""
        return ((name, seed) for seed in range(self.config.seeds or 1) for name in self.strategies)

    def _run(self, name: str, seed: int, bars: Bars) -> Run:
        if (kept := self.folder.run(name, seed)) is not None:
            return kept
        bars.begin(f"{name}, seed {seed}")
        strategy, config = self.strategies[name], self.config
        how = (config.lr or 0.0, config.clip or 0.0, config.memory)
        runner = Runner(self.setting, name, strategy, seed, self.budget, *how, bars.move, lambda: self.interrupt.asked)
        run = runner.train()
        if run is None:
            raise Stopped
        self.folder.keep_run(run, runner.model)
        bars.say(self._line(run))
        return run

    def _line(self, run: Run) -> str:
        loss = f"loss {number(run.last.loss):<8}" if run.points else ""
        parameter = f"{self.setting.parameter} {number(run.last.parameter or 0.0):<8}" if self.setting.parameter else ""
        ended = f"diverged {run.diverged}" if run.diverged else f"{run.updates:>6,} updates  {duration(run.seconds)}"
        return f"{run.strategy:<14} seed {run.seed}  {loss if not run.diverged else ''}{parameter}  {ended}"

    def _gradients(self, when: str, reference: Run | None, bars: Bars) -> dict[str, dict[str, Any]]:
        if when == "end" and reference is None:
            return {}
        found = {}
        for name, strategy in self.strategies.items():
            if self.interrupt.asked:
                raise Stopped
            known = self.folder.gradient(name, when)
            if known is None:
                bars.begin(f"gradient, {when}: {name}")
                known = self._measure(strategy, reference if when == "end" else None)
                self.folder.keep_gradient(name, when, known)
            if known:
                found[name] = known
            bars.finish()
        return found

    def _measure(self, strategy: Any, reference: Run | None) -> dict[str, Any]:
        """Nothing, where a loss is not finite."""
        torch.manual_seed(0)
        model = self.setting.build()
        if reference is not None:
            self.folder.load_weights(reference, model)
        try:
            return measure(self.setting, model, strategy, self.config.draws or 3, self.config.memory)
        except bptt.NonFiniteLossError:
            return {}
