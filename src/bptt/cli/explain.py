"""`bptt explain`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import bptt
from bptt.analysis import Example, example, explorer
from bptt.analysis.explanation.example import MOST
from bptt.cli.config import can_be_new, parse
from bptt.cli.explain_config import ExplainConfig
from bptt.cli.files import small_text
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.runs.files import write


def run(words: Sequence[str]) -> int:
    """Print the worked example, and write the page if asked to; the exit code."""
    config = parse(ExplainConfig, words, "bptt explain")
    config.check()
    _may_write(config)
    generator, term = torch.Generator().manual_seed(config.seed), _term(config.term)
    law = bptt.PolynomialLaw(mean_length=config.mean_length)
    made = made_example(config, generator)
    with user_errors(prefix="--"):
        found = bptt.explain(*made, tau=config.tau, law=law, term=term, generator=generator)
    console = Console()
    shown = found.text(console.width, styled=console.is_terminal and not console.is_dumb_terminal)
    if console.options.ascii_only:
        shown = shown.replace("─", "-")
    for name, out, text in (("--out", config.out, found.page), ("--explorer", config.explorer, explorer)):
        if out is not None:
            _write(name, out, text())
            what = "page" if name == "--out" else "explorer"
            shown += f"\nThe {what} is {one_line(str(out))}\n"
    sys.stdout.write(shown)
    return 0


def made_example(config: ExplainConfig, generator: torch.Generator) -> Example:
    """The example that the options ask for. Raises UserError for a text or file, or options, that can't be."""
    loss = config.loss or ("squared_error" if config.text is None else "softmax_cross_entropy")
    given = {"hidden": config.hidden, "nonlinearity": config.nonlinearity, "bias": config.bias, "radius": config.radius}
    if config.text is not None:
        for name in ("steps", "input", "output"):
            if getattr(config, name) is not None:
                raise UserError(f"--{name} doesn't go with --text: steps and sizes are those of the text")
        if loss == "squared_error":
            raise UserError("--loss squared_error doesn't go with --text: characters are classes")
    with user_errors(prefix="--"):
        if config.text is not None:
            return example(text=config.text, **given, generator=generator)
        if config.data is None:
            asked = {"steps": config.steps, "inputs": config.input, "outputs": config.output}
            sizes = {name: size for name, size in asked.items() if size is not None}
            return example(**sizes, loss=loss, **given, generator=generator)
        x, y, outputs = _from_file(config.data, config, loss)
        made = example(x, y, outputs=outputs, loss=loss, **given, generator=generator)
    return made._replace(sources=(made.sources[0], f"read from {config.data}"))


def _write(name: str, out: Path, text: str) -> None:
    try:
        write(out, text)
    except OSError as error:
        raise UserError(f"{name} {out}: cannot be written ({error.strerror})") from None


def _term(word: str | None) -> tuple[int, int] | None:
    """(t, k) of `--term`."""
    if word is None:
        return None
    try:
        t, k = (int(part) for part in word.split(","))
    except ValueError:
        raise UserError(f"--term {word}: must be two steps, T,K, such as 3,1") from None
    return t, k


def _may_write(config: ExplainConfig) -> None:
    """Refuse before anything is computed."""
    files = {"--out": config.out, "--explorer": config.explorer}
    if config.overwrite and not any(files.values()):
        raise UserError("--overwrite applies only to --out and --explorer")
    if config.out is not None and config.out == config.explorer:
        raise UserError(f"--explorer {config.explorer}: is --out too; give two files")
    for name, out in files.items():
        if out is not None:
            can_be_new(out, name, config.overwrite)


def _from_file(path: Path, config: ExplainConfig, loss: str) -> tuple[Tensor, Tensor, int]:
    """x, y, and how many outputs these need."""
    if config.steps is not None:
        raise UserError("--steps doesn't go with --data: the file has a row for each step")
    values, shown = _numbers(path), f"--data {path}"
    columns = values.shape[1]
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
        return x, y, targets
    classes = config.output or max(2, int(y.max()) + 1)
    if not bool(((y == y.round()) & (y >= 0) & (y < min(classes, MOST["output"]))).all()):
        last = (config.output or MOST["output"]) - 1
        raise UserError(f"{shown}: the last column must be a class, a whole number from 0 to {last}")
    return x, y[:, 0].to(torch.int64), classes


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
