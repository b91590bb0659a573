"""Whether a recurrence is a function of inputs and state, or keeps a state of its own between calls."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt import _errors, _tree
from bptt._guard.holders import Holder
from bptt._guard.kept import Kept
from bptt._guard.likeness import alike
from bptt._segment import Problem, Segment
from bptt._snapshot import Noise, foreign_noise_restored, foreign_states, install_foreign, noise_restored
from bptt._torch import is_compiled, unwrapped
from bptt._tree import Tree

STEPS = 31
"""The most steps that are looked at: a prime, in case something repeats every few steps."""


WARM = 8
"""Steps after which what a recurrence keeps has shown itself."""


class Stretch(NamedTuple):
    """The steps of a segment on which the recurrence and the loss are checked."""

    problem: Problem
    segment: Segment
    carried: Tree
    data: Any

    @classmethod
    def of(cls, segment: Segment, carried: Tree) -> "Stretch":
        """The segment's first steps, a few more if they have only one loss; all of them if code is compiled."""
        p, window, a = segment.problem, segment.window, segment.start
        steps = max(STEPS, window.first - a + 4)
        b = segment.stop if is_compiled(p.model) else min(segment.stop, a + steps)
        b = max(b, min(window.stop, max(a, window.first) + 2))
        data = segment.time.read(a, b)
        floating = [leaf for leaf in _tree.leaves(data.inputs) if _tree.carries_cotangent(leaf) and not leaf.is_meta]
        if floating and not any(leaf.any() for leaf in floating):  # zeros, which show nothing
            one = lambda leaf: torch.ones_like(leaf) if _tree.carries_cotangent(leaf) else leaf  # noqa: E731
            data = data._replace(inputs=_tree.map_leaves(one, data.inputs))
        return cls(p, Segment(segment.span, a, b), _tree.detach(carried), data)

    def evaluated(self, carried: Tree = None, other: bool = False, grad: bool = False) -> tuple[Tree, Tree]:
        """(outputs, end) from a state; `other`: on the inputs in another order, and halved."""
        data = self.data
        if other:
            turn = lambda leaf: leaf.flip(self.problem.time_dim) * (0.5 if leaf.is_floating_point() else 1)  # noqa: E731
            data = data._replace(inputs=_tree.map_leaves(turn, data.inputs))
        with torch.set_grad_enabled(grad):
            carried = self.carried if carried is None else carried
            if not grad:  # a recurrence may change it in place
                carried = _tree.map_leaves(torch.clone, carried)
            return self.segment.unfold(carried, data)[:2]

    @property
    def lively(self) -> bool:
        """Whether the state isn't zero and there are enough steps for a hidden state to show."""
        floating = [leaf for leaf in _tree.leaves(self.carried) if _tree.carries_cotangent(leaf)]
        if self.segment.stop - self.segment.start < WARM or _many_processes():  # which must all do the same
            return False
        return any(bool(leaf.any()) for leaf in floating)


def pure(stretch: Stretch, mode: str) -> Tree:
    """The outputs of the stretch; raises ValueError if they or the end state depend on what earlier calls have left.

    mode: "overlap": windows overlap, so that between two evaluations of a step nothing is restored but what belongs to
    normalisation and power iterations; "split": replays find the buffers as they were, so that at most a gradient that
    goes through them is lost; "again": the same, and no gradient is lost; "none": it is called with None, to start
    afresh.
    Returns None if an evaluation fails, since the run itself will find that.
    """
    model, tensors = stretch.problem.model, _tensors(stretch)
    kept = Kept(model, unwrapped(model))
    trial = _Trial(stretch, kept, mode)
    with noise_restored(tensors), foreign_noise_restored(), torch.no_grad():
        try:
            return trial.run()
        except _HiddenState as found:
            raise found.error from None
        except Exception:
            return None
        finally:
            kept.restore()
            torch.clear_autocast_cache()


class _HiddenState(Exception):
    def __init__(self, error: ValueError) -> None:
        super().__init__()
        self.error = error


class _Trial:
    """Evaluations of a stretch, one after another, each from the same state and noise."""

    def __init__(self, stretch: Stretch, kept: Kept, mode: str) -> None:
        self.stretch, self.kept, self.mode = stretch, kept, mode
        self.noise = Noise.now(_tensors(stretch))
        self.foreign = foreign_states()
        self.back: set[tuple[int, Any]] = set()

    def put_back(self, holder: Holder, key: Any) -> bool:
        """Whether a replay finds this as the first evaluation found it, so that nothing is lost."""
        if key in holder.steady or (self.mode == "again" and holder.kind == "buffer"):
            return True
        return (self.mode == "overlap" and holder.kind == "generator") or (id(holder), key) in self.back

    def evaluate(self, **options: Any) -> tuple[Tree, Tree]:
        self.noise.install()
        if self.mode == "overlap":
            install_foreign(self.foreign)
        return self.stretch.evaluated(**options)

    def run(self) -> Tree:
        """The outputs, having found that a second evaluation gives the same."""
        self.kept.lend()
        first = self.evaluate()
        changed = self.kept.changed()
        again = self._after(first)
        if again is None:
            return first[0]
        changed = changed or self.kept.changed()
        matter = self._that_matter(first, changed, again)
        clocks = {(id(h), k) for h, k in matter if self.mode == "split" and h.kind == "buffer"}
        if clocks and (clocks := self._clocks(clocks)):
            self.back = clocks
            self.kept.lend()
            first = self.evaluate()
            if self._after(first) is None:
                return first[0]
            matter = [(h, k) for h, k in matter if (id(h), k) not in clocks]
        raise _HiddenState(self._error(matter or changed))

    def _after(self, first: tuple[Tree, Tree]) -> int | None:
        """How many more evaluations it takes to see a difference from `first`; None if there is none."""
        self.kept.lend(self.put_back)
        if not alike(first, self.evaluate()):
            return 0
        if self.stretch.lively:
            return None
        steps, carried = self.stretch.segment.stop - self.stretch.segment.start, first[1]
        count = -(-WARM // steps)
        for _ in range(count):
            carried = self.evaluate(carried=carried)[1]
        self.kept.lend(self.put_back)
        return None if alike(first, self.evaluate()) else count

    def _that_matter(self, first: tuple[Tree, Tree], changed: list[Any], warm: int) -> list[tuple[Holder, Any]]:
        """The part of what changed that makes a difference by itself."""
        found = []
        for holder, key in changed:
            self.kept.lend()
            carried = None
            for _ in range(1 + warm):
                carried = self.evaluate(carried=carried)[1]
            self.kept.lend(lambda h, k, own=holder, name=key: h is not own or k != name)
            if not alike(first, self.evaluate()):
                found.append((holder, key))
        return [pair for pair in found if not self.put_back(*pair)] or found

    def _clocks(self, buffers: set[tuple[int, Any]]) -> set[tuple[int, Any]]:
        """The ones that don't depend on the data and have no graph: replays lose nothing by them."""
        self.kept.lend()
        end = self.evaluate()[1]
        was = self._now(buffers)
        self.kept.lend()
        self.evaluate(carried=_tree.tracked(end), other=True, grad=True)
        now = self._now(buffers)
        return {w for w in was if w in now and not now[w].requires_grad and alike(was[w], now[w])}

    def _now(self, buffers: set[tuple[int, Any]]) -> dict[tuple[int, Any], Tensor]:
        pairs = [((id(h), k), value) for h in self.kept.holders for k, value in h.read().items()]
        return {which: value for which, value in pairs if which in buffers and value is not None}

    def _error(self, matter: list[tuple[Holder, Any]]) -> ValueError:
        model = _errors.named(unwrapped(self.stretch.problem.model))
        names = list(dict.fromkeys(f"{holder.kind} {holder.name(key)}" for holder, key in matter))
        which = " and ".join([part for part in (", ".join(names[:-1]), *names[-1:]) if part])
        what = f"the {which}" if names else "out of sight, or draws numbers that torch doesn't know of"
        why = {"overlap": "k1 < k2 runs some steps twice", "split": "memory= runs some steps twice"}
        why["none"] = "a call with state=None is to start afresh"
        told = why.get(self.mode, "this run takes some steps twice")
        return ValueError(
            f"the recurrence {model} keeps a state of its own between calls, {what}: the same inputs and state don't "
            f"give the same outputs, but {told}. Make it part of the state that is passed in and "
            f"returned, as bptt.explicit_state(module) does with what a module keeps in attributes and buffers; see "
            f'docs/pitfalls.md, "A state that hides in the model".'
        )


def once(stretch: Stretch) -> Tree:
    """The outputs of the stretch, with everything restored; None if that fails."""
    kept = Kept(stretch.problem.model, unwrapped(stretch.problem.model))
    with noise_restored(_tensors(stretch)), foreign_noise_restored():
        try:
            kept.lend()
            return stretch.evaluated()[0]
        except Exception:
            return None
        finally:
            kept.restore()
            torch.clear_autocast_cache()


def _tensors(stretch: Stretch) -> list[Tensor]:
    return [*_tree.leaves(stretch.carried), *_tree.leaves(stretch.data.inputs)]


def _many_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
