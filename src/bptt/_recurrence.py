"""What is unrolled: recurrences `(inputs, state) -> (outputs, state)`, their calls, and errors of what comes back."""

import inspect
import os
import types
from collections.abc import Callable
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn

from bptt import _errors, _tree
from bptt._errors import CallError, named
from bptt._torch import unwrapped
from bptt._tree import Tree, check_tensors, conformed, shape, shapes

Recurrence = Callable[..., tuple[Tree, Tree]]
"""`(inputs, state) -> (outputs, state)`, inputs and outputs with time as an axis: `torch.nn.LSTM`, or any like it.

A recurrence whose call has these keywords gets them, so that it need not be called in pieces:
is_start: bool (T, B) or (T,): rows to set to zeros before that step (only if no `initial_state=` is given);
cotangent_weight: (T,) or (T, B): entry t is w_{t+1} of equation (1), the weight of the boundary after step t: it
multiplies the cotangent that reaches s_t from step t+1, for the last entry that of the returned state, but never that
of the outputs.
"""


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
    """The step of one of torch.nn's cells, which return the state alone; its h is the output."""

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

    step: a function, or a module; for a module the result is a module too, so that its parameters are seen. torch.nn's
        cells, which return their state alone, are steps as well: `nn.LSTMCell` with states (h, c) and h as its output.
    time_dim: the time axis of inputs and outputs, as in `unroll`.

    Returns `(inputs, state) -> (outputs, state)`; inputs and outputs are pytrees of tensors (T, ...).
    Cost: one call of `step` per time step.

    >>> import bptt, torch
    >>> decay = bptt.scan(lambda x, s: (0.5 * s + x, 0.5 * s + x))
    >>> outputs, last = decay(torch.ones(3), torch.tensor(0.0))
    >>> outputs
    tensor([1.0000, 1.5000, 1.7500])
    """
    _errors.check_callable(step, "step")
    if isinstance(step, nn.Module):
        return Scan(step, time_dim)

    def recurrence(inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        return _scan(step, inputs, state, time_dim)

    recurrence.step = step  # pyright: ignore[reportFunctionMemberAccess]
    recurrence.__name__ = f"scan({_errors.named(step)})"
    return recurrence


def _scan(step: Recurrence, inputs: Tree, carried: Tree, time_dim: int) -> tuple[Tree, Tree]:
    columns, structure = _tree.flatten(inputs)
    _check_steps(columns, time_dim)
    outputs: list[Tree] = []
    named, plain = None, True
    for row in zip(*(column.unbind(time_dim) for column in columns), strict=True):
        y, after = _pair(step(_tree.unflatten(row, structure), carried), "the step")
        if not outputs:  # later calls could fail inside the step before anyone sees why
            kept = _step_returns(after, carried, step)
            named, plain = _tree.structure_of(after if carried is None else carried), kept is after
        outputs.append(y)
        carried = after if plain else _tree.conform(after, named)
    stacked = zip(*(_tree.leaves(y) for y in outputs), strict=True)
    joined = [torch.stack(column, min(time_dim, column[0].dim())) for column in stacked]
    return _tree.unflatten(joined, _tree.structure_of(outputs[0])), carried


def starts_itself(model: Recurrence) -> bool:
    """Whether it makes its first state from None: its parameter for the state is None by default."""
    inner = unwrapped(model)
    step = getattr(inner, "step", inner) if isinstance(inner, Scan | types.FunctionType) else inner
    try:
        signature = inspect.signature(step.forward if isinstance(step, nn.Module) else step)
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return any(parameter.default is None for parameter in list(signature.parameters.values())[1:2])


def accepts(model: Recurrence, keyword: str) -> bool:
    """Whether the recurrence's call has `keyword`: native support of `is_start` or `cotangent_weight`."""
    inner = unwrapped(model)
    try:
        parameters = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return keyword in parameters


def default_batch_dim(model: Recurrence) -> int | None:
    """The axis of the rows in the state of a layer that has default zeros; None for any other recurrence.

    Such layers are torch.nn's, where it is 1, and modules with `zero_state(inputs)` and `state_batch_dim`.
    """
    layer = unwrapped(model)
    return (
        1 if isinstance(layer, nn.RNNBase) else getattr(layer, "state_batch_dim", None) if _makes_zeros(layer) else None
    )


def _makes_zeros(layer: Any) -> bool:
    return isinstance(layer, nn.Module) and callable(getattr(layer, "zero_state", None))


def zero_state(model: Recurrence, inputs: Tree, time_dim: int) -> Tree:
    """The zeros that a layer starts from, or None for a recurrence without a default.

    inputs: (T, B, I), or (B, T, I) under time_dim=1, or (T, I) unbatched. For torch.nn the state is (layers, B, H),
    for an LSTM a pair of such tensors, in the dtype of the inputs.
    """
    layer: Any = unwrapped(model)
    x = _tree.leaves(inputs)[0]
    if _makes_zeros(layer):
        return layer.zero_state(x)
    if not isinstance(layer, nn.RNNBase):
        return None
    batch = [x.shape[1 - time_dim]] if x.dim() == 3 else []
    hidden = x.new_zeros(layer.num_layers, *batch, layer.proj_size or layer.hidden_size)
    return (hidden, x.new_zeros(layer.num_layers, *batch, layer.hidden_size)) if layer.mode == "LSTM" else hidden


def takes(function: Any, count: int) -> bool:
    """Whether a call with that many positional arguments fits; True if the signature can't be known."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # a builtin has none
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_model(value: Any, time_dim: Any) -> None:
    """Raise unless it is a recurrence whose time axis is the declared one, and that doesn't read the future."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise TypeError(f"model={value.__name__} is a class: pass an instance of it.")
    _errors.check_callable(value, "model")
    if time_dim not in (0, 1) or isinstance(time_dim, bool):
        raise ValueError(f"time_dim={time_dim!r}: the time axis is 0, or 1 for batch-first data.")
    inner = unwrapped(value)
    if isinstance(inner, nn.RNNCellBase):
        raise TypeError(f"model={named(inner)} is a step, not a recurrence over time: pass bptt.scan of it.")
    if not takes(inner, 2):
        raise TypeError(
            f"model={named(inner)} can't be called as model(inputs, state): a recurrence is (inputs, state) -> "
            f"(outputs, state). A layer without a state goes into a module or function of that form."
        )
    batch_first = getattr(inner, "batch_first", None)
    if batch_first is True and time_dim == 0:
        raise ValueError(
            f"{named(inner)}(batch_first=True) reads time from axis 1: pass time_dim=1, with inputs and targets "
            f"(B, T, ...)."
        )
    if batch_first is False and isinstance(inner, nn.Module) and time_dim == 1:
        raise ValueError(
            f"time_dim=1, but {named(inner)} was built with batch_first=False: use time_dim=0 or rebuild it."
        )
    if getattr(inner, "bidirectional", None) is True:
        raise ValueError(
            f"{named(inner)}(bidirectional=True) reads the future, so it has no state to carry from step to step: use "
            f"one direction."
        )


def no_state(function: Any) -> NoReturn:
    """Raise since there is neither a state nor a default."""
    raise ValueError(
        f"state=None, and {named(function)} has no default state: pass state= or initial_state= (a pytree of tensors, "
        f"or a function that returns one). Only torch.nn's recurrent layers start from zeros by themselves, and "
        f"recurrences (inputs, state=None) from None."
    )


def no_initial_state(function: Any) -> NoReturn:
    """Raise since there is a reset, and nothing to reset to."""
    raise ValueError(
        f"is_start resets a row, but {named(function)} has no default state to return to: pass initial_state=, a "
        f"pytree of tensors or a function that returns one."
    )


def lent(tree: Tree) -> Tree:
    """The same leaves in containers of their own, for a call that may write to lists and dicts that it is given."""
    if tree is None or isinstance(tree, Tensor) or _tree.alike(tree, tree):
        return tree
    return _tree.unflatten(*_tree.flatten(tree))


def called(function: Any, inputs: Tree, carried: Tree, keywords: dict[str, Any], a: int, b: int) -> tuple[Tree, Tree]:
    """(outputs, state) of a call of the recurrence, the state in the structure it was given."""
    try:
        result = function(lent(inputs), lent(carried), **keywords)
    except Exception as error:
        if type(error) is RuntimeError:
            _rows_fit(inputs, carried, a, b, error)
        who = f"the recurrence {named(function)} fails in steps {a} to {b - 1}"
        explain(error, who, {"inputs": inputs, "state": carried})
    outputs, after = _pair(result, f"the recurrence {named(function)}")
    if _tree.alike(after, carried):
        return outputs, after
    check_tensors(after, "the returned state")
    if carried is None:
        return outputs, after
    return outputs, _returned(after, carried, "the state that the recurrence returns")


def _returned(after: Tree, carried: Tree, name: str) -> Tree:
    """The state in the structure that was given; errors say what containers note of themselves where that differs."""
    try:
        return conformed(after, carried, name, "the one it was given")
    except ValueError as error:
        more = _noted(_tree.structure_of(after), _tree.structure_of(carried))
        raise ValueError(f"{error}{more}") from None


def _noted(one: Any, other: Any) -> str:
    """What a container of a registered type, such as a TensorDict, notes of itself in one structure alone."""
    one, other = (getattr(structure, "structure", structure) for structure in (one, other))  # without None
    if one is None or other is None or one.type is not other.type or one.num_children != other.num_children:
        return ""
    if isinstance(one.context, dict) and isinstance(other.context, dict):
        keys = [key for key in one.context if repr(one.context[key]) != repr(other.context.get(key))]
        if keys:
            told = [f"{key} is {one.context[key]} against {other.context.get(key)}" for key in keys]
            return f" In {one.type.__name__}, {', '.join(told)}."
    pairs = zip(_tree.children(one), _tree.children(other), strict=True)
    return next((text for pair in pairs if (text := _noted(*pair))), "")


def _rows_fit(inputs: Tree, carried: Tree, a: int, b: int, error: RuntimeError) -> None:
    """After a failed call: a state with no axis as long as the inputs' batch is the likely reason, so say so."""
    xs = [leaf for leaf in _tree.leaves(inputs) if leaf.dim() > 1]
    if not xs:
        return
    batch = xs[0].shape[1] if xs[0].shape[0] == b - a else xs[0].shape[0]
    if bad := _tree.fault(carried, "state", lambda leaf: leaf.dim() > 0 and not {1, batch} & set(leaf.shape)):
        raise ValueError(
            f"{bad[0]} has shape {shape(bad[1])}, with no axis of {batch} rows as in inputs {shape(xs[0])}: make the "
            f"state's batch size that of the inputs."
        ) from error


def _pair(result: Any, who: str) -> tuple[Any, Any]:
    """Raise unless the result is (outputs, state)."""
    if not isinstance(result, tuple) or len(result) != 2:
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(f"{who} must return a pair (outputs, state), not {got}.")
    return result


def check_outputs(tree: Tree, steps: int, time_dim: int) -> None:
    """Raise unless the outputs have as many steps as the inputs."""
    if isinstance(tree, Tensor) and tree.dim() > time_dim and tree.shape[time_dim] == steps:
        return
    check_tensors(tree, "outputs")
    if bad := _tree.fault(tree, "outputs", lambda leaf: leaf.dim() <= time_dim or leaf.shape[time_dim] != steps):
        raise ValueError(
            f"the recurrence returned {bad[0]} of shape {shape(bad[1])} for {steps} steps of input: time must be axis "
            f"{time_dim} of its outputs."
        )


def check_state(carried: Tree, zeros: Tree) -> None:
    """Raise unless the state has the shapes that a torch.nn layer expects for its inputs; other models aren't known."""
    if zeros is None:
        return
    conformed(carried, zeros, "state", "what the layer takes")
    if [leaf.shape for leaf in _tree.leaves(carried)] == [wanted.shape for wanted in _tree.leaves(zeros)]:
        return
    for (path, leaf), wanted in zip(_tree.named_leaves(carried, "state"), _tree.leaves(zeros), strict=True):
        if leaf.shape != wanted.shape:
            raise ValueError(
                f"{path} has shape {shape(leaf)}, but these inputs need {shape(wanted)} (layers, batch, hidden): make "
                f"the state's batch size that of the inputs."
            )


def _check_steps(columns: list[Tensor], time_dim: int) -> None:
    """The number of steps, at least one, that all inputs of `scan` have."""
    if bad := [leaf for leaf in columns if not isinstance(leaf, Tensor) or leaf.dim() <= time_dim]:
        got = shape(bad[0]) if isinstance(bad[0], Tensor) else type(bad[0]).__name__
        raise ValueError(f"scan: inputs must be tensors with time at axis {time_dim}, not {got}.")
    steps = {leaf.shape[time_dim] for leaf in columns}
    if len(steps) != 1 or 0 in steps:
        raise ValueError(f"scan: inputs of {sorted(steps) or 'no'} steps: pass the same number, at least one, in each.")


def _step_returns(after: Any, carried: Tree, step: Any) -> Tree:
    """A step's state, in the structure that was passed to the step."""
    if _tree.alike(after, carried):
        return after
    _tree.check_tensors(after, "the state that the step returns")
    if carried is None:
        return after
    try:
        return _returned(after, carried, "the state that the step returns")
    except ValueError as error:
        raise ValueError(f"{error} A step such as {named(step)} must return (output, state).") from None


_TORCH = os.path.dirname(torch.__file__) + os.sep


def explain(error: Exception, who: str, given: dict[str, Tree], hint: str = "") -> NoReturn:
    """Raise `error` again: torch's errors as a `CallError` that names `given`, the user's own with a note."""
    told = f"{who} on " + ", ".join(f"{name} {shapes(tree)}" for name, tree in given.items())
    if not _of_torch(error):
        error.add_note(f"bptt: {told}.")
        raise error
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    raise CallError(f"{told}: {line[:300].rstrip('. ')}.{hint}") from error


def _of_torch(error: Exception) -> bool:
    """Whether this is torch's error for shapes, dtypes, devices and layouts that don't go together."""
    if type(error) is RuntimeError:
        return "memory" not in str(error)  # torch has no type of its own for the CPU's
    if type(error) not in (IndexError, NotImplementedError, AttributeError, TypeError, ValueError, AssertionError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by = "" if trace is None else trace.tb_frame.f_code.co_filename
    return raised_by.startswith(_TORCH) or "aten::" in str(error)
