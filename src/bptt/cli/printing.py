"""What people see: errors of one line, and text from data, prompts and file names made safe to show."""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import torch

from bptt.analysis.numbers import printable


class UserError(Exception):
    """What the user gave cannot work; shown as one line on stderr.

    Arguments:
        message: what was given, why it is impossible, what to do.
        code: exit code of the command.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Turn what library calls raise for impossible input, too little memory included, into `UserError`."""
    try:
        yield
    except (ValueError, TypeError, torch.OutOfMemoryError) as error:
        raise UserError(f"{prefix}{error}") from error
    except (RuntimeError, MemoryError, OverflowError) as error:
        if not no_memory(error):
            raise
        raise UserError(f"{prefix}{NO_MEMORY}") from error


NO_MEMORY = "there is not enough memory for this. Give smaller sizes, or a budget with --memory where there is one"


def no_memory(error: BaseException) -> bool:
    """Whether an error says that something is too large for this machine; torch has no type of its own for it.

    >>> no_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    >>> no_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OverflowError | TypeError) and bool(_TOO_LARGE.search(str(error)))


_TOO_LARGE = re.compile(
    r"alloc\w* memory|[Oo]ut of memory|not enough memory|[Oo]verflow|[Ii]nvalid buffer size|too (large|big)"
)


def one_line(text: str) -> str:
    r"""`printable`, with newlines and runs of spaces as one space.

    >>> one_line("no file\n  a\x07b")
    'no file a\\x07b'
    """
    return " ".join(printable(text).split())


def fitted(text: str, width: int) -> str:
    r"""`text` in lines of at most `width` columns, broken between words; a word that is longer stays whole.

    Lines go on below what follows their name, and spaces that aren't broken at are kept.

    >>> print(fitted("model       lstm of 256 units, tbptt:64, adam 0.003", 40))
    model       lstm of 256 units, tbptt:64,
                adam 0.003
    """
    lines: list[str] = []
    for line in text.split("\n"):
        name = re.match(r"\S.{0,11}?  +(?=\S)", line)
        indent = " " * len(name[0]) if name and len(name[0]) < width / 2 else ""
        if len(line) <= width:
            lines.append(line)
            continue
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
    return "\n".join(lines)


def fields(values: Iterable[str], width: int) -> str:
    r"""Short values side by side, two spaces between them, in lines of at most `width` columns; none is broken.

    >>> print(fields(["update 9", "validation 1.769 bits/char", "8.2 s"], 40))
    update 9  validation 1.769 bits/char
              8.2 s
    """
    whole = "  ".join(value.replace(" ", "\u2007") for value in values)  # a space that no line is broken at
    return fitted(whole, width).replace("\u2007", " ")


def command(name: str, words: Sequence[str], width: int) -> str:
    r"""A command line to copy, after its name: where it is too long, it goes on as a shell lets it go on.

    >>> print(command("More text:", ["bptt", "sample", "runs/a-long-name", "--seed", "1"], 30))
    More text:  bptt sample \
                runs/a-long-name \
                --seed 1
    """
    lines = [f"{name:<12}{words[0]}"]
    for i, word in enumerate(words[1:], 1):
        room = width - 2 * (i < len(words) - 1)
        if len(lines[-1]) + 1 + len(word) > room:
            lines[-1] += " \\"
            lines.append(" " * 12 + word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def shortened(text: str) -> str:
    """`text` with words that are longer than any file's name cut down to their two ends: nobody reads 5,000 digits.

    >>> shortened("seed: " + "9" * 5000 + " is too large")
    'seed: 9999999999999999999999999999999999999999...99999999 (5,000 characters) is too large'
    """
    return re.sub(r"\S{401,}", lambda word: f"{word[0][:40]}...{word[0][-8:]} ({len(word[0]):,} characters)", text)


def block(text: str) -> str:
    """`printable` as an indented block of Markdown: unlike a fence, no text can end it, and nothing in it is markup."""
    return textwrap.indent(printable(text).rstrip("\n"), "    ", lambda line: True)


def bits(value: float) -> str:
    """Bits per character with three decimals, or shorter where a run has diverged.

    >>> bits(1.7688), bits(3.9e29)
    ('1.769', '3.9e+29')
    """
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def brief(seconds: float) -> str:
    """A time in eight columns.

    >>> brief(8.25), brief(84), brief(7384)
    ('8.2 s', '1.4 min', '2.1 h')
    """
    unit, length = ("s", 1) if seconds < 60 else ("min", 60) if seconds < 3600 else ("h", 3600)
    return f"{seconds / length:.1f} {unit}"
