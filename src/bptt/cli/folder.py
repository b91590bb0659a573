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

import yaml

from bptt.cli.jobs.job import Job
from bptt.cli.printing import UserError, block, one_line
from bptt.cli.train_config import TrainConfig
from bptt.models.saved import CONFIG, SERIES, VOCABULARY, WEIGHTS
from bptt.runs import DamagedError, Events, InUseError, Lines, Lock, Snapshot, Snapshots, exchange, replace
from bptt.runs.files import jsonable, temporary, to_disk, write
from bptt.runs.weights import packed

METRICS, LOSS_PLOT, NORM_PLOT, REPORT = "metrics.jsonl", "loss.png", "gradient_norm.png", "report.md"
EVENTS = "events.out.tfevents.bptt"
"""For TensorBoard, which knows its files by the middle of this name; missing where TensorBoard isn't installed."""
CHECKPOINTS = "checkpoints"
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS, EVENTS, LOSS_PLOT, NORM_PLOT, REPORT, CHECKPOINTS)
"""Of a run on a text."""
FORECAST, FORECAST_PLOT = "forecast.json", "forecast.png"
"""Of a run on numbers: columns and horizons, errors by horizon, and both drawn."""
MODEL = "model.json"
"""Of a run of the user's own model: its file, and the digest of that."""
ALL_FILES = (*FILES, SERIES, FORECAST, FORECAST_PLOT, MODEL)
PART = METRICS + ".part"
RUNS = Path("runs")
CURVES = ("loss", "bpc", "grad_norm", "cotangent_norm", "window", "memory_bytes")
"""Names in a record of the metrics that become curves, as `train/loss` or `valid/loss`."""


class OutFolder:
    """A folder that no other process writes to until it is closed.

    make: makes the folder `path`, which it may choose. find: what it holds. who, what: the command, and what it writes.

    Raises: UserError if it is a file, can't be written to, or is written to by another process; what `find` raises.
    """

    path: Path

    def _open(self, make: Callable[[], object], find: Callable[[], Any], who: str, what: str) -> Any:
        try:
            make()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path, who)
            try:
                return find()
            except BaseException:
                self._lock.release()
                raise
        except InUseError as error:
            told = f"{one_line(error.owner)} writes here now. Choose another --out, or wait until it ends"
            raise UserError(f"{self.path}: {told}") from None
        except OSError as error:
            told = f"no {what} can be written here ({error.strerror}). Choose another --out"
            raise UserError(f"{self.path}: {told}") from None

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        write(self.path / name, text)

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace the file `name` by what `write` writes."""
        replace(self.path / name, write)

    def close(self) -> None:
        """Let other processes write here."""
        self._lock.release()


class RunFolder(OutFolder):
    """A folder made for one run, which no other process writes to until it is closed.

    With `overwrite`, a run that the folder holds stays whole until the new one has weights to put in its place.

    Arguments:
        out: the folder; None makes a new dated one under runs/.
        overwrite: let it hold a run already.
        resume: it holds a run, which is to go on.

    Raises: UserError if it holds a run (with `resume`: none), and as `OutFolder` does.
    """

    def __init__(self, out: Path | None, overwrite: bool = False, resume: bool = False) -> None:
        self.path = RUNS if out is None else out
        if resume and not self.path.is_dir():
            raise UserError(f"--resume {self.path}: no such folder. Give the folder of a run that bptt train wrote")
        self._made: list[Path] = []

        def make() -> None:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            if out is None:
                self.path = dated()
                self._made.insert(0, self.path)

        def find() -> list[str]:
            held = self._resumable() if resume else self._find(overwrite)
            self._metrics = Lines(self.path / METRICS, "a") if resume else Lines(self.path / PART, "w")
            return held

        self.held: list[str] = self._open(make, find, "bptt train", "run")
        self._snapshots = Snapshots(self.path / CHECKPOINTS)
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
        if not (self.path / CHECKPOINTS).is_dir():
            raise UserError(f"--resume {self.path}: it holds no checkpoint. Give the folder of a run of bptt train")
        if not (self.path / METRICS).is_file():
            raise UserError(f"--resume {self.path}: {METRICS} isn't there, which holds what the run has measured")
        return []

    def log(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics; a number that JSON can't hold (NaN, infinity) becomes null."""
        clean = jsonable(record)
        self._metrics.add(json.dumps(clean))
        self._show(clean)

    def _show(self, record: dict[str, Any]) -> None:
        """A point of each curve that a record has a number for."""
        if self._events is not None:
            known = {f"{record['kind']}/{n}": record[n] for n in CURVES if record.get(n) is not None}
            self._events.add(record["step"], known, record["elapsed"])

    def note(self, name: str, text: str, step: int) -> None:
        """Show a text, in Markdown, beside the curves."""
        if self._events is not None:
            self._events.text(name, text, step)

    def saved(self) -> Snapshot:
        """The last whole checkpoint of the run that goes on.

        Raises: UserError if there is none, or if the metrics aren't those that were there when it was saved.
        """
        try:
            found = self._snapshots.newest()
            if found is None:
                raise UserError(f"{self.path}: it holds no checkpoint")
            mark = found.state["metrics"]
            data = (self.path / METRICS).read_bytes()[: mark["bytes"]]
        except OSError as error:
            raise UserError(f"{self.path}: {METRICS} cannot be read ({error.strerror})") from None
        except DamagedError as error:
            raise UserError(f"{self.path}: {'; '.join(wrong(error.damaged))}") from None
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            told = f"the lines of {METRICS} up to update {found.step:,} aren't those that were written"
            raise UserError(f"{self.path}: {told}")
        return found

    def go_on(self, config: TrainConfig, found: Snapshot) -> list[dict[str, Any]]:
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
            self._snapshots.save(step, {**state, "metrics": self._mark(METRICS)})
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
            Snapshots(new / CHECKPOINTS).save(step, {**state, "metrics": self._mark(PART)})
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
                self._show(json.loads(line))

    def save(self, config: TrainConfig, job: Job, step: int, state: dict[str, Any], weights: bool = True) -> None:
        """Save `state` as a checkpoint and the model's weights for who reads them; the first time, publish both.

        weights: False leaves those that are there.
        """
        if not weights and self.published and (self.path / WEIGHTS).exists():
            self.keep(step, state)
            return
        data = packed(job.model, job.stamp)
        if not self.published:
            self.publish(config, job, step, state, data)
            return
        self.keep(step, state)
        self.replace(WEIGHTS, lambda path: path.write_bytes(data))

    def close(self) -> None:
        """Close metrics and events, and let other processes write here; nothing more can be logged."""
        self._close_files()
        super().close()

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


def wrong(damaged: Mapping[int, str]) -> list[str]:
    """What is said of checkpoints that are damaged."""
    return [f"the checkpoint of update {step:,} is damaged ({one_line(why)})" for step, why in damaged.items()]


def dated() -> Path:
    """Make a folder under runs/, named after the time; two processes at the same time get one each."""
    name = f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
    for n in itertools.count():
        path = RUNS / (name + (f"-{n}" if n else ""))
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable")
