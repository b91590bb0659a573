"""Whether what is asked for has room on this machine, found by arithmetic before anything is allocated."""

from __future__ import annotations

from bptt.analysis import memory_here, size
from bptt.cli.printing import UserError
from bptt.models.text import EMBEDDING

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
FLOAT, ADAM = 4, 4
"""Bytes of a number; how often Adam holds each parameter: itself, its gradient and two averages."""


def must_have_room(count: float, named: str, what: str, remedy: str = "Give smaller sizes") -> None:
    """Raise `UserError` where `what` takes more than `count` bytes, at the least, and this machine has less."""
    here = memory_here()
    if count > here:
        wanted = size(count) if count < 2**40 else f"{count / 2**30:,.0f} GiB"
        raise UserError(f"{named}: {what} would take {wanted} or more, and {size(here)} can be had. {remedy}")


def numbers_of(characters: int, cell: str, hidden: int, layers: int) -> int:
    """Parameters of a character model."""
    return EMBEDDING * characters + numbers_of_layers(cell, EMBEDDING, hidden, layers) + (hidden + 1) * characters


def numbers_of_layers(cell: str, inputs: int, hidden: int, layers: int) -> int:
    """Parameters of recurrent layers on top of each other."""
    return GATES[cell] * hidden * (inputs + hidden + 2 + (layers - 1) * (2 * hidden + 2))


def numbers_of_window(steps: float, rows: int, cell: str, hidden: int, layers: int, outputs: int) -> float:
    """Numbers that a window of so many steps keeps for its backward pass, at the least."""
    return steps * rows * (layers * hidden * (GATES[cell] + 1) + outputs)
