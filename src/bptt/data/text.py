"""A text, its characters as a vocabulary, and its last tenth for validation."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import stat
from collections.abc import Sequence
from pathlib import Path

import torch

PYTHON_DOCS = "python-docs"
"""The name under which `load_text` gives the documentation that comes with Python itself."""


def load_text(source: str | Path) -> str:
    """The text of a UTF-8 file, or of Python's own documentation.

    Arguments:
        source: a path, or `"python-docs"`: the reference topics that `help()` shows, which every CPython carries
            (about 465,000 characters; each Python version has its own edition). A file of that name is `./python-docs`.

    Returns: the text, with every line end as one newline and without a byte order mark.

    Raises: ValueError, one line, for a file that is missing, a directory, not a regular file (such as a pipe, which may
        never end), unreadable, larger than memory, not UTF-8, empty, or made of a single character.

    >>> text = load_text("python-docs")
    >>> "assert" in text, len(text) > 100_000
    (True, True)
    """
    if source == PYTHON_DOCS:
        return _python_docs()
    path = Path(source)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path}: this is not a regular file, and may never end. Save the text to a file first.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file. Give a text file in UTF-8, or {PYTHON_DOCS}.") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: this is a directory. Give one text file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except MemoryError:
        raise ValueError(f"{path}: there is no memory for a text of {path.stat().st_size:,} bytes.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a UTF-8 text (byte {error.start} cannot be decoded). Convert it to UTF-8 first."
        ) from None
    if not text:
        raise ValueError(f"{path}: the file is empty.")
    if len(set(text)) == 1:
        raise ValueError(f"{path}: the text holds only one character ({text[0]!r}), so there is nothing to learn.")
    return text


def _python_docs() -> str:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions strip it from their minimal Python
        raise ValueError(
            f"{PYTHON_DOCS}: this Python comes without its documentation topics. Give a text file."
        ) from None
    return "".join(topics[name] for name in sorted(topics))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The distinct characters of a text; a character's id is its place among them.

    Arguments:
        characters: the characters, sorted, without duplicates.

    Raises: ValueError if a character occurs twice or none is given.

    >>> vocabulary = Vocabulary.of("hello")
    >>> vocabulary.characters, len(vocabulary)
    ('ehlo', 4)
    >>> vocabulary.encode("hole")
    tensor([1, 3, 2, 0])
    >>> vocabulary.decode([1, 3, 2, 0])
    'hole'
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError(
                "Vocabulary(characters): needs at least one character, and none twice. Use Vocabulary.of(text)."
            )

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The vocabulary of `text`."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters)}

    def encode(self, text: str) -> torch.Tensor:
        """The ids of `text`: int64 (T,).

        Raises: ValueError that names the characters which are not in the vocabulary.
        """
        try:
            return torch.tensor([self._ids[character] for character in text], dtype=torch.int64)
        except KeyError:
            unknown = sorted(set(text) - set(self.characters))
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(f"not in the vocabulary of {len(self)} characters: {shown}.") from None

    def decode(self, ids: torch.Tensor | Sequence[int]) -> str:
        """The text of `ids`, a 1-d integer tensor or a sequence of integers."""
        return "".join(self.characters[i] for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids))


def split(ids: torch.Tensor, part: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation ids: the last `part`-th of a text is for validation.

    Nothing is shuffled. The vocabulary is that of the whole text, so validation never meets an unknown character.

    Arguments:
        ids: (T,), any dtype.
        part: 10 keeps the last tenth, and never less than two characters, for validation.

    Returns: (training ids, validation ids), views of `ids`.

    Raises: ValueError if `part` is less than 2 or fewer than two characters would be left on either side.

    >>> train, validation = split(torch.arange(30))
    >>> len(train), validation
    (27, tensor([27, 28, 29]))
    """
    if part < 2:
        raise ValueError(f"split(part={part}): must be at least 2; 10 keeps the last tenth for validation.")
    validation = max(2, len(ids) // part)
    if len(ids) - validation < 2:
        raise ValueError(f"a text of {len(ids)} characters is too short to train and validate on: it takes at least 4.")
    return ids[:-validation], ids[-validation:]
