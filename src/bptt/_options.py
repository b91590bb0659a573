"""What a call is given beside the stream and the strategy, checked once, and the state that each window starts from."""

import contextlib
import inspect
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt import _boundary, _loss, _masks, _recurrence, _tree
from bptt._checkpoint import Checkpoints, Memory, parse
from bptt._errors import check_gradient_possible, named
from bptt._loss import Loss, StepLoss
from bptt._masks import Sheltered
from bptt._ranks import check_group
from bptt._recurrence import Recurrence
from bptt._segment import Initial, Problem, Span
from bptt._snapshot import noise_restored
from bptt._stream import Timeline
from bptt._tree import Tree
from bptt._window_loss import PerWindow, WindowLoss
from bptt.strategies.base import Draw
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class Options:
    """The arguments of `unroll` that other calls share, checked by `of`.

    state: to start from; None starts from the initial state, or from None where the recurrence takes that.
    memory: checkpoints, bytes, or None.
    """

    problem: Problem
    state: Tree
    initial_state: Any
    memory: Checkpoints | int | None
    reduction: str
    generator: torch.Generator | None
    scale: Any
    group: Any

    @classmethod
    def of(
        cls,
        model: Recurrence,
        loss: Loss,
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
        group: Any = None,
    ) -> "Options":
        """Check the arguments as they are passed; raises ValueError or TypeError, which name the argument."""
        _recurrence.check_model(model, time_dim)
        by_window = isinstance(loss, PerWindow)
        if not by_window:
            _loss.check_loss(loss)
        _tree.check_dense(state, "state")
        _check_reduction(reduction)
        check_generator(generator)
        _check_scale(scale)
        _check_clip(clip_cotangent)
        check_group(group)
        default_dim = _recurrence.default_batch_dim(model)
        itself = initial_state is None and default_dim is None and _recurrence.starts_itself(model)
        if state is None and initial_state is None and default_dim is None and not itself:
            _recurrence.no_state(model)
        if callable(initial_state):
            _check_called_bare(initial_state)
        else:
            _tree.check_dense(initial_state, "initial_state")
        batch_dim = default_dim if state_batch_dim is None else state_batch_dim
        _boundary.batch_dim(batch_dim, state if state is not None else initial_state, clip_cotangent)
        problem = Problem(
            model=model,
            loss=WindowLoss(loss.function) if by_window else StepLoss(loss, time_dim),
            time_dim=time_dim,
            batch_dim=batch_dim,
            clip=clip_cotangent,
            params=checked_params(params),
            native_start=initial_state is None and _recurrence.accepts(model, "is_start"),
            native_weight=clip_cotangent is None and _recurrence.accepts(model, "cotangent_weight"),
            from_none=itself,
        )
        return cls(problem, _tree.ordinary(state), initial_state, parse(memory), reduction, generator, scale, group)

    @classmethod
    def ungraphed(cls, model: Recurrence, loss: Loss, state: Tree, **options: Any) -> "Options":
        """The options of `unroll`: a gradient is possible, and no state carries a graph."""
        check_gradient_possible()
        _tree.check_no_graph(state, "state")
        if not callable(options["initial_state"]):
            _tree.check_no_graph(options["initial_state"], "initial_state")
        return cls.of(model, loss, state, **options)

    def span(self, time: Timeline | Sheltered, window: Window, carried: Tree) -> Span:
        """The window in its place. carried: the state before it, None for the initial one."""
        initial = self._initial(time, window, carried)
        begin = _tree.detach(initial.value) if carried is None and initial else carried
        return Span(self.problem, time, window, _tree.detach(begin) if carried is self.state else begin, initial)

    def sheltered(self, time: Timeline, window: Window, carried: Tree) -> Timeline | Sheltered:
        """The timeline as a window sees it, where what a mask leaves out can do no harm."""
        p = self.problem
        if not time.masked(window.start, window.stop):
            return time

        def resets(dead: Tensor) -> bool:
            zeros = _recurrence.zero_state(p.model, time.inputs_at(window.start), p.time_dim)
            if not p.native_start and not p.from_none and self.initial_state is None and zeros is None:
                return False
            return dead.dim() == 1 or _boundary.has_rows(carried, p.batch_dim, dead.shape[1])

        return _masks.sheltered(time, window, resets)

    def _initial(self, time: Timeline | Sheltered, window: Window, carried: Tree) -> Initial | None:
        """The initial state where the window uses it: to start from, or for rows that reset."""
        p = self.problem
        starts = window.start == 0 and carried is None
        if p.from_none or (not starts and (p.native_start or not time.resets(window.start, window.stop))):
            return None
        if callable(self.initial_state):
            with torch.enable_grad():
                value = self.initial_state()
            _tree.check_tensors(value, "initial_state()")
            value = _tree.ordinary(value)
        elif self.initial_state is not None:
            value = _tree.ordinary(self.initial_state)
        else:
            value = _recurrence.zero_state(p.model, time.inputs_at(window.start), p.time_dim)
            if value is None:
                _recurrence.no_initial_state(p.model)
        if carried is not None:
            value = _tree.conformed(value, carried, "initial_state", "the state")
        return Initial(value, _tree.map_leaves(lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), value))

    def factor(self, like: Tree) -> Any:
        """`scale` as a number or a 0-d tensor, in float64 so that a bound times it isn't rounded to its dtype."""
        factor = self.scale
        if callable(factor):
            factor = factor(torch.ones((), device=next((leaf.device for leaf in _tree.leaves(like)), None)))
        if isinstance(factor, Tensor) and factor.device.type != "mps":  # which has no float64
            factor = factor.double()
        return factor

    def draw(self, time: Timeline) -> Draw:
        """What a strategy draws from: uniform numbers of the generator."""
        device = "cpu" if self.generator is None else self.generator.device
        number = torch.zeros((), dtype=torch.float64, device=device)

        def draw(each_row: bool = False) -> Any:
            if each_row:
                return number.new_empty(self._rows(time)).uniform_(generator=self.generator).tolist()
            return number.uniform_(generator=self.generator).item()

        return draw

    def _rows(self, time: Timeline) -> int:
        """How many rows are cut on their own: those of the state, or of the inputs if the layer says where they are."""
        p, carried = self.problem, self.state
        inputs = time.inputs_at(0)
        if p.from_none and carried is None:
            return time.rows_at(0)
        if carried is None:
            carried = self.initial_state
            if callable(carried):
                with torch.no_grad(), noise_restored(_tree.leaves(inputs)):
                    carried = carried()
        zeros = _recurrence.zero_state(p.model, inputs, p.time_dim)
        return _boundary.row_count(zeros if carried is None else carried, p.batch_dim, zeros is not None, inputs)


def checked_strategy(value: Any, reduction: str, by_window: bool = False) -> Any:
    """Raise unless it is a strategy, with a divisor where "mean" is asked for, and fixed windows for `per_window`."""
    if isinstance(value, type) or not callable(getattr(value, "windows", None)):
        such = "bptt.TruncatedBPTT(k1=20)" if not isinstance(value, type) else f"{value.__name__}(...)"
        raise TypeError(f"strategy={value!r} isn't a strategy: pass a value such as {such}.")
    if by_window:
        _check_fixed(value)
    elif reduction == "mean" and getattr(value, "lengths_known", True):
        value.divisor(Window(0, 0, 1, 1))  # raises where there is no constant
    return value


def _check_fixed(strategy: Any) -> None:
    """Raise unless windows follow from the stream alone: a loss over a different window is a different loss."""

    def draw(each_row: bool = False) -> Any:
        raise _Drawn

    fixed = getattr(strategy, "lengths_known", True)
    try:
        next(strategy.windows(lambda step: int(min(step, 64)), draw), None)
    except _Drawn:
        fixed = False
    if not fixed:
        raise ValueError(
            f"strategy={strategy!r} sets its windows at random or as it goes, so that a loss by per_window would be "
            f"a different objective each time: use bptt.FullBPTT() or bptt.TruncatedBPTT(k1, k2)."
        )


class _Drawn(Exception):
    pass


def _check_called_bare(function: Any) -> None:
    """Raise unless `initial_state=` can be called without arguments; a signature that can't be read is no reason to."""
    with contextlib.suppress(ValueError):
        signature = inspect.signature(function)
        try:
            signature.bind()
        except TypeError:
            raise TypeError(
                f"initial_state={named(function)}{signature} is called without arguments: pass a function that needs "
                f"none, such as lambda: {named(function)}(...)."
            ) from None


def _check_reduction(value: Any) -> None:
    """Raise unless it is "mean", "sum" or "valid"."""
    if value not in ("mean", "sum", "valid"):
        raise ValueError(f'reduction={value!r}: use "mean", "sum" or "valid".')


def _check_clip(value: Any) -> None:
    """Raise unless it is a positive number or None."""
    if value is not None and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"clip_cotangent={value!r} must be a positive number, or None for no clipping.")


def _check_scale(value: Any) -> None:
    """Raise unless it is a finite number above 0, a 0-d tensor, or a function of a tensor."""
    fine = callable(value) if not isinstance(value, Tensor) else value.dim() == 0
    if isinstance(value, Tensor) and value.device.type == "cpu" and fine:  # elsewhere a look would wait for the device
        fine = not value.is_complex() and 0 < value.item() < math.inf
    if not fine and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"scale={value!r} must be a positive number, a 0-d tensor, or a GradScaler's `scale` method.")


def checked_params(values: Iterable[Tensor] | None) -> list[Tensor] | None:
    """Raise unless it holds tensors that require a gradient."""
    if values is None:
        return None
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(
            f"params= takes an iterable of tensors such as model.parameters(), not {type(values).__name__}; wrap one "
            f"tensor in a list."
        )
    tensors = list(values)
    if not tensors:
        raise ValueError("params= is empty: leave it out to give a gradient to all leaves.")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            raise ValueError(f"params=: entry {i} isn't a tensor that requires a gradient.")
    return tensors


def check_generator(value: Any) -> None:
    """Raise unless it is a torch.Generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator={value!r}: pass a torch.Generator, e.g. torch.Generator().manual_seed(0), or None.")
