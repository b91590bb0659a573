"""What a run checks before it relies on replays: once per run, on one segment, changing nothing of the user's."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from bptt import _errors, _torch, _tree
from bptt._guard.mixing import by_step
from bptt._guard.purity import Stretch, once, pure
from bptt._loss import StepLoss
from bptt._masks import blocked
from bptt._segment import Segment, Span
from bptt._tree import Tree

_settled: ContextVar[bool] = ContextVar("settled", default=False)


_repeated: ContextVar[bool] = ContextVar("repeated", default=False)


@contextmanager
def _true(variable: ContextVar[bool]) -> Iterator[None]:
    """Set the variable to true for the block."""
    token = variable.set(True)
    try:
        yield
    finally:
        variable.reset(token)


def settled() -> Any:
    """A block whose runs have been checked before: the same model, loss and strategy."""
    return _true(_settled)


def repeated() -> Any:
    """A block whose runs start from the same state several times, which takes a recurrence without a hidden one."""
    return _true(_repeated)


class Guard:
    """What of a run's recurrence and loss has been checked so far."""

    def __init__(self) -> None:
        self.probed = False
        self._asked: set[str] = set()
        self._loss_asked = False

    def look(self, segment: Segment, carried: Tree, whole: bool, measured: bool) -> None:
        """Make the checks that are due before a segment is recorded from `carried`, last segment first.

        whole: the window has no other segment. measured: it was run before, to be measured or without a graph.
        """
        window = segment.window
        self._look_at_none(segment.span)
        overlap = window.keep < window.stop
        mode = "overlap" if overlap else "split" if not whole else ""
        if not mode and (measured or self.probed or _repeated.get()):
            mode = "again"
        by_step = isinstance(segment.problem.loss, StepLoss) and window.steps > 1  # a single loss can't be checked
        loss_due = by_step and not whole and not self._loss_asked
        if not mode or (mode in self._asked and not loss_due) or _settled.get():
            return
        uncached(segment.problem.model)
        if _lazy(segment.problem.model) or any(leaf.is_meta for leaf in _tree.leaves(carried)):
            return
        stretch = Stretch.of(segment, carried)
        outputs = None
        if mode not in self._asked:
            self._asked |= {"overlap": {"overlap", "split", "again"}, "split": {"split", "again"}}.get(mode, {mode})
            outputs = pure(stretch, mode)
        if loss_due:
            self._look_at_loss(stretch, outputs)

    def _look_at_none(self, span: Span) -> None:
        """Check that a recurrence that is called with None starts afresh, and doesn't continue from the last call."""
        p, window = span.problem, span.window
        if not p.from_none or "none" in self._asked or _settled.get():
            return
        if span.begin is None or span.time.resets(window.start, window.stop):
            self._asked.add("none")
            if not _lazy(p.model) and not any(leaf.is_meta for leaf in span.tensors):
                pure(Stretch.of(Segment(span, window.start, window.stop), None), "none")

    def _look_at_loss(self, stretch: Stretch, outputs: Tree) -> None:
        """At least two losses; if the window's last segment has one, it is checked together with the segment before."""
        segment, p = stretch.segment, stretch.problem
        first = max(segment.start, segment.window.first)
        n = segment.stop - first
        if n < 2:
            return
        self._loss_asked = True
        outputs = once(stretch) if outputs is None else outputs
        if outputs is None:
            return
        pair = [_tree.narrow(t, p.time_dim, first - segment.start, n) for t in (outputs, stretch.data.targets)]
        mask = stretch.data.mask
        if mask is not None and segment.time.masked(first, segment.stop):
            pair = [blocked(tree, mask[first - segment.start :], p.time_dim) for tree in pair]
        by_step(p, pair[0], pair[1], n)


def uncached(model: Any) -> None:
    """Refuse `parametrize.cached()` around a run: its weights would outlive the graph they were made in."""
    if _torch.caches_parametrizations() and isinstance(model, nn.Module):
        found = next((name for name, m in model.named_modules() if parametrize.is_parametrized(m)), None)
        if found is not None:
            raise ValueError(
                f"torch.nn.utils.parametrize.cached() is active, and {found or _errors.named(model)} is parametrized: "
                f"replays would use weights without a graph. Leave cached() out, or enter it inside the model's "
                f"forward. See docs/pitfalls.md."
            )


def _lazy(model: Any) -> bool:
    """Whether its first call will create the parameters."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)
