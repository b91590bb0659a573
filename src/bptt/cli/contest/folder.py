"""The folder of a comparison: a file for each finished part, so that a comparison that was killed can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save

import bptt
from bptt.analysis.race.kept import MISSING
from bptt.analysis.race.report.files import PAGE, PLOTS, RESULTS
from bptt.cli.contest.config import CompareConfig
from bptt.cli.files import read_settings, small_text
from bptt.cli.folder import ALL_FILES as RUN_FILES
from bptt.cli.folder import RUNS, OutFolder, dated
from bptt.cli.printing import UserError
from bptt.runs import exchange, replace
from bptt.runs.files import jsonable, write

CONFIG, PARTS = "config.yaml", "parts"
PART_MOST = 2**28
"""Bytes of a part; a run of a million updates, each of another length, has a tenth of that."""


class ContestFolder(OutFolder):
    """A folder made for one comparison, or found with the finished parts of the very same one.

    No other process writes to it until it is closed. With `overwrite`, another comparison that the folder holds stays
    until `finish`: the new one grows in a folder inside, where it is found again too.

    Arguments:
        config: resolved; its `out` is the folder. None goes on in the last one under runs/ that holds the same one
            without its report, or makes a new dated one.
        digest: of a text that is read, "" without: the data belong to what makes a comparison the same.

    Raises: UserError if it holds another comparison or a run of `bptt train`, and as `OutFolder` does.
    """

    def __init__(self, config: CompareConfig, digest: str) -> None:
        identity = {**config.recorded(), "bptt": bptt.__version__}
        if digest:
            identity["sha256"] = digest
        self.path = RUNS if config.out is None else config.out

        def make() -> None:
            if config.out is None:
                self.path = _unfinished(identity) or dated()

        def find() -> Path:
            return self._find(identity, config.overwrite)

        self.inside: Path = self._open(make, find, "bptt compare", "comparison")

    def _find(self, identity: dict[str, Any], overwrite: bool) -> Path:
        """Where the comparison is to be written, or goes on: the folder, or one inside that will take its place."""
        exchange.settle(self.path)
        held = _held(self.path)
        if held is not None and held != identity and not overwrite:
            raise UserError(f"{self.path} holds another comparison ({_difference(held, identity)})" + _OTHERWISE)
        others = [self.path / name for name in (*RUN_FILES, PAGE, RESULTS, *PLOTS)]
        if held is None and any(path.exists() for path in (*others, *(self.path / PARTS).glob("*"))):
            raise UserError(f"{self.path} holds something else, such as a run of bptt train. Choose another --out")
        if held is None or held == identity:
            inside = self.path
        else:
            inside = self.path / exchange.NEW
            held = _held(inside)
            if held != identity:
                exchange.discard(self.path)
        if held != identity:
            (inside / PARTS).mkdir(parents=True, exist_ok=True)
            write(inside / CONFIG, yaml.safe_dump(identity, sort_keys=False))
        return inside

    def finish(self) -> None:
        """Everything is written: it takes the place of another comparison that the folder holds."""
        if self.inside != self.path:
            exchange.commit(self.path)
            self.inside = self.path

    def load(self, part: str) -> Any:
        """The JSON of a finished part, `MISSING` without one."""
        path = self.inside / PARTS / f"{part}.json"
        try:
            return json.loads(small_text(path, PART_MOST)) if path.exists() else MISSING
        except (ValueError, RecursionError, UserError, OSError):
            self.damaged(part)

    def save(self, part: str, data: Any) -> None:
        """Keep it."""
        write(self.inside / PARTS / f"{part}.json", json.dumps(jsonable(data)))

    def load_weights(self, part: str, model: torch.nn.Module) -> None:
        """Let `model` be that of the end of a finished run."""
        path = self.inside / PARTS / f"{part}.safetensors"
        try:
            weights, own = load_file(path), model.state_dict()
            if any(weights[name].dtype != t.dtype or not weights[name].isfinite().all() for name, t in own.items()):
                raise KeyError
            model.load_state_dict(weights)
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError):
            raise UserError(f"{path}: missing or damaged. Delete {path.with_suffix('.json')} to run it again") from None

    def save_weights(self, part: str, weights: dict[str, torch.Tensor]) -> None:
        """Keep the weights of the end of a run."""
        replace(self.inside / PARTS / f"{part}.safetensors", lambda path: path.write_bytes(save(weights)))

    def damaged(self, part: str) -> NoReturn:
        """Raise UserError for a part that can't be what was kept."""
        path = self.inside / PARTS / f"{part}.json"
        raise UserError(f"{path}: damaged, or of another version. Delete it to run that part again") from None


_OTHERWISE = ". Give the same options to go on with it, another --out, or --overwrite to replace it"


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
