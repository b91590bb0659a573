"""The race itself: every run and every gradient, those that were kept taken from there."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bptt
from bptt.analysis.plain import label
from bptt.analysis.race.jobs import Make, side_by_side
from bptt.analysis.race.kept import MISSING, Folder, Store, keep_gradient, keep_run, kept_gradient, kept_run, run_part
from bptt.analysis.race.result import WHEN, Race
from bptt.analysis.race.runner import Run, Runner, first_of, unroll, validation_loss
from bptt.analysis.race.setting import Budget, Setting
from bptt.strategies import says

HELD_OUT = 10**9
"""Seed of the data that nothing is trained on."""


class Stopped(Exception):
    """A wish to end was answered; what was finished is kept."""


class Watch:
    """What a race tells while it runs, and what it asks: nothing of it matters for the results."""

    def begin(self, what: str) -> None:
        """A run or a measurement begins."""

    def move(self, fraction: float, run: Run) -> None:
        """An update was made; so much of the run's budget is used up."""

    def ran(self, run: Run) -> None:
        """A run is finished."""

    def several(self, done: int, most: int) -> None:
        """Of the runs that are made side by side, so many are done."""

    def finish(self) -> None:
        """A run or a measurement is finished, or was kept."""

    def asked(self) -> bool:
        """Whether to stop after this update."""
        return False


@dataclass(frozen=True)
class Contest:
    """A race, a part at a time; each is kept as soon as it is finished. strategies: by the names they are shown by."""

    setting: Setting
    strategies: dict[str, Any]
    budget: Budget
    seeds: int
    store: Store
    watch: Watch = field(default_factory=Watch)

    def each(self) -> Iterator[tuple[str, int]]:
        """Strategies of one seed after the other: what is finished can be compared at any time."""
        return ((name, seed) for seed in range(self.seeds) for name in self.strategies)

    def kept(self) -> int:
        """How many runs are kept."""
        return sum(kept_run(self.store, *each) is not None for each in self.each())

    def run(self) -> Race:
        """All of it. Raises Stopped."""
        runs: dict[str, list[Run]] = {name: [] for name in self.strategies}
        for name, seed in self.each():
            runs[name].append(self.one(name, seed))
            self.watch.finish()
        whole = [run for each in runs.values() for run in each if run.diverged is None]
        if self.setting.optimum is not None:  # there the exact gradient vanishes, and nothing is relative to it
            whole = []
        reference = min(whole, key=lambda run: run.last.loss, default=None)
        setting = self.setting
        return Race(
            title=setting.title,
            facts=setting.facts,
            budget=self.budget,
            unit=setting.unit,
            rows=setting.rows(next(iter(setting.stream(0)))),
            steps=setting.steps(setting.measured),
            draws=setting.draws,
            marks=setting.marks,
            parameter=setting.parameter,
            optimum=setting.optimum,
            strategies=self.strategies,
            runs={name: tuple(each) for name, each in runs.items()},
            gradients={when: self._gradients(when, reference) for when in WHEN},
            reference=reference and (reference.strategy, reference.seed),
        )

    def side_by_side(self, make: Make, jobs: int, preload: tuple[str, ...] = ()) -> None:
        """Make the runs that aren't kept, so many at once in processes of their own, and keep each when it is finished.

        make: what gives setting, strategies and budget there. Raises: Stopped; KilledError.
        """
        missing = [each for each in self.each() if kept_run(self.store, *each) is None]
        self.watch.begin(f"{jobs} runs at once")
        for done, found in enumerate(side_by_side(make, jobs, missing, self.watch.asked, preload), 1):
            if found is None:
                raise Stopped
            run, weights = found
            keep_run(self.store, run, weights)
            self.watch.ran(run)
            self.watch.several(done, len(missing))

    def one(self, name: str, seed: int) -> Run:
        """One run, made or kept."""
        if (kept := kept_run(self.store, name, seed)) is not None:
            return kept
        self.watch.begin(f"{name}, seed {seed}")
        runner = Runner(self.setting, name, self.strategies[name], seed, self.budget, self.watch.move, self.watch.asked)
        run = runner.train()
        if run is None:
            raise Stopped
        keep_run(self.store, run, runner.weights())
        self.watch.ran(run)
        return run

    def _gradients(self, when: str, reference: Run | None) -> dict[str, bptt.Comparison]:
        if when == "end" and reference is None:
            return {}
        found = {}
        for name, strategy in self.strategies.items():
            if self.watch.asked():
                raise Stopped
            known = kept_gradient(self.store, name, when, strategy)
            if known is MISSING:
                self.watch.begin(f"gradient, {when}: {name}")
                known = self._measure(strategy, reference if when == "end" else None)
                keep_gradient(self.store, name, when, known)
            if known:
                found[name] = known
            self.watch.finish()
        return found

    def _measure(self, strategy: Any, reference: Run | None) -> bptt.Comparison | None:
        """At the first weights of seed 0, or those of a run's end; None where a loss is not finite."""
        setting = self.setting
        torch.manual_seed(0)
        model = setting.build()
        if reference is not None:
            self.store.load_weights(run_part(reference.strategy, reference.seed), model)
        try:
            return bptt.compare(
                model,
                setting.loss,
                setting.measured,
                strategies=[strategy],
                draws=setting.draws,
                memory=setting.memory,
                generator=torch.Generator().manual_seed(0),
                **setting.begin,
            )
        except bptt.NonFiniteLossError:
            return None


def must_fit(setting: Setting, strategies: dict[str, Any], budget: Budget) -> None:
    """Make an update by each strategy, thrown away.

    Raises: ValueError for a budget of steps that is too small; BudgetError for one of memory, with the least that isn't
        and the strategy that takes it.
    """
    torch.manual_seed(0)
    model, least = setting.build(), {}
    for name, strategy in strategies.items():
        steps = setting.steps(next(iter(setting.sequences(0)))) if says(strategy, "sequences") else 0
        if budget.steps is not None and budget.steps < steps:
            raise ValueError(
                f"budget={budget.steps}: {name} needs at least the {steps} steps of a sequence. Give that or more, or "
                f"leave it out of strategies."
            )
        try:
            next(unroll(setting, copy.deepcopy(model), first_of(setting, strategy, budget), strategy, seed=0))
        except bptt.BudgetError as error:
            least[name] = error.least
    if not least:
        return
    needs = ", ".join(f"{name} (the least is {count}B)" for name, count in least.items())
    name = min(least, key=least.__getitem__)
    told = f"too little for {needs}. Give more, or leave these out of strategies."
    if len(least) == len(strategies):
        told = f"no strategy fits. The least that would is {least[name]}B, for {name}."
    raise bptt.BudgetError(f"memory={setting.memory!r}: {told}", least[name], strategies[name])


def race(
    build: Callable[[], nn.Module],
    loss: Any,
    stream: Any,
    strategies: Iterable[bptt.Strategy],
    *,
    budget: int | str,
    seeds: int = 1,
    validation: Any = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    clip: float | None = None,
    draws: int = 60,
    memory: Any = None,
    reduction: str = "mean",
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    folder: str | Path | None = None,
) -> Race:
    """Train one's own model by several strategies, from the same start and on equal budgets, and say what each gets.

    For each seed every strategy begins with the same first weights and the same data; every run ends when its budget
    is used up, and is validated 26 times on the way. At the first weights, and at the end of the run with the lowest
    loss, each strategy's gradient of a held-out sequence is compared with the exact one, as `compare` does.

    Arguments:
        build: () -> the model with its first weights, drawn from torch's default generator, which is seeded before.
        loss: as `unroll` takes it.
        stream: seed -> an iterable of chunks; or a list of chunks, the same for each seed. A strategy that needs whole
            sequences, as `FullBPTT` does, takes each chunk for one, from the start state; the others read on.
        strategies: a list of values such as `TruncatedBPTT(20)`.
        budget: of each run: steps of the stream, or training time, as "30s" or "5min". seeds: runs of each strategy.
        validation: held-out chunks, a list or a single one, whose first one is the sequence that gradients are measured
            on; None takes the first chunk of stream(10**9).
        optimizer: parameters -> optimizer; None is Adam with torch's defaults. clip: largest norm of a gradient.
        draws: of a strategy that draws, for bias and variance, >= 3.
        memory, reduction, initial_state, state_batch_dim, time_dim: as in `unroll`.
        folder: keeps every finished run, and what is found there isn't run again: a race that was killed goes on. None
            keeps nothing.

    Returns: a `Race`.
    Raises: ValueError or TypeError for bad arguments, and for a folder that holds another race; BudgetError. A run of
        which something isn't finite any more ends there, which is a result.
    Cost: seeds times strategies times the budget, and of each strategy `draws` gradients of one sequence, twice.

    >>> import bptt, torch
    >>> def build():
    ...     return torch.nn.GRU(1, 4)
    >>> def stream(seed):
    ...     generator = torch.Generator().manual_seed(seed)
    ...     for _ in range(10):
    ...         yield torch.randn(20, 2, 1, generator=generator), torch.zeros(20, 2, 4)
    >>> loss = bptt.per_step(torch.nn.MSELoss())
    >>> found = bptt.race(build, loss, stream, [bptt.FullBPTT(), bptt.TruncatedBPTT(5)], budget=100, draws=3)
    >>> [(row["strategy"], row["updates"]) for row in found.records()]
    [('full', 5), ('tbptt:5', 20)]
    """
    for value, name, least in ((seeds, "seeds", 1), (draws, "draws", 3)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"race({name}={value!r}): must be a whole number of at least {least}.")
    if not callable(build):
        raise TypeError(f"race(build={build!r}): must be a function that returns the model with its first weights.")
    found = _named(strategies)
    read = _stream_of(stream)
    kept = _chunks(validation, read)
    setting = Setting(
        build=build,
        loss=loss,
        stream=read,
        optimizer=optimizer or torch.optim.Adam,
        validation=kept,
        measured=kept[0]._replace(is_start=None),
        begin={"initial_state": initial_state, "state_batch_dim": state_batch_dim, "time_dim": time_dim},
        memory=memory,
        reduction=reduction,
        clip=clip,
        draws=draws,
        title=getattr(build, "__name__", ""),
    )
    with torch.random.fork_rng(devices=[]):
        allowed = Budget.of(budget)
        must_fit(setting, found, allowed)
        store = Folder(None if folder is None else Path(folder))
        _same(store, setting, found, allowed, seeds)
        return Contest(setting, found, allowed, seeds, store).run()


def _named(strategies: Any) -> dict[str, Any]:
    """Strategies by their labels."""
    if isinstance(strategies, str | type) or not isinstance(strategies, Iterable):
        raise TypeError(f"strategies={strategies!r} must be a list of values such as bptt.TruncatedBPTT(k1=20).")
    wanted = list(strategies)
    if not wanted or not all(callable(getattr(each, "windows", None)) for each in wanted):
        raise TypeError(f"strategies={wanted!r} must be a list of values such as bptt.TruncatedBPTT(k1=20).")
    named = {label(each): each for each in wanted}
    if len(named) < len(wanted):
        raise ValueError(f"strategies={wanted!r}: one is listed twice.")
    return named


def _stream_of(stream: Any) -> Callable[[int], Iterator[bptt.Chunk]]:
    """seed -> chunks. Raises TypeError for what can be read once alone."""
    if not callable(stream) and (not isinstance(stream, Iterable) or iter(stream) is stream):
        raise TypeError(
            f"stream is a {type(stream).__name__}, and every run reads its own: pass a function of the seed that "
            f"returns an iterable of chunks, or a list of chunks."
        )
    read: Any = stream if callable(stream) else lambda seed: stream
    return lambda seed: (bptt.Chunk(*_tuple(each)) for each in read(seed))


def _tuple(chunk: Any) -> tuple[Any, ...]:
    if not isinstance(chunk, tuple | list) or not 2 <= len(chunk) <= 4:
        raise TypeError(f"stream gave a {type(chunk).__name__}: a chunk is bptt.Chunk or (inputs, targets).")
    return tuple(chunk)


def _chunks(validation: Any, read: Callable[[int], Iterator[bptt.Chunk]]) -> list[bptt.Chunk]:
    if validation is None:
        validation = list(itertools.islice(read(HELD_OUT), 1))
    whole = [bptt.Chunk(*_tuple(each)) for each in ([validation] if isinstance(validation, tuple) else validation)]
    if not whole:
        raise ValueError("race: validation= is empty, or not given and stream(10**9) gave no chunk: pass one at least.")
    return whole


def _same(store: Folder, setting: Setting, strategies: dict[str, Any], budget: Budget, seeds: int) -> None:
    """Whether what a folder holds is of this race: its options, and the loss of the first weights on held-out data.

    Raises: ValueError naming what differs. seeds may grow: what is there is a part of it.
    """
    torch.manual_seed(0)
    model = setting.build()
    defaults = {k: v for k, v in setting.optimizer(model.parameters()).defaults.items() if not callable(v)}
    wanted = {
        "budget": str(budget),
        "optimizer": repr(defaults),
        "clip": setting.clip,
        "memory": repr(setting.memory),
        "reduction": setting.reduction,
        "draws": setting.draws,
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
        "loss of the first weights": repr(validation_loss(setting, model)),
    }
    held = store.load("race")
    if held is MISSING:
        store.save("race", wanted)
    elif not isinstance(held, dict) or held != wanted:
        name = next((n for n in wanted if not isinstance(held, dict) or held.get(n) != wanted[n]), "version")
        raise ValueError(
            f"folder holds another race, with {name} {held.get(name) if isinstance(held, dict) else None}, not "
            f"{wanted.get(name)}: choose another one."
        )
