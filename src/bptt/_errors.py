"""Errors that callers need to tell apart, with fields, and small checks that every room uses.

A message is one line: what was passed, why it can't be used, and what to do.
"""

from typing import Any

import torch
from torch import nn


class NonFiniteError(FloatingPointError, ValueError):
    """Something came out as NaN or infinite; `.step` says where, counted from the stream's start."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        """What a worker process sends back is made anew from both."""
        return type(self), (str(self), self.step)


class NonFiniteLossError(NonFiniteError):
    """A loss came out as NaN or infinite; `.step` is the first such step, counted from the stream's start."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient came out as NaN or infinite though every loss was finite; `.grad` is as it was before the update.

    `.step`, counted from the stream's start, is the first step on the way back from the losses whose vjp isn't finite,
    or the window's first step if calls of single steps don't show it.
    """


class BudgetError(ValueError):
    """A budget in bytes that is too small: `.least` is the fewest bytes that work.

    strategy: the one that `plan` found to need no more than that; None in other calls, which have a single strategy.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 8), bptt.per_step(torch.nn.MSELoss())
    >>> sequence = torch.zeros(50, 2, 3), torch.zeros(50, 2, 8)
    >>> try: update = bptt.backward(model, loss, sequence, memory="512B")
    ... except bptt.BudgetError as error: update = bptt.backward(model, loss, sequence, memory=error.least)
    >>> 512 < update.memory_bytes < 1024
    True
    """

    def __init__(self, message: str, least: int, strategy: Any = None) -> None:
        super().__init__(message)
        self.least, self.strategy = least, strategy

    def __reduce__(self) -> tuple[Any, ...]:
        """As that of `NonFiniteError`."""
        return type(self), (str(self), self.least, self.strategy)


def named(thing: Any) -> str:
    """A short name for a model or function."""
    return type(thing).__name__ if isinstance(thing, nn.Module) else getattr(thing, "__name__", type(thing).__name__)


def check_callable(value: Any, name: str) -> None:
    """Raise TypeError unless it is a function or module."""
    if not callable(value):
        raise TypeError(f"{name} must be a function or module, not {type(value).__name__}.")


def check_count(value: Any, name: str) -> None:
    """Raise ValueError unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")


def check_switch(value: Any, name: str) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")


def check_gradient_possible() -> None:
    """Raise under inference mode, in which autograd can't be switched on."""
    if torch.is_inference_mode_enabled():
        raise ValueError("no gradient can be taken under torch.inference_mode(): leave it before calling bptt.")


class CallError(ValueError, RuntimeError):
    """The model or the loss failed on what it was given; torch's own error is its cause."""
