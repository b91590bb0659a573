"""One run over a stream: windows from the strategy, states from window to window, updates out."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bptt import _boundary, _errors, _jacobian, _loss, _masks, _options, _recurrence, _reverse, _stream, _tree
from bptt._checkpoint import Memory, parse
from bptt._guard import axes
from bptt._guard.guard import Guard
from bptt._guard.reached import Watch
from bptt._loss import Loss, StepLoss
from bptt._masks import Sheltered
from bptt._memory import Budget, Meter
from bptt._recurrence import Recurrence
from bptt._results import Evaluation, Sum, Update, mean
from bptt._reverse import Gradients
from bptt._segment import Initial, Problem, Segment
from bptt._snapshot import isolated, noise_restored
from bptt._stream import Chunk, Timeline
from bptt._tree import Tree, ordinary
from bptt.strategies import Strategy
from bptt.strategies.base import Credit, Probe, Window


class Run:
    """The checked arguments of `unroll`, `backward` or `evaluate`, and what a run carries along."""

    def __init__(
        self,
        model: Recurrence,
        loss: Loss,
        stream: Iterable[Any],
        state: Tree,
        *,
        initial_state: Any,
        state_batch_dim: Any,
        time_dim: int,
        memory: Memory = None,
        params: Iterable[Tensor] | None = None,
        reduction: str = "sum",
        clip_cotangent: float | None = None,
        generator: torch.Generator | None = None,
        scale: Any = 1.0,
        check: Callable[[Chunk], None] = lambda chunk: None,
    ) -> None:
        _recurrence.check_model(model, time_dim)
        _loss.check_loss(loss)
        _tree.check_dense(state, "state")
        state = ordinary(state)
        self.state = self.carried = state
        self.initial_state = initial_state
        self.reduction, self.generator, self.scale = (
            _options.reduction(reduction),
            _options.generator(generator),
            _options.scale(scale),
        )
        _options.clip(clip_cotangent)
        default_dim = _recurrence.default_batch_dim(model)
        if state is None and initial_state is None and default_dim is None:
            _recurrence.no_state(model)
        if not callable(initial_state):
            _tree.check_dense(initial_state, "initial_state")
        batch_dim = default_dim if state_batch_dim is None else state_batch_dim
        _boundary.batch_dim(batch_dim, state if state is not None else initial_state, clip_cotangent)
        self.time = Timeline(_stream.check_stream(stream), time_dim, check)
        self.problem = Problem(
            model=model,
            loss=StepLoss(loss, time_dim),
            time=self.time,
            time_dim=time_dim,
            batch_dim=batch_dim,
            clip=clip_cotangent,
            params=_options.params(params),
            native_start=initial_state is None and _recurrence.accepts(model, "is_start"),
            native_weight=clip_cotangent is None and _recurrence.accepts(model, "cotangent_weight"),
        )
        self.meter = Meter((model, loss))
        watched = isinstance(scale, int | float) and scale == 1
        self.gradients = Gradients(self.problem, watched)
        self.guard = Guard()
        device = "cpu" if self.generator is None else self.generator.device
        self._drawn = torch.zeros((), dtype=torch.float64, device=device)
        limits = parse(memory)
        self.memory = Budget(limits, self.meter) if isinstance(limits, int) else limits
        self.valid: Any = 0
        self.factor: Any = 1
        self._fitting: Any = None
        self._probed = [0, 0]  # forward steps and bytes of the probe before a window
        self.owed: dict[int, tuple[Tensor, Tensor]] = {}
        self.owed_at_start: list[Tensor | None] = []

    def updates(self, strategy: Strategy, watch: Watch | None = None, merge: bool = False) -> Iterator[Update]:
        """The updates of a strategy; for `merged`, with one divisor and what is owed to inputs and states kept back.

        watch: told of each window, to refuse or warn where nothing gets a gradient.
        """
        steps = self.time.upto(math.inf) if merge else 0
        for window in self._windows(strategy):
            problem = self.sheltered(window)
            initial = self.initial(window, self.carried, problem.time)
            begin = self.begin(window, self.carried, initial)
            if watch is not None and watch.begin(begin, self.state, initial):
                self.tell_axes_apart(begin)
            over = 1 if self.reduction == "sum" else steps or strategy.divisor(window)
            self.factor = factor = self._factor(begin)
            if problem.clip is not None:
                problem = replace(problem, clip=problem.clip * factor)
            try:
                outcome = _reverse.run(
                    problem, window, begin, initial, self.memory, self.meter, factor, over, self.gradients, self.guard
                )
            except _errors.NonFiniteError:
                self.gradients.put_back()
                raise
            self.valid += outcome.valid
            self._owe(window, self.carried, initial, outcome.cotangent)
            if not merge:
                self.pass_on()
                self.gradients.forget()
            if watch is not None and watch.window(window, begin, initial, outcome.valid, outcome.aux) and not merge:
                watch.conclude(3)
            self.carried = outcome.kept if window.keep > 0 else self.carried
            self.time.drop(window.keep)
            versions = _tree.versions(self.carried)
            yield Update(
                t0=window.first,
                t1=window.stop,
                start=window.start,
                loss=outcome.loss,
                steps=window.steps,
                aux=outcome.aux,
                forward_steps=outcome.forward_steps + self._probed[0],
                memory_bytes=max(outcome.memory_bytes, self._probed[1]),
                decision=window.decision,
                _state=outcome.after,
                _valid=outcome.valid,
                _norm=partial(_tree.norm, outcome.cotangent, begin, factor),
            )
            if not merge:
                _check_unchanged(versions, self.carried)
            torch.clear_autocast_cache()  # the casts of weights that have been stepped since
        if watch is not None and not merge:
            watch.conclude(3)

    def _windows(self, strategy: Strategy) -> Iterator[Window]:
        """The windows of a strategy, its probes answered from the state that is carried then."""
        windows, answer = strategy.windows(self.time.upto, self._draw), None
        while True:
            try:
                item = next(windows) if answer is None else cast(Any, windows).send(answer)
            except StopIteration:
                return
            if isinstance(item, Probe):
                answer = self._answer(item)
                continue
            yield item
            answer, self._probed = None, [0, 0]

    def _answer(self, probe: Probe) -> Credit:
        window = Window(probe.start, probe.start, probe.stop, probe.stop)
        problem = self.sheltered(window)
        initial = self.initial(window, self.carried, problem.time)
        begin = self.begin(window, self.carried, initial)
        memory = self.memory.size if isinstance(self.memory, Budget) else self.memory
        self.guard.probed = True
        answer, *self._probed = _jacobian.credit(problem, probe, begin, initial, self.meter, memory)
        return answer

    def watch(self) -> Watch:
        """What sees that the run trains something."""
        return Watch(self.problem, callable(self.initial_state))

    def merged(self, strategy: Strategy) -> Update:
        """The updates of one finite sequence as one."""
        watch = self.watch()
        losses, aux, like, forward_steps, memory_bytes = Sum(), [], None, 0, 0
        last: Any = None
        for last in self.updates(strategy, watch, merge=True):
            losses.add(last.loss)
            if last.aux is not None:
                aux.append(last.aux)
            like = last._state if like is None else like
            forward_steps += last.forward_steps
            memory_bytes = memory_bytes if math.isnan(memory_bytes) else max(last.memory_bytes, memory_bytes)
        self.pass_on()
        watch.conclude(4)
        return replace(
            last,
            t0=0,
            start=0,
            loss=losses.total(),
            steps=last.t1,
            aux=_tree.join(aux, self.problem.time_dim) if aux else None,
            forward_steps=forward_steps,
            memory_bytes=memory_bytes,
            _valid=self.valid,
            _norm=partial(_tree.norm, self.owed_at_start, like, self.factor),
        )

    def evaluate(self) -> Evaluation:
        """The losses of the whole stream, chunk by chunk, without a graph."""
        p, carried, end = self.problem, self.state, 0
        losses_so_far = Sum()
        aux: list[Tree] = []
        parameters = p.model.parameters() if isinstance(p.model, nn.Module) else ()
        with isolated(p.model, [*parameters, *_tree.leaves(carried)]):
            while self.time.upto(end + 1) > end:
                window = Window(start=end, first=end, stop=self.time.end, keep=self.time.end)
                initial = self.initial(window, carried)
                begin = self.begin(window, carried, initial)
                if end == 0:
                    self.tell_axes_apart(begin)
                tape = Segment(p, window, initial, window.start, window.stop).tape(begin, grad=False)
                losses = tape.found()
                losses_so_far.add(losses.total())
                aux.append(losses.aux)
                self.valid += losses.valid
                carried, end = tape.after, window.stop
                self.time.drop(end)
        torch.clear_autocast_cache()  # casts made without a graph
        total = losses_so_far.total()
        return Evaluation(total, mean(total, self.valid), end, carried, _tree.join(aux, p.time_dim))

    def tell_axes_apart(self, begin: Tree = None) -> None:
        """See in the first chunk that the model takes steps for steps, from the state `begin` or that of the start."""
        if begin is None and self.time.upto(1):
            window = Window(0, 0, 1, 1)
            begin = self.begin(window, self.carried, self.initial(window, self.carried))
        axes.told_apart(self.problem.model, self.time.inputs_at(0), begin, self.problem.time_dim)

    def begin(self, window: Window, carried: Tree, initial: Initial | None) -> Tree:
        """The detached state before the window's first step."""
        begin = _tree.detach(initial.value) if carried is None and initial else carried
        if carried is self.state:
            begin = _tree.detach(begin)
        inputs = self.time.inputs_at(window.start)
        if self._fitting is None:  # the state is known now, where a default or a function gave it
            _boundary.batch_dim(self.problem.batch_dim, begin, self.problem.clip)
        if inputs is not self._fitting:  # once a chunk
            _recurrence.check_state(begin, _recurrence.zero_state(self.problem.model, inputs, self.problem.time_dim))
            self._fitting = inputs
        return begin

    def sheltered(self, window: Window) -> Problem:
        """The problem as the window sees it, what a mask leaves out made harmless."""
        p, carried = self.problem, self.carried
        if not self.time.masked(window.start, window.stop):
            return p

        def resets(dead: Tensor) -> bool:
            zeros = _recurrence.zero_state(p.model, self.time.inputs_at(window.start), p.time_dim)
            if not p.native_start and self.initial_state is None and zeros is None:
                return False
            return dead.dim() == 1 or _boundary.has_rows(carried, p.batch_dim, dead.shape[1])

        return replace(p, time=_masks.sheltered(self.time, window, resets))

    def initial(self, window: Window, carried: Tree, time: Timeline | Sheltered | None = None) -> Initial | None:
        """The initial state where the window uses it: to start from, or for rows that reset."""
        p = self.problem
        starts = window.start == 0 and carried is None
        if not starts and (p.native_start or not (time or self.time).resets(window.start, window.stop)):
            return None
        if callable(self.initial_state):
            with torch.enable_grad():
                value = self.initial_state()
            _tree.check_tensors(value, "initial_state()")
            value = ordinary(value)
        elif self.initial_state is not None:
            value = ordinary(self.initial_state)
        else:
            value = _recurrence.zero_state(p.model, self.time.inputs_at(window.start), p.time_dim)
            if value is None:
                _recurrence.no_initial_state(p.model)
        if carried is not None:
            value = _tree.conformed(value, carried, "initial_state", "the state")
        return Initial(value, _tree.map_leaves(lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), value))

    def pass_on(self) -> None:
        """Hand what inputs, states and initial states are owed to their leaves, or through the graph they carry."""
        pairs = [pair for pair in (*self.owed.values(), *self.time.take_cotangents()) if pair[0].requires_grad]
        self.owed = {}
        if pairs:
            torch.autograd.backward([value for value, _ in pairs], [c for _, c in pairs], inputs=self.problem.params)

    def _owe(self, window: Window, carried: Tree, initial: Initial | None, cotangent: list[Tensor | None]) -> None:
        given: list[tuple[Tensor, Tensor | None]] = []
        if window.start == 0:
            value = self.state if carried is not None else initial.value if initial else None
            given += zip(_tree.leaves(value), cotangent, strict=True)
            before = self.owed_at_start or [None] * len(cotangent)
            self.owed_at_start = [
                a if b is None else b if a is None else a + b for a, b in zip(before, cotangent, strict=True)
            ]
        if initial is not None:
            given += zip(_tree.leaves(initial.value), _tree.cotangents(initial.leaves), strict=True)
        for value, c in given:
            if c is not None and value.requires_grad:
                before = self.owed.get(id(value))
                self.owed[id(value)] = (value, c if before is None else before[1] + c)

    def _factor(self, begin: Tree) -> Any:
        """`scale` as a number or a 0-d tensor, in float64 so that a bound times it isn't rounded to its dtype."""
        factor = self.scale
        if callable(factor):
            factor = factor(torch.ones((), device=next((leaf.device for leaf in _tree.leaves(begin)), None)))
        if isinstance(factor, Tensor) and factor.device.type != "mps":  # which has no float64
            factor = factor.double()
        return factor

    def _draw(self, each_row: bool = False) -> Any:
        if each_row:
            return self._drawn.new_empty(self._rows()).uniform_(generator=self.generator).tolist()
        return self._drawn.uniform_(generator=self.generator).item()

    def _rows(self) -> int:
        """How many rows cut on their own: those of the state, or of the inputs where the layer says how they lie."""
        p = self.problem
        inputs = self.time.inputs_at(0)
        carried = self.state
        if carried is None:
            carried = self.initial_state
            if callable(carried):
                with torch.no_grad(), noise_restored(_tree.leaves(inputs)):
                    carried = carried()
        zeros = _recurrence.zero_state(p.model, inputs, p.time_dim)
        return _boundary.row_count(zeros if carried is None else carried, p.batch_dim, zeros is not None, inputs)


def _check_unchanged(before: list[int], carried: Tree) -> None:
    """The state that a run carries, which nobody has written to between two updates."""
    if before == (now := _tree.versions(carried)):
        return
    paths = [path for path, _ in _tree.named_leaves(carried, "state")]
    path = next(path for path, a, b in zip(paths, before, now, strict=True) if a != b)
    raise ValueError(
        f"{path}, which the run goes on from, was changed in place between two updates, through a tensor that shares "
        f"its memory (the state= that was passed, inputs, or aux): change a clone of that."
    )
