"""`bptt verify`: what `bptt.verify` answers of a model of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

import bptt
from bptt.analysis.numbers import printable
from bptt.cli.config import PLAIN, at_least_one, parse
from bptt.cli.data_options import MODEL, DataOptions
from bptt.cli.printing import UserError, user_errors
from bptt.cli.screen import Screen
from bptt.cli.subject import own
from bptt.cli.train import device_of

LENGTH, ROWS = 32, 4


@dataclasses.dataclass(frozen=True)
class VerifyConfig(DataOptions):
    """Ask of a model of your own, with its loss and data, what back-propagation through time relies on.

    A line for each question: is it a function of inputs and state, is the loss local in time, are replays equal, are
    gradients finite, is every parameter reached, and more; with what to do where the answer is no.

    Exit codes: 0 no answer is no; 1 one is, or output cannot be written; 2 wrong use.
    """

    model: Annotated[tyro.conf.Positional[str], MODEL] = ""
    """NAME() in FILE.py returns a module, or (module, loss), or (module, loss, stream). The file is run as it is."""
    length: Annotated[int | None, PLAIN] = None
    """Steps of the data to ask with. 32 if not given; of a stream of its own, its first chunk."""
    batch: Annotated[int | None, PLAIN] = None
    """Rows of them. 4 if not given; of a stream of its own, all."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "cpu"
    """Where to ask."""


def run(words: Sequence[str]) -> int:
    """Print the answers; the exit code."""
    config = parse(VerifyConfig, words, "bptt verify")
    if not config.model:
        raise UserError("give a model of your own, FILE.py:NAME. See bptt verify --help")
    config.check_data()
    at_least_one(config, "length", "batch")
    device = device_of(config.device)
    its_own = config.data is None
    length, rows = config.length or (None if its_own else LENGTH), config.batch or (None if its_own else ROWS)
    subject = own(config, device, config.batch, lambda source: source.measured(length, rows))
    screen = Screen()
    with user_errors(prefix=f"{config.model}: "), screen.waiting("asking"):
        found = subject.given(bptt.verify)
    print(printable(str(found)))
    return 0 if found.ok else 1
