"""How each question of `verify` is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _recurrence, _torch, _tree
from bptt._errors import NonFiniteError, named
from bptt._guard import axes
from bptt._guard.kept import Kept
from bptt._guard.likeness import CLOSE, alike, rounding
from bptt._guard.mixing import by_step
from bptt._guard.purity import Stretch, pure
from bptt._loss import StepLoss
from bptt._options import Options
from bptt._run import Run
from bptt._segment import Segment
from bptt._snapshot import Noise
from bptt._stream import Chunk
from bptt._tree import Tree
from bptt.analysis import answers as asked
from bptt.analysis.answers import Answer, line, sentence, some
from bptt.strategies import FullBPTT

STEPS = 32
"""Steps that are looked at, but for the gradient, which is of the whole chunk."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def registered(thing: Any) -> list[Tensor]:
    return [*thing.parameters(), *thing.buffers()] if isinstance(thing, nn.Module) else []


class Trial:
    """The questions of one model, loss and chunk, asked one after the other; what is kept is lent before each."""

    def __init__(self, options: Options, chunk: Chunk, kept: Kept) -> None:
        self.options, self.chunk, self.kept = options, chunk, kept
        self.problem = options.problem
        self.model = _torch.unwrapped(self.problem.model)
        kept.lend()
        self.span = Run(options, [chunk]).start(STEPS)
        self.steps = self.span.window.stop
        self.inputs, self.targets = (
            _tree.narrow(tree, self.problem.time_dim, 0, self.steps) for tree in (chunk.inputs, chunk.targets)
        )
        self.noise = Noise.now(_tree.leaves(self.inputs))
        self.carried = self.span.begin

    def answers(self) -> Iterator[Answer]:
        """In the order of `REST`."""
        turned = self.axes()
        yield turned
        self.outputs, self.carried = self.evaluate()  # a state that isn't zero says more
        self.drawn = not self.noise.equals(Noise.now(_tree.leaves(self.inputs)))
        yield self.function()
        yield self.replays()
        in_place = self.in_place()
        yield in_place
        for question, ask in ((asked.TIME, self.time), (asked.ROWS, self.rows)):
            yield ask() if turned.ok else Answer(question, None, "the model takes rows for steps.")
        self.outputs, _ = self.evaluate()
        yield self.loss_steps()
        yield self.loss_rows()
        yield from self.gradient(in_place)

    def evaluate(self, inputs: Tree = None, fresh: bool = True, carried: Tree = None) -> tuple[Tree, Tree]:
        """(outputs, end) of a call; `fresh`: with what is kept, and the noise, as at first."""
        if fresh:
            self.kept.lend()
            self.noise.install()
        inputs = self.inputs if inputs is None else inputs
        steps = _tree.leaves(inputs)[0].shape[self.problem.time_dim]
        carried = _tree.map_leaves(torch.clone, self.carried if carried is None else carried)
        torch.clear_autocast_cache()
        with torch.no_grad():
            outputs, end = _recurrence.called(
                self.problem.model, _tree.map_leaves(torch.clone, inputs), carried, {}, 0, steps
            )
        _recurrence.check_outputs(outputs, steps, self.problem.time_dim)
        return outputs, end

    def axes(self) -> Answer:
        """Steps for steps."""
        try:
            axes.told_apart(self.model, self.inputs, self.carried, self.problem.time_dim)
        except ValueError as error:
            found, _, advice = str(error).partition(": ")
            return Answer(asked.AXES, False, f"{found}.", sentence(advice))
        return Answer(asked.AXES, True)

    def pure(self, question: str, mode: str) -> Answer | None:
        """No or None, from evaluations of the first steps twice."""
        self.kept.lend()
        self.noise.install()
        try:
            outputs = pure(Stretch.of(Segment(self.span, 0, self.steps), self.span.begin), mode)
        except ValueError as error:
            advice = (
                "Make it part of the state that is passed in and returned, as bptt.explicit_state(module) does with "
                "what a module keeps in attributes and buffers."
            )
            return Answer(question, False, f"{str(error).partition(': ')[0]}.", advice)
        return None if outputs is not None else Answer(question, None, "the second call of the model fails.")

    def function(self) -> Answer:
        """Nothing is kept that matters."""
        return self.pure(asked.FUNCTION, "overlap") or Answer(asked.FUNCTION, True)

    def replays(self) -> Answer:
        """The same, buffers put back; dropout and its like are a note."""
        if answer := self.pure(asked.REPLAYS, "split"):
            return answer
        if not self.drawn:
            return Answer(asked.REPLAYS, True)
        which = ", ".join(self.dropping()) or "the model itself"
        return Answer(
            asked.REPLAYS,
            True,
            f"random numbers are drawn ({which}): a replay draws the same, windows that overlap draw afresh.",
        )

    def dropping(self) -> list[str]:
        """The names of layers with dropout that is switched on."""
        modules = self.model.named_modules() if isinstance(self.model, nn.Module) else ()
        return [f"{name or named(m)}: {named(m)}" for name, m in modules if _drops(m)]

    def in_place(self) -> Answer:
        """The versions of the state's leaves before and after a call."""
        state = _tree.map_leaves(torch.clone, self.carried)
        if not _tree.leaves(state):
            return Answer(asked.IN_PLACE, True)
        self.kept.lend()
        self.noise.install()
        before = _tree.versions(state)
        with torch.no_grad():
            self.problem.model(_tree.map_leaves(torch.clone, self.inputs), state)
        pairs = zip(_tree.named_leaves(state, "state"), before, _tree.versions(state), strict=True)
        written = [path for (path, _), old, new in pairs if old != new]
        if not written:
            return Answer(asked.IN_PLACE, True)
        return Answer(
            asked.IN_PLACE,
            False,
            f"it writes to {', '.join(written)}, which others still need.",
            "Return new tensors: h = h + x, not h += x.",
        )

    def time(self) -> Answer:
        """All steps in one call against two calls."""
        n, dim = self.steps, self.problem.time_dim
        if n < 2:
            return Answer(asked.TIME, None, "the chunk has one step.")
        half = (n + 1) // 2
        parts = [_tree.narrow(self.inputs, dim, a, b - a) for a, b in ((0, half), (half, n))]

        def differ() -> list[bool]:
            whole = self.evaluate()[0]
            first, end = self.evaluate(parts[0])
            second = self.evaluate(parts[1], fresh=False, carried=end)[0]
            pieces = ((0, half, first), (half, n - half, second))
            return [not self.alike(_tree.narrow(whole, dim, a, length), part) for a, length, part in pieces]

        with self.quiet():
            self.evaluate()
            if not self.noise.equals(Noise.now(_tree.leaves(self.inputs))):
                return Answer(asked.TIME, None, "the model draws random numbers, beside dropout.")
            found = differ()
            if not any(found):
                return Answer(asked.TIME, True)
            with self.kept.normalised_as_in_evaluation():
                normalised = not any(differ())
        if normalised:
            why, advice = "batch norm in training takes its means over the steps of a call", "Normalise by step: scan"
            return Answer(asked.TIME, False, f"{why}.", f"{advice} a step with the layer inside, or use LayerNorm.")
        if found[0]:
            why = f"the first {half} of {n} steps come out otherwise alone than among all {n}: it looks at the future."
            return Answer(asked.TIME, False, why, "Let a step depend on its inputs and on the state alone.")
        why = f"the steps from {half} on come out otherwise in a call of their own: it matters where a call begins."
        return Answer(
            asked.TIME, False, why, "Carry what it needs of earlier steps, such as their number, in the state."
        )

    def rows(self) -> Answer:
        """One row's inputs changed: do others' outputs change?"""
        axis = 1 - self.problem.time_dim
        rows = self.count(self.inputs)
        if rows < 2:
            return Answer(asked.ROWS, None, "the inputs have no two rows.")
        changed = _tree.map_leaves(lambda leaf: _first_row_changed(leaf, axis), self.inputs)
        if alike(changed, self.inputs):
            return Answer(asked.ROWS, None, "the rows have the same inputs.")
        if self.count(self.outputs) != rows:
            return Answer(asked.ROWS, None, "the outputs have no axis of rows.")

        def differ() -> bool:
            one, other = (_tree.narrow(self.evaluate(x)[0], axis, 1, rows - 1) for x in (self.inputs, changed))
            return not self.alike(one, other)

        if not differ():
            return Answer(asked.ROWS, True)
        if not self.rows_known():
            return Answer(asked.ROWS, None, f"axis {axis} may hold rows or features: give state_batch_dim=.")
        with self.kept.normalised_as_in_evaluation():
            normalised = not differ()
        if normalised:
            note = "batch norm in training mixes rows: what is said by row (ARTBP(per_row=True), diagnose) isn't so."
            return Answer(asked.ROWS, True, note)
        return Answer(
            asked.ROWS,
            False,
            "other inputs in row 0 change the outputs of other rows.",
            "Take means and the like over features, not over axis "
            f"{axis}; else leave out what is by row: ARTBP(per_row=True), diagnose, resets of single rows.",
        )

    def loss_steps(self) -> Answer:
        """As the guard asks it."""
        if not isinstance(self.problem.loss, StepLoss):
            return Answer(asked.LOSS_STEPS, True, "a loss by window may mix steps: it is taken once a window.")
        if self.steps < 2:
            return Answer(asked.LOSS_STEPS, None, "the chunk has one step.")
        self.kept.lend()
        self.problem.loss(self.outputs, self.targets, self.steps)  # says what is wrong with it
        before = Noise.now(_tree.leaves(self.inputs))
        self.losses()
        if not before.equals(Noise.now(_tree.leaves(self.inputs))):
            return Answer(asked.LOSS_STEPS, None, "the loss draws random numbers.")
        try:
            by_step(self.problem, self.outputs, self.targets, self.steps)
        except ValueError as error:
            found = str(error).partition(", but")[0]
            advice = "Pass it as a loss of the whole window, by bptt.per_window, or leave memory= out."
            return Answer(asked.LOSS_STEPS, False, f"{found}.", advice)
        return Answer(asked.LOSS_STEPS, True)

    def losses(self, row: int | None = None) -> Tensor:
        """The losses of all rows, or of one alone."""
        axis = 1 - self.problem.time_dim
        pair = [_tree.map_leaves(torch.clone, tree) for tree in (self.outputs, self.targets)]
        if row is not None:
            pair = [_tree.map_leaves(lambda leaf, b=row: _row(leaf, axis, b), tree) for tree in pair]
        assert isinstance(self.problem.loss, StepLoss)
        with torch.no_grad():
            return self.problem.loss._call(pair[0], pair[1], self.steps)[0]

    def loss_rows(self) -> Answer:
        """Each row's losses alone against those among all rows, or their mean where the loss gives no rows."""
        rows = self.count(self.outputs)
        if not isinstance(self.problem.loss, StepLoss):
            return Answer(asked.LOSS_ROWS, None, "a loss by window is one number for all rows.")
        if rows < 2 or self.count(self.targets, rows) != rows:
            return Answer(asked.LOSS_ROWS, None, "outputs and targets have no two rows.")
        self.kept.lend()
        with self.kept.normalised_as_in_evaluation():
            before = Noise.now(_tree.leaves(self.inputs))
            whole = self.losses()
            if not before.equals(Noise.now(_tree.leaves(self.inputs))):
                return Answer(asked.LOSS_ROWS, None, "the loss draws random numbers.")
            try:
                each = [self.losses(row) for row in range(rows)]
            except Exception as error:
                return Answer(asked.LOSS_ROWS, None, f"the loss fails on a row alone ({line(error)}).")
        if whole.dim() > 1 and whole.shape[1] == rows:
            same = self.alike(whole, torch.cat(each, 1))
        else:
            total = torch.stack(each).sum(0)
            same = self.alike(whole, total) or self.alike(whole, total / rows)
        if same or not self.rows_known():
            return Answer(asked.LOSS_ROWS, True if same else None, "" if same else "the outputs may have no rows.")
        return Answer(
            asked.LOSS_ROWS,
            False,
            "rows have other losses alone than among all rows.",
            "Return losses (T, B, ...), each of its own row, and leave the mean over rows to the reduction.",
        )

    def gradient(self, in_place: Answer) -> Iterator[Answer]:
        """Something to train, finite, and everything reached: from one gradient of the chunk."""
        named_ones = self.wanted()
        frozen = [name for name, p in named_ones.items() if not p.requires_grad]
        asking = {name: p for name, p in named_ones.items() if p.requires_grad}
        if frozen and not asking:
            yield Answer(
                asked.TRAINED,
                False,
                "every parameter is frozen.",
                "Call requires_grad_(True) on what is to be trained.",
            )
            yield from (
                Answer(question, None, "nothing asks for a gradient.") for question in (asked.FINITE, asked.REACHED)
            )
            return
        yield Answer(asked.TRAINED, True, f"frozen: {some(frozen)}." if frozen else "")
        self.kept.lend()
        self.noise.install()
        run = Run(self.options, [self.chunk])
        try:
            for _ in run.windows(FullBPTT(), lambda span: 1):
                run.debts.pay()
        except NonFiniteError as error:
            advice = "Look at that step's inputs and targets, and lower the learning rate, or clip the gradient."
            yield Answer(asked.FINITE, False, f"{line(error)}.", advice)
            yield Answer(asked.REACHED, None, "there is no gradient.")
            return
        except Exception as error:
            why = f"no gradient can be taken: {line(error)}."
            advice = "Let the loss depend on the parameters through operations that torch can differentiate."
            yield Answer(asked.FINITE, None, why) if in_place.ok is False else Answer(asked.FINITE, False, why, advice)
            yield Answer(asked.REACHED, None, "there is no gradient.")
            return
        bad = [
            name for name, p in asking.items() if p.grad is not None and not bool(torch.isfinite(_dense(p.grad)).all())
        ]
        advice = "bptt.backward names the step; look for a square root, a division or a logarithm at zero."
        yield (
            Answer(asked.FINITE, False, f"the gradient of {some(bad)} isn't.", advice)
            if bad
            else Answer(asked.FINITE, True)
        )
        missed = [name for name, p in asking.items() if p.grad is None]
        if not missed:
            yield Answer(asked.REACHED, True)
            return
        advice = "Use it, or freeze it with requires_grad_(False)."
        yield Answer(asked.REACHED, False, f"none reaches {some(missed)}.", advice)

    def wanted(self) -> dict[str, Tensor]:
        """The parameters of model and loss by name, or those of `params=`."""
        owners = (("", self.model), ("loss.", self.problem.loss.loss))
        own: dict[Tensor, str] = {
            p: prefix + n for prefix, m in owners if isinstance(m, nn.Module) for n, p in m.named_parameters()
        }
        if self.problem.params is not None:
            return {own.get(p, f"params[{i}]"): p for i, p in enumerate(self.problem.params)}
        return {name: p for p, name in own.items()}

    def count(self, tree: Tree, least: int = 0) -> int:
        """The rows of the leaves, 0 where these don't agree; `least` where no leaf has an axis of rows."""
        axis = 1 - self.problem.time_dim
        found = {leaf.shape[axis] for leaf in _tree.leaves(tree) if leaf.dim() > 1}
        return found.pop() if len(found) == 1 else least if not found else 0

    def rows_known(self) -> bool:
        """Whether the second axis holds rows for sure."""
        given = self.problem.batch_dim is not None and _recurrence.default_batch_dim(self.model) is None
        return given or any(leaf.dim() > 2 for leaf in _tree.leaves((self.inputs, self.outputs)))

    def alike(self, one: Tree, other: Tree) -> bool:
        """Equal to what other shapes of the same products may do to rounding."""
        tensors = [*_tree.leaves(one), *registered(self.model)]
        return alike(one, other, max(10 * CLOSE, 64 * rounding(tensors, None)))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Dropout switched off."""
        modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
        own = [
            (m, key, m.__dict__[key])
            for m in modules
            if _drops(m)
            for key in ("training", "dropout")
            if key in m.__dict__
        ]
        try:
            for module, key, _ in own:
                if key == "dropout" or isinstance(module, _DROPOUTS):
                    module.__dict__[key] = False if key == "training" else 0.0
            yield
        finally:
            for module, key, value in own:
                module.__dict__[key] = value


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase):
        return module.training and module.dropout > 0 and module.num_layers > 1
    return isinstance(module, _DROPOUTS) and module.training and module.p > 0


def _first_row_changed(leaf: Tensor, axis: int) -> Tensor:
    """Row 0 replaced by the steps of row 1 in reverse; and larger, where that is possible."""
    if leaf.dim() < 2 or leaf.shape[axis] < 2:
        return leaf
    changed, other = leaf.clone(), leaf.select(axis, 1).flip(0)
    changed.select(axis, 0).copy_(other + 1 if leaf.is_floating_point() else other)
    return changed


def _row(leaf: Tensor, axis: int, row: int) -> Tensor:
    return leaf.narrow(axis, row, 1) if leaf.dim() > 1 else leaf


def _dense(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.layout == torch.sparse_coo else grad
