"""The folder of a comparison: a file for each finished part, so that a comparison that was killed can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save

import bptt
from bptt.cli.contest.config import CompareConfig
from bptt.cli.contest.parts import is_gradient, run_of
from bptt.cli.contest.runner import Run
from bptt.cli.files import read_settings, small_text
from bptt.cli.folder import FILES as RUN_FILES
from bptt.cli.folder import dated, jsonable, replace
from bptt.cli.printing import UserError

CONFIG, RESULTS, PAGE = "config.yaml", "results.json", "report.html"
PLOTS = ("loss.png", "gradients.png", "windows.png")
PARTS = "parts"
PART_MOST = 2**28
"""Bytes of a part; a run of a million updates, each of another length, has a tenth of that."""
_MISSING = object()


class ContestFolder:
    """A folder made for one comparison, or found with the finished parts of the very same one.

    Arguments:
        config: resolved; its `out` is the folder. None goes on in the last one under runs/ that holds the same one
            without its report, or makes a new dated one.
        digest: of a text that is read, "" without: the data belong to what makes a comparison the same.

    Raises: UserError if it holds another comparison or a run of `bptt train`, or can't be written to.
    """

    def __init__(self, config: CompareConfig, digest: str) -> None:
        identity = {**config.recorded(), "bptt": bptt.__version__}
        if digest:
            identity["sha256"] = digest
        try:
            self.path = config.out if config.out is not None else _unfinished(identity) or dated()
            held = _held(self.path)
            if held is not None and held != identity and not config.overwrite:
                raise UserError(f"{self.path} holds another comparison ({_difference(held, identity)})" + _OTHERWISE)
            if held is None and any((self.path / name).exists() for name in (*RUN_FILES, PAGE, RESULTS, *PLOTS)):
                raise UserError(f"{self.path} holds something else, such as a run of bptt train. Choose another --out")
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
            if held != identity:
                self._clear()
                self.write(CONFIG, yaml.safe_dump(identity, sort_keys=False))
        except OSError as error:
            raise UserError(
                f"{self.path}: no comparison can be written here ({error.strerror}). Choose another --out"
            ) from None

    def _clear(self) -> None:
        for path in (self.path / PARTS).iterdir():
            path.unlink()
        for name in (RESULTS, PAGE, *PLOTS):
            (self.path / name).unlink(missing_ok=True)

    def run(self, name: str, seed: int) -> Run | None:
        """A finished run, or None."""
        part = _part(name, seed)
        kept = self._kept(part)
        if kept is _MISSING:
            return None
        return run_of(kept, name, seed) or self._damaged(part)

    def keep_run(self, run: Run, model: torch.nn.Module) -> None:
        """Keep a finished run: first its weights, then what says that it is there."""
        weights = {name: t.detach().to(copy=True).contiguous() for name, t in model.state_dict().items()}
        part = _part(run.strategy, run.seed)
        replace(self.path / PARTS / f"{part}.safetensors", lambda path: path.write_bytes(save(weights)))
        values = {**vars(run), "points": [dataclasses.astuple(point) for point in run.points]}
        self._keep(part, values)

    def load_weights(self, run: Run, model: torch.nn.Module) -> None:
        """Let `model` be that of the end of a finished run."""
        path = self.path / PARTS / f"{_part(run.strategy, run.seed)}.safetensors"
        try:
            weights, own = load_file(path), model.state_dict()
            if any(weights[name].dtype != t.dtype or not weights[name].isfinite().all() for name, t in own.items()):
                raise KeyError
            model.load_state_dict(weights)
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError):
            raise UserError(f"{path}: missing or damaged. Delete {path.with_suffix('.json')} to run it again") from None

    def gradient(self, name: str, when: str) -> dict[str, Any] | None:
        """What `bptt.compare` found for a strategy, or None."""
        part = f"gradient_{when}_{_plain(name)}"
        kept = self._kept(part)
        return None if kept is _MISSING else kept if is_gradient(kept) else self._damaged(part)

    def keep_gradient(self, name: str, when: str, found: dict[str, Any]) -> None:
        """Keep that."""
        self._keep(f"gradient_{when}_{_plain(name)}", found)

    def _kept(self, part: str) -> Any:
        """The JSON of a finished part, `_MISSING` without one."""
        path = self.path / PARTS / f"{part}.json"
        try:
            return json.loads(small_text(path, PART_MOST)) if path.exists() else _MISSING
        except (ValueError, RecursionError, UserError, OSError):
            self._damaged(part)

    def _damaged(self, part: str) -> NoReturn:
        path = self.path / PARTS / f"{part}.json"
        raise UserError(f"{path}: damaged, or of another version. Delete it to run that part again") from None

    def _keep(self, part: str, values: dict[str, Any]) -> None:
        self.write(f"{PARTS}/{part}.json", json.dumps(jsonable(values)))

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        self.replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace the file `name` by what `write` writes."""
        replace(self.path / name, write)


_OTHERWISE = ". Give the same options to go on with it, another --out, or --overwrite to delete it"


def _held(path: Path) -> dict[str, Any] | None:
    """What identifies the comparison that a folder holds; None if it holds none."""
    if not (path / CONFIG).exists() or not (path / PARTS).is_dir():
        return None
    try:
        return read_settings(path / CONFIG)
    except UserError:
        return {"config": "damaged"}


def _unfinished(identity: dict[str, Any]) -> Path | None:
    """The last folder under runs/ that holds this comparison, stopped before its end."""
    folders = sorted(Path("runs").glob("*/" + PARTS), reverse=True)
    return next((f.parent for f in folders if _held(f.parent) == identity and not (f.parent / PAGE).exists()), None)


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first option that differs, in words."""
    name = next(name for name in (*held, *wanted) if held.get(name) != wanted.get(name))
    return f"{name} is {held.get(name, 'not set')} there, {wanted.get(name, 'not set')} here"


def _part(name: str, seed: int) -> str:
    return f"run_{_plain(name)}_{seed}"


def _plain(name: str) -> str:
    """The text of a strategy as a part of a file's name."""
    return name.replace(":", "-")
