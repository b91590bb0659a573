"""The folder of a run: found writable before training, filled file by file, each file replaced whole."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
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
from bptt.cli.files import read_settings, small_text
from bptt.cli.model import CELLS, CharModel, build
from bptt.cli.printing import UserError, block, one_line
from bptt.cli.train_config import TrainConfig
from bptt.data import Vocabulary

WEIGHTS, CONFIG, VOCABULARY = "weights.safetensors", "config.yaml", "vocabulary.json"
METRICS, LOSS_PLOT, NORM_PLOT, REPORT = "metrics.jsonl", "loss.png", "gradient_norm.png", "report.md"
EVENTS = "events.out.tfevents.bptt"
"""For TensorBoard, which knows its files by the middle of this name; missing where TensorBoard isn't installed."""
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS, EVENTS, LOSS_PLOT, NORM_PLOT, REPORT)
PART = METRICS + ".part"
VOCABULARY_MOST = 2**26
"""Bytes; all of Unicode, each character as an escape, needs a fifth of it."""


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
        self.replace(WEIGHTS, lambda path: path.write_bytes(save(weights, {"vocabulary": digest(vocabulary)})))
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
    try:
        missing = [name for name in (WEIGHTS, CONFIG, VOCABULARY) if not (path / name).is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if missing:
        raise UserError(f"{path} is not a run folder with weights (no {missing[0]}). Give a DIR that bptt train wrote")
    try:
        shape = _shape(read_settings(path / CONFIG))
        vocabulary = _vocabulary(json.loads(small_text(path / VOCABULARY, VOCABULARY_MOST)))
        weights = load_file(path / WEIGHTS)
        with safetensors.safe_open(path / WEIGHTS, "pt") as file:
            known = (file.metadata() or {}).get("vocabulary", digest(vocabulary))
    except (OSError, ValueError, RecursionError, UserError, safetensors.SafetensorError) as error:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: damaged run folder ({told})") from error
    try:
        model = build(len(vocabulary), *shape)
        own = model.state_dict()
        if known != digest(vocabulary) or any(weights[name].dtype != t.dtype for name, t in own.items()):
            raise KeyError
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, UserError):  # another name, dtype or shape, or a size that nothing has
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} doesn't fit {CONFIG} and {VOCABULARY})") from None
    broken = next((name for name, t in weights.items() if not torch.isfinite(t).all()), None)
    if broken is not None:
        raise UserError(f"{path}: damaged run folder ({WEIGHTS} holds NaN or infinity, in {broken})")
    return model.eval(), vocabulary


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


def digest(vocabulary: Vocabulary) -> str:
    """What ties weights to the vocabulary that they were trained with."""
    return hashlib.sha256(vocabulary.characters.encode("utf-8", "surrogatepass")).hexdigest()
