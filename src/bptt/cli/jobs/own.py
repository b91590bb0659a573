"""A model of the user's own: a function in a file of Python, what it returns, and the data it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bptt
from bptt.analysis.history import BITS, LOSS
from bptt.cli.data_options import DataOptions
from bptt.cli.files import small_text
from bptt.cli.folder import MODEL
from bptt.cli.jobs.job import Job
from bptt.cli.jobs.series import SeriesSource, numbers
from bptt.cli.jobs.texts import TextSource
from bptt.cli.printing import UserError, no_memory, one_line
from bptt.cli.train_config import BATCH, TrainConfig

RETURNS = "it must return a module, or (module, loss), or (module, loss, stream)"


@dataclasses.dataclass(frozen=True)
class Made:
    """What the user's function returned; loss and stream None where it didn't. digest: of its file."""

    named: str
    model: nn.Module
    loss: Any
    stream: Any
    digest: str


def make(named: str, seed: int | None = None) -> Made:
    """Run the file of "FILE.py:NAME" and call NAME(), or `make()`, right after torch's seed was set, if one is given.

    Raises: UserError for a file that can't be read or run, and for what isn't there or returns something else.
    """
    file, name = named.rsplit(":", 1) if named.endswith(f":{named.rsplit(':', 1)[-1]}") else (named, "make")
    path = Path(file)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{named}: {file} cannot be read ({error.strerror})") from None
    with users_own(f"{named}: running {file} failed"):
        module = _run(path)
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(sorted(n for n, each in vars(module).items() if callable(each) and not n.startswith("_"))[:5])
        raise UserError(f"{named}: {file} has no function {name}" + (f"; there are {there}" if there else ""))
    if seed is not None:
        torch.manual_seed(seed)
    with users_own(f"{named}: {name}() failed"):
        made = function()
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        got = (
            f"({', '.join(type(each).__name__ for each in parts)})" if isinstance(made, tuple) else type(made).__name__
        )
        raise UserError(f"{named}: {name}() returned {got}: {RETURNS}")
    model: nn.Module = parts[0]
    loss, stream = (*parts[1:], None, None)[:2]
    _checked(named, name, model, loss, stream)
    return Made(named, model, loss, stream, digest)


def made_again(run: Path) -> Made:
    """What the function returns now that a run folder names.

    Raises: UserError where its file was changed since the run began, and as `make` does.
    """
    try:
        known = json.loads(small_text(run / MODEL, 2**16))
        named, digest = known["model"], known["sha256"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        raise UserError(f"{one_line(str(run))}: damaged run folder ({MODEL})") from None
    made = make(str(named), 0)
    if made.digest != digest:
        raise UserError(f"{one_line(str(named))} was changed since the run began. Put it back, or train again")
    return made


def stepping(made: Made, characters: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `bptt.models.write` takes: the user's model, step by step with the state that it returns.

    Raises: UserError, at a call, for scores that aren't one for each of the characters.
    """
    state: Any = None
    model = made.model.eval()

    def scores(ids: torch.Tensor) -> torch.Tensor:
        nonlocal state
        with users_own(f"{made.named}: it fails on ids {_shape(ids[:, None])}"):
            found, state = model(ids[:, None], state)
            if tuple(found.shape) != (len(ids), 1, characters):
                raise UserError(
                    f"{made.named}: for a text of {characters} distinct characters it must give scores of shape "
                    f"({len(ids)}, 1, {characters}), not {_shape(found)}"
                )
            return found[-1, 0]

    return scores


def _run(path: Path) -> Any:
    """The module of a file, as `python FILE` would find its neighbours."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # its name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles look it up there
    spec.loader.exec_module(module)
    return module


def _checked(named: str, name: str, model: nn.Module, loss: Any, stream: Any) -> None:
    """Raise UserError for what no run can do anything with."""
    if loss is not None and not callable(loss):
        raise UserError(f"{named}: the loss that {name}() returned is a {type(loss).__name__}: {RETURNS}")
    if stream is not None and not isinstance(stream, Iterable):
        raise UserError(f"{named}: the stream that {name}() returned is a {type(stream).__name__}: {RETURNS}")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"{named}: the model has no parameter to train")
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UserError(
            f"{named}: the loss has parameters of its own, which wouldn't be trained. Put it into the model"
        )
    odd = [key for key, each in model.state_dict().items() if not isinstance(each, torch.Tensor)]
    if odd:
        raise UserError(f"{named}: the model's state_dict holds {odd[0]}, which is no tensor and can't be saved")


@contextlib.contextmanager
def users_own(told: str, code: int = 2) -> Iterator[None]:
    """Turn whatever the user's code raises into one line, with the place where it did.

    told: what failed. code: exit code.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if no_memory(error):
            raise
        raise UserError(f"{told} ({said(error)})", code) from error


def said(error: BaseException) -> str:
    """Type and message of an error in one line, and where in the user's code it came from.

    >>> said(ValueError("no such thing"))
    'ValueError: no such thing'
    """
    message = one_line(str(error)).rstrip(".")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _library(f.filename)]
    where = f", line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


def _library(file: str) -> bool:
    parts = Path(file).parts
    return file.startswith("<") or "site-packages" in parts or Path(bptt.__file__).parent in Path(file).parents


class OwnStream:
    """Chunks of the user's own stream, as they come."""

    unit, steps, digest, held_out_rows = "step", None, "", 1

    def __init__(self, made: Made) -> None:
        self._made, self._chunks = made, Chunks(made)
        self._first = self._chunks.peek()
        if self._first.inputs.dim() < 2:
            raise UserError(
                f"{made.named}: inputs of its stream are {_shape(self._first.inputs)}: make them (T, B, ...)"
            )
        self.rows = self._first.inputs.shape[1]

    def stream(self, length: int, epochs: int | None) -> Chunks:
        """The user's own."""
        return self._chunks

    def held_out(self) -> None:
        """Nothing is."""

    def measured(self, steps: int | None, rows: int | None) -> bptt.Chunk:
        """The first chunk, or the first steps of it."""
        chunk = self._first
        if rows is not None and rows != self.rows:
            raise UserError(f"--batch {rows}: the stream of {self._made.named} has {self.rows} rows. Leave it out")
        if steps is not None and steps > len(chunk.inputs):
            raise UserError(f"--length {steps}: the first chunk of {self._made.named} has {len(chunk.inputs)} steps")
        return bptt.Chunk(*(None if value is None else value[:steps] for value in chunk))


class Chunks:
    """The user's stream as chunks; `state_dict` and `load_state_dict` are its own, where it has them."""

    def __init__(self, made: Made) -> None:
        self._named, self._stream = made.named, made.stream
        if hasattr(self._stream, "state_dict") and hasattr(self._stream, "load_state_dict"):
            self.state_dict, self.load_state_dict = self._stream.state_dict, self._stream.load_state_dict

    def peek(self) -> bptt.Chunk:
        """The first chunk, which comes again: an iterator is put back to its start, or gets it in front."""
        stream = self._stream
        with users_own(f"{self._named}: its stream failed"):
            if iter(stream) is not stream:
                first = next(iter(stream), None)
            elif hasattr(self, "state_dict"):
                before = self.state_dict()
                first = next(stream, None)
                self.load_state_dict(before)
            else:
                first = next(stream, None)
                self._stream = itertools.chain([first], stream)
        return _as_chunk(first, self._named)

    def __iter__(self) -> Iterator[bptt.Chunk]:
        with users_own(f"{self._named}: its stream failed", 1):
            for chunk in self._stream:
                yield _as_chunk(chunk, self._named)


def _as_chunk(chunk: Any, named: str) -> bptt.Chunk:
    parts = chunk if isinstance(chunk, tuple | list) else ()
    if 2 <= len(parts) <= 4 and all(isinstance(each, torch.Tensor) and each.dim() for each in parts[:2]):
        return bptt.Chunk(*parts)
    got = "nothing" if chunk is None else f"a {type(chunk).__name__}"
    raise UserError(
        f"{named}: its stream gave {got}: it must give bptt.Chunk or (inputs, targets), tensors (T, B, ...)"
    )


def source_of(config: DataOptions, made: Made, batch: int | None) -> Any:
    """What the user's model reads: its own stream, a text, or numbers as they are.

    Numbers are (T, B, columns) in the dtype of the model's parameters; whole numbers of one column are ids (T, B).

    Raises: UserError.
    """
    if config.data is None:
        if made.stream is None:
            raise UserError(f"{made.named}: what is it to read? Give --data FILE, or return (module, loss, stream)")
        return OwnStream(made)
    if made.stream is not None:
        raise UserError(f"--data {config.data}: {made.named} brings a stream of its own. Leave one of them out")
    if config.kind == "text":
        return TextSource(config.data, batch or BATCH, config.read_as == "text")
    found = numbers(config, several=False)
    values = found.table.values
    ids = values.dtype.kind in "iu" and values.shape[1] == 1
    return SeriesSource(found, batch, converter(made.model), axis=False, flat=ids)


def converter(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Numbers in the dtype of the model's parameters; ids as int64."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return lambda values: values.to(dtype if values.is_floating_point() else torch.int64)


def loss_of(made: Made, source: Any) -> Any:
    """The loss by step: the user's, or cross entropy of ids and squared error of numbers."""
    if made.loss is not None:
        return made.loss
    first = source.measured(1, None)
    return bptt.per_step(nn.MSELoss() if first.targets.is_floating_point() else nn.CrossEntropyLoss())


def rows_of(model: nn.Module, inputs: torch.Tensor) -> Any:
    """Where the rows are in each leaf of the state, as `state_batch_dim=` takes it: the axis that grows with them."""
    with torch.no_grad():
        two, three = ((model(inputs[:1, :1].repeat(1, n, *[1] * (inputs.dim() - 2)), None)[1]) for n in (2, 3))

    def axes(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return {name: axes(a[name], b[name]) for name in a}
        if isinstance(a, tuple | list):
            found = [axes(x, y) for x, y in zip(a, b, strict=True)]
            return type(a)(*found) if hasattr(a, "_fields") else type(a)(found)
        return next((i for i in range(a.dim()) if a.shape[i] != b.shape[i]), None) if torch.is_tensor(a) else None

    return axes(two, three)


def tried(made: Made, loss: Any, source: Any, device: torch.device) -> None:
    """Raise UserError where the model or the loss fails on the first steps of the data."""
    chunk = source.measured(2 if source.steps is not None else None, None)
    chunk = bptt.Chunk(*(None if value is None else value[:2].to(device) for value in chunk))
    shapes = f"inputs {_shape(chunk.inputs)}, targets {_shape(chunk.targets)}"
    with users_own(f"{made.named}: it fails on the data, {shapes}"):
        bptt.evaluate(made.model, loss, [chunk])


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def own_job(config: TrainConfig, device: torch.device) -> Job:
    """The user's model as a job.

    Raises: UserError.
    """
    made = make(config.model or "", config.seed)
    source = source_of(config, made, config.batch)
    loss = loss_of(made, source)
    made.model.to(device)
    tried(made, loss, source, device)
    text = isinstance(source, TextSource)
    told = source.told if text else _told(config, source)
    return Job(
        name=one_line(made.named),
        model=made.model,
        loss=loss,
        source=source,
        measure=BITS if text and made.loss is None else LOSS,
        config=dataclasses.replace(config, batch=source.rows),
        told=told,
        facts={"code": f"{one_line(made.named)}, SHA-256 {made.digest}"},
        files={**(source.files if text else {}), MODEL: _named(made)},
        stamp={"sha256": made.digest},
        code=made.digest,
        seed=config.seed,
    )


def _named(made: Made) -> str:
    return json.dumps({"model": made.named, "sha256": made.digest}, indent=1) + "\n"


def _told(config: TrainConfig, source: Any) -> dict[str, str]:
    if isinstance(source, OwnStream):
        return {"data": f"the stream of {one_line(str(config.model))}, {source.rows} rows"}
    found = source.series
    columns = len(found.table.columns)
    ahead = found.horizons[-1]
    return {
        "series": f"{one_line(str(config.data))}, {found.steps:,} steps of {columns} column{'s' * (columns > 1)}, as "
        "they are",
        "targets": f"{', '.join(map(one_line, found.targets))}, {ahead} step{'s' * (ahead != 1)} ahead",
        "validation": source.ahead(source.validation),
        **source.notes,
    }
