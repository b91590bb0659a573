"""Small files that people write by hand, or change: read only where they are files, and of the shape that is wanted."""

import importlib
import stat
from pathlib import Path
from typing import Any

SETTINGS_MOST = 2**20
"""Bytes that a file of settings or of a worked example may have."""
_SCALARS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}
"""Tags of YAML that a value may have -> what such a value is."""
_PREFIX = "tag:yaml.org,2002:"


def small_text(path: Path, most: int = SETTINGS_MOST) -> str:
    """The text of a file that people write by hand.

    Raises: ValueError, which doesn't name the file, if it isn't a regular file, is larger than `most`, or isn't UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ValueError("cannot be read (not a regular file)")
        if found.st_size > most:
            raise ValueError(f"cannot be read (larger than {most:,} bytes)")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not a UTF-8 text (byte {error.start} cannot be decoded)") from None


def read_settings(path: Path, as_written: bool = False) -> dict[str, Any]:
    """Keys and values of a YAML file that has one plain value per key.

    Arguments:
        as_written: numbers and dates stay the text they are in the file, so that options read them as they read words
            of a command line; `010` is ten, not the eight that YAML makes of it.

    Raises: ValueError, which doesn't name the file, for anything else: it names the key and its value. ImportError
        without PyYAML.
    """
    text, yaml = small_text(path), importlib.import_module("yaml")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"not a YAML file ({error})") from None
    if node is None or node.tag == f"{_PREFIX}null":
        return {}
    if not isinstance(node, yaml.MappingNode) or node.tag != f"{_PREFIX}map":
        raise ValueError("must hold lines like `hidden: 256`")
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError("must hold lines like `hidden: 256`, but a key there is a list or a dict")
        if key.tag == f"{_PREFIX}merge":
            raise ValueError("<< (a merge key) is not taken here. Write each option on a line of its own")
        if key.value in values:
            raise ValueError(f"the key {key.value!r} is there twice")
        values[key.value] = _scalar(yaml, loader, key.value, value, as_written)
    return values


def _scalar(yaml: Any, loader: Any, key: str, node: Any, as_written: bool) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "dict"
        raise ValueError(f"{key} must be one value, not a {kind}")
    tag = node.tag.removeprefix(_PREFIX)
    if tag not in _SCALARS:  # a date, say, is text to every option; whether it was one, or a tag said so, is guessed
        if loader.resolve(yaml.ScalarNode, node.value, (True, False)) == node.tag:
            return node.value
        raise ValueError(f"{key}: {node.value!r} has the tag {node.tag!r}, which no option takes. Leave the tag out")
    try:
        value = loader.construct_object(node)
    except Exception:  # PyYAML's constructors raise whatever they stumble over
        raise ValueError(f"{key}: {node.value!r} is not {_SCALARS[tag]}") from None
    return node.value if as_written and tag in ("int", "float") else value
