"""Errors of losses, criteria and steps: at the call, and where they fail on what they are given."""

import functools
import inspect
from typing import Any, NoReturn

from torch import Tensor, nn

from bptt import arguments, checks, failures, state
from bptt.checks import named, shape
from bptt.state import Tree

_CLASSES_AT_1 = {"CrossEntropyLoss", "NLLLoss", "NLLLoss2d", "cross_entropy", "nll_loss"}


def criterion(value: Any) -> None:
    """A criterion that is a sum over steps."""
    arguments.callable_(value, "criterion")
    if isinstance(value, nn.CTCLoss) or value is nn.functional.ctc_loss:
        raise TypeError(
            "per_step: CTC is a loss of the whole sequence, no sum over steps, so it can't be truncated in time: run "
            "the model over the whole sequence and call .backward() on the loss yourself."
        )
    if isinstance(value, nn.Module) and not hasattr(value, "reduction"):
        raise TypeError(
            f"per_step: {named(value)} has no `reduction` to set aside: write a loss that returns (T, B, ...)."
        )
    if not arguments.takes_two(value):
        raise TypeError(
            f"per_step: {named(value)} takes more than (outputs, targets): write a loss (outputs, targets) -> (T, B, "
            f"...) that calls it."
        )


def ignored_target(value: Any) -> int | None:
    """The target that a criterion leaves out, `ignore_index`, of a module, a function or a partial one."""
    if isinstance(value, nn.Module):
        index = getattr(value, "ignore_index", None)
    else:
        try:
            parameters = inspect.signature(value).parameters
        except (TypeError, ValueError):  # a builtin has no signature
            return None
        index = parameters["ignore_index"].default if "ignore_index" in parameters else None
    return index if isinstance(index, int) else None


def loss(value: Any) -> None:
    """A loss by step; a criterion of torch as it comes is reduced over time, or takes axis 1 for its classes."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise TypeError(f"loss={value.__name__} is a class: pass a loss by step, bptt.per_step({value.__name__}()).")
    arguments.callable_(value, "loss")
    inner = value.func if isinstance(value, functools.partial) else value
    if type(inner).__module__ == "torch.nn.modules.loss":
        reduced, name, told = getattr(inner, "reduction", "mean"), named(inner), f"{named(inner)}(...)"
    elif getattr(inner, "__module__", None) == "torch.nn.functional":
        name = told = named(inner)
        reduced = value.keywords.get("reduction", "mean") if isinstance(value, functools.partial) else "mean"
    else:
        return
    criterion(inner)
    if reduced != "none" or name in _CLASSES_AT_1:
        why = f"is reduced ({reduced!r})" if reduced != "none" else "takes axis 1, the batch rows, for its classes"
        raise TypeError(f"loss={told} {why}: pass bptt.per_step({told}), one loss per step and row.")


def criterion_fits(criterion: Any, outputs: Any, targets: Any) -> None:
    """A criterion of `per_step` takes one tensor of outputs and one of targets, of the same steps and rows."""
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


def not_spread(losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Losses that didn't grow by broadcasting targets over rows: (N, 1) against (N,) is (N, N)."""
    if losses.numel() > outputs.numel() and outputs.dim() != targets.dim():
        raise ValueError(
            f"targets {shape(targets)} are spread over other rows of outputs {shape(outputs)}: give both as many axes."
        )
    return losses


def some_steps(columns: list[Tensor], time_dim: int) -> None:
    """Inputs of `scan` with one number of steps, at least one."""
    if bad := [leaf for leaf in columns if not isinstance(leaf, Tensor) or leaf.dim() <= time_dim]:
        got = shape(bad[0]) if isinstance(bad[0], Tensor) else type(bad[0]).__name__
        raise ValueError(f"scan: inputs must be tensors with time at axis {time_dim}, not {got}.")
    steps = {leaf.shape[time_dim] for leaf in columns}
    if len(steps) != 1 or 0 in steps:
        raise ValueError(f"scan: inputs of {sorted(steps) or 'no'} steps: pass the same number, at least one, in each.")


def step_returns(after: Any, carried: Tree, step: Any) -> Tree:
    """A step's state in the structure that it was given."""
    if state.alike(after, carried):
        return after
    checks.tensors(after, "the state that the step returns")
    try:
        return checks.conformed(after, carried, "the state that the step returns", "the one it was given")
    except ValueError as error:
        raise ValueError(f"{error} A step such as {named(step)} must return (output, state).") from None


def aux_fits(aux: Any, losses: Tensor, outputs: Tree) -> None:
    """Aux is tensors, and no second loss: bare, with a graph of its own, in the shape of the losses."""
    checks.tensors(aux, "aux")
    if isinstance(aux, Tensor) and aux.requires_grad and aux.grad_fn is not None and aux.shape == losses.shape:
        storage = aux.untyped_storage().data_ptr()
        if all(leaf.untyped_storage().data_ptr() != storage for leaf in state.leaves(outputs)):
            raise ValueError(
                f"the loss returned two tensors {shape(losses)} with a graph, of which the second would be aux and get "
                f"no gradient: return their sum if both are losses, else detach the second."
            )


def failed_loss(error: Exception, loss: Any, outputs: Tree, targets: Tree) -> NoReturn:
    """The loss failed: on targets that are missing or of other rows, or as torch says."""
    who = f"the loss {named(loss)}"
    if targets is None and isinstance(error, TypeError | AttributeError) and "NoneType" in str(error):
        raise ValueError(f"targets=None, but {who} uses them: pass (inputs, targets).") from error
    ours, theirs = (state.leaves(tree) for tree in (outputs, targets))
    if type(error) is RuntimeError and ours and theirs and ours[0].shape[:2] != theirs[0].shape[:2]:
        raise ValueError(
            f"targets {shape(theirs[0])} don't go with outputs {shape(ours[0])}: time and batch rows, the first two "
            f"axes, must be the same in both."
        ) from error
    hint = " Is it bptt.per_step(criterion) that is meant?" if hasattr(loss, "reduction") else ""
    failures.explain(error, f"{who} fails", {"outputs": outputs, "targets": targets}, hint)
