"""Options of a command as a frozen dataclass: its fields are the flags, its texts what `--help` shows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from bptt.cli.printing import UserError

T = TypeVar("T")

PLAIN = tyro.conf.arg(help_behavior_hint="")
"""For an option whose own text says what happens without it."""

NAME_MOST, PATH_MOST = 255, 4000
"""Bytes of a file's name, and of a path with room for the names of what is written there, that file systems take."""


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


def at_most(config: Any, **most: int) -> None:
    """Raise `UserError` for an option that is given and larger than what any run can use."""
    for name, bound in most.items():
        value = getattr(config, name)
        if value is not None and value > bound:
            raise UserError(f"{flag(name)} {value}: must be at most {bound:,}")


def can_be_written(out: Path, named: str) -> None:
    """Raise `UserError` for a file whose name leaves no room for that of the temporary file it is written as."""
    if len(os.fsencode(f".{out.name}.part{out.suffix}")) > NAME_MOST:
        raise UserError(f"{named} {out}: the file name is too long. Choose a shorter one")


def can_be_new(out: Path, named: str, overwrite: bool | None = None) -> None:
    """Raise `UserError` for a file in no folder, or that exists; overwrite: None for a command without that option."""
    can_be_written(out, named)
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise UserError(f"{named} {out}: give a file in a folder that exists")
        if out.exists() and not overwrite:
            or_else = "" if overwrite is None else ", or give --overwrite"
            raise UserError(f"{named} {out}: exists already. Choose another name{or_else}")
    except OSError as error:
        raise UserError(f"{named} {out}: cannot be written ({error.strerror})") from None


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
            config = tyro.cli(cls, args=list(words), prog=prog, config=(tyro.conf.DisallowNone,))
        _possible(config)
        return config
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_reduce(shown.getvalue())} See {prog} --help") from None


def _possible(config: Any) -> None:
    """Raise `UserError` for a number beyond 64 bits, and for text that can't name a file."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        named = "DIR" if field.name == "run" else flag(field.name)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{named} {value}: must be at most 2**63 - 1")
        if isinstance(value, str | Path):
            _text_can_be(str(value), named)
        if isinstance(value, Path):
            _path_can_be(value, named)


def _text_can_be(text: str, named: str) -> None:
    try:
        possible = "\0" not in text and os.fsencode(text) is not None
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise UserError(f"{named} {text!r}: holds a character that no file name or text can have")


def _path_can_be(path: Path, named: str) -> None:
    names = [len(os.fsencode(name)) for name in path.parts]
    if max(names, default=0) > NAME_MOST or len(os.fsencode(path)) > PATH_MOST:
        raise UserError(f"{named} {path}: cannot be written or read (the name is too long for a file system)")


def _reduce(shown: str) -> str:
    """The sentence in tyro's box of several lines, and the first flag it suggests instead."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │") for line in shown.splitlines()]
    sections = [""]
    for line in lines:
        if line and not line.strip("─-"):
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    if lines and not lines[0].startswith("╭"):  # where stdout can't show a frame, the title is a section of its own
        sections = sections[1:]
    message = sections[0] if sections else "These options can't be read"
    for told, plain in _PLAIN_WORDS:
        message = re.sub(told, plain, message)
    message = re.sub(r"Expected one of \(.*?\)", _choices, message)
    message = message.rstrip(".!") + "."
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", " ".join(sections))
    return f"{message} Did you mean {meant[1]}?" if meant else message


def _choices(told: re.Match[str]) -> str:
    """What can be chosen; tyro lists a set in any order, with a None that nobody may give."""
    return "Expected one of " + ", ".join(sorted({*re.findall("'([^']*)'", told[0])} - {"None"}))


_PLAIN_WORDS = (
    (r"no type matching .* could be instantiated from .*Got errors: - <class '\w+'>: ", ""),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"Exceeds the limit .*", "this is not a whole number that anything has room for"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
)
"""What Python says of words that are no numbers -> what a person says."""
