"""The folder of a run: found writable before training, filled file by file, each file replaced whole."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save

from bptt.cli import checkpoint, exchange
from bptt.cli.events import Events
from bptt.cli.files import read_settings, small_text
from bptt.cli.jobs.job import Job
from bptt.cli.lock import Lock
from bptt.cli.model import CELLS, CharModel, build, digest
from bptt.cli.printing import UserError, block, one_line
from bptt.cli.train_config import TrainConfig
from bptt.cli.writing import Lines, jsonable, replace, temporary, to_disk, write
from bptt.data import Vocabulary

WEIGHTS, CONFIG, VOCABULARY = "weights.safetensors", "config.yaml", "vocabulary.json"
METRICS, LOSS_PLOT, NORM_PLOT, REPORT = "metrics.jsonl", "loss.png", "gradient_norm.png", "report.md"
EVENTS = "events.out.tfevents.bptt"
"""For TensorBoard, which knows its files by the middle of this name; missing where TensorBoard isn't installed."""
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS, EVENTS, LOSS_PLOT, NORM_PLOT, REPORT, checkpoint.FOLDER)
"""Of a run on a text."""
SERIES, FORECAST, FORECAST_PLOT = "series.json", "forecast.json", "forecast.png"
"""Of a run on numbers: columns and horizons, errors by horizon, and both drawn."""
MODEL = "model.json"
"""Of a run of the user's own model: its file, and the digest of that."""
ALL_FILES = (*FILES, SERIES, FORECAST, FORECAST_PLOT, MODEL)
PART = METRICS + ".part"
VOCABULARY_MOST = 2**26
"""Bytes; all of Unicode, each character as an escape, needs a fifth of it."""
RUNS = Path("runs")


class RunFolder:
    """A folder made for one run, which no other process writes to until it is closed.

    With `overwrite`, a run that the folder holds stays whole until the new one has weights to put in its place.

    Arguments:
        out: the folder; None makes a new dated one under runs/.
        overwrite: let it hold a run already.
        resume: it holds a run, which is to go on.

    Raises: UserError if it holds a run (with `resume`: none), is a file, can't be written to, or is written to by
        another process.
    """

    def __init__(self, out: Path | None, overwrite: bool = False, resume: bool = False) -> None:
        self.path = RUNS if out is None else out
        if resume and not self.path.is_dir():
            raise UserError(f"--resume {self.path}: no such folder. Give the folder of a run that bptt train wrote")
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            if out is None:
                self.path = dated()
                self._made.insert(0, self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path, "bptt train")
            try:
                self.held = self._resumable() if resume else self._find(overwrite)
                self._metrics = Lines(self.path / METRICS, "a") if resume else Lines(self.path / PART, "w")
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise UserError(
                f"{self.path}: no run can be written here ({error.strerror}). Choose another --out"
            ) from None
        self.published = self.resumed = resume
        self._began = time.time()
        self._events: Events | None = None
        self._kept: int | None = None

    def _find(self, overwrite: bool) -> list[str]:
        """The files of the run that the folder holds; what a killed process left is finished, or thrown away."""
        exchange.settle(self.path)
        held = [name for name in ALL_FILES if (self.path / name).exists()]
        if held and not overwrite:
            raise UserError(f"{self.path} already holds a run. Choose another --out, or give --overwrite")
        exchange.discard(self.path)
        for name in ALL_FILES:
            temporary(self.path / name).unlink(missing_ok=True)
        return held

    def _resumable(self) -> list[str]:
        """What of the folder's run stays until a new one has weights: nothing, since it is the run that goes on."""
        exchange.settle(self.path)
        if not (self.path / checkpoint.FOLDER).is_dir():
            raise UserError(f"--resume {self.path}: it holds no checkpoint. Give the folder of a run of bptt train")
        if not (self.path / METRICS).is_file():
            raise UserError(f"--resume {self.path}: {METRICS} isn't there, which holds what the run has measured")
        return []

    def log(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics; a number that JSON can't hold (NaN, infinity) becomes null."""
        clean = jsonable(record)
        self._metrics.add(json.dumps(clean))
        if self._events is not None:
            self._events.add(clean)

    def note(self, name: str, text: str, step: int) -> None:
        """Show a text, in Markdown, beside the curves."""
        if self._events is not None:
            self._events.text(name, text, step)

    def saved(self) -> checkpoint.Found:
        """The last whole checkpoint of the run that goes on.

        Raises: UserError if there is none, or if the metrics aren't those that were there when it was saved.
        """
        try:
            found = checkpoint.newest(self.path)
            mark = found.state["metrics"]
            data = (self.path / METRICS).read_bytes()[: mark["bytes"]]
            if hashlib.sha256(data).hexdigest() != mark["sha256"]:
                raise UserError(f"the lines of {METRICS} up to update {found.step:,} aren't those that were written")
        except OSError as error:
            raise UserError(f"{self.path}: {METRICS} cannot be read ({error.strerror})") from None
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return found

    def go_on(self, config: TrainConfig, found: checkpoint.Found) -> list[dict[str, Any]]:
        """Let the metrics end where the checkpoint was saved, to add to them; the records that they hold."""
        os.truncate(self.path / METRICS, found.state["metrics"]["bytes"])
        self._kept = found.step
        settings = yaml.safe_dump(config.recorded(), sort_keys=False)
        write(self.path / CONFIG, settings)
        self._publish_events(settings)
        return [json.loads(line) for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines()]

    def keep(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint, with the place in the metrics that belongs to it.

        One of the same update serves as it is, whether its validation is in it or is made again.
        """
        if step != self._kept:
            to_disk(self.path / METRICS)
            checkpoint.keep(self.path, step, {**state, "metrics": self._mark(METRICS)})
            self._kept = step

    def _mark(self, name: str) -> dict[str, Any]:
        data = (self.path / name).read_bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def publish(
        self, config: TrainConfig, job: Job, step: int, state: dict[str, Any], weights: bytes | None = None
    ) -> None:
        """Make this the run that the folder holds: its files and none of the run before, all at once or not at all."""
        settings = yaml.safe_dump(config.recorded(), sort_keys=False)
        with exchange.exchange(self.path) as new:
            if weights is not None:
                replace(new / WEIGHTS, lambda path: path.write_bytes(weights))
            write(new / CONFIG, settings)
            for name, text in job.files.items():
                write(new / name, text)
            checkpoint.keep(new, step, {**state, "metrics": self._mark(PART)})
            for name in self.held:
                if name != METRICS and not (new / name).exists():
                    exchange.remove(new, name)
            self._metrics.close()
            os.replace(self.path / PART, new / METRICS)
        self.published, self._kept = True, step
        self._metrics = Lines(self.path / METRICS, "a")
        self._publish_events(settings)

    def _publish_events(self, settings: str) -> None:
        """Events from here on, and of what the metrics hold already: no file of them lies about before."""
        with contextlib.suppress(ImportError):
            self._events = Events(self.path / EVENTS, self._began)
            self._events.text("settings", block(settings), 0)
            for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
                self._events.add(json.loads(line))

    def save(self, config: TrainConfig, job: Job, step: int, state: dict[str, Any], weights: bool = True) -> None:
        """Save `state` as a checkpoint and the model's weights for who reads them; the first time, publish both.

        weights: False leaves those that are there.
        """
        if not weights and self.published and (self.path / WEIGHTS).exists():
            self.keep(step, state)
            return
        tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in job.model.state_dict().items()}
        data = save(tensors, dict(job.stamp))
        if not self.published:
            self.publish(config, job, step, state, data)
            return
        self.keep(step, state)
        self.replace(WEIGHTS, lambda path: path.write_bytes(data))

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        write(self.path / name, text)

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace the file `name` by what `write` writes."""
        replace(self.path / name, write)

    def close(self) -> None:
        """Close metrics and events, and let other processes write here; nothing more can be logged."""
        self._close_files()
        self._lock.release()

    def _close_files(self) -> None:
        self._metrics.close()
        if self._events is not None:
            with contextlib.suppress(OSError):  # nothing waits to be written
                self._events.close()

    def discard(self) -> None:
        """Take back what was made: the run never began. A run that was here, and anything else here, stays."""
        self._close_files()
        for path in (self.path / name for name in ((PART,) if self.held or self.resumed else (PART, *ALL_FILES))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()


def dated() -> Path:
    """Make a folder under runs/, named after the time; two processes at the same time get one each."""
    name = f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
    for n in itertools.count():
        path = RUNS / (name + (f"-{n}" if n else ""))
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable")


def load(path: Path) -> tuple[CharModel, Vocabulary]:
    """The model and the vocabulary of a run folder.

    Raises: UserError if it is none, or if a file in it is damaged or doesn't fit the others.
    """
    try:
        exchange.settle_if_idle(path)
        missing = [name for name in (WEIGHTS, CONFIG, VOCABULARY) if not (path / name).is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if missing:
        raise UserError(f"{path} is not a run folder with weights (no {missing[0]}). Give a DIR that bptt train wrote")
    try:
        shape = _shape(read_settings(path / CONFIG))
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise _damaged(path, error) from error
    vocabulary = load_vocabulary(path)
    try:
        model = build(len(vocabulary), *shape)
    except UserError:  # a size that nothing has
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} doesn't fit {CONFIG} and {VOCABULARY})") from None
    load_weights(path, model, {"vocabulary": digest(vocabulary)}, f"{CONFIG} and {VOCABULARY}")
    return model.eval(), vocabulary


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a run folder. Raises: UserError if it is damaged."""
    try:
        return _vocabulary(json.loads(small_text(path / VOCABULARY, VOCABULARY_MOST)))
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise _damaged(path, error) from error


def load_weights(path: Path, model: Any, stamp: Mapping[str, str], of: str = CONFIG) -> None:
    """Put the weights of a run folder into a model.

    Arguments:
        stamp: what the file of weights says of the run, where it says anything. of: the files that the model is of.

    Raises: UserError if they don't fit, or aren't numbers.
    """
    try:
        weights = load_file(path / WEIGHTS)
        with safetensors.safe_open(path / WEIGHTS, "pt") as file:
            known = {**stamp, **(file.metadata() or {})}
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from error
    try:
        own = model.state_dict()
        if any(known[name] != value for name, value in stamp.items()):
            raise KeyError
        if any(weights[name].dtype != t.dtype for name, t in own.items()):
            raise KeyError
        model.load_state_dict(weights)
    except (KeyError, RuntimeError):  # another name, dtype or shape
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} doesn't fit {of})") from None
    parameters = dict(model.named_parameters())
    broken = next((name for name in parameters if not torch.isfinite(weights[name]).all()), None)
    if broken is not None:
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} holds NaN or infinity, in {broken})")


def _damaged(path: Path, error: Exception) -> UserError:
    told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return UserError(f"{path}: damaged run folder ({told})")


def _shape(config: dict[str, Any]) -> tuple[str, int, int]:
    """Cell, units and layers of a run's settings."""
    for name in ("cell", "hidden", "layers"):
        value = config.get(name)
        if value not in CELLS if name == "cell" else type(value) is not int or not 0 < value < 2**63:
            raise UserError(f"{CONFIG}: {name} is {one_line(str(value))}" if name in config else f"{CONFIG}: no {name}")
    return config["cell"], config["hidden"], config["layers"]


def _vocabulary(found: Any) -> Vocabulary:
    """The vocabulary that a run's JSON holds: a string of all characters, or a list of them."""
    if isinstance(found, list) and all(isinstance(c, str) and len(c) == 1 for c in found):
        found = "".join(found)
    if not isinstance(found, str):
        raise UserError(f"{VOCABULARY}: must be one string of all characters, not {type(found).__name__}")
    return Vocabulary(found)
