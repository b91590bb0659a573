"""What is unrolled and what is minimised: recurrences `(inputs, state) -> (outputs, state)` and losses by step."""

import copy
import inspect
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from bptt import arguments, checks, criteria, replay, state
from bptt.state import Tree

Recurrence = Callable[..., tuple[Tree, Tree]]
"""`(inputs, state) -> (outputs, state)`, inputs and outputs with time as an axis: `torch.nn.LSTM`, or any like it.

A recurrence whose call names these keywords gets them, so that it need not be called in pieces:
is_start: bool (T, B) or (T,): rows to set to zeros before that step (only where no `initial_state=` is given);
cotangent_weight: (T,) or (T, B): entry t multiplies the cotangent that comes to s_t from step t+1, the last entry that
of the returned state, and never that of the outputs: w_t of equation (1).
"""

Loss = Callable[[Tree, Tree], Any]
"""`(outputs, targets) -> losses (T, ...)`, or `(losses, aux)`; never reduced over time."""


class Scan(nn.Module):
    """`scan` of a module: a recurrence whose parameters and buffers are those of `step`."""

    def __init__(self, step: nn.Module, time_dim: int = 0) -> None:
        super().__init__()
        self.step = step
        self.time_dim = time_dim

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Run `step` over the time axis of `inputs`."""
        return _scan(
            _cell(self.step) if isinstance(self.step, nn.RNNCellBase) else self.step, inputs, state, self.time_dim
        )


def _cell(cell: Recurrence) -> Recurrence:
    """The step of one of torch.nn's cells: they return the state alone, whose h is the output."""

    def step(x: Tensor, carried: Tree) -> tuple[Tensor, Tree]:
        after = cell(x, carried)
        return (after[0] if isinstance(after, tuple) else after), after

    return step


@overload
def scan(step: nn.Module, time_dim: int = 0) -> Scan: ...
@overload
def scan(step: Recurrence, time_dim: int = 0) -> Recurrence: ...
def scan(step: Recurrence, time_dim: int = 0) -> Recurrence:
    """Lift a step `(x_t, state) -> (y_t, state)` to a recurrence over sequences.

        y_t, s_t = step(x_t, s_{t-1}),  t = 0 .. T-1                                      (1)

    step: a function, or a module: then the result is a module too, so that its parameters are seen. torch.nn's cells,
        which return their state alone, are steps as well: `nn.LSTMCell` with states (h, c) and h as its output.
    time_dim: the time axis of inputs and outputs, as in `unroll`.

    Returns `(inputs, state) -> (outputs, state)`; inputs and outputs are pytrees of tensors (T, ...).
    Cost: one call of `step` a step.

    >>> import bptt, torch
    >>> decay = bptt.scan(lambda x, s: (0.5 * s + x, 0.5 * s + x))
    >>> outputs, last = decay(torch.ones(3), torch.tensor(0.0))
    >>> outputs
    tensor([1.0000, 1.5000, 1.7500])
    """
    arguments.callable_(step, "step")
    if isinstance(step, nn.Module):
        return Scan(step, time_dim)

    def recurrence(inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        return _scan(step, inputs, state, time_dim)

    recurrence.__name__ = f"scan({checks.named(step)})"
    return recurrence


def _scan(step: Recurrence, inputs: Tree, carried: Tree, time_dim: int) -> tuple[Tree, Tree]:
    columns, structure = state.flatten(inputs)
    criteria.some_steps(columns, time_dim)
    outputs: list[Tree] = []
    named, plain = None, True
    for row in zip(*(column.unbind(time_dim) for column in columns), strict=True):
        y, after = checks.pair(step(state.unflatten(row, structure), carried), "the step")
        if not outputs:  # later calls could fail inside the step before anyone sees why
            kept = criteria.step_returns(after, carried, step)
            named, plain = state.structure_of(carried), kept is after
        outputs.append(y)
        carried = after if plain else state.conform(after, named)
    stacked = zip(*(state.leaves(y) for y in outputs), strict=True)
    joined = [torch.stack(column, min(time_dim, column[0].dim())) for column in stacked]
    return state.unflatten(joined, state.structure_of(outputs[0])), carried


def per_step(criterion: Callable[..., Tensor]) -> Loss:
    """A loss by step from a torch criterion, on outputs (T, B, ...) and targets (T, B, ...).

        l[t, b] = criterion(outputs[t, b], targets[t, b])                                 (1)

    criterion: a module such as `nn.CrossEntropyLoss()` (its `reduction` is set aside, the module left as it is), or
        a function that takes `reduction="none"`, such as `torch.nn.functional.mse_loss`.

    Returns a loss `(outputs, targets) -> (T, B, ...)`. Without a batch axis, (T, C) against (T,), it gives (T,).
    Raises TypeError for a loss over whole sequences such as CTC, which is no sum over steps: compute its logits with
    `backward`'s encoder support instead, calling `.backward()` on the loss yourself.
    Targets that the criterion ignores (`ignore_index`) don't count in `mean_loss`, as under a mask.
    A criterion that divides by the sum of class weights under "mean" doesn't here.

    >>> import bptt, torch
    >>> loss = bptt.per_step(torch.nn.CrossEntropyLoss())
    >>> loss(torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.long)).shape
    torch.Size([5, 2])
    """
    criteria.criterion(criterion)
    if isinstance(criterion, nn.Module):
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # pyright: ignore[reportArgumentType]
    else:
        unreduced = lambda outputs, targets: criterion(outputs, targets, reduction="none")  # noqa: E731

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        criteria.criterion_fits(criterion, outputs, targets)
        if outputs.dim() < 3:
            return criteria.not_spread(unreduced(outputs, targets), outputs, targets)
        lead = outputs.shape[:2]
        losses = unreduced(outputs.flatten(0, 1), targets.flatten(0, 1))
        return criteria.not_spread(losses, outputs, targets).unflatten(0, lead)

    loss.__name__ = f"per_step({checks.named(criterion)})"
    ignored = criteria.ignored_target(criterion)
    if ignored is not None:
        loss.counted = lambda targets: targets != ignored  # pyright: ignore[reportFunctionMemberAccess]
    return loss


class StepLoss:
    """The user's loss with its result checked: losses (n, ...) with time first, and aux."""

    def __init__(self, loss: Loss, time_dim: int) -> None:
        self.loss = loss
        self.time_dim = time_dim
        self._told_apart = False

    def __call__(self, outputs: Tree, targets: Tree, steps: int) -> tuple[Tensor, Tree]:
        losses, aux = self._call(outputs, targets, steps)
        if not self._told_apart and steps > 1:
            self._tell_axes_apart(outputs, targets, steps)
        return losses, aux

    def _call(self, outputs: Tree, targets: Tree, steps: int) -> tuple[Tensor, Tree]:
        try:
            result = self.loss(outputs, targets)
        except Exception as error:
            criteria.failed_loss(error, self.loss, outputs, targets)
        losses, aux = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        losses = checks.losses(losses, steps, self.time_dim)
        if aux is not None:
            criteria.aux_fits(aux, losses, outputs)
            aux = state.detach(aux)
        return (losses.movedim(1, 0) if self.time_dim and losses.dim() > 1 else losses), aux

    def counted(self, targets: Tree, losses: Tensor) -> Tensor | None:
        """Which of the losses (n, ...), time first, of the last n steps of `targets` count; None where all do."""
        ask = getattr(self.loss, "counted", None)
        if ask is None or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        targets = targets.movedim(self.time_dim, 0)[-len(losses) :]
        if targets.shape != losses.shape:
            return None
        counted = ask(targets)
        if counted.device.type == "cpu" and counted.view(torch.uint8).all():  # to look costs less there than to count
            return None
        return counted

    def _tell_axes_apart(self, outputs: Tree, targets: Tree, steps: int) -> None:
        """Where another axis is as long as time, the shape proves nothing: ask once more with one step less."""
        tensors = [*state.leaves(outputs), *state.leaves(targets)]
        self._told_apart = True
        if not any(steps in (*leaf.shape[: self.time_dim], *leaf.shape[self.time_dim + 1 :]) for leaf in tensors):
            return
        shorter = [state.narrow(tree, self.time_dim, 0, steps - 1) for tree in (outputs, targets)]
        with torch.no_grad(), replay.noise_restored(tensors):
            self._call(shorter[0], shorter[1], steps - 1)


def unwrapped(model: Recurrence) -> Recurrence:
    """The module under `torch.compile`, or the model itself."""
    return getattr(model, "_orig_mod", model)


def accepts(model: Recurrence, keyword: str) -> bool:
    """Whether the recurrence's call names `keyword`: native support of `is_start` or `cotangent_weight`."""
    inner = unwrapped(model)
    try:
        parameters = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return keyword in parameters


def default_batch_dim(model: Recurrence) -> int | None:
    """The axis of the rows in the state of a layer that has default zeros; None for any other recurrence.

    Such layers are torch.nn's, with 1, and modules that name theirs: `zero_state(inputs)` and `state_batch_dim`.
    """
    layer = unwrapped(model)
    return (
        1 if isinstance(layer, nn.RNNBase) else getattr(layer, "state_batch_dim", None) if _makes_zeros(layer) else None
    )


def _makes_zeros(layer: Any) -> bool:
    return isinstance(layer, nn.Module) and callable(getattr(layer, "zero_state", None))


def zero_state(model: Recurrence, inputs: Tree, time_dim: int) -> Tree:
    """The zeros that a layer starts from, or None for a recurrence without default.

    inputs: (T, B, I), or (B, T, I) under time_dim=1, or (T, I) unbatched. For torch.nn the state is (layers, B, H),
    for an LSTM a pair of such tensors, in the dtype of the inputs.
    """
    layer: Any = unwrapped(model)
    x = state.leaves(inputs)[0]
    if _makes_zeros(layer):
        return layer.zero_state(x)
    if not isinstance(layer, nn.RNNBase):
        return None
    batch = [x.shape[1 - time_dim]] if x.dim() == 3 else []
    hidden = x.new_zeros(layer.num_layers, *batch, layer.proj_size or layer.hidden_size)
    return (hidden, x.new_zeros(layer.num_layers, *batch, layer.hidden_size)) if layer.mode == "LSTM" else hidden
