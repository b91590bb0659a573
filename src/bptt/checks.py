"""Errors of data: states, chunks, and what a recurrence or a loss returns. One line each, naming the leaf.

`arguments.py` has those of arguments. Both say what was passed, why it can't be, and what to do.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt import failures, state
from bptt.state import Tree


class NonFiniteError(FloatingPointError, ValueError):
    """Something came out as NaN or infinite; `.step` says where, counted from the stream's start."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class NonFiniteLossError(NonFiniteError):
    """A loss came out as NaN or infinite; `.step` is the first such step, counted from the stream's start."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient came out as NaN or infinite though every loss was finite; `.grad` is as it was before the update.

    `.step`, counted from the stream's start, is the first on the way back from the losses whose vjp isn't finite; the
    window's first step where calls of one step don't show it.
    """


def shape(tensor: Any) -> str:
    """A tensor's shape as a user writes it."""
    return str(tuple(tensor.shape))


def named(thing: Any) -> str:
    """A short name for a model or function."""
    return type(thing).__name__ if isinstance(thing, nn.Module) else getattr(thing, "__name__", type(thing).__name__)


def called(function: Any, inputs: Tree, carried: Tree, keywords: dict[str, Any], a: int, b: int) -> tuple[Tree, Tree]:
    """(outputs, state) of a call of the recurrence, the state in the structure it was given."""
    try:
        result = function(inputs, carried, **keywords)
    except Exception as error:
        if type(error) is RuntimeError:
            rows_fit(inputs, carried, a, b, error)
        who = f"the recurrence {named(function)} fails in steps {a} to {b - 1}"
        failures.explain(error, who, {"inputs": inputs, "state": carried})
    outputs, after = pair(result, f"the recurrence {named(function)}")
    if state.alike(after, carried):
        return outputs, after
    tensors(after, "the returned state")
    return outputs, conformed(after, carried, "the state that the recurrence returns", "the one it was given")


def rows_fit(inputs: Tree, carried: Tree, a: int, b: int, error: RuntimeError) -> None:
    """After a failed call: a state with no axis as long as the inputs' batch is the likely reason, so say so."""
    xs = [leaf for leaf in state.leaves(inputs) if leaf.dim() > 1]
    if not xs:
        return
    batch = xs[0].shape[1] if xs[0].shape[0] == b - a else xs[0].shape[0]
    if bad := state.fault(carried, "state", lambda leaf: leaf.dim() > 0 and not {1, batch} & set(leaf.shape)):
        raise ValueError(
            f"{bad[0]} has shape {shape(bad[1])}, with no axis of {batch} rows as in inputs {shape(xs[0])}: make the "
            f"state's batch size that of the inputs."
        ) from error


def pair(result: Any, who: str) -> tuple[Any, Any]:
    """A result that is (outputs, state)."""
    if not isinstance(result, tuple) or len(result) != 2:
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(f"{who} must return a pair (outputs, state), not {got}.")
    return result


def outputs(tree: Tree, steps: int, time_dim: int) -> None:
    """Outputs with as many steps as the inputs."""
    if isinstance(tree, Tensor) and tree.dim() > time_dim and tree.shape[time_dim] == steps:
        return
    tensors(tree, "outputs")
    if bad := state.fault(tree, "outputs", lambda leaf: leaf.dim() <= time_dim or leaf.shape[time_dim] != steps):
        raise ValueError(
            f"the recurrence returned {bad[0]} of shape {shape(bad[1])} for {steps} steps of input: time must be axis "
            f"{time_dim} of its outputs."
        )


def losses(value: Any, steps: int, time_dim: int) -> Tensor:
    """Losses (T, ...): one entry a step, not reduced, not flattened."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the loss must return a tensor (T, ...), or (tensor, aux), not {type(value).__name__}.")
    axis = min(time_dim, value.dim() - 1)
    if value.dim() == 0 or value.shape[axis] != steps:
        what = "is reduced over time" if value.dim() == 0 else "has no time axis of that length (reduced or flattened?)"
        raise ValueError(
            f"the loss returned shape {shape(value)} for {steps} steps, which {what}: return (T, ...), one loss a "
            f"step; bptt.per_step(criterion) makes such a loss of a torch criterion."
        )
    if not value.is_floating_point():
        raise TypeError(f"the loss must return floating-point losses, not {value.dtype}.")
    if not value.numel():
        raise ValueError(
            f"the loss returned shape {shape(value)}, in which there is no loss: are inputs and targets a batch "
            f"without rows? Leave such chunks out."
        )
    return value


def finite(total: Tensor, losses: Iterable[Tensor], first: int) -> None:
    """Every loss finite, judged by their sum; the first of an update's two synchronisations."""
    if total.device.type == "meta" or math.isfinite(total.item()):
        return
    for values in losses:
        wrong = torch.isfinite(values).logical_not().nonzero()
        if len(wrong):  # else only a sum has overflown
            step, value = first + int(wrong[0, 0]), values[tuple(wrong[0])].item()
            raise NonFiniteLossError(f"the loss at step {step} is {value}: no update was made from it.", step)
        first += len(values)


def probe_fits(size: int, fixed: int, one: int, probe: Any) -> int:
    """How many states of `one` byte count a probe may keep beside what is fixed, within a budget of `size` bytes."""
    if fixed + one > size:
        raise ValueError(
            f"memory={size} can't hold a probe of AdaptiveTruncatedBPTT, which pulls {probe.losses} losses back: the "
            f"least that works here is memory={fixed + one}."
        )
    return (size - fixed) // one


def scale_fits(seed: float, dtype: torch.dtype) -> None:
    """A factor on each loss that its dtype can hold."""
    if abs(seed) > torch.finfo(dtype).max:
        raise ValueError(
            f"scale= makes the gradient of a loss {seed:.3g}, more than {dtype} holds: use a smaller scale."
        )


def some_gradient(differentiable: bool) -> None:
    """Losses with a graph."""
    if not differentiable:
        raise ValueError(
            "the losses carry no graph, so there is no gradient: does the model or the loss detach, or run under "
            "torch.no_grad()? To look at a loss alone, use bptt.evaluate."
        )


def unchanged(before: list[int], now: list[int]) -> None:
    """Stored states that nobody has written to."""
    if before != now:
        raise ValueError(
            "the recurrence changes the state it is given in place, which destroys the stored states that memory= "
            "replays from: make it return a new state."
        )


def carried_unchanged(before: list[int], carried: Tree) -> None:
    """The state that a run carries, which nobody has written to between two updates."""
    if before == (now := state.versions(carried)):
        return
    paths = [path for path, _ in state.named_leaves(carried, "state")]
    path = next(path for path, a, b in zip(paths, before, now, strict=True) if a != b)
    raise ValueError(
        f"{path}, which the run goes on from, was changed in place between two updates, through a tensor that shares "
        f"its memory (the state= that was passed, inputs, or aux): change a clone of that."
    )


def tensors(tree: Tree, name: str) -> None:
    """A pytree whose leaves are tensors."""
    if bad := state.fault(tree, name, lambda leaf: not isinstance(leaf, Tensor)):
        raise TypeError(
            f"{bad[0]} is a {type(bad[1]).__name__}, not a tensor: use tensors in tuples, lists, dicts, named tuples, "
            f"or types registered with torch.utils._pytree.register_dataclass."
        )


def dense(tree: Tree, name: str) -> None:
    """A pytree whose leaves are tensors that can be cut in time."""
    tensors(tree, name)
    if bad := state.fault(tree, name, lambda leaf: leaf.layout is not torch.strided or leaf.is_nested):
        kind = "a nested tensor" if bad[1].is_nested else f"of layout {bad[1].layout}"
        raise TypeError(f"{bad[0]} is {kind}: pass an ordinary dense tensor, {bad[0]}.to_dense() or a padded one.")


def conformed(tree: Tree, like: Tree, name: str, than: str) -> Tree:
    """`tree` in the structure of `like`."""
    try:
        return state.conform(tree, state.structure_of(like))
    except ValueError:
        one, other = (state.show(state.structure_of(t)) for t in (tree, like))
        raise ValueError(f"{name} has another structure than {than}: {one} against {other}.") from None


def no_graph(tree: Tree, name: str) -> None:
    """No leaf with a graph: it would be freed after one window."""
    tensors(tree, name)
    if bad := state.fault(tree, name, lambda leaf: leaf.grad_fn is not None):
        raise ValueError(
            f"{bad[0]} carries a graph ({type(bad[1].grad_fn).__name__}), which the first update would free: detach "
            f"it, or pass initial_state= a function that computes it, or take the gradient of one sequence with "
            f"bptt.backward."
        )


def no_graph_in_chunk(chunk: Any) -> None:
    """The same of a chunk's inputs and targets."""
    no_graph(chunk.inputs, "inputs")
    no_graph(chunk.targets, "targets")


def state_fits(carried: Tree, zeros: Tree) -> None:
    """A state of the shapes that a torch.nn layer expects for its inputs; nothing is known of other models (None)."""
    if zeros is None:
        return
    conformed(carried, zeros, "state", "what the layer takes")
    if [leaf.shape for leaf in state.leaves(carried)] == [wanted.shape for wanted in state.leaves(zeros)]:
        return
    for (path, leaf), wanted in zip(state.named_leaves(carried, "state"), state.leaves(zeros), strict=True):
        if leaf.shape != wanted.shape:
            raise ValueError(
                f"{path} has shape {shape(leaf)}, but these inputs need {shape(wanted)} (layers, batch, hidden): make "
                f"the state's batch size that of the inputs."
            )


def stream(value: Any) -> Any:
    """An iterable of chunks, and no chunk itself."""
    if isinstance(value, Tensor) or (isinstance(value, tuple) and value and isinstance(value[0], Tensor)):
        raise TypeError("stream must be an iterable of chunks; for one chunk write [(inputs, targets)].")
    if not isinstance(value, Iterable):
        raise TypeError(f"stream must be an iterable of chunks (inputs, targets), not {type(value).__name__}.")
    return value


def stream_not_empty(steps: int) -> None:
    """At least one step."""
    if steps == 0:
        raise ValueError("the stream is empty: it gave no step. Was its iterator used up by an earlier loop?")


def chunk(value: Any, time_dim: int) -> tuple[Any, Any, Any, Any]:
    """(inputs, targets, is_start, mask), tensors that agree on their steps, from a Chunk, a tuple or a list."""
    if not isinstance(value, tuple | list) or not 2 <= len(value) <= 4:
        raise TypeError(
            f"a chunk must be bptt.Chunk(inputs, targets), or a tuple of 2 to 4 entries, not {type(value).__name__}."
        )
    inputs, targets, is_start, mask = (*value, None, None)[:4]
    if isinstance(inputs, PackedSequence):
        raise TypeError("inputs is a PackedSequence: pass the padded tensor, and mask= for the steps that count.")
    steps = None
    for tree, at in ((inputs, "inputs"), (targets, "targets")):
        dense(tree, at)
        for path, leaf in state.named_leaves(tree, at):
            if leaf.dim() <= time_dim:
                raise ValueError(f"{path} of shape {shape(leaf)} has no time axis {time_dim}.")
            if leaf.dim() > 2 and leaf.shape[1 - time_dim] == 0:
                raise ValueError(f"{path} of shape {shape(leaf)} has no rows: leave chunks with an empty batch out.")
            steps = leaf.shape[time_dim] if steps is None else steps
            if leaf.shape[time_dim] != steps:
                raise ValueError(
                    f"{path} has {leaf.shape[time_dim]} steps and inputs {steps} (axis {time_dim}): every step needs "
                    f"its own."
                )
    if steps is None or not state.leaves(inputs):
        raise ValueError(
            "inputs holds no tensor, so nothing says how many steps the chunk has: pass at least one (T, ...)."
        )
    for rows, name in ((is_start, "is_start"), (mask, "mask")):
        if rows is not None:
            _rows(rows, name, steps, time_dim)
    return inputs, targets, is_start, mask


def _rows(rows: Any, name: str, steps: int, time_dim: int) -> None:
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        raise TypeError(
            f"{name} must be a bool tensor (T, B) or (T,); {getattr(rows, 'dtype', type(rows).__name__)} was passed."
        )
    if rows.dim() not in (1, 2) or rows.shape[min(time_dim, rows.dim() - 1)] != steps:
        raise ValueError(
            f"{name} of shape {shape(rows)} doesn't fit {steps} steps: pass (T, B) or (T,), with time as in inputs."
        )


def mask_fits(mask: Tensor, values: Tensor) -> Tensor:
    """A mask whose axes lead those of the losses."""
    if values.shape[: mask.dim()] != mask.shape:
        raise ValueError(
            f"mask covers {shape(mask)}, but the losses have shape {shape(values)}: return losses by step and row, "
            f"(T, B, ...)."
        )
    return mask
