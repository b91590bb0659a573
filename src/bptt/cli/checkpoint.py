"""Checkpoints of a run: safetensors and JSON with a hash a file, found whole or not at all; nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load, save

from bptt.cli.printing import UserError, one_line
from bptt.cli.writing import to_disk

FOLDER = "checkpoints"
KEPT = 2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "hashes.json"
_PART, _GONE = ".part", ".gone"
_DAMAGE = (OSError, KeyError, ValueError, TypeError, IndexError, RecursionError, safetensors.SafetensorError)


def keep(path: Path, step: int, state: Any) -> None:
    """Save a state as the checkpoint of update `step` of the run in `path`, and let go of all but the last KEPT.

    state: dicts, lists, tuples, tensors, numbers, text and None.
    Raises: OSError, with all checkpoints as they were.
    """
    checkpoints = path / FOLDER
    part, target, gone = checkpoints / _PART, checkpoints / f"{step:010}", checkpoints / _GONE
    checkpoints.mkdir(exist_ok=True)
    for left in (part, gone):
        shutil.rmtree(left, ignore_errors=True)
    tensors: dict[str, torch.Tensor] = {}
    files = {STATE: json.dumps(_plain(state, tensors)).encode()}
    files[TENSORS] = save(tensors)
    files[HASHES] = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}).encode()
    part.mkdir()
    try:
        for name, data in files.items():
            (part / name).write_bytes(data)
            to_disk(part / name)
        if target.exists():  # one that is damaged: the run went on from the one before it
            os.rename(target, gone)
        os.rename(part, target)
        to_disk(checkpoints)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(gone, ignore_errors=True)
    for old in _steps(checkpoints)[:-KEPT]:
        with contextlib.suppress(OSError):
            shutil.rmtree(checkpoints / f"{old:010}")


class Found(NamedTuple):
    """The update after which a state was saved, the state, and what is wrong with later checkpoints."""

    step: int
    state: Any
    wrong: list[str]


def newest(path: Path) -> Found:
    """The last whole checkpoint of a run.

    Raises: UserError, which doesn't name the folder, if there is none.
    """
    wrong: list[str] = []
    for step in reversed(_steps(path / FOLDER)):
        try:
            return Found(step, _read(path / FOLDER / f"{step:010}"), wrong)
        except _DAMAGE as error:
            wrong.append(f"the checkpoint of update {step:,} is damaged ({_told(error)})")
    raise UserError("; ".join(wrong) if wrong else "it holds no checkpoint")


def _steps(checkpoints: Path) -> list[int]:
    try:
        names = [each.name for each in checkpoints.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if len(name) == 10 and name.isascii() and name.isdigit())


def _read(folder: Path) -> Any:
    known = json.loads((folder / HASHES).read_bytes())
    files = {name: (folder / name).read_bytes() for name in (STATE, TENSORS)}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != known[name]:
            raise ValueError(f"{name} isn't what was saved")
    return _whole(json.loads(files[STATE]), load(files[TENSORS]))


def _told(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror}"
    return one_line(str(error)) if type(error) is ValueError else "its files can't be read"


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors go into `tensors`, by number."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _plain(each, tensors)] for key, each in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_plain(each, tensors) for each in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")


def _whole(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `_plain` took apart."""
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "float":
        return float(inside)
    if kind == "dict":
        return {key: _whole(each, tensors) for key, each in inside}
    return {"list": list, "tuple": tuple}[kind](_whole(each, tensors) for each in inside)
