"""The folder of a run: found writable before training, filled file by file, each file replaced whole."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save

from bptt.cli.events import Events
from bptt.cli.model import CharModel, build
from bptt.cli.printing import UserError, block
from bptt.cli.train_config import TrainConfig
from bptt.data import Vocabulary

WEIGHTS, CONFIG, VOCABULARY = "weights.safetensors", "config.yaml", "vocabulary.json"
METRICS, LOSS_PLOT, NORM_PLOT, REPORT = "metrics.jsonl", "loss.png", "gradient_norm.png", "report.md"
EVENTS = "events.out.tfevents.bptt"
"""For TensorBoard, which knows its files by the middle of this name; missing where TensorBoard isn't installed."""
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS, EVENTS, LOSS_PLOT, NORM_PLOT, REPORT)
PART = METRICS + ".part"


class RunFolder:
    """A folder made for one run.

    With `overwrite`, a run that the folder holds stays whole until the new one has weights to put in its place.

    Arguments:
        out: the folder; None makes a new dated one under runs/.
        overwrite: let it hold a run already.

    Raises: UserError if it holds a run, is a file, or can't be written to.
    """

    def __init__(self, out: Path | None, overwrite: bool) -> None:
        self.path = out if out is not None else dated()
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.held = [name for name in FILES if (self.path / name).exists()]
            if self.held and not overwrite:
                raise UserError(f"{self.path} already holds a run. Choose another --out, or give --overwrite")
            self.path.mkdir(parents=True, exist_ok=out is not None)
            self._metrics = self._open(PART, "w")
        except OSError as error:
            raise UserError(
                f"{self.path}: no run can be written here ({error.strerror}). Choose another --out"
            ) from None
        self.published = False
        self._began = time.time()
        self._events: Events | None = None

    def _open(self, name: str, mode: str) -> IO[str]:
        return open(self.path / name, mode, encoding="utf-8", buffering=1)  # by line: a killed run keeps its metrics

    def log(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics; a number that JSON can't hold (NaN, infinity) becomes null."""
        clean = jsonable(record)
        self._metrics.write(json.dumps(clean) + "\n")
        if self._events is not None:
            self._events.add(clean)

    def note(self, name: str, text: str, step: int) -> None:
        """Show a text, in Markdown, beside the curves."""
        if self._events is not None:
            self._events.text(name, text, step)

    def publish(self, config: TrainConfig, vocabulary: Vocabulary) -> None:
        """Make this the run that the folder holds: its metrics, config, vocabulary, and nothing of the run before."""
        if self.published:
            return
        for name in self.held:
            if name not in (WEIGHTS, CONFIG, VOCABULARY):
                (self.path / name).unlink(missing_ok=True)
        self._metrics.close()
        os.replace(self.path / PART, self.path / METRICS)
        self._metrics = self._open(METRICS, "a")
        settings = yaml.safe_dump(config.recorded(), sort_keys=False)
        self._publish_events(settings)
        self.write(CONFIG, settings)
        self.write(VOCABULARY, json.dumps(vocabulary.characters) + "\n")
        self.published = True

    def _publish_events(self, settings: str) -> None:
        """Events from here on, and of what the metrics hold already: no file of them lies about before."""
        with contextlib.suppress(ImportError):
            self._events = Events(self.path / EVENTS, self._began)
            self._events.text("settings", block(settings), 0)
            for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
                self._events.add(json.loads(line))

    def save_weights(self, model: CharModel, config: TrainConfig, vocabulary: Vocabulary) -> bool:
        """Replace the weights by the model's; False, and nothing replaced, if one of them isn't finite."""
        weights = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
        if not all(torch.isfinite(t).all() for t in weights.values()):
            return False
        self.publish(config, vocabulary)
        self.replace(WEIGHTS, lambda path: path.write_bytes(save(weights)))
        return True

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        self.replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace the file `name` by what `write` writes."""
        replace(self.path / name, write)

    def close(self) -> None:
        """Close metrics and events; nothing more can be logged."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def discard(self) -> None:
        """Take back what was made: the run never began. A run that was held, and anything else here, stays."""
        self.close()
        for name in (PART,) if self.held else (PART, *FILES):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()


def replace(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file and put it in the place of `target`: readers see the old one or the new."""
    temporary = target.with_name(f".{target.name}.part{target.suffix}")  # the suffix tells savefig the format
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """`value` with null for every number that JSON can't hold.

    >>> jsonable({"loss": [1.5, float("nan")]})
    {'loss': [1.5, None]}
    """
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dated() -> Path:
    """A new folder under runs/, named after the time."""
    name = f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
    paths = (Path("runs") / (name + (f"-{n}" if n else "")) for n in range(10**6))
    return next(path for path in paths if not path.exists())


def load(path: Path) -> tuple[CharModel, Vocabulary]:
    """The model and the vocabulary of a run folder.

    Raises: UserError if it is none, or if a file in it is damaged or doesn't fit the others.
    """
    missing = [name for name in (WEIGHTS, CONFIG, VOCABULARY) if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path} is not a run folder with weights (no {missing[0]}). Give a DIR that bptt train wrote")
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        shape = (str(config["cell"]), int(config["hidden"]), int(config["layers"]))
        vocabulary = Vocabulary(json.loads((path / VOCABULARY).read_text(encoding="utf-8")))
        weights = load_file(path / WEIGHTS)
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: damaged run folder ({type(error).__name__}: {error})") from error
    try:
        model = build(len(vocabulary), *shape)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError):  # a cell of another name, or shapes that differ
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} doesn't fit {CONFIG} and {VOCABULARY})") from None
    return model.eval(), vocabulary
