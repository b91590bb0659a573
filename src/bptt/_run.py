"""A run: a loop that takes the progress so far to the next window's outcome and the progress after it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bptt import _boundary, _jacobian, _recurrence, _reverse, _tree
from bptt._debts import Debts
from bptt._errors import NonFiniteError
from bptt._guard import axes
from bptt._guard.guard import Guard
from bptt._guard.reached import Watch, held
from bptt._idle import Idle, calls, touch
from bptt._influence import Influence, entered, influence_of
from bptt._memory import Budget, Meter
from bptt._options import Options
from bptt._ranks import Ranks
from bptt._results import Evaluation, Sum, Update, mean, norm
from bptt._reverse import Gradients, Outcome
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot, isolated
from bptt._stream import Chunk, Timeline, check_stream
from bptt._tree import Tree
from bptt.strategies.base import Strategy, says
from bptt.strategies.windows import Credit, Probe, Window

BURNT = 256
"""Steps of a burn-in that are run in one call at most."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two windows: all that the next one needs besides the stream.

    step: the step that the next window's state belongs to. carried: that state, without a graph; None for the initial
    one. strategy: `Window.progress` of the last window. influence: what is carried of ∂s/∂θ, if the strategy does so.
    """

    step: int = 0
    carried: Tree = None
    strategy: Any = None
    influence: Influence | None = None

    def after(self, window: Window, outcome: Outcome) -> "Progress":
        """The progress after a window."""
        carried = outcome.kept if window.keep > 0 else self.carried
        return Progress(window.keep, carried, window.progress, self.influence)


class Asked(NamedTuple):
    """What the probes before a window took: steps of the recurrence, and the most bytes."""

    forward_steps: int = 0
    memory_bytes: float = 0


class Done(NamedTuple):
    """A window that has been run: what it gave, the factor on its losses, and where the run stands after it."""

    span: Span
    outcome: Outcome
    factor: Any
    asked: Asked
    progress: Progress

    def update(self) -> Update:
        """For the user."""
        window, outcome = self.span.window, self.outcome
        return Update(
            t0=window.first,
            t1=window.stop,
            start=window.start,
            loss=outcome.loss,
            steps=window.steps,
            aux=outcome.aux,
            forward_steps=outcome.forward_steps + self.asked.forward_steps,
            memory_bytes=max(outcome.memory_bytes, self.asked.memory_bytes),
            decision=window.decision,
            _state=outcome.after,
            _valid=outcome.valid,
            _norm=partial(norm, outcome.cotangent, self.span.begin, self.factor),
        )


class Run:
    """Options applied to a stream, with everything that windows are run by; a `Progress` says where it stands."""

    def __init__(
        self, options: Options, stream: Iterable[Any], check: Callable[[Chunk], None] = lambda chunk: None
    ) -> None:
        self.options, p = options, options.problem
        self.ranks = Ranks.of(held((p.model, p.loss.loss), {}), options.group)
        self.time = Timeline(check_stream(stream), p.time_dim, check)
        self.meter = Meter((p.model, p.loss.loss))
        self.debts = Debts(options.state, p.params, self.time)
        scale, memory = options.scale, options.memory
        self._gradients = Gradients(p, watched=isinstance(scale, int | float) and scale <= 1)
        if self.ranks.sharded():
            _ = self._gradients.leaves  # while they are still shards: a call replaces them by whole parameters
        self._guard = Guard()
        self.memory = Budget(memory, self.meter) if isinstance(memory, int) else memory
        self._fitting: Any = None
        self._noise: Snapshot | None = None

    def influence(self, strategy: Strategy) -> Influence | None:
        """What a run by the strategy carries at its start."""
        influence = influence_of(strategy, self.options)
        if influence is not None and self.ranks.sharded():
            raise ValueError(f"{strategy!r} needs parameters whole, which fully_shard keeps in pieces: use DDP.")
        return influence

    def watch(self) -> Watch:
        """The check that the run trains something."""
        return Watch(self.options.problem, callable(self.options.initial_state))

    def updates(
        self, strategy: Strategy, watch: Watch | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[Progress, Update]]:
        """One update per window, and where the run stands after it.

        watch: sees each window, to refuse or warn if nothing gets a gradient. progress: where to continue from.
        """

        def divisor(span: Span) -> Any:
            return self._weight(span.window) if self.options.reduction == "valid" else strategy.divisor(span.window)

        for done in self.windows(strategy, divisor, watch, progress):
            self.debts.pay()
            self.ranks.check_averaged()
            self._gradients.forget()
            if watch is not None and watch.window(done.span, done.outcome.valid, done.outcome.aux):
                watch.conclude(5)
            self.time.drop(done.progress.step)
            yield done.progress, done.update()
        if watch is not None:
            watch.conclude(5)

    def merged(self, strategy: Strategy) -> Update:
        """The updates of one finite sequence as one, merged as they come; the divisor is the number of its steps."""
        with self.ranks.telling():
            return self._merged(strategy)

    def _merged(self, strategy: Strategy) -> Update:
        watch, steps = self.watch(), self.time.upto(math.inf)
        whole = Window(0, 0, steps, steps)
        divisor = self._weight(whole) if self.options.reduction == "valid" else steps
        losses, aux, like, forward_steps, memory_bytes, valid = Sum(), [], None, 0, 0.0, 0
        at_start: Sequence[Tensor | None] = []
        done: Any = None
        for done in self.windows(strategy, lambda span: divisor, watch, even=True):
            outcome = done.outcome
            watch.window(done.span, outcome.valid, outcome.aux)
            self.time.drop(done.progress.step)
            losses.add(outcome.loss)
            aux += [] if outcome.aux is None else [outcome.aux]
            like = outcome.after if like is None else like
            forward_steps += outcome.forward_steps + done.asked.forward_steps
            held = max(outcome.memory_bytes, done.asked.memory_bytes)
            memory_bytes = memory_bytes if math.isnan(memory_bytes) else max(held, memory_bytes)
            valid += outcome.valid
            if done.span.window.start == 0:
                at_start = _tree.added(at_start, outcome.cotangent) if at_start else outcome.cotangent
        self.debts.pay()
        self.ranks.check_averaged()
        watch.conclude(5)
        return replace(
            done.update(),
            t0=0,
            start=0,
            loss=losses.total(),
            steps=done.span.window.stop,
            aux=self._joined(aux) if aux else None,
            forward_steps=forward_steps,
            memory_bytes=memory_bytes,
            _valid=valid,
            _norm=partial(norm, at_start, like, done.factor),
        )

    def windows(
        self,
        strategy: Strategy,
        divisor: Callable[[Span], Any],
        watch: Watch | None = None,
        progress: Progress | None = None,
        even: bool = False,
    ) -> Iterator[Done]:
        """The strategy's windows, each run from the progress after the one before; its probes answered in between.

        even: whether the streams of all ranks must be equally long; else a stream that has ended gives windows of no
        steps until all have ended. The caller forgets the steps before a window's `keep`.
        """
        progress, asked, answer = progress or Progress(carried=self.options.state), Asked(), None
        if progress.influence is None:
            progress = replace(progress, influence=self.influence(strategy))
        even = even or says(strategy, "sequences") or not says(strategy, "lengths_known")
        p = self.options.problem
        self.ranks.check(p.model, p.params, self.options.memory, not says(strategy, "lengths_known"))
        idle = None
        after = () if progress.strategy is None else (progress.strategy,)
        items = strategy.windows(self.time.upto, self.options.draw(self.time), *after)
        while True:
            try:
                item = next(items) if answer is None else cast(Any, items).send(answer)
            except StopIteration:
                item = None
            if not self._agreed(item, progress, even):
                return
            if isinstance(item, Probe):
                answer, asked = self._answer(item, progress)
                continue
            if item is not None:
                with self.ranks.gathered():
                    done = self._window(item, progress, asked, divisor, watch)
                idle = None if self.ranks.alone or even else Idle.after(done.span, done.outcome)
            elif idle is not None:
                with self.ranks.gathered():
                    done = self._nothing(idle, progress)
            else:
                raise ValueError("the stream has no step left, while those of other ranks have.")
            progress, asked, answer = done.progress, Asked(), None
            versions = _tree.versions(progress.carried)
            yield done
            _boundary.check_unchanged(versions, progress.carried)
            torch.clear_autocast_cache()  # autocast's copies of weights that have been stepped since

    def _agreed(self, item: Window | Probe | None, progress: Progress, even: bool) -> bool:
        """Whether to continue, with the same window or probe on all ranks."""
        if self.ranks.alone:
            return item is not None
        called = 0
        if isinstance(item, Window) and self.ranks.talks:
            time = self.options.sheltered(self.time, item, progress.carried)
            called = calls(self.ranks, Span(self.options.problem, time, item, None, None), self.options.memory)
        return self.ranks.turn(item, item is not None and self.time.at_end(item.stop), even, called)

    def _nothing(self, idle: Idle, progress: Progress) -> Done:
        """A window of no steps, with a gradient of zeros: what a rank does after its stream's end."""
        if self.options.reduction == "valid":
            self.ranks.mean(0.0)
        self.ranks.settle()
        if self.ranks.wrappers:
            touch(idle.step)
        if self._gradients.watched:
            self.ranks.fine(True)
        return Done(idle.span, idle.outcome, 1, Asked(), progress)

    def _burnt_in(self, window: Window, progress: Progress) -> tuple[Window, Progress, Tree]:
        """The window and the progress after its burn-in, and the state at `keep` where that lies within; else None."""
        if not window.burn_in:
            return window, progress, None
        a = window.start - window.burn_in
        before = Window(a, a, window.start, min(max(window.keep, a), window.start))
        span = self._fits(self.options.span(self.time, before, progress.carried))
        carried, kept = span.begin, span.begin if window.keep == a else None
        for segment in span.segments(BURNT, replays=False):
            _, _, carried, at_keep = segment.advance(carried)
            kept = at_keep if kept is None else kept
        within = window.keep < window.start
        window = replace(window, keep=max(window.keep, window.start))
        return window, Progress(window.start, carried, progress.strategy), kept if within else None

    def _window(
        self, window: Window, progress: Progress, asked: Asked, divisor: Callable[[Span], Any], watch: Watch | None
    ) -> Done:
        options, given, given_progress = self.options, window, progress
        window, progress, kept = self._burnt_in(window, progress)
        span = self._span(window, progress)
        if watch is not None and watch.begin(span, options.state):
            self.tell_axes_apart(span.begin)
        over = 1 if options.reduction == "sum" else divisor(span)
        factor, clip = options.factor(span.begin), span.problem.clip
        if clip is not None:
            span = replace(span, problem=replace(span.problem, clip=clip * factor))
        influence, noise = progress.influence, None
        if influence is not None:
            span, noise, influence = entered(influence, span, self._noise)
            given_progress, self._noise = replace(given_progress, influence=influence), noise
            self._guard.probed = True  # the window runs twice, as windows do after a probe
            if isinstance(self.memory, Budget):
                self.memory.beside = influence.nbytes
                influence.room = self.memory.size - self.memory.beside
        try:
            gradients, look = self._gradients, self._guard.look
            outcome = _reverse.run(span, self.memory, self.meter, factor, over, gradients, look, self.ranks)
        except NonFiniteError:
            self._gradients.put_back()
            raise
        if influence is not None and noise is not None:
            outcome = self._absorbed(influence, span, outcome, noise)
        self.debts.add(span, progress.carried, outcome.cotangent)
        if given.burn_in:
            span = replace(span, window=given)
            ran = outcome.forward_steps + given.burn_in
            outcome = replace(outcome, kept=outcome.kept if kept is None else kept, forward_steps=ran)
        after = given_progress.after(given, outcome)
        return Done(span, outcome, factor, asked, after)

    def _absorbed(self, influence: Influence, span: Span, outcome: Outcome, noise: Snapshot) -> Outcome:
        """The outcome of a window; its bytes include what is carried out of it."""
        plan = self.memory
        with self.ranks.quiet():
            plan = plan.plan(span) if isinstance(plan, Budget) else plan
            influence.absorb(span, plan.segment if plan else None, noise, outcome.after)
        return replace(outcome, memory_bytes=outcome.memory_bytes + influence.nbytes)

    def _joined(self, aux: list[Tree]) -> Tree:
        """Aux of several windows, joined over time; for losses by window a new first axis has one entry per window."""
        if self.options.problem.loss.by_window:
            aux = [_tree.map_leaves(lambda leaf: leaf[None], each) for each in aux]
            return _tree.join(aux, 0) if len(aux) > 1 else aux[0]
        return _tree.join(aux, self.options.problem.time_dim)

    def _weight(self, window: Window) -> Any:
        """The summed weight of a window's losses, for `reduction="valid"`; 1 if it is zero."""
        data = self.time.read(window.first, window.stop)
        weight = self.options.problem.loss.weight(data.targets, data.mask, window.steps)
        if not self.ranks.alone:
            return self.ranks.mean(float(weight)) or 1
        return torch.where(weight > 0, weight, torch.ones_like(weight)) if isinstance(weight, Tensor) else weight

    def _span(self, window: Window, progress: Progress) -> Span:
        time = self.options.sheltered(self.time, window, progress.carried)
        return self._fits(self.options.span(time, window, progress.carried))

    def _fits(self, span: Span) -> Span:
        """The span; once per chunk its state is checked to have the shapes that the model expects."""
        p, inputs = span.problem, span.time.inputs_at(span.window.start)
        if self._fitting is None:  # the state is known now, where a default or a function gave it
            _boundary.batch_dim(p.batch_dim, span.begin, p.clip)
        if inputs is not self._fitting:
            _recurrence.check_state(span.begin, _recurrence.zero_state(p.model, inputs, p.time_dim))
            self._fitting = inputs
        return span

    def _answer(self, probe: Probe, progress: Progress) -> tuple[Credit, Asked]:
        span = self._span(Window(probe.start, probe.start, probe.stop, probe.stop), progress)
        self._guard.probed = True
        with self.ranks.gathered(probe=True):
            return self._credit(span, probe)

    def _credit(self, span: Span, probe: Probe) -> tuple[Credit, Asked]:
        answer, steps, held = _jacobian.credit(span, probe, self.meter, self.options.memory, self.ranks)
        return answer, Asked(steps, held)

    def tell_axes_apart(self, begin: Tree) -> None:
        """Check on the first chunk that the model takes steps for steps, from the state `begin`."""
        p = self.options.problem
        axes.told_apart(p.model, self.time.inputs_at(self.time.first), begin, p.time_dim)

    def start(self, steps: float) -> Span:
        """The first steps as a window, at most that many."""
        stop = self.time.upto(steps)
        return self._span(Window(0, 0, stop, stop), Progress(carried=self.options.state))

    def advance(self) -> Tree:
        """The state after the stream."""
        span = self.start(math.inf)
        self.tell_axes_apart(span.begin)
        carried = span.begin
        for segment in span.segments(BURNT, replays=False):
            carried = segment.advance(carried).after
        return carried

    def evaluate(self, length: int | None = None) -> Evaluation:
        """The losses of the whole stream without a graph, chunk by chunk, or by windows of `length` steps."""
        p, carried, end, valid, rows = self.options.problem, self.options.state, 0, 0, 1
        losses_so_far = Sum()
        aux: list[Tree] = []
        by_window = p.loss.by_window
        parameters = p.model.parameters() if isinstance(p.model, nn.Module) else ()
        with isolated(p.model, [*parameters, *_tree.leaves(carried)]):
            while self.time.upto(end + 1) > end:
                stop = self.time.upto(end + (length or math.inf)) if by_window else self.time.end
                window = Window(start=end, first=end, stop=stop, keep=stop)
                span = self._fits(self.options.span(self.time, window, carried))
                if end == 0:
                    self.tell_axes_apart(span.begin)
                    rows = self.time.rows_at(0)
                tape = Segment(span, window.start, window.stop).tape(span.begin, grad=False)
                losses = _reverse.Objective(span, tape.outputs, grad=False).found if by_window else tape.found()
                losses_so_far.add(losses.total())
                aux.append(losses.aux)
                valid += losses.valid
                carried, end = tape.after, window.stop
                self.time.drop(end)
        torch.clear_autocast_cache()  # autocast's copies, made without a graph
        total = losses_so_far.total()
        if self.options.group is not None:
            total, valid = self.ranks.pooled(total, valid, rows)
        return Evaluation(total, mean(total, valid), end, carried, self._joined(aux))
