"""The influence J = ∂s/∂θ, carried forward from window to window: equation (3) of the design.

    J_b = D_w J_a + I_w,  D_w = ∂s_b/∂s_a,  I_w = ∂s_b/∂θ,  g_w = (2 inside w) + c_a · J_a   (3)

c_a · J_a is part of the window's own backward pass: the state that the window begins with is given an autograd node
with this vjp, so that hooks, `params=` and wrappers see one gradient. J follows the parameters that the state depends
on, as found in the graphs of the windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt import _tree
from bptt._errors import named
from bptt._masks import Sheltered
from bptt._rows import Rows, Vjps, numbers
from bptt._segment import Problem, Segment, Span
from bptt._snapshot import Snapshot, isolated
from bptt._stream import Data
from bptt._tree import Tree


class _Carried(torch.autograd.Function):
    """The identity on the leaves of a state; its vjp gives θ what `pull` makes of their cotangents."""

    @staticmethod
    def forward(ctx: Any, influence: "Influence", count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.influence = influence
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *cotangents, *ctx.influence.pull(cotangents)


class Source(NamedTuple):
    """What the influence of a run is made from.

    problem: with the model unwrapped. state: what the run was given to start from. learned: whether resets may return
    to a learned state. names: the parameters whose influence may be saved, by names that are the same in other
    processes.
    """

    problem: Problem
    state: Tree
    learned: bool
    names: dict[str, Tensor]


class Influence(ABC):
    """What a run carries of J. `theta`: the parameters that the state was found to depend on, in this order.

    It is made once per run; `begin` is called before each window, `enter` on the state that it begins with, and
    `absorb` after it.
    """

    def __init__(self, source: Source) -> None:
        self.problem = source.problem
        self._names, self._given, self.learned = source.names, source.state, source.learned
        self._registered = self._asking()
        self.theta: list[Tensor] = []
        self.rows: Rows | None = None
        self.masked = False
        self.room: int | None = None  # bytes of a budget beside `nbytes`
        self.vjps, self._vjps_of_initial = Vjps(), Vjps()

    def _asking(self) -> list[tuple[nn.Parameter, bool]]:
        model = self.problem.model
        return [(p, p.requires_grad) for p in (model.parameters() if isinstance(model, nn.Module) else ())]

    def begin(self, span: Span) -> None:
        """Check before a window that J belongs to the current parameters; at the first, find what it is to hold."""
        self.check(span)
        if self.rows is not None:
            return
        self.rows = Rows.of(self.problem.model, self.problem.batch_dim, span.like, "carry")
        step = self.span(span)
        step = Segment(step, span.window.start, span.window.start + 1)
        with isolated(self.problem.model, span.tensors), torch.enable_grad():
            begin = _tree.tracked(span.begin)
            self.meet(step, begin, step.unfold(begin, step.time.read(step.start, step.stop)).end)

    def check(self, span: Span) -> None:
        """Raise ValueError if J no longer belongs to the parameters, or inputs are learned."""
        now = self._asking()
        if len(now) != len(self._registered) or any(
            p is not q or asks != asked for (p, asks), (q, asked) in zip(now, self._registered, strict=True)
        ):
            raise ValueError(
                f"parameters of {named(self.problem.model)} were replaced, frozen or unfrozen between two updates, "
                f"and what is carried of ∂s/∂θ belongs to the earlier ones: call unroll anew, or write into them in "
                f"place."
            )
        if any(leaf.requires_grad for leaf in _tree.leaves(span.time.inputs_at(span.window.start))):
            raise ValueError(
                "the inputs require a gradient, and what they do to later windows isn't carried: detach them, or let "
                "the model compute them, or use bptt.FullBPTT()."
            )

    def span(self, span: Span) -> Span:
        """The window as J goes through it: on the data as they are, whatever a mask leaves out."""
        self.masked = isinstance(span.time, Sheltered)
        time = span.time.whole if isinstance(span.time, Sheltered) else span.time
        return replace(span, problem=self.problem, time=time, enter=None)

    def meet(self, segment: Segment, begin: Tree, end: Tree) -> None:
        """Add to θ the new leaves that the state `end` depends on."""
        span = segment.span
        ours = [*_tree.leaves(begin), *_tree.leaves(span.initial.leaves if span.initial else None)]
        apart = set(map(id, ours))
        roots = [*_tree.leaves(end), *(value for value, _ in self._initials(segment, begin))]
        wanted = None if self.problem.params is None else set(map(id, self.problem.params))
        for leaf in _leaves_of(roots):
            if id(leaf) not in apart and (wanted is None or id(leaf) in wanted):
                apart.add(id(leaf))
                if not any(leaf is known for known in self.theta):
                    self.theta.append(leaf)
                    self._include(leaf)

    def _initials(self, segment: Segment, begin: Tree) -> list[tuple[Tensor, Tensor]]:
        """(the user's value, the engine's leaf) for what a segment starts from or resets to, which may depend on θ."""
        span, pairs = segment.span, []
        if segment.start == 0:
            value = self._given if self._given is not None else span.initial.value if span.initial else None
            pairs += zip(_tree.leaves(value), _tree.leaves(begin), strict=value is not None)
        if span.initial is not None:
            pairs += zip(_tree.leaves(span.initial.value), _tree.leaves(span.initial.leaves), strict=True)
        return [(value, leaf) for value, leaf in pairs if value.requires_grad]

    def pulled(self, segment: Segment, begin: Tree, end: Tree, vectors: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """`vectors` (n, rows, size) times D, in the same shape, and times I: (n, *parameter) for each, or None."""
        assert self.rows is not None
        ends, firsts = _tree.leaves(end), _tree.leaves(begin)
        initials = self._initials(segment, begin)
        own = [firsts[i] for i in self.rows.which] if firsts else []
        given = [*own, *(leaf for _, leaf in initials), *self.theta]
        asked = [x for x in given if x.requires_grad]
        found = iter(self.vjps([ends[i] for i in self.rows.which], self.rows.scatter(vectors), asked))
        all_found = [next(found) if x.requires_grad else None for x in given]
        to_begin, rest = all_found[: len(own)], all_found[len(own) :]
        to_initial, to_theta = rest[: len(initials)], rest[len(initials) :]
        behind = [(value, c) for (value, _), c in zip(initials, to_initial, strict=True) if c is not None]
        if behind:
            more = self._vjps_of_initial([value for value, _ in behind], [c for _, c in behind], self.theta)
            to_theta = _tree.added(to_theta, more)
        if not own:
            return torch.zeros_like(vectors), to_theta
        return self.rows.gather(to_begin, len(vectors)), to_theta

    def _spoiled(self, after: Tree) -> Tensor | None:
        """The rows (B,) that aren't finite after steps that a mask leaves out, if others are: they no longer count."""
        assert self.rows is not None
        leaves = _tree.leaves(after)
        finite = self.rows.gather([leaves[i][None] for i in self.rows.which], 1)[0].isfinite().all(1)
        return None if len(finite) < 2 or bool(finite.all()) else ~finite

    def enter(self, carried: Tree) -> Tree:
        """The same state, through which cotangents reach θ as well."""
        assert self.rows is not None
        values, structure = _tree.flatten(carried)
        chosen = self.rows.which
        if not self.theta:
            return carried
        entered = _Carried.apply(self, len(chosen), *(values[i] for i in chosen), *self.theta)
        values = list(values)
        for i, value in zip(chosen, entered, strict=True):  # pyright: ignore[reportArgumentType]
            values[i] = value
        return _tree.unflatten(values, structure)

    @abstractmethod
    def absorb(self, span: Span, length: int | None, noise: Snapshot, end: Tree) -> None:
        """Equation (3) over a window that was run.

        length: the most steps of a graph, None for the whole window. noise: the noise that the window found, for
        running it again. end: the state that it ended in.
        """

    def unfolded(self, segment: Segment, carried: Tree) -> tuple[Tree, Tree, Tree, Data]:
        """A segment's graph without its loss: the state it begins with, the one it ends in, that detached, the data."""
        begin = _tree.tracked(carried)
        data = segment.time.read(segment.start, segment.stop)
        done = segment.unfold(begin, data)
        if self.masked and (spoiled := self._spoiled(done.after)) is not None:
            p = self.problem
            begin = _tree.tracked(_without(carried, spoiled, p.batch_dim))
            data = data._replace(inputs=_without(data.inputs, spoiled, 1 - p.time_dim))
            done = segment.unfold(begin, data)
        self.meet(segment, begin, done.end)
        return begin, done.end, done.after, data

    @abstractmethod
    def _include(self, leaf: Tensor) -> None:
        """Add a part of J for another parameter, zero at first."""

    @abstractmethod
    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """c · J for each of θ, from the cotangents of the state's leaves."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held between windows, and beside a window's graph while one is absorbed."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Everything that is carried, as tensors and dicts of tensors by the names of `theta`."""

    @abstractmethod
    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""

    def state_dict(self) -> dict[str, Any]:
        """What is carried, to be saved between two windows."""
        return {} if self.rows is None else self.parts()

    def load_state_dict(self, state: dict[str, Any], like: Tree) -> None:
        """The inverse, called before the first window, for a state with the shapes of `like`."""
        if state:
            self.rows = Rows.of(self.problem.model, self.problem.batch_dim, like, "carry")
            self.take(state)

    def name_of(self, leaf: Tensor) -> str:
        """The name by which it is saved."""
        found = next((name for name, known in self._names.items() if known is leaf), None)
        if found is None:
            raise ValueError(
                f"what is carried of ∂s/∂θ can't be saved: neither {named(self.problem.model)} nor params= has a "
                f"parameter of shape {tuple(leaf.shape)} that the state depends on. Register it, or pass params=."
            )
        return found

    def load_leaf(self, name: str, saved: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The parameter of a name, and what was saved for it, of this shape, on the parameter's device."""
        leaf = self._names.get(name)
        if leaf is None or tuple(saved.shape) != (*shape, numbers(leaf)):
            here = "has none" if leaf is None else f"needs {(*shape, numbers(leaf))}"
            raise ValueError(
                f"load_state_dict: the saved run carries an influence of {tuple(saved.shape)} for {name}, this one "
                f"{here}: make the model, params= and batch rows those of the saved run."
            )
        assert self.rows is not None
        return leaf, saved.to(leaf.device, self.rows.dtype, copy=True).contiguous()


def _without(tree: Tree, rows: Tensor, dims: Any) -> Tree:
    """Put zeros into some rows, whose numbers would make those of others NaN on the way back: 0 · NaN is NaN."""
    return _tree.replace_rows(tree, _tree.map_leaves(torch.zeros_like, tree), rows, dims)


def _leaves_of(roots: Iterable[Tensor]) -> list[Tensor]:
    """The autograd leaves behind some tensors, including any of these that are leaves, in the order of their graph."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = []
    for root in roots:
        if root.grad_fn is not None:
            waiting.append(root.grad_fn)
        elif root.requires_grad:
            found[id(root)] = root
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found[id(node.variable)] = node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found.values())
