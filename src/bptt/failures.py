"""Errors that torch raises inside the user's model or loss, told in one line with what the call was given."""

import os
from typing import NoReturn

import torch

from bptt import state
from bptt.state import Tree

_TORCH = os.path.dirname(torch.__file__) + os.sep


class CallError(ValueError, RuntimeError):
    """The model or the loss failed on what it was given; torch's own error is its cause."""


def explain(error: Exception, who: str, given: dict[str, Tree], hint: str = "") -> NoReturn:
    """Raise `error` again: one of torch as a `CallError` that names `given`, one of the user's own with a note."""
    told = f"{who} on " + ", ".join(f"{name} {shapes(tree)}" for name, tree in given.items())
    if not _of_torch(error):
        error.add_note(f"bptt: {told}.")
        raise error
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    raise CallError(f"{told}: {line[:300].rstrip('. ')}.{hint}") from error


def _of_torch(error: Exception) -> bool:
    """Whether this is what torch says of shapes, dtypes, devices and layouts that don't go together."""
    if type(error) is RuntimeError:
        return "memory" not in str(error)  # torch has no type of its own for the CPU's
    if type(error) not in (IndexError, NotImplementedError, AttributeError, TypeError, ValueError, AssertionError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by = "" if trace is None else trace.tb_frame.f_code.co_filename
    return raised_by.startswith(_TORCH) or "aten::" in str(error)


def shapes(tree: Tree) -> str:
    """Shapes and dtypes of a tree's leaves on one line: `(5, 2, 3) float32`, the first few of many."""
    if tree is None:
        return "None"
    told = [f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for leaf in state.leaves(tree)]
    text = "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")
    return text if isinstance(tree, torch.Tensor) else f"{type(tree).__name__}({text})"
