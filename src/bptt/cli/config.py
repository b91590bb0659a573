"""Options of a command as a frozen dataclass: its fields are the flags, its texts what `--help` shows."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from bptt.cli.printing import UserError

T = TypeVar("T")

PLAIN = tyro.conf.arg(help_behavior_hint="")
"""For an option whose own text says what happens without it."""


def at_least_one(config: Any, *names: str) -> None:
    """Raise `UserError` for an option that is given and less than 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} {value}: must be at least 1")


def is_seed(value: int) -> None:
    """Raise `UserError` for a `--seed` that torch's generators don't take."""
    if not 0 <= value < 2**63:
        raise UserError(f"--seed {value}: must be between 0 and 2**63 - 1")


def flag(name: str) -> str:
    """The flag of a field: `sequence_length` is `--sequence-length`."""
    return "--" + name.replace("_", "-")


def parse(cls: type[T], words: Sequence[str], prog: str) -> T:
    """An instance of the dataclass `cls` from command line words.

    Raises: UserError of one line for anything the flags don't allow; SystemExit(0) after `--help` was shown.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(cls, args=list(words), prog=prog, config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_reduce(shown.getvalue())} See {prog} --help") from None


def _reduce(shown: str) -> str:
    """The sentence in tyro's box of several lines, and the first flag it suggests instead."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │") for line in shown.splitlines()]
    sections = [""]
    for line in lines:
        if line and not line.strip("─-"):
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    if not lines[0].startswith("╭"):  # where stdout can't show a frame, the title is a section of its own
        sections = sections[1:]
    message = sections[0].rstrip(".!") + "."
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", " ".join(sections))
    return f"{message} Did you mean {meant[1]}?" if meant else message
