"""`bptt forecast`."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import torch
import tyro
from safetensors.torch import load, save

from bptt.cli.config import PLAIN, at_least_one, can_be_written, parse
from bptt.cli.files import small_text
from bptt.cli.folder import FORECAST, WEIGHTS
from bptt.cli.jobs.series import read
from bptt.cli.printing import UserError, one_line
from bptt.cli.screen import Screen
from bptt.cli.trained import forecaster
from bptt.data import Table
from bptt.forecast.errors import shown
from bptt.forecast.series import ROWS
from bptt.models import Forecaster
from bptt.runs import replace


@dataclasses.dataclass(frozen=True)
class ForecastConfig:
    """Let a trained forecaster read new data, step by step with the state carried, and say what comes next.

    The state starts from zero, or from where the last call with the same --state file ended.

    Exit codes: 0 done; 1 something cannot be written; 2 wrong use; 141 nobody reads the output any more.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Run folder that `bptt train` wrote, on numbers."""
    data: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """Numbers in order, with the columns that the run was trained on."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv", help_behavior_hint="")] = None
    """Where to write the forecast after each step: a column for each target and horizon."""
    state: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Go on from the state in this file, if it is there, and leave in it the state after the data."""
    block: Annotated[int, PLAIN] = 1
    """Steps that are read in one call: the same numbers, in less time."""
    overwrite: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """Let --out replace a file."""


def run(words: Sequence[str]) -> int:
    """Print the last forecast and write all of them; the exit code."""
    config = parse(ForecastConfig, words, "bptt forecast")
    at_least_one(config, "block")
    if config.out is not None:
        can_be_written(config.out, "--out")
        if config.out.exists() and not config.overwrite:
            raise UserError(f"--out {config.out}: exists already. Choose another name, or give --overwrite")
    model, known = forecaster(config.run)
    table = read(config.data, "--data", known["columns"])
    stamp = hashlib.sha256((config.run / WEIGHTS).read_bytes()).hexdigest()
    state, before = _state(config.state, model, stamp)
    last: dict[str, Any] = {}
    forecasts = _forecasts(model, table, state, config.block, last, config.data)
    if config.out is None:
        for _ in forecasts:
            pass
    else:
        try:
            replace(config.out, lambda path: _write(path, forecasts, known))
        except OSError as error:
            raise UserError(f"--out {config.out}: cannot be written ({error.strerror})", 1) from None
    count = before + len(table.values)
    if config.state is not None:
        leaves = last["state"] if isinstance(last["state"], tuple) else (last["state"],)
        tensors = {str(i): leaf.contiguous() for i, leaf in enumerate(leaves)}
        data = save(tensors, {"weights": stamp, "steps": str(count)})
        replace(config.state, lambda path: path.write_bytes(data))
    _show(Screen(), config, known, table, last["outputs"], count)
    return 0


def _state(path: Path | None, model: Forecaster, stamp: str) -> tuple[Any, int]:
    """Where to begin, and after how many steps."""
    state: Any = model.initial_state(1)
    if path is None or not path.exists():
        return state, 0
    try:
        data = path.read_bytes()
        tensors = load(data)
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
        leaves = [tensors[str(i)] for i in range(len(tensors))]
        like = state if isinstance(state, tuple) else (state,)
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(leaves, like, strict=True)):
            raise ValueError
        steps, weights = int(told["steps"]), told["weights"]
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        raise UserError(f"--state {path}: holds no state of this run. Give another name to begin from zero") from None
    if weights != stamp:
        raise UserError(f"--state {path}: is of other weights. Give another name to begin from zero")
    return (tuple(leaves) if isinstance(state, tuple) else leaves[0]), steps


def _forecasts(
    model: Forecaster, table: Table, state: Any, block: int, last: dict[str, Any], path: str
) -> Iterator[np.ndarray]:
    """Forecasts (n, H, K) after each step, a stretch at a time; `last` gets the final ones, and the state."""
    for start in range(0, len(table.values), ROWS):
        stretch = np.array(table.values[start : start + ROWS])
        if stretch.dtype.kind == "f" and np.isinf(stretch).any():
            row = start + int(np.argwhere(np.isinf(stretch))[0, 0])
            raise UserError(f"--data {path}: step {row:,} is infinite. Put a number there, or NaN")
        inputs = torch.from_numpy(stretch)[:, None]
        outputs, state = model.read(inputs, state, block)
        made = outputs[:, 0].numpy()
        last.update(outputs=made[-1], state=state)
        yield made


def _write(path: Path, forecasts: Iterator[np.ndarray], known: dict[str, Any]) -> None:
    horizons, targets = known["horizons"], known["targets"]
    names = [f"{name}+{h}" if h else name for h, name in itertools.product(horizons, targets)]
    step = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *names])
        for made in forecasts:
            for row in made.reshape(len(made), -1):
                writer.writerow([step, *(repr(float(value)) for value in row)])
                step += 1


def _show(
    screen: Screen, config: ForecastConfig, known: dict[str, Any], table: Table, last: np.ndarray, count: int
) -> None:
    horizons, targets = known["horizons"], known["targets"]
    read_ = len(table.values)
    screen.say(f"data        {one_line(config.data)}, {read_:,} steps" + f", {count:,} in all" * (count != read_))
    for note in table.notes:
        screen.say(f"note        {one_line(note)}")
    ended = "" if table.times is None else f", {table.times.last}"
    interval = _interval(config.run, last.shape)
    ahead = "the same step" if known["paired"] and horizons[-1] == 0 else "steps ahead"
    screen.say(f"\nforecast after the last step{ended}")
    names = [ahead, *itertools.chain.from_iterable((one_line(n), *(["from", "to"] * bool(interval))) for n in targets)]
    rows = []
    for i in shown(known["horizons"]):
        row = [str(horizons[i])]
        for k in range(len(targets)):
            value = float(last[i, k])
            bounds = [] if interval is None else [value + interval["low"][i][k], value + interval["high"][i][k]]
            row += [f"{v:.5g}" for v in (value, *bounds)]
        rows.append(row)
    screen.table(names, rows)
    if interval is not None:
        screen.say(f"\nfrom, to  {interval['level']:.0%} of the errors on the validation part lay between")
    if config.out is not None:
        screen.say(f"The forecasts after each step are in {one_line(str(config.out))}")


def _interval(folder: Path, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The interval that the run measured, if it got that far."""
    try:
        interval = json.loads(small_text(folder / FORECAST, 2**26))["interval"]
        if all(np.shape(interval[name]) == shape for name in ("low", "high")):
            return interval
    except (KeyError, ValueError, TypeError, UserError):
        pass
    return None
