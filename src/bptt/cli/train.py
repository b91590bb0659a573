"""`bptt train`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

import bptt
from bptt.analysis.numbers import duration
from bptt.cli import precision
from bptt.cli import ranks as launched
from bptt.cli.folder import CONFIG, EVENTS, LOSS_PLOT, NORM_PLOT, PART, REPORT, RunFolder, wrong
from bptt.cli.jobs.job import Job, Results
from bptt.cli.jobs.make import make_job
from bptt.cli.jobs.texts import SAMPLE_TEMPERATURE
from bptt.cli.plots import loss_plot, norm_plot
from bptt.cli.printing import UserError, block, command, one_line
from bptt.cli.progress import Display
from bptt.cli.ranks import Ranks
from bptt.cli.reading import Reading, reading
from bptt.cli.report import report
from bptt.cli.resuming import must_be, restarted, resumed, same_run
from bptt.cli.room import FLOAT, must_have_room
from bptt.cli.screen import Screen
from bptt.cli.strategies import labelled, long_by, parse_strategy
from bptt.cli.streams import lost, tell_of_signal
from bptt.cli.train_config import TrainConfig, parse_train
from bptt.cli.training import NonFinite, Training
from bptt.runs import Interrupt, Snapshot
from bptt.strategies import says


def run(words: Sequence[str]) -> int:
    """Train as `words` say, in all processes that were started for it; the exit code."""
    return launched.together(lambda ranks: _run(parse_train(words), ranks))


def _run(asked: TrainConfig, ranks: Ranks) -> int:
    config, saved, training = asked, None, None
    if ranks.told(lambda: restarted(asked)):
        config = dataclasses.replace(asked, resume=asked.out)
    elif config.resume is None:
        with ranks.agreed():
            reading(config)  # what can't be is said before there is a folder
            device_of(config.device, ranks.size)
    folder = ranks.told(lambda: _folder(config), tell=False)
    try:
        if config.resume is not None:
            config, saved = ranks.told(lambda: _saved(asked, config, folder))
        with ranks.agreed():
            read, device = reading(config), device_of(config.device, ranks.size)
        with Interrupt(ranks.most, tell_of_signal) as interrupt, Display() as display:
            with ranks.agreed():
                training = _prepare(config, read, device, folder, display, ranks)
            _begin(training, saved, display)
            return _train(training, display, interrupt)
    except UserError as error:
        if error.code == 2 and folder is not None and (training is None or training.history.step == 0):
            folder.discard()
        raise
    except OSError as error:
        if folder is None:
            raise UserError(str(error), 1) from None
        if training is None or training.history.step == 0:
            folder.discard()
        kept = "" if folder.published or not folder.held else ". It still holds the run before it"
        raise UserError(f"{folder.path}: writing failed ({error.strerror}){kept}", 1) from None
    finally:
        if folder is not None:
            folder.close()


def _folder(config: TrainConfig) -> RunFolder:
    """The folder, before anything that takes time."""
    if config.resume is not None:
        return RunFolder(config.resume, resume=True)
    return RunFolder(config.out, config.overwrite)


def _saved(asked: TrainConfig, config: TrainConfig, folder: RunFolder) -> tuple[TrainConfig, Snapshot]:
    """The options of the run that goes on, and where it was saved."""
    saved = folder.saved()
    with damaged(folder.path):
        if asked.resume is None:
            same_run(asked, saved.state["config"], folder.path)
        return resumed(config, saved.state["config"], folder.path / CONFIG), saved


def _prepare(
    config: TrainConfig, read: Reading, device: torch.device, folder: Any, display: Display, ranks: Ranks
) -> Training:
    job = make_job(config, device)
    config = job.config
    source = job.source
    if source.steps is not None:
        _ends(config, read, source.steps, source.unit)
    elif config.epochs is not None:
        raise UserError(
            f"--epochs {config.epochs}: the stream of {config.model} is read once; give --steps or --minutes"
        )
    _fits(config, read, job)
    precision.check(config.precision, job.model, device)
    if config.compile:
        job.model.compile()
    _shared(config, job, ranks)
    for name, told in job.told.items():
        display.say(f"{name:<12}{told}")
    display.say(f"model       {described(job.name, config)}, {job.parameters:,} parameters, on {device}")
    if ranks.size > 1:
        display.say(f"processes   {ranks.size}, of {source.rows // ranks.size} lanes each")
    if folder is not None:
        display.say(f"run folder  {one_line(str(folder.path))}")
    return Training(config, read, job, device, folder, ranks)


def _shared(config: TrainConfig, job: Job, ranks: Ranks) -> None:
    """Raise UserError for a run that several processes can't share."""
    rows = job.source.rows
    if ranks.size > 1 and config.kind == "own":
        raise UserError(f"{config.model}: its stream can't be shared by {ranks.size} processes; give --data, or one")
    if rows % ranks.size:
        least = max(1, rows // ranks.size) * ranks.size
        raise UserError(
            f"--batch {rows}: {ranks.size} processes can't have equally many of {rows} lanes; give {least}, say"
        )


def _begin(training: Training, saved: Snapshot | None, display: Display) -> None:
    """Make the folder that of this run, or go on where it was saved."""
    folder, config, ranks = training.folder, training.config, training.ranks
    if saved is None:
        if not ranks.told(lambda: folder.held):
            training.begin()
        return
    for told in wrong(saved.damaged):
        display.say(f"going on    {told}; from the one before it")
    with ranks.agreed(), damaged(config.out):
        differs = must_be(saved.state, training.job.source.digest, training.job.code, ranks.size)
    if differs is not None:
        display.say(f"going on    {differs}")
    with damaged(config.out):
        training.load(saved.state, ranks.told(lambda: folder.go_on(config, saved)))
    display.say(f"going on    after update {training.history.step:,}")


@contextlib.contextmanager
def damaged(path: Any) -> Iterator[None]:
    """Whatever a checkpoint lacks that is whole but not one of this program's, in a line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = f"{type(error).__name__}: {one_line(str(error))}"
        raise UserError(f"--resume {path}: its checkpoint isn't one of bptt {bptt.__version__} ({told})") from None


def _ends(config: TrainConfig, read: Reading, lane: int, unit: str) -> None:
    """Raise UserError for windows longer than the data: they are read again and again, and no update comes of it."""
    of = f"with --batch {config.batch} a lane of this {'text' if unit == 'character' else 'series'} has only {lane:,}"
    if config.sequence_length is not None and config.sequence_length > lane:
        raise UserError(f"--sequence-length {config.sequence_length}: {of} {unit}s to predict; give that or less")
    steps = says(read.strategy, "reach") or 0
    if steps > lane and not read.sequences and says(read.strategy, "lengths_known"):
        what = long_by(config.strategy, config.every)
        given = f"--strategy {config.strategy}" + (f" --every {config.every}" if what == "--every" else "")
        raise UserError(f"{given}: windows of {steps:,.0f} {unit}s, but {of} to predict; give {what} of that or less")


def _fits(config: TrainConfig, read: Reading, job: Job) -> None:
    """Raise UserError for windows that memory has no room for."""
    steps = min(config.sequence_length or says(read.strategy, "reach") or 0, job.source.steps or math.inf)
    if config.memory is None and math.isfinite(steps):
        given = f"--strategy {config.strategy}" + (f" --hidden {config.hidden}" if config.hidden else "")
        what = f"a window of {steps:,.0f} {job.source.unit}s"
        must_have_room(FLOAT * steps * job.kept, given, what, "Give --memory, or smaller sizes")


def _train(training: Training, display: Display, interrupt: Interrupt) -> int:
    began = time.monotonic()
    failure = None
    try:
        training.run(display, interrupt)
    except NonFinite as error:
        failure = str(error).rstrip(".")
    display.stop()
    training.ranks.close()
    if training.ranks.rank > 0:
        return interrupt.code or int(failure is not None)
    folder, stopped = training.folder, interrupt.code != 0
    path = one_line(str(folder.path))
    ended = _ended(training, failure, stopped, path)
    results = Results() if failure or not folder.published else training.job.results(folder)
    seconds = time.monotonic() - began
    if folder.published:
        _write_results(training, _ended(training, failure, stopped, "this folder"), results, seconds)
    if failure:
        raise UserError(f"{ended} A lower --lr or --clip may help", 1)
    _show(results, display)
    display.say(f"{ended} Took {duration(seconds)}.")
    display.say(f"Weights, report.md, plots and metrics are in {path}")
    quoted = one_line(shlex.quote(str(folder.path)))
    if (folder.path / EVENTS).exists():
        display.say(command("Curves:", ["tensorboard", f"--logdir {quoted}"], display.width), fit=False)
    if results.more:
        name, what, *options = results.more
        display.say(command(name, [what, quoted, *options], display.width), fit=False)
    go_on = f"bptt train --resume {quoted}"
    if stopped and lost(sys.stdout):  # with `| tee`, Ctrl-C ends tee first
        raise UserError(f"{ended} Weights, report.md, plots and metrics are in {path}. Go on: {go_on}", interrupt.code)
    if stopped:
        display.say(command("Go on:", ["bptt train", f"--resume {quoted}"], display.width), fit=False)
    return interrupt.code


def _show(results: Results, display: Display) -> None:
    if results.text:
        display.say(f"\nsample at temperature {SAMPLE_TEMPERATURE}:\n\n{results.text}\n", fit=False)
    if results.table is not None:
        display.say(f"\n{results.title}")
        Screen(display.console).table(*results.table)
        display.say("")
        for note in results.notes:
            display.say(note)


def _ended(training: Training, failure: str | None, interrupted: bool, path: str) -> str:
    """How the run ended and what it leaves, in one line."""
    history, folder = training.history, training.folder
    updates = f"after {history.step:,} updates"
    if not failure:
        how = "Interrupted" if interrupted else "Finished"
        points = history.validations
        updates += f", {history.left_out:,} more left out as not finite" * bool(history.left_out)
        updates += f", {history.overflowed:,} more left out as fp16 overflowed" * bool(history.overflowed)
        if points:
            best = min(points, key=lambda point: point.loss)
            if training.job.keeps_best and best is not points[-1]:
                lowest = f"{history.measure.text(best.loss)} after update {best.step:,}, whose weights are kept"
                return f"{how} {updates}: lowest validation {lowest}."
            return f"{how} {updates}: validation {history.measure.text(points[-1].loss)}."
        held_out = training.job.source.held_out() is not None
        told = "not validated yet" if held_out else f"training {history.measure.text(history.recent())}"
        return f"{how} {updates}: {told}."
    if not folder.published:
        return f"Stopped {updates}: {failure}. {path} still holds the run before it, and {PART} of this one."
    if training.saved_step is None:
        return f"Stopped {updates}: {failure}. No weights were saved; metrics and plots are in {path}."
    return f"Stopped {updates}: {failure}. The weights of update {training.saved_step:,} are in {path}."


def _write_results(training: Training, ended: str, results: Results, seconds: float) -> None:
    config, history, folder, job = training.config, training.history, training.folder, training.job
    title = described(job.name, config)
    folder.replace(LOSS_PLOT, partial(loss_plot, history, title))
    folder.replace(NORM_PLOT, partial(norm_plot, history, title))
    facts = {
        "model": f"{title}, {job.parameters:,} parameters",
        **job.facts,
        "versions": f"bptt {bptt.__version__}, torch {torch.__version__}",
    }
    folder.write(REPORT, report(config, history, ended, facts, results, seconds))
    if results.text:
        folder.note("sample", block(results.text), history.step)


def described(name: str, config: TrainConfig) -> str:
    """The model and how it is trained, in one phrase."""
    strategy = labelled(config.strategy, parse_strategy(config.strategy, "--strategy"))
    return f"{name}, {strategy}, {config.optimizer} {config.lr:g}"


def device_of(name: str, processes: int = 1) -> torch.device:
    """The device that `--device` names, of several processes each its own. Raises UserError if torch cannot use it."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None else found.type
    if processes > 1 and name != "cpu":
        if name != "cuda":
            raise UserError(f"--device {name}: {processes} processes run on cpu, or on cuda with a device each")
        name = f"cuda:{launched.local()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it, in one line
            device = torch.device(name)
            torch.zeros(1, device=device).item()  # the meta device has sizes but no values
    except Exception as error:  # whatever a backend raises that isn't there: ImportError, AssertionError, RuntimeError
        shown = name if name.strip() else repr(name)
        raise UserError(f"--device {shown}: {_unusable(error)}. See bptt doctor") from None
    if device.type == "cpu" and device.index:  # torch takes any index, and there is one
        raise UserError(f"--device {name}: there is only one cpu. Give --device cpu")
    return device


def _unusable(error: Exception) -> str:
    """Why torch cannot use a device here, in words that need no knowledge of torch's sources."""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")
    if "device type at start of device string" in reason or "device string" in reason.lower():
        reason = "there is no device of that name; usual ones are auto, cpu, cuda, cuda:1 and mps"
    elif isinstance(error, ImportError) or "INTERNAL ASSERT" in reason or "Could not run" in reason:
        reason = "this PyTorch was built without it"
    return f"torch cannot use it here ({reason})"
