"""Who gets a gradient: a model that is wholly frozen is refused, a parameter that nothing reached is named, once."""

import functools
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _errors, _snapshot, _torch, _tree
from bptt._guard.holders import filled
from bptt._segment import Problem, Segment, Span
from bptt._tree import Tree
from bptt.strategies.windows import Window


class Watch:
    """Looks at the first windows of a run, until every parameter has been reached or the rest has been named.

    problem: the run's. late: whether an `initial_state=` function may bring in parameters that a window without a
    reset doesn't reach.
    """

    def __init__(self, problem: Problem, late: bool) -> None:
        self._problem, self._late = problem, late
        self._waiting: dict[str, tuple[Tensor, Tensor | None, int]] | None = None
        self._counted = self._looked = False

    def begin(self, span: Span, given: Tree) -> bool:
        """Called before a window: before the first, check that there is something to train, and note the gradients.

        Returns whether it was the first.
        """
        if self._waiting is not None:
            return False
        p = self._problem
        learned = [*_tree.leaves(given), *_tree.leaves(span.initial.value if span.initial else None)]
        if p.params is None and not any(leaf.requires_grad for leaf in learned) and not span.time.asking:
            _something_to_train(span)
        self._waiting = {
            name: (tensor, tensor.grad, -1 if tensor.grad is None else _torch.version(tensor.grad))
            for name, tensor in _watched(p).items()
        }
        return True

    def window(self, span: Span, valid: Any, aux: Tree) -> bool:
        """Called after a window: whether to name now what wasn't reached; a later graph may reach further back."""
        self._late = self._late and span.initial is None
        if not self._unreached():
            return False
        self._counted = self._counted or float(valid) > 0
        if self._counted and aux is not None and not self._looked:
            self._leave_heads(span)
        window = span.window
        return window.start > 0 or (window.keep == window.stop and window.stop - window.start > 1)

    def _unreached(self) -> list[str]:
        if self._waiting:
            self._waiting = {
                name: (tensor, before, version)
                for name, (tensor, before, version) in self._waiting.items()
                if tensor.grad is before and (before is None or _torch.version(before) == version)
            }
        return list(self._waiting or ())

    def _leave_heads(self, span: Span) -> None:
        """Forget parameters that outputs depend on: a loss with aux may look at a head without training it."""
        self._looked = True
        assert self._waiting is not None
        names, tensors = list(self._waiting), [tensor for tensor, *_ in self._waiting.values()]
        step = _first_step(span)
        with _snapshot.isolated(span.problem.model, _tree.leaves(span.begin)), torch.enable_grad():
            outputs, end, *_ = step.unfold(_tree.tracked(span.begin), span.time.read(step.start, step.stop))
        roots = [leaf for leaf in (*_tree.leaves(outputs), *_tree.leaves(end)) if leaf.requires_grad]
        if roots:
            ones = [leaf.new_ones(leaf.shape) for leaf in roots]
            found = torch.autograd.grad(roots, tensors, ones, allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    del self._waiting[name]

    def conclude(self, level: int) -> None:
        """Warn of what wasn't reached, at the caller `level` frames up."""
        names = [] if self._late or not self._counted else self._unreached()
        if not self._late:
            self._waiting = {}
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            warnings.warn(
                f"no gradient reached {', '.join(names[:5])}{more}: no loss so far depends on it. Freeze what isn't "
                f"trained with requires_grad_(False).",
                stacklevel=level,
            )


def _watched(problem: Problem) -> dict[str, Tensor]:
    """The leaves that should get a gradient, by name, except those whose hooks may take it away at once."""
    registered: dict[Tensor, str] = {
        parameter: prefix + name
        for prefix, module in (("", _torch.unwrapped(problem.model)), ("loss.", problem.loss.loss))
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters()
    }
    wanted = list(registered) if problem.params is None else problem.params
    return {
        registered.get(tensor, f"params[{i}]"): tensor
        for i, tensor in enumerate(wanted)
        if tensor.requires_grad and tensor.is_leaf and not _torch.gradient_hooks(tensor)
    }


def _something_to_train(span: Span) -> None:
    """Raise ValueError if all known parameters are frozen, and one step's graph from a fixed state reaches none."""
    problem = span.problem
    found = list(in_sight((problem.model, problem.loss.loss), {}))
    if any(tensor.requires_grad for tensor in found) or not any(isinstance(t, nn.Parameter) for t in found):
        return
    with _snapshot.untouched(problem.model, problem.loss.loss, [*found, *_tree.leaves(span.begin)]):
        tape = _first_step(span).tape(_tree.detach(span.begin))
    ends = [tape.losses, *_tree.leaves(tape.outputs), *_tree.leaves(tape.end)]
    if not any(leaf is not None and leaf.requires_grad for leaf in ends):
        raise ValueError(
            f"nothing gets a gradient: every parameter of {_errors.named(problem.model)} is frozen. Call "
            f"requires_grad_(True) on what is to be trained; to look at a loss alone, use bptt.evaluate."
        )


def _first_step(span: Span) -> Segment:
    """A window's first step, with its loss."""
    first = span.window.start
    return Segment(replace(span, window=Window(first, first, first + 1, first + 1)), first, first + 1)


def in_sight(value: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """The tensors of modules and containers, and of what functions close over, by the names used there."""
    for thing in held(value, seen):
        if isinstance(thing, Tensor):
            yield thing


def held(value: Any, seen: dict[int, Any]) -> Iterator[Tensor | nn.Module]:
    """The same, and the modules before their tensors."""
    if id(value) in seen:
        return
    seen[id(value)] = value  # this keeps it alive, so that nothing else gets its id
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield value
        yield from value.parameters()
    elif isinstance(value, dict | list | tuple):
        for part in list(value.values() if isinstance(value, dict) else value)[:100]:
            yield from held(part, seen)
    elif isinstance(value, functools.partial):
        yield from held((value.func, value.args, value.keywords), seen)
    elif inspect.ismethod(value):
        yield from held((value.__self__, value.__func__), seen)
    elif inspect.isfunction(value) and not value.__module__.startswith("torch."):
        cells = [cell.cell_contents for cell in value.__closure__ or () if filled(cell)]
        names = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        yield from held((cells, value.__defaults__, value.__kwdefaults__), seen)
        yield from held([part for part in names if not inspect.ismodule(part)], seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not inspect.ismodule(value):
        yield from held(dict(vars(value)), seen)
