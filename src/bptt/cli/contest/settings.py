"""What is learned in a comparison: the model, its loss, the data, and where a gradient is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import bptt
from bptt.analysis.race import Budget, Setting
from bptt.cli.contest.config import CompareConfig, parse_budget
from bptt.cli.files import data_text
from bptt.cli.jobs.own import Chunks, loss_of, make, rows_of, source_of, tried
from bptt.cli.jobs.texts import build
from bptt.cli.printing import one_line, user_errors
from bptt.cli.room import ADAM, FLOAT, must_have_room, numbers_of_layers, numbers_of_window
from bptt.cli.strategies import parse_strategies
from bptt.data import PYTHON_DOCS, Vocabulary, chunks, lanes, split
from bptt.data.influence import BLOCK
from bptt.data.tasks import SPAN, Adding, BernoulliAdd, CopyMemory, DelayedCopy, InfluenceBalancing, Task
from bptt.models import CharModel, Network
from bptt.models.text import EMBEDDING

TASKS: dict[str, Any] = {"copy": CopyMemory, "delayed": DelayedCopy, "adding": Adding, "bernoulli": BernoulliAdd}
TITLES = {"copy": "copy memory", "delayed": "delayed copy", "adding": "adding", "bernoulli": "Bernoulli add"}
MOST, VALIDATION_CHUNKS = 10**9, 4
HELD_OUT = 10**9
"""Seed of the data that nothing is trained on."""
CHUNK = 64
VALIDATION_STEPS, VALIDATION_ROWS = 500, 32


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is compared on, and what `must_fit` asks beside.

    digest: of the text or code that is read. whole: steps after which the data is read again, None where it never is.
    kept: numbers that a window keeps for its backward pass, at the least, for each of its steps.
    """

    setting: Setting
    digest: str = ""
    whole: int | None = None
    kept: float = 1.0


def chosen_again(config: CompareConfig) -> tuple[Setting, dict[str, Any], Budget]:
    """What a process of `--jobs` runs: the same setting, strategies and budget."""
    return setting(config).setting, parse_strategies(config.strategies or ""), parse_budget(config.budget or "")


def setting(config: CompareConfig) -> Chosen:
    """The setting of a resolved configuration.

    Raises: UserError for a task's parameter out of range, and for a text that cannot be.
    """
    if config.model is not None:
        return _of_own(config)
    if config.task == "text":
        return _of_text(config)
    if config.task == "influence":
        return _of_influence(config)
    fields = {field.name for field in dataclasses.fields(TASKS[config.learned])}
    given = {name: value for name in fields if (value := getattr(config, name)) is not None}
    with user_errors(prefix=f"--task {config.task}: "):
        return _of_task(config, TASKS[config.learned](**given))


def _of_task(config: CompareConfig, task: Task) -> Chosen:
    rows, loss = config.batch or 1, task.loss
    sequence = task.sequence or config.sequence_length or 1
    cell, hidden = config.cell or "", config.hidden or 1
    named = f"--task {config.task} ({_described(task)}) --batch {rows} --hidden {hidden}"
    data = max(sequence, task.lag, SPAN) * max(rows, VALIDATION_ROWS) * task.inputs
    must_have_room(2 * FLOAT * data, named, f"a sequence of {max(sequence, task.lag):,} steps")
    numbers = numbers_of_layers(cell, task.inputs, hidden, 1) + (hidden + 1) * task.outputs
    must_have_room(ADAM * FLOAT * numbers, named, f"no memory for a model of this size: its {numbers:,} parameters")
    held_out = task.stream(VALIDATION_ROWS, sequence, seed=HELD_OUT)
    count = max(1, VALIDATION_STEPS // sequence)
    described = _described(task)
    found = Setting(
        title=f"{TITLES[config.learned]} ({described})",
        facts={
            "task": f"{type(task).__name__}({described})",
            "dependencies": f"reach back {task.lag} steps at most",
            "sequences": f"of {task.sequence} steps" if task.sequence else "without an end",
            "model": f"{config.cell} of {config.hidden} units and a linear readout, batch {rows}",
            "optimizer": f"Adam, learning rate {config.lr:g}, {_clipping(config)}",
        },
        build=lambda: Network(task.inputs, hidden, task.outputs, cell),
        loss=loss,
        stream=lambda seed: task.stream(rows, sequence, seed=seed),
        validation=list(itertools.islice(held_out, count)),
        measured=next(task.stream(rows, sequence, seed=HELD_OUT + 1)),
        lag=0 if task.sequence else task.lag,
        marks={"without memory": task.baseline} | ({"best possible": task.floor} if task.floor else {}),
        **_common(config),
    )
    return Chosen(found, kept=numbers_of_window(1, rows, cell, hidden, 1, task.outputs))


def _of_text(config: CompareConfig) -> Chosen:
    source, rows, sequence = config.data or PYTHON_DOCS, config.batch or 1, config.sequence_length or 1
    text = data_text(source, config.read_as == "text")
    vocabulary = Vocabulary.of(text)
    with user_errors(prefix=f"--batch {rows}: "):
        training, held_out = split(vocabulary.encode(text))
        read = lanes(training, rows)
        kept = lanes(held_out, max(1, min(VALIDATION_ROWS, len(held_out) // VALIDATION_STEPS)))
    sequence = min(sequence, len(read) - 1)
    measured = lanes(held_out, max(1, min(rows, len(held_out) // (sequence + 1))))[: sequence + 1]
    shown = "Python documentation" if source == PYTHON_DOCS else one_line(source)
    digest = hashlib.sha256(text.encode()).hexdigest()

    def stream(seed: int) -> Iterator[bptt.Chunk]:
        """The lanes over and over, each seed from another place."""
        begin = torch.randint(len(read) - 1, (), generator=torch.Generator().manual_seed(seed)).item()
        return chunks(read.roll(-int(begin), 0), sequence, epochs=None)

    found = Setting(
        title=f"characters of {shown}",
        facts={
            "text": f"{shown}, {len(text):,} characters, {len(vocabulary)} of them distinct, SHA-256 {digest[:12]}...",
            "dependencies": "of unknown length",
            "model": f"{config.cell} of {config.hidden} units on an embedding of {EMBEDDING}, batch {rows}",
            "optimizer": f"Adam, learning rate {config.lr:g}, {_clipping(config)}",
        },
        build=lambda: build(len(vocabulary), config.cell or "", config.hidden or 1, 1, ADAM),
        loss=CharModel.loss,
        stream=stream,
        validation=list(chunks(kept[: VALIDATION_STEPS + 1], CHUNK)),
        measured=bptt.Chunk(measured[:-1], measured[1:]),
        unit="character",
        **_common(config),
    )
    return Chosen(
        found,
        digest=digest,
        whole=len(read) - 1,
        kept=numbers_of_window(1, rows, config.cell or "", config.hidden or 1, 1, len(vocabulary)),
    )


def _of_own(config: CompareConfig) -> Chosen:
    made = make(config.model or "", 0)
    source = source_of(config, made, config.batch)
    loss = loss_of(made, source)
    tried(made, loss, source, torch.device("cpu"))
    sequence = min(config.sequence_length or 1, source.steps or MOST)
    endless = source.steps is None
    measured = source.measured(min(sequence, len(source.measured(None, None).inputs)) if endless else None, None)

    def stream(seed: int) -> Iterator[bptt.Chunk]:
        """The lanes over and over, each seed from another place; a stream of the user's as it comes."""
        if endless:
            return iter(Chunks(make(made.named, seed)))
        read = source.stream(sequence, None)
        begin = torch.randint(source.steps, (), generator=torch.Generator().manual_seed(seed))
        read.load_state_dict({**read.state_dict(), "step": int(begin)})
        return read

    held_out = source.held_out()
    found = Setting(
        title=one_line(made.named),
        facts={
            "model": f"{one_line(made.named)}, SHA-256 {made.digest[:12]}...",
            "data": one_line(config.data or "its own stream") + ", nothing held out" * (held_out is None),
            "dependencies": "of unknown length",
            "optimizer": f"Adam, learning rate {config.lr:g}, {_clipping(config)}",
        },
        build=lambda: make(made.named).model,
        loss=loss,
        stream=stream,
        validation=[measured] if held_out is None else list(itertools.islice(held_out, VALIDATION_CHUNKS)),
        measured=measured,
        unit=source.unit,
        begin={"state_batch_dim": rows_of(made.model, measured.inputs)},
        **_common(config),
    )
    return Chosen(found, digest=source.digest + made.digest, whole=source.steps)


def _of_influence(config: CompareConfig) -> Chosen:
    given = {name: value for name in ("size", "positive") if (value := getattr(config, name)) is not None}
    with user_errors(prefix="--task influence: "):
        task = InfluenceBalancing(**given)
    sequence = config.sequence_length or 1
    powers = 2 * FLOAT * (BLOCK * task.size**2 + 2 * sequence)
    must_have_room(powers, f"--size {task.size} --sequence-length {sequence}", "powers of the chain's matrix and steps")

    def endless(seed: int = 0) -> Iterator[bptt.Chunk]:
        return (next(task.stream(sequence, sequence)) for _ in itertools.count())

    found = Setting(
        title=f"influence balancing ({_described(task)})",
        facts={
            "task": f"InfluenceBalancing({_described(task)}), one parameter, no data",
            "dependencies": f"a window of {task.lag + 1} steps or more sees the right sign",
            "optimum": f"{task.optimum:.6g}",
            "optimizer": f"SGD, learning rate {config.lr:g}, a window's losses summed, no clipping",
        },
        build=task.model,
        loss=task.loss,
        stream=endless,
        validation=[next(endless())],
        measured=next(endless()),
        reduction="sum",
        parameter="θ",
        optimum=task.optimum,
        lost=1e4,
        begin={"initial_state": task.start()},
        **_common(config, torch.optim.SGD),
    )
    return Chosen(found)


def _described(task: Any) -> str:
    return ", ".join(f"{field.name}={getattr(task, field.name)}" for field in dataclasses.fields(task))


def _clipping(config: CompareConfig) -> str:
    return f"gradient norm at most {config.clip:g}" if config.clip else "gradient never clipped"


def _common(config: CompareConfig, optimizer: Any = torch.optim.Adam) -> dict[str, Any]:
    """What the options say of every task alike."""
    return {
        "optimizer": partial(optimizer, lr=config.lr),
        "clip": config.clip or None,
        "memory": config.memory,
        "draws": config.draws or 3,
    }
