"""Files that people or other programs have changed: read only where they are files, and of the shape that is wanted."""

from __future__ import annotations

import contextlib
import itertools
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from bptt.cli.data_options import is_numbers
from bptt.cli.printing import UserError, user_errors
from bptt.cli.room import must_have_room
from bptt.data import PYTHON_DOCS, load_text

SETTINGS_MOST = 2**20
"""Bytes that a file of settings or of a worked example may have."""
LOOKED_AT = 4096
"""Bytes of a text that are looked at to see whether it is a table of numbers."""
_OF_A_BYTE = 8
"""Bytes that each byte of a text takes at the least while it is turned into ids; ASCII takes twice that."""
_SCALARS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}
"""Tags of YAML that an option's value may have -> what such a value is."""
_PREFIX = "tag:yaml.org,2002:"


def data_text(source: str, surely: bool = False) -> str:
    """The text that `--data` names.

    surely: that a text is meant was said; otherwise a table of numbers isn't taken for one.

    Raises: UserError for what `bptt.data.load_text` refuses, or memory can't hold, and for a table of numbers.
    """
    if source != PYTHON_DOCS and not surely and (is_numbers(source) or _table(source)):
        named = "" if is_numbers(source) else " under a name that ends with .csv"
        raise UserError(
            f"--data {source}: holds a table of numbers. bptt train --horizon 1 forecasts it{named}; to read its "
            f"characters, give --read-as text"
        )
    with user_errors(prefix="--data "):
        with contextlib.suppress(OSError):  # load_text says what is wrong
            if source != PYTHON_DOCS and stat.S_ISREG((found := Path(source).stat()).st_mode):
                must_have_room(_OF_A_BYTE * found.st_size, f"--data {source}", "this text", "Give a part of it")
        return load_text(source)


def _table(source: str) -> bool:
    """Whether the first lines of a file are rows of numbers, equally many in each."""
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):  # a pipe would be waited for
            return False
        with open(source, "rb") as file:
            lines = file.read(LOOKED_AT).decode("utf-8-sig").splitlines()[:-1]
    except (OSError, ValueError):  # load_text says what is wrong
        return False
    rows = [re.split(r"[,;\t ]+", line.strip()) for line in lines if line.strip()]
    return len(rows) >= 3 and len({len(row) for row in rows}) == 1 and all(map(_is_number, itertools.chain(*rows)))


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan", word, re.ASCII | re.IGNORECASE) is not None


def small_text(path: Path, most: int = SETTINGS_MOST) -> str:
    """The text of a file that people write by hand.

    Raises: UserError, which doesn't name the file, if it isn't a regular file, is larger than `most`, or isn't UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise UserError("cannot be read (not a regular file)")
        if found.st_size > most:
            raise UserError(f"cannot be read (larger than {most:,} bytes)")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not a UTF-8 text (byte {error.start} cannot be decoded)") from None


def read_settings(path: Path, as_written: bool = False) -> dict[str, Any]:
    """Keys and values of a YAML file that has one plain value per key.

    Arguments:
        as_written: numbers and dates stay the text they are in the file, so that options read them as they read words
            of a command line; `010` is ten, not the eight that YAML makes of it.

    Raises: UserError, which doesn't name the file, for anything else: it names the key and its value.
    """
    text = small_text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"not a YAML file ({error})") from None
    if node is None or node.tag == f"{_PREFIX}null":
        return {}
    if not isinstance(node, yaml.MappingNode) or node.tag != f"{_PREFIX}map":
        raise UserError("must hold lines like `hidden: 256`")
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError("must hold lines like `hidden: 256`, but a key there is a list or a dict")
        if key.tag == f"{_PREFIX}merge":
            raise UserError("<< (a merge key) is not taken here. Write each option on a line of its own")
        if key.value in values:
            raise UserError(f"the key {key.value!r} is there twice")
        values[key.value] = _scalar(loader, key.value, value, as_written)
    return values


def _scalar(loader: yaml.SafeLoader, key: str, node: yaml.Node, as_written: bool) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "dict"
        raise UserError(f"{key} must be one value, not a {kind}")
    tag = node.tag.removeprefix(_PREFIX)
    if tag not in _SCALARS:  # a date, say, is text to every option; whether it was one, or a tag said so, is guessed
        if loader.resolve(yaml.ScalarNode, node.value, (True, False)) == node.tag:
            return node.value
        raise UserError(f"{key}: {node.value!r} has the tag {node.tag!r}, which no option takes. Leave the tag out")
    try:
        value = loader.construct_object(node)
    except Exception:  # PyYAML's constructors raise whatever they stumble over
        raise UserError(f"{key}: {node.value!r} is not {_SCALARS[tag]}") from None
    return node.value if as_written and tag in ("int", "float") else value
