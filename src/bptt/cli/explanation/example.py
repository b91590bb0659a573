"""The network and the sequence that are worked through: drawn, from a text, or from a file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cli.explanation.config import MOST, ExplainConfig
from bptt.cli.files import small_text
from bptt.cli.printing import UserError
from bptt.data import Vocabulary
from bptt.equations import Network


class Sequence(NamedTuple):
    """x (T, I), y (T, O) or classes (T,); what V needs as outputs; where it comes from; a text's vocabulary."""

    x: Tensor
    y: Tensor
    outputs: int
    source: str
    characters: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A network and one sequence for it, in float64."""

    network: Network
    sequence: Sequence


def make(config: ExplainConfig, generator: torch.Generator) -> Example:
    """The example that the options ask for, its parameters drawn from `generator`.

    Numbers that are drawn are rounded to two decimals, W's to three, so that what is printed is exact and can be
    followed by hand.

    Raises: UserError for a text or file that can't be one, and for options that don't go with it.
    """
    loss = config.loss or ("squared_error" if config.text is None else "softmax_cross_entropy")
    if loss == "softmax_cross_entropy" and config.output == 1:
        raise UserError("--output 1: softmax_cross_entropy needs 2 classes or more")
    if config.text is not None:
        sequence = _from_text(config.text, config)
    elif config.data is not None:
        sequence = _from_file(config.data, config, loss)
    else:
        sequence = _drawn(config, loss, generator)
    hidden, active = config.hidden, 1 if sequence.characters else sequence.x.shape[1]
    U = _draw(hidden, sequence.x.shape[1], generator, active**-0.5)  # so that a_t is of order 1, whatever the sizes
    V = _draw(sequence.outputs, hidden, generator, hidden**-0.5)
    W = _draw(hidden, hidden, generator)
    W = (W * config.radius / torch.linalg.eigvals(W).abs().max()).round(decimals=3)
    b, c = (_draw(1, n, generator)[0] if config.bias else None for n in (hidden, sequence.outputs))
    return Example(Network(U, W, V, b, c, config.nonlinearity, loss), sequence)


def _draw(rows: int, columns: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Normal numbers of two decimals, none of them 0."""
    cents = (100 * scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).round()
    return torch.where(cents == 0, 1, cents) / 100


def _drawn(config: ExplainConfig, loss: str, generator: torch.Generator) -> Sequence:
    steps, source = config.steps or 4, "drawn at random"
    x = _draw(steps, config.input or 1, generator)
    if loss == "softmax_cross_entropy":
        classes = config.output or 2
        return Sequence(x, torch.randint(classes, (steps,), generator=generator), classes, source)
    outputs = config.output or 1
    return Sequence(x, _draw(steps, outputs, generator), outputs, source)


def _from_text(text: str, config: ExplainConfig) -> Sequence:
    for name in ("steps", "input", "output"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name} doesn't go with --text: steps and sizes are those of the text")
    if config.loss == "squared_error":
        raise UserError("--loss squared_error doesn't go with --text: characters are classes")
    most = MOST["steps"] + 1
    if not 2 <= len(text) <= most:
        raise UserError(
            f"--text of length {len(text)}: must have 2 to {most} characters, as there is a step for each but the last"
        )
    vocabulary = Vocabulary.of(text)
    if len(vocabulary) < 2:
        raise UserError("--text: holds only one character, so there is nothing to predict")
    ids = vocabulary.encode(text)
    x = torch.nn.functional.one_hot(ids[:-1], len(vocabulary)).to(torch.float64)
    return Sequence(x, ids[1:], len(vocabulary), f'that of the text "{text}"', vocabulary.characters)


def _from_file(path: Path, config: ExplainConfig, loss: str) -> Sequence:
    if config.steps is not None:
        raise UserError("--steps doesn't go with --data: the file has a row for each step")
    values, shown = _numbers(path), f"--data {path}"
    columns, source = values.shape[1], f"read from {path}"
    of_classes = loss == "softmax_cross_entropy"
    targets = 1 if of_classes else config.output or columns - (config.input or columns - 1)
    inputs = columns - targets
    if min(inputs, targets) < 1 or inputs != (config.input or inputs):
        wanted = f"{config.input or '1 or more'} of x_t and then {config.output or '1 or more'} of y_t"
        if of_classes:
            wanted = f"{config.input or '1 or more'} of x_t and then 1, the class"
        raise UserError(f"{shown}: the number of columns is {columns}, and there must be {wanted}")
    if max(inputs, targets) > MOST["input"]:
        raise UserError(
            f"{shown}: has {columns} columns, more than the {MOST['input']} of x_t or y_t that can be shown"
        )
    x, y = values[:, :inputs], values[:, inputs:]
    if not of_classes:
        return Sequence(x, y, targets, source)
    classes = config.output or max(2, int(y.max()) + 1)
    if not bool(((y == y.round()) & (y >= 0) & (y < min(classes, MOST["output"]))).all()):
        last = (config.output or MOST["output"]) - 1
        raise UserError(f"{shown}: the last column must be a class, a whole number from 0 to {last}")
    return Sequence(x, y[:, 0].to(torch.int64), classes, source)


def _numbers(path: Path) -> Tensor:
    """The rows of a CSV file, (T, columns), float64; empty lines don't count."""
    try:
        lines = small_text(path).splitlines()
    except UserError as error:
        raise UserError(f"--data {path}: {error}") from None
    rows: list[list[float]] = []
    for place, line in enumerate(lines, 1):
        if line.strip():
            rows.append([_number(word, f"--data {path}, line {place}") for word in line.split(",")])
            if len(rows[-1]) != len(rows[0]):
                raise UserError(f"--data {path}, line {place}: {len(rows[-1])} columns, not {len(rows[0])} as before")
            if len(rows) > MOST["steps"]:
                raise UserError(f"--data {path}: more than {MOST['steps']} rows, the steps that can be shown")
    if not rows:
        raise UserError(f"--data {path}: no row of numbers, so T = 0; give a row for each step")
    return torch.tensor(rows, dtype=torch.float64)


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not abs(value) <= 1e6:
        raise UserError(f"{where}: {word.strip()!r} is not a number of at most a million")
    return value
