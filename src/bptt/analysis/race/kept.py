"""Finished parts of a race, so that one that was killed goes on: runs, their weights, and measured gradients."""

import json
import math
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

import bptt
from bptt.analysis.plain import from_plain, to_plain
from bptt.analysis.race.runner import Run
from bptt.runs.files import replace as replace_file
from bptt.runs.files import write

MISSING = object()


class Store(Protocol):
    """Where parts are kept, by name: each whole or not at all, whatever happens on the way."""

    def load(self, part: str) -> Any:
        """The plain data of a part, `MISSING` where there is none."""
        ...

    def save(self, part: str, data: Any) -> None:
        """Keep plain data."""
        ...

    def load_weights(self, part: str, model: nn.Module) -> None:
        """Let `model` have the weights of a part."""
        ...

    def save_weights(self, part: str, weights: dict[str, Tensor]) -> None:
        """Keep a model's weights."""
        ...

    def damaged(self, part: str) -> NoReturn:
        """Raise the error of a part that can't be what was kept."""
        ...


class Folder:
    """Parts as files of a folder: JSON, and weights as `torch.save` writes them. None keeps them in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._held: dict[str, Any] = {}
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def load(self, part: str) -> Any:
        """As `Store` says."""
        if self._path is None or not (path := self._path / f"{part}.json").exists():
            return MISSING
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            self.damaged(part)

    def save(self, part: str, data: Any) -> None:
        """As `Store` says."""
        if self._path is not None:
            write(self._path / f"{part}.json", json.dumps(data))

    def load_weights(self, part: str, model: nn.Module) -> None:
        """As `Store` says."""
        try:
            weights = self._held[part] if self._path is None else torch.load(self._path / f"{part}.pt")
            model.load_state_dict(weights)
        except Exception:  # whatever torch makes of a file that isn't its own
            self.damaged(part)

    def save_weights(self, part: str, weights: dict[str, Tensor]) -> None:
        """As `Store` says."""
        if self._path is None:
            self._held[part] = weights
        else:
            replace_file(self._path / f"{part}.pt", lambda path: torch.save(weights, path))

    def damaged(self, part: str) -> NoReturn:
        """As `Store` says."""
        raise ValueError(f"folder={str(self._path)!r}: {part} is damaged. Delete {part}.json to run that part again.")


def kept_run(store: Store, name: str, seed: int) -> Run | None:
    """A finished run, None where there is none."""
    part = run_part(name, seed)
    data = store.load(part)
    if data is MISSING:
        return None
    try:
        run = from_plain(Run, data)
    except (TypeError, ValueError, KeyError):
        store.damaged(part)
    counts = (run.updates, run.steps, run.forward_steps, run.memory_bytes, *run.windows.values())
    numbers = [run.seconds, *(each for point in run.points for each in (point.seconds, point.loss))]
    sound = all(0 <= count < 2**63 for count in counts) and all(map(math.isfinite, numbers))
    if not sound or (run.strategy, run.seed) != (name, seed) or not (run.points or run.diverged):
        store.damaged(part)
    return run


def keep_run(store: Store, run: Run, weights: dict[str, Tensor]) -> None:
    """Keep a finished run: first its weights, then what says that it is there."""
    part = run_part(run.strategy, run.seed)
    store.save_weights(part, weights)
    store.save(part, to_plain(run))


def kept_gradient(store: Store, name: str, when: str, strategy: Any) -> Any:
    """What `compare` found for a strategy, None where it could not be measured; `MISSING` where that isn't known."""
    part = f"gradient_{when}_{plain(name)}"
    data = store.load(part)
    if data is MISSING or data == {}:
        return data or None
    try:
        found = from_plain(bptt.Comparison, data)
        (entry,) = found.entries
    except (TypeError, ValueError, KeyError):
        store.damaged(part)
    return replace(found, entries=(replace(entry, strategy=strategy),))


def keep_gradient(store: Store, name: str, when: str, found: bptt.Comparison | None) -> None:
    """Keep that; the strategy is known by its name."""
    if found is not None:
        found = replace(found, entries=(replace(found.entries[0], strategy=bptt.FullBPTT()),))
    store.save(f"gradient_{when}_{plain(name)}", {} if found is None else to_plain(found))


def run_part(name: str, seed: int) -> str:
    """What a run is kept as."""
    return f"run_{plain(name)}_{seed}"


def plain(name: str) -> str:
    """A strategy's name as a part of a file's: another one for each.

    >>> plain("tbptt:5:50"), plain("ARTBP(law=f)")
    ('tbptt-5-50', 'ARTBP-law-f-_7352')
    """
    short = re.sub(r"[^\w.]+", "-", name)
    return short if short.replace("-", ":") == name else f"{short[:40]}_{sha256(name.encode()).hexdigest()[:4]}"
