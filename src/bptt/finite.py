"""Gradients that aren't finite though the losses are: found when they arise, taken back, and named with their step."""

from cmath import isfinite
from functools import cached_property
from math import isqrt
from typing import Any, NoReturn

import torch
from torch import Tensor

from bptt import state
from bptt.checks import NonFiniteGradientError
from bptt.reached import in_sight
from bptt.recurrence import unwrapped
from bptt.replay import isolated
from bptt.rewind import Rewind
from bptt.schedules.windows import Window
from bptt.segment import Initial, Problem, Segment
from bptt.state import Tree


class Gradients:
    """The `.grad`s that a window adds to: noted before, looked at after, put back where something isn't finite.

    watched: False under loss scaling, where overflow is the scaler's to find.
    """

    def __init__(self, problem: Problem, watched: bool) -> None:
        self._problem, self._watched = problem, watched
        self._before: list[tuple[Tensor, Tensor | None, Tensor | None]] | None = None

    @cached_property
    def leaves(self) -> list[Tensor]:
        """Those that may get a gradient: `params=`, or what model and loss hold or close over."""
        p = self._problem
        found = in_sight((unwrapped(p.model), p.loss.loss), set()) if p.params is None else p.params
        return [leaf for leaf in found if leaf.is_leaf and leaf.requires_grad]

    def note(self) -> None:
        """What there is before, unless it is noted already."""
        if self._before is None:
            before = [(p, p.grad) for p in self.leaves]
            self._before = [(p, grad, None if grad is None else grad.clone()) for p, grad in before]

    def forget(self) -> None:
        """The next window begins from what there is then."""
        self._before = None

    def put_back(self) -> None:
        """Everything that was noted as it was."""
        for p, grad, values in self._before or ():
            if grad is not None and values is not None and grad.layout == torch.strided:
                grad.copy_(values)
                values = grad
            p.grad = values

    def finite(self) -> bool:
        """Whether all is finite, judged by one sum first: the second synchronisation of an update."""
        if not self._watched or self._before is None:
            return True
        found = [_plain(grad) for p, *_ in self._before if (grad := p.grad) is not None and not grad.is_meta]
        return not found or _sum_is_finite(found) or all(bool(torch.isfinite(grad).all()) for grad in found)


def _plain(grad: Tensor) -> Tensor:
    """The numbers of a gradient that may be sparse, or spread over processes."""
    if grad.layout == torch.sparse_coo:
        return grad.coalesce().values()
    return grad if type(grad) is Tensor else getattr(grad, "to_local", lambda: grad)()


def _sum_is_finite(found: list[Tensor]) -> bool:
    """A sum is finite only where all its terms are; that of finite ones may overflow."""
    sums = [grad.sum() for grad in found]
    device = sums[0].device
    return isfinite(torch.stack([part if part.device == device else part.to(device) for part in sums]).sum().item())


def refuse(
    problem: Problem, window: Window, begin: Tree, initial: Initial | None, leaves: list[Tensor], factor: Any
) -> NoReturn:
    """Raise NonFiniteGradientError with the step at which the gradient of a window stops being finite."""
    step = _culprit(problem, window, begin, initial, leaves, factor)
    where = f"from step {step} on the way back" if step is not None else "though no single step's is not"
    raise NonFiniteGradientError(
        f"the gradient of steps {window.start} to {window.stop - 1} isn't finite {where}, though the losses are: no "
        f"update was made from it, and .grad is as before. Look at that step's derivative and at bptt.diagnose.",
        window.start if step is None else step,
    )


def _culprit(
    problem: Problem, window: Window, begin: Tree, initial: Initial | None, leaves: list[Tensor], factor: Any
) -> int | None:
    """The first step, going back, whose vjp isn't finite, by calls of one step each; None if those show nothing."""
    steps = range(window.start, window.stop)
    tensors = [*state.leaves(begin), *state.leaves(problem.time.inputs_at(window.start))]
    with isolated(problem.model, tensors), isolated(problem.loss.loss, []):
        segments: list[Segment] = []
        for t in steps:
            before = segments[-1] if segments else None
            segments.append(Segment(problem, window, initial, t, t + 1, before=before, replays=True))
        cotangent: list[Tensor | None] | None = None
        try:
            for segment, carried in Rewind(segments, 2 * isqrt(len(steps)) + 1, begin):
                tape = segment.tape(state.tracked(carried))
                roots, cotangents = tape.roots(cotangent, factor)
                own = state.leaves(tape.begin)
                asked = [leaf for leaf in (*own, *leaves) if leaf.requires_grad]
                found = torch.autograd.grad(roots, asked, cotangents, allow_unused=True) if roots else ()
                if any(grad is not None and not torch.isfinite(_plain(grad)).all() for grad in found):
                    return segment.start
                reached = dict(zip(map(id, asked), found, strict=False))
                cotangent = [reached.get(id(leaf)) for leaf in own]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None  # a recurrence that can't be called on one step
    return None
