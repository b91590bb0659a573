"""Which strategy and budget a problem affords: time and memory of each, predicted from a short probe."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import torch

from bptt import _checkpoint, _errors, _stream, _tree
from bptt._checkpoint import Checkpoints, parse
from bptt._influence import check_carried
from bptt._loss import Loss
from bptt._memory import WindowProbe, cheapest
from bptt._options import Options, checked_strategy
from bptt._recurrence import Recurrence
from bptt._run import Run
from bptt._segment import Span
from bptt._snapshot import untouched
from bptt._stream import Chunk
from bptt._tree import Tree, detach, leaves
from bptt._window_loss import PerWindow, inner
from bptt.analysis.costs import Costs, Shape
from bptt.analysis.numbers import size, took
from bptt.analysis.plain import label
from bptt.analysis.shown import Shown, Table, axes
from bptt.strategies import ARTBP, FullBPTT, Strategy, TruncatedBPTT
from bptt.strategies.base import Draw, says
from bptt.strategies.laws import PolynomialLaw
from bptt.strategies.windows import Window

KINDS = ("exact", "unbiased", "biased")
COLOURS = {"exact": "C0", "unbiased": "C1", "biased": "C2"}
FEW = 4  # kinds of windows with a call that ends inside, each measured: a layer may serve short calls in another way
MARGIN = 1.05  # on what a segment is thought to save, when checkpoints are chosen: lines may bend


@dataclass(frozen=True)
class PlanRow:
    """What one strategy would take under one memory setting, as `plan` predicts it.

    strategy, memory: to hand to `unroll` or `backward`; memory is None, which stores everything, or `Checkpoints`. (The
        budget itself as `memory=` is measured again there, and kept for certain.)
    gradient: "exact", "unbiased" (random weights) or "biased". reach: the mean number of steps that a loss is
        differentiated through, its own included; (steps + 1) / 2 is everything.
    seconds: of all steps, forward and backward. memory_bytes: the most that is held at once, in the sense of
        `Update.memory_bytes`. forward_steps: steps of the recurrence that are run, replays included.
    fits: whether memory_bytes is within the budget.
    """

    strategy: Strategy
    memory: Checkpoints | None
    gradient: str
    reach: float
    seconds: float
    memory_bytes: int
    forward_steps: int
    fits: bool


@dataclass(frozen=True)
class Plan(Shown):
    """What `plan` found; printed, or at the end of a notebook's cell, a table and the verdict.

    steps: T. budget: bytes, or None. rows: one for each strategy that stores everything, and one with checkpoints
        where that is too much.
    """

    steps: int
    budget: int | None
    rows: tuple[PlanRow, ...]

    @cached_property
    def best(self) -> PlanRow:
        """Of the rows that fit the fastest exact one, else the fastest unbiased one, else that of the longest reach."""

        def order(row: PlanRow) -> tuple[int, float, float]:
            return KINDS.index(row.gradient), -row.reach if row.gradient == "biased" else 0, row.seconds

        return min((row for row in self.rows if row.fits), key=order)

    def verdict(self, named: Callable[[Any], str] = label, unit: str = "step") -> str:
        """Which row is the best and why, in a sentence. named: a strategy's text. unit: what a step is."""
        best, memory = self.best, self.best.memory
        kept = "all kept" if memory is None else f"{memory.slots} states kept, segments of {memory.segment} steps"
        what = "least biased" if best.gradient == "biased" else f"fastest {best.gradient}"
        within = "" if self.budget is None else f" that fits {size(self.budget)}"
        return (
            f"{named(best.strategy)}, {kept}, is the {what} gradient{within}: {took(best.seconds)} and "
            f"{size(best.memory_bytes)} for {self.steps:,} {unit}s."
        )

    def table(self, named: Callable[[Any], str] = label) -> Table:
        """A line for each row. named: a strategy's text.

        `kept` is all that the backward pass needs, or so many states x segments of steps that run again; `reach` the
        mean number of steps that a loss is differentiated through, its own included.
        """
        rows = [
            (
                named(row.strategy),
                "all" if row.memory is None else f"{row.memory.slots} x {row.memory.segment}",
                row.gradient,
                f"{row.reach:,.0f}",
                took(row.seconds),
                size(row.memory_bytes),
                "best" if row is self.best else "" if row.fits else "too much",
            )
            for row in self.rows
        ]
        return Table(("strategy", "kept", "gradient", "reach", "time", "memory", ""), rows, words=3)

    def records(self) -> list[dict[str, Any]]:
        """One for each row; slots and segment are those of its checkpoints, None where everything is stored."""
        return [
            {
                "strategy": label(row.strategy),
                "slots": row.memory and row.memory.slots,
                "segment": row.memory and row.memory.segment,
                **{name: getattr(row, name) for name in ("gradient", "reach", "seconds", "memory_bytes")},
                "forward_steps": row.forward_steps,
                "fits": row.fits,
                "best": row is self.best,
            }
            for row in self.rows
        ]

    def plot(self, ax: Any = None) -> Any:
        """Memory against time, a point a row, with the budget; what doesn't fit is hollow, the best one bold."""
        return _plot(self, axes(ax, len(self.rows)))


def _plot(found: Plan, ax: Any) -> Any:
    """A line for each row: memory, and the time in words; what doesn't fit the budget is hollow, the best one bold."""
    unit = 2**20
    for place, row in enumerate(found.rows):
        fill = "full" if row.fits else "none"
        ax.plot(row.memory_bytes / unit, place, "o", color=COLOURS[row.gradient], fillstyle=fill)
    names = [
        f"{label(row.strategy)}\n{took(row.seconds)}{'' if row.memory is None else ' with checkpoints'}"
        for row in found.rows
    ]
    for tick, row in zip(ax.set_yticks(range(len(names)), names, fontsize="small"), found.rows, strict=True):
        tick.label1.set_fontweight("bold" if row is found.best else "normal")
    for gradient in COLOURS:
        if any(row.gradient == gradient for row in found.rows):
            ax.plot([], [], "o", color=COLOURS[gradient], label=gradient)
    if found.budget is not None:
        ax.axvline(found.budget / unit, color="C3", linestyle=":", label=f"budget, {size(found.budget)}")
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.set_xlabel(f"memory for {found.steps:,} steps, MiB")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return ax


def plan(
    model: Recurrence,
    loss: Loss,
    chunk: Any,
    state: Tree = None,
    *,
    steps: int | None = None,
    memory: str | int | None = None,
    strategies: Sequence[Strategy] | None = None,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
) -> Plan:
    """Predict time and peak memory of each strategy and budget from a short probe, and name the one to take.

        seconds = Σ_windows time(n),  bytes = max over windows of bytes(n),  n = the window's steps  (1)
        under a schedule of l = ⌈n / c⌉ segments of c steps and s slots:
        seconds = t(l, s) · forward(c) + l · segment(c)                                              (2)

    time, bytes, forward and segment are measured on windows of 1, 4, 16, ... steps and taken to go on in straight
    lines; t is that of `Checkpoints`. Windows with fewer losses than steps, with a call that ends inside
    or with weights are measured as such, at their own length and at its half.

    model, loss, state, initial_state, state_batch_dim, time_dim: as in `unroll`. A learned initial state is held fixed.
    chunk: `Chunk(inputs, targets, is_start, mask)` or a plain tuple, of the batch size that is planned for. Few steps
        do: they are repeated. Graphs that it carries are left alone.
    steps: of the sequence that is planned for; None is those of the chunk.
    memory: the budget, "512MiB" or bytes; None is no bound.
    strategies: which to consider; None is full BPTT, ARTBP, and truncations of some lengths.

    Returns a `Plan`. Parameters, buffers, `.grad`, modes and random-number states are as before; hooks do fire.
    Raises BudgetError for a budget that no strategy fits, with the least that would; ValueError for bad arguments.
    Cost: some hundred windows, the longest of about 0.1 s and within the budget or 64 MiB. Kernels that change with
    the length bend the lines. ARTBP's windows are those that a generator of seed 0 draws.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 8), bptt.per_step(torch.nn.MSELoss())
    >>> chunk = torch.zeros(20, 2, 3), torch.zeros(20, 2, 8)
    >>> wanted = [bptt.FullBPTT(), bptt.TruncatedBPTT(k1=50)]
    >>> found = bptt.plan(model, loss, chunk, steps=1000, memory="32KiB", strategies=wanted)
    >>> found.best.strategy, found.best.gradient, found.best.memory_bytes <= 32 * 1024
    (FullBPTT(), 'exact', True)

    Source: Griewank & Walther 2000 for t; the rest is ours.
    """
    _errors.check_gradient_possible()
    inputs, targets, *rest = _stream.checked_chunk(chunk, time_dim)
    probed = Chunk(detach(inputs), detach(targets), *rest)
    length = leaves(inputs)[0].shape[time_dim]
    if not length:
        raise ValueError("chunk has no step (T = 0): pass one at least, a few dozen are better.")
    steps = length if steps is None else steps
    _errors.check_count(steps, "steps")
    budget = parse(memory)
    if isinstance(budget, Checkpoints):
        raise ValueError(f'memory={memory!r}: plan chooses checkpoints itself. Give the size to keep to, as "512MiB".')
    by_window = isinstance(loss, PerWindow)
    wanted = _ladder(steps, by_window) if strategies is None else [_plannable(s, by_window) for s in strategies]
    if not wanted:
        raise ValueError("strategies is empty: leave it out to consider the usual ones.")

    _tree.check_tensors(state, "state")
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    with untouched(model, inner(loss), [*parameters, *leaves(probed.inputs), *leaves(state)]):
        fixed = initial_state() if callable(initial_state) else initial_state
        _tree.check_dense(fixed, "initial_state")
        begin: Any = {"initial_state": detach(fixed), "state_batch_dim": state_batch_dim, "time_dim": time_dim}
        options = Options.of(model, loss, detach(state), generator=torch.Generator(), **begin)
        run = Run(options, [probed])
        span = run.start(math.inf)
        run.tell_axes_apart(span.begin)
        for strategy in wanted:
            check_carried(strategy, options)
        costs, draw = Costs(options, probed, steps, budget), options.draw(run.time)
        rows: list[PlanRow] = []
        least: list[tuple[int, Strategy]] = []
        for strategy in wanted:
            found, bound = _Forecast(strategy, steps, costs, span, draw).rows(budget)
            rows += found
            least.append((bound, strategy))
        torch.clear_autocast_cache()
    if not any(row.fits for row in rows):
        bound, strategy = min(least, key=lambda pair: pair[0])
        raise _errors.BudgetError(
            f"memory={memory!r}: no strategy fits. The least that would is memory={bound}, for {strategy}. Give that "
            f"much, or use smaller batches.",
            bound,
            strategy,
        )
    return Plan(steps, budget, tuple(rows))


class _Forecast:
    """One strategy over T steps: its windows counted by shape, and what they take."""

    def __init__(self, strategy: Strategy, steps: int, costs: Costs, span: Span, draw: Draw) -> None:
        self._strategy, self._costs, self._span = strategy, costs, span
        self._shapes: Counter[Shape] = Counter()
        self._burnt: Counter[int] = Counter()  # windows by the steps of their burn-in
        self._longest = Window(0, 0, 0, 0)
        reach, whole, generator = 0, True, costs.generator
        begin = generator.manual_seed(0).get_state()
        for window in strategy.windows(lambda t: int(min(t, steps)), draw):
            assert isinstance(window, Window)  # a strategy that probes is refused: `_plannable`
            self._shapes[Shape.of(window)] += 1
            self._burnt[window.burn_in] += 1
            if window.stop - window.start >= self._longest.stop - self._longest.start:
                self._longest = window
            reach += sum(range(window.first - window.start + 1, window.stop - window.start + 1))
            whole = whole and window.start == 0 and not window.weights
        self._reach = reach / steps
        drawn = not torch.equal(generator.get_state(), begin)
        carry, kind = says(strategy, "carries"), says(strategy, "kind")
        self._gradient = "unbiased" if kind == "unbiased" else "exact" if whole and not drawn else "biased"
        self._carried = 0.0, 0  # seconds a window, and bytes
        if carry is not None:
            self._carried = costs.carried(carry, self._longest.steps)
            self._gradient, self._reach = kind, self._reach if kind == "biased" else (steps + 1) / 2
        self._most = Shape.of(self._longest)
        self._lines = costs.like(self._most)
        cut = [shape for shape in self._shapes if not shape.plain]
        self._own = {list(self._shapes)[-1], *(cut if len(cut) <= FEW else ())}  # measured themselves

    def rows(self, budget: int | None) -> tuple[list[PlanRow], int]:
        """Stored whole, and with checkpoints where that doesn't fit; and the fewest bytes that would."""
        stored = self._row(None, budget)
        if stored.fits:
            return [stored], stored.memory_bytes
        assert budget is not None
        costs = self._costs

        def saved(segment: int, cuts: int, resets: int) -> float:
            return MARGIN * self._saved(segment, cuts, resets)

        span = replace(self._span, window=self._longest, begin=self._span.like, initial=None)
        outputs = costs.outputs * self._most.losses + self._carried[1]  # kept beside, for a loss by window
        probe = WindowProbe(span, costs.meter, budget)
        least = ceil(probe.states + saved(1, 0, 0)) + costs.one + outputs
        if budget < least:
            return [stored], min(stored.memory_bytes, least)
        row = self._row(cheapest(probe, budget - outputs, saved), budget)
        return [stored, row], min(row.memory_bytes, least)

    def _saved(self, steps: int, cuts: int, resets: int) -> float:
        """What a segment saves."""
        return self._costs.saved((self._lines if cuts else self._costs.plain).held(steps))

    def _row(self, schedule: Checkpoints | None, budget: int | None) -> PlanRow:
        taken = [
            (times, *(self._stored(shape) if schedule is None else self._replayed(shape, schedule)))
            for shape, times in self._shapes.items()
        ]
        n = next(iter(self._shapes)).steps if schedule is None else 1
        once = self._costs.plain.first(n) - self._costs.plain.later(n)
        held = max(needs for _, _, needs, _ in taken) + self._carried[1]
        carrying = self._carried[0] * sum(times for times, *_ in taken)
        return PlanRow(
            strategy=self._strategy,
            memory=schedule,
            gradient=self._gradient,
            reach=self._reach,
            seconds=sum(times * seconds for times, seconds, _, _ in taken) + max(once, 0) + self._burning() + carrying,
            memory_bytes=held,
            forward_steps=sum(times * ran for times, _, _, ran in taken) + sum(n * m for n, m in self._burnt.items()),
            fits=budget is None or held <= budget,
        )

    def _burning(self) -> float:
        """Seconds of all burn-ins."""
        return sum(times * self._costs.advance(n) for n, times in self._burnt.items() if n)

    def _stored(self, shape: Shape) -> tuple[float, int, int]:
        """Equation (1): seconds, bytes and steps of a window."""
        lines = self._costs.plain if shape.plain and not self._most.plain else self._lines
        seconds, held = lines.later(shape.steps), lines.held(shape.steps)
        if not shape.plain:
            held = min(held, lines.held(self._most.steps))  # a bent line must not promise more
        if shape in self._own and (known := self._costs.measured(shape)):
            seconds, held = known.later, known.held
        return seconds, round(held), shape.steps

    def _replayed(self, shape: Shape, schedule: Checkpoints) -> tuple[float, int, int]:
        """Equation (2), and the bytes that `bptt.reverse` counts."""
        costs, n, (slots, c) = self._costs, shape.steps, (schedule.slots, schedule.segment)
        segments = ceil(n / c)
        advances, last = _checkpoint.forward_steps(segments, slots), n - (segments - 1) * c
        seconds = advances * costs.advance(c) + (segments - 1) * costs.segment(c) + costs.segment(last)
        if not shape.plain:  # what it costs beside; an advance is cut into calls too, about a third of a pull-back
            again = advances * c / (3 * n) if shape.weights else 0
            seconds += (1 + again) * (self._lines.later(n) - costs.plain.later(n))
        longest = min(c, n)
        held = self._saved(longest, shape.kept + shape.weights, 0) - costs.loss * max(longest - shape.losses, 0)
        held += (min(slots, segments) + (slots < segments) + 1) * costs.one + (1 + (segments > 1)) * costs.floating
        ran = advances * c + n
        if costs.outputs and segments > 1:  # a loss by window: a pass more, and all its outputs
            seconds, ran, held = seconds + costs.advance(n), ran + n, held + costs.outputs * (shape.losses - longest)
        return max(seconds, 0), round(held), ran


def _ladder(steps: int, by_window: bool) -> list[Strategy]:
    """Full, randomised, and truncated after 1, 16, 64, 256, ... steps, with and without a look back."""
    lengths = [4**i for i in range(2, 12) if 4**i < steps]
    randomised = [ARTBP(PolynomialLaw(mean_length=64), every=16)] if steps > 64 and not by_window else []
    looking_back = [TruncatedBPTT(k // 2, k) for k in lengths]
    return [FullBPTT(), *randomised, *looking_back, *(TruncatedBPTT(k) for k in (*lengths, 1))]


def _plannable(value: Any, by_window: bool) -> Any:
    """A strategy whose windows don't depend on what is found during training."""
    if not getattr(checked_strategy(value, "sum", by_window), "lengths_known", True):
        raise ValueError(
            f"{value!r} sets its lengths by what it finds during training, which no plan knows: plan "
            f"TruncatedBPTT(k1=K, k2=2 * K - 1) for the K that you expect."
        )
    return value
