"""What is minimised: losses by step, made of criteria or written by hand, called and checked."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bptt import _errors, _recurrence, _snapshot, _tree
from bptt._errors import NonFiniteLossError, named
from bptt._tree import Tree, shape

_CLASSES_AT_1 = {"CrossEntropyLoss", "NLLLoss", "NLLLoss2d", "cross_entropy", "nll_loss"}


def _check_criterion(value: Any) -> None:
    """Raise unless the criterion is a sum over steps."""
    _errors.check_callable(value, "criterion")
    if isinstance(value, nn.CTCLoss) or value is nn.functional.ctc_loss:
        raise TypeError(
            "per_step: CTC is a loss of the whole sequence, not a sum over steps: pass bptt.per_window(function) with "
            "a function (outputs, targets) that calls it, and take bptt.FullBPTT()."
        )
    if isinstance(value, nn.Module) and not hasattr(value, "reduction"):
        raise TypeError(
            f"per_step: {named(value)} has no `reduction` to set aside: write a loss that returns (T, B, ...)."
        )
    if not _recurrence.takes(value, 2):
        raise TypeError(
            f"per_step: {named(value)} takes more than (outputs, targets): write a loss (outputs, targets) -> (T, B, "
            f"...) that calls it."
        )


def _ignored_target(value: Any) -> int | None:
    """The target that a criterion ignores, `ignore_index`, for a module, a function or a partial."""
    if isinstance(value, nn.Module):
        index = getattr(value, "ignore_index", None)
    else:
        try:
            parameters = inspect.signature(value).parameters
        except (TypeError, ValueError):  # a builtin has no signature
            return None
        index = parameters["ignore_index"].default if "ignore_index" in parameters else None
    return index if isinstance(index, int) else None


def check_loss(value: Any) -> None:
    """Raise unless it is a loss by step: torch's criteria are reduced over time, or take axis 1 for the classes."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise TypeError(f"loss={value.__name__} is a class: pass a loss by step, bptt.per_step({value.__name__}()).")
    _errors.check_callable(value, "loss")
    inner = value.func if isinstance(value, functools.partial) else value
    if type(inner).__module__ == "torch.nn.modules.loss":
        reduced, name, told = getattr(inner, "reduction", "mean"), named(inner), f"{named(inner)}(...)"
    elif getattr(inner, "__module__", None) == "torch.nn.functional":
        name = told = named(inner)
        reduced = value.keywords.get("reduction", "mean") if isinstance(value, functools.partial) else "mean"
    else:
        return
    _check_criterion(inner)
    if reduced != "none" or name in _CLASSES_AT_1:
        why = f"is reduced ({reduced!r})" if reduced != "none" else "takes axis 1, the batch rows, for its classes"
        raise TypeError(f"loss={told} {why}: pass bptt.per_step({told}), one loss per step and row.")


def _check_fits(criterion: Any, outputs: Any, targets: Any) -> None:
    """Raise unless outputs and targets are one tensor each, of the same steps and rows, as `per_step` needs."""
    for value, name in ((outputs, "outputs"), (targets, "targets")):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"per_step({named(criterion)}): {name} must be a tensor (T, B, ...), not {type(value).__name__}; "
                f"write a loss (outputs, targets) -> (T, B, ...) that picks the tensors."
            )
    pairs = list(zip(outputs.shape, targets.shape, strict=False))
    clash = outputs.dim() == targets.dim() and any(n != m and 1 not in (n, m) for n, m in pairs)
    if clash or outputs.dim() < targets.dim() or (outputs.dim() > 2 and outputs.shape[:2] != targets.shape[:2]):
        raise ValueError(
            f"per_step({named(criterion)}): targets {shape(targets)} don't go with outputs {shape(outputs)}: time and "
            f"batch rows, the first two axes, must be the same in both, and the others fit."
        )


def _not_spread(losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Raise if the losses grew by broadcasting targets over rows: (N, 1) against (N,) gives (N, N)."""
    if losses.numel() > outputs.numel() and outputs.dim() != targets.dim():
        raise ValueError(
            f"targets {shape(targets)} are spread over other rows of outputs {shape(outputs)}: give both as many axes."
        )
    return losses


def _check_aux(aux: Any, losses: Tensor, outputs: Tree) -> None:
    """Raise unless aux holds tensors, and isn't a second loss: a bare tensor in the losses' shape, with a graph."""
    _tree.check_tensors(aux, "aux")
    if isinstance(aux, Tensor) and aux.requires_grad and aux.grad_fn is not None and aux.shape == losses.shape:
        storage = aux.untyped_storage().data_ptr()
        if all(leaf.untyped_storage().data_ptr() != storage for leaf in _tree.leaves(outputs)):
            raise ValueError(
                f"the loss returned two tensors {shape(losses)} with a graph, of which the second would be aux and get "
                f"no gradient: return their sum if both are losses, else detach the second."
            )


def _failed(error: Exception, loss: Any, outputs: Tree, targets: Tree) -> NoReturn:
    """Explain why the loss failed: targets are missing or have other rows, or what torch says."""
    who = f"the loss {named(loss)}"
    if targets is None and isinstance(error, TypeError | AttributeError) and "NoneType" in str(error):
        raise ValueError(f"targets=None, but {who} uses them: pass (inputs, targets).") from error
    ours, theirs = (_tree.leaves(tree) for tree in (outputs, targets))
    if type(error) is RuntimeError and ours and theirs and ours[0].shape[:2] != theirs[0].shape[:2]:
        raise ValueError(
            f"targets {shape(theirs[0])} don't go with outputs {shape(ours[0])}: time and batch rows, the first two "
            f"axes, must be the same in both."
        ) from error
    hint = " Is it bptt.per_step(criterion) that is meant?" if hasattr(loss, "reduction") else ""
    _recurrence.explain(error, f"{who} fails", {"outputs": outputs, "targets": targets}, hint)


def check_losses(value: Any, steps: int, time_dim: int) -> Tensor:
    """Raise unless the losses are (T, ...): one entry per step, neither reduced nor flattened."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the loss must return a tensor (T, ...), or (tensor, aux), not {type(value).__name__}.")
    axis = min(time_dim, value.dim() - 1)
    if value.dim() == 0 or value.shape[axis] != steps:
        what = "is reduced over time" if value.dim() == 0 else "has no time axis of that length (reduced or flattened?)"
        raise ValueError(
            f"the loss returned shape {shape(value)} for {steps} steps, which {what}: return (T, ...), one loss per "
            f"step; bptt.per_step(criterion) makes such a loss of a torch criterion, bptt.per_window(function) takes "
            f"one number per window."
        )
    if not value.is_floating_point():
        raise TypeError(f"the loss must return floating-point losses, not {value.dtype}.")
    if not value.numel():
        raise ValueError(
            f"the loss returned shape {shape(value)}, in which there is no loss: are inputs and targets a batch "
            f"without rows? Leave such chunks out."
        )
    return value


def check_finite(total: Tensor, losses: Iterable[Tensor], first: int) -> None:
    """Raise unless every loss is finite, judged by their sum; the first of an update's two synchronisations."""
    if total.device.type == "meta" or math.isfinite(total.item()):
        return
    for values in losses:
        wrong = torch.isfinite(values).logical_not().nonzero()
        if len(wrong):  # otherwise only a sum has overflowed
            step, value = first + int(wrong[0, 0]), values[tuple(wrong[0])].item()
            raise NonFiniteLossError(f"the loss at step {step} is {value}: no update was made from it.", step)
        first += len(values)


def check_some_gradient(differentiable: bool) -> None:
    """Raise unless the losses have a graph."""
    if not differentiable:
        raise ValueError(
            "the losses carry no graph, so there is no gradient: does the model or the loss detach, or run under "
            "torch.no_grad()? To look at a loss alone, use bptt.evaluate."
        )


Loss = Callable[[Tree, Tree], Any]
"""`(outputs, targets) -> losses (T, ...)`, or `(losses, aux)`; never reduced over time."""


def per_step(criterion: Callable[..., Tensor]) -> Loss:
    """A loss by step from a torch criterion, on outputs (T, B, ...) and targets (T, B, ...).

        l[t, b] = criterion(outputs[t, b], targets[t, b])                                 (1)

    criterion: a module such as `nn.CrossEntropyLoss()` (its `reduction` is ignored, and the module isn't changed), or a
        function that takes `reduction="none"`, such as `torch.nn.functional.mse_loss`.

    Returns a loss `(outputs, targets) -> (T, B, ...)`. Without a batch axis, (T, C) against (T,), it gives (T,).
    Raises TypeError for a loss over whole sequences such as CTC, which isn't a sum over steps: see `per_window`.
    Targets that the criterion ignores (`ignore_index`) don't count in `mean_loss`, as under a mask.
    A criterion that divides by the sum of class weights under "mean" doesn't do so here.

    >>> import bptt, torch
    >>> loss = bptt.per_step(torch.nn.CrossEntropyLoss())
    >>> loss(torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.long)).shape
    torch.Size([5, 2])
    """
    _check_criterion(criterion)
    if isinstance(criterion, nn.Module):
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # pyright: ignore[reportArgumentType]
    else:
        unreduced = lambda outputs, targets: criterion(outputs, targets, reduction="none")  # noqa: E731

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        _check_fits(criterion, outputs, targets)
        if outputs.dim() < 3:
            return _not_spread(unreduced(outputs, targets), outputs, targets)
        lead = outputs.shape[:2]
        losses = _not_spread(unreduced(outputs.flatten(0, 1), targets.flatten(0, 1)), outputs, targets)
        return losses.reshape(*lead, *losses.shape[1:])

    loss.__name__ = f"per_step({_errors.named(criterion)})"
    ignored = _ignored_target(criterion)
    if ignored is not None:
        loss.counted = lambda targets: targets != ignored  # pyright: ignore[reportFunctionMemberAccess]
    return loss


class StepLoss:
    """The user's loss, whose result is checked: losses (n, ...) with time first, and aux."""

    by_window = False

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
            _failed(error, self.loss, outputs, targets)
        losses, aux = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        losses = check_losses(losses, steps, self.time_dim)
        if aux is not None:
            _check_aux(aux, losses, outputs)
            aux = _tree.detach(aux)
        return (losses.movedim(1, 0) if self.time_dim and losses.dim() > 1 else losses), aux

    def weight(self, targets: Tree, mask: Tensor | None, steps: int, losses: Tensor | None = None) -> Any:
        """The summed weight of the losses of the last `steps` steps, averaged over all axes but time; `steps` at most.

        mask: of these steps, or None. losses: (steps, ...), where they are known already.
        """
        counted = self._counted(targets, steps, None if losses is None else losses.shape)
        given = mask if counted is None else counted
        if given is None:
            return steps
        wide = torch.float32 if given.device.type == "mps" else torch.float64
        counts = given.to(wide if losses is None else torch.promote_types(losses.dtype, torch.float32))
        counts = counts if counted is None or mask is None else _tree.weighed(counts, mask)
        return counts.flatten(1).mean(1).sum() if counts.dim() > 1 else counts.sum()

    def _counted(self, targets: Tree, steps: int, shape: torch.Size | None) -> Tensor | None:
        """Which losses count, time first; None where all do."""
        ask = getattr(self.loss, "counted", None)
        if ask is None or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        targets = (targets.movedim(1, 0) if self.time_dim else targets)[-steps:]
        if shape is not None and targets.shape != shape:
            return None
        counted = ask(targets)
        if counted.device.type == "cpu" and counted.view(torch.uint8).all():  # to look costs less there than to count
            return None
        return counted

    def _tell_axes_apart(self, outputs: Tree, targets: Tree, steps: int) -> None:
        """Where another axis is as long as time, the shape proves nothing: call once more with one step less."""
        tensors = [*_tree.leaves(outputs), *_tree.leaves(targets)]
        self._told_apart = True
        if not any(steps in (*leaf.shape[: self.time_dim], *leaf.shape[self.time_dim + 1 :]) for leaf in tensors):
            return
        shorter = [_tree.narrow(tree, self.time_dim, 0, steps - 1) for tree in (outputs, targets)]
        with torch.no_grad(), _snapshot.noise_restored(tensors):
            self._call(shorter[0], shorter[1], steps - 1)
