"""`bptt train`."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

import bptt
from bptt.cli.checkpoint import Found
from bptt.cli.folder import CONFIG, EVENTS, LOSS_PLOT, NORM_PLOT, PART, REPORT, RunFolder
from bptt.cli.interrupt import Interrupt
from bptt.cli.jobs.job import Job, Results
from bptt.cli.jobs.make import make_job
from bptt.cli.jobs.texts import SAMPLE_TEMPERATURE
from bptt.cli.plots import loss_plot, norm_plot
from bptt.cli.printing import UserError, block, command, duration, one_line
from bptt.cli.progress import Display
from bptt.cli.reading import Reading, reading
from bptt.cli.report import report
from bptt.cli.resuming import must_be, resumed
from bptt.cli.room import FLOAT, must_have_room
from bptt.cli.screen import Screen
from bptt.cli.strategies import labelled, long_by, parse_strategy
from bptt.cli.streams import lost
from bptt.cli.train_config import TrainConfig, parse_train
from bptt.cli.training import NonFinite, Training
from bptt.strategies import says


def run(words: Sequence[str]) -> int:
    """Train as `words` say; the exit code."""
    config = parse_train(words)
    saved = None
    if config.resume is None:
        reading(config)  # what can't be is said before there is a folder
        device_of(config.device)
        folder = RunFolder(config.out, config.overwrite)  # before anything that takes time
    else:
        folder = RunFolder(config.resume, resume=True)
    training = None
    try:
        if config.resume is not None:
            saved = folder.saved()
            with damaged(folder.path):
                config = resumed(config, saved.state["config"], folder.path / CONFIG)
        read, device = reading(config), device_of(config.device)
        with Interrupt() as interrupt, Display() as display:
            training = _prepare(config, read, device, folder, display)
            _begin(training, saved, display)
            return _train(training, display, interrupt)
    except UserError as error:
        if error.code == 2 and (training is None or training.history.step == 0):
            folder.discard()
        raise
    except OSError as error:
        if training is None or training.history.step == 0:
            folder.discard()
        kept = "" if folder.published or not folder.held else ". It still holds the run before it"
        raise UserError(f"{folder.path}: writing failed ({error.strerror}){kept}", 1) from None
    finally:
        folder.close()


def _prepare(config: TrainConfig, read: Reading, device: torch.device, folder: RunFolder, display: Display) -> Training:
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
    for name, told in job.told.items():
        display.say(f"{name:<12}{told}")
    display.say(f"model       {described(job.name, config)}, {job.parameters:,} parameters, on {device}")
    display.say(f"run folder  {one_line(str(folder.path))}")
    return Training(config, read, job, device, folder)


def _begin(training: Training, saved: Found | None, display: Display) -> None:
    """Make the folder that of this run, or go on where it was saved."""
    folder, config = training.folder, training.config
    if saved is None:
        if not folder.held:
            training.begin()
        return
    for wrong in saved.wrong:
        display.say(f"going on    {wrong}; from the one before it")
    with damaged(folder.path):
        differs = must_be(saved.state, training.job.source.digest, training.job.code)
        if differs is not None:
            display.say(f"going on    {differs}")
        training.load(saved.state, folder.go_on(config, saved))
    display.say(f"going on    after update {training.history.step:,}")


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
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
    folder = training.folder
    path = one_line(str(folder.path))
    ended = _ended(training, failure, interrupt.asked, path)
    results = Results() if failure or not folder.published else training.job.results(folder)
    seconds = time.monotonic() - began
    if folder.published:
        _write_results(training, _ended(training, failure, interrupt.asked, "this folder"), results, seconds)
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
    if interrupt.asked and lost(sys.stdout):  # with `| tee`, Ctrl-C ends tee first
        raise UserError(f"{ended} Weights, report.md, plots and metrics are in {path}. Go on: {go_on}", interrupt.code)
    if interrupt.asked:
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


def device_of(name: str) -> torch.device:
    """The device that `--device` names. Raises UserError if torch cannot use it."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
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
