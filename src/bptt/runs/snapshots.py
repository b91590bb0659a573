"""States of a run: safetensors and JSON with a hash of each file, found whole or not at all; nothing is unpickled."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bptt.runs.files import to_disk

TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "hashes.json"
_PART, _GONE = ".part", ".gone"
_DAMAGE = (OSError, KeyError, ValueError, TypeError, IndexError, RecursionError)


class DamagedError(ValueError):
    """No snapshot of a folder can be read whole. damaged: step -> what is wrong with that one."""

    def __init__(self, message: str, damaged: dict[int, str]) -> None:
        super().__init__(message)
        self.damaged = damaged


class Snapshot(NamedTuple):
    """The step after which a state was saved, the state, and damaged later ones: step -> what is wrong."""

    step: int
    state: Any
    damaged: dict[int, str]


class Snapshots:
    """The last few states of a run in a folder, each whole or not there, whenever the process is killed.

    A snapshot is a folder of its own, named after its step: tensors as safetensors, everything else as JSON, and the
    SHA-256 of both. It is written under a different name, brought to the disk, and renamed.

    Arguments:
        folder: made if it isn't there; nothing else may write to it.
        kept: how many snapshots stay, >= 1; with two of them one may be damaged.

    Raises: ValueError or TypeError for `kept`; ImportError without safetensors.
    Cost: `save` copies the state to memory and writes it once; `newest` reads one snapshot.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     snapshots = Snapshots(folder)
    ...     for step in (10, 20, 30):
    ...         snapshots.save(step, {"weights": torch.full((2,), float(step)), "lr": 0.1})
    ...     found = snapshots.newest()
    >>> found.step, found.state
    (30, {'weights': tensor([30., 30.]), 'lr': 0.1})
    """

    def __init__(self, folder: str | Path, kept: int = 2) -> None:
        if isinstance(kept, bool) or not isinstance(kept, int):
            raise TypeError(f"Snapshots(kept={kept!r}): must be a whole number of at least 1.")
        if kept < 1:
            raise ValueError(f"Snapshots(kept={kept}): must be at least 1, or nothing that is saved would stay.")
        try:
            self._safetensors = importlib.import_module("safetensors.torch")
        except ImportError:
            raise ImportError("Snapshots needs safetensors, which isn't installed: pip install safetensors.") from None
        self.folder, self.kept = Path(folder), kept

    def save(self, step: int, state: Any) -> None:
        """Save the state after `step`, and let go of all but the last `kept`.

        Arguments:
            step: from 0 to 9,999,999,999; one that is there already is replaced.
            state: dictionaries, lists, tuples, tensors, numbers, text and None.

        Raises: OSError, with all snapshots as they were; ValueError for `step`; TypeError for a state that holds
            anything else.
        """
        if not 0 <= step < 10**10:
            raise ValueError(f"save(step={step}): must be from 0 to 9,999,999,999.")
        part, target, gone = self.folder / _PART, self.folder / f"{step:010}", self.folder / _GONE
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (part, gone):
            shutil.rmtree(left, ignore_errors=True)
        tensors: dict[str, torch.Tensor] = {}
        files = {STATE: json.dumps(_plain(state, tensors)).encode()}
        files[TENSORS] = self._safetensors.save(tensors)
        files[HASHES] = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}).encode()
        part.mkdir()
        try:
            for name, data in files.items():
                (part / name).write_bytes(data)
                to_disk(part / name)
            if target.exists():  # one that is damaged: the run went on from the one before it
                os.rename(target, gone)
            os.rename(part, target)
            to_disk(self.folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        shutil.rmtree(gone, ignore_errors=True)
        for old in self.steps()[: -self.kept]:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder / f"{old:010}")

    def steps(self) -> list[int]:
        """Steps of the snapshots that are there, whole or damaged, in order."""
        try:
            names = [each.name for each in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if len(name) == 10 and name.isascii() and name.isdigit())

    def newest(self) -> Snapshot | None:
        """The last whole snapshot; None where there is none at all.

        Raises: DamagedError where there are some, all of them damaged; OSError where the folder can't be read.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                return Snapshot(step, self._read(self.folder / f"{step:010}"), damaged)
            except (*_DAMAGE, importlib.import_module("safetensors").SafetensorError) as error:
                damaged[step] = _told(error)
        if damaged:
            told = "; ".join(f"that of step {step:,} is damaged ({why})" for step, why in damaged.items())
            raise DamagedError(f"{self.folder} holds no whole snapshot: {told}.", damaged)
        return None

    def _read(self, folder: Path) -> Any:
        known = json.loads((folder / HASHES).read_bytes())
        files = {name: (folder / name).read_bytes() for name in (STATE, TENSORS)}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != known[name]:
                raise ValueError(f"{name} isn't what was saved")
        return _whole(json.loads(files[STATE]), self._safetensors.load(files[TENSORS]))


def _told(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror}"
    return str(error) if type(error) is ValueError else "its files can't be read"


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors go into `tensors`, by number."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_key(key), _plain(each, tensors)] for key, each in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_plain(each, tensors) for each in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"save: a snapshot can't hold a {type(value).__name__}: {_TAKES}.")


_TAKES = "it takes dictionaries, lists, tuples, tensors, numbers, text and None"


def _key(key: Any) -> Any:
    if key is not None and not isinstance(key, bool | int | float | str):
        raise TypeError(f"save: a snapshot can't hold a dictionary with a {type(key).__name__} as key: give it text.")
    return key


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
