"""`bptt diagnose`: a model on a stretch of text, measured by `bptt.diagnose` and by the truncations themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from matplotlib.figure import Figure  # a Figure of its own draws with Agg and needs no display

import bptt
from bptt.analysis import ladder, share
from bptt.cli.config import PLAIN, at_least_one, can_be_new, flag, parse
from bptt.cli.data_options import OF_NUMBERS, DataOptions, is_own
from bptt.cli.files import data_text
from bptt.cli.folder import CONFIG
from bptt.cli.jobs.make import of_text, saved_job
from bptt.cli.jobs.own import rows_of
from bptt.cli.jobs.texts import build, first_steps
from bptt.cli.jobs.texts import named as model_named
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.reading import reading
from bptt.cli.screen import Screen
from bptt.cli.strategies import first
from bptt.cli.subject import Subject, on, own
from bptt.cli.train import described, device_of
from bptt.cli.train_config import TrainConfig, parse_train
from bptt.cli.trained import text_model
from bptt.data import PYTHON_DOCS, Vocabulary, split
from bptt.models import CharModel
from bptt.runs import replace
from bptt.strategies import says

PLOT = "diagnosis.png"
EITHER = tyro.conf.arg(metavar="DIR|FILE.py:NAME", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig(DataOptions):
    """Measure how far back a model's credit reaches, whether it fades or grows, and what truncation drops.

    The model is that of a run folder, one of your own, or a character model of --cell as it is before training. It
    reads what training keeps for validation, from the zero state. The plot is diagnosis.png in the run folder.

    Exit codes: 0 done; 1 the loss is not finite or something cannot be written; 2 wrong use.
    """

    model: Annotated[tyro.conf.Positional[str | None], EITHER] = None
    """Run folder that `bptt train` wrote; or NAME() in FILE.py, which returns a module, or (module, loss), or (module,
    loss, stream); or else give --cell."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|python-docs", help_behavior_hint="")] = None
    """Text or numbers to read. The run's own if not given; with --cell, Python's own documentation."""
    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, PLAIN] = None
    """Without DIR: kind of recurrent layer of a model with its first weights."""
    hidden: Annotated[int | None, PLAIN] = None
    """With --cell: units of a layer. 256 if not given."""
    layers: Annotated[int | None, PLAIN] = None
    """With --cell: recurrent layers, one on top of the other. 1 if not given."""
    length: Annotated[int | None, PLAIN] = None
    """Characters of the sequence; lags up to half of it are measured. 200, or what the text has, if not given."""
    batch: Annotated[int | None, PLAIN] = None
    """Sequences to read side by side. 8, or what the text has, if not given."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "cpu"
    """Where to measure. An accelerator pays off for thousands of units."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Where to draw the plot instead, a new file. With --cell there is no plot if not given."""

    @property
    def own(self) -> bool:
        """Whether the model is the user's."""
        return self.model is not None and is_own(self.model)

    @property
    def run(self) -> Path | None:
        """The run folder."""
        return None if self.model is None or self.own else Path(self.model)

    def check(self) -> None:
        """Raise `UserError` for options that don't go together, and for a number or file that cannot be."""
        if (self.model is None) == (self.cell is None):
            raise UserError("give a run folder or a model of your own, or --cell for one before training: one of them")
        if self.own:
            self.check_data()
        for name in OF_NUMBERS if not self.own else ():
            if getattr(self, name) is not None:
                raise UserError(f"{flag(name)} applies only to a model of your own, FILE.py:NAME")
        for name in ("hidden", "layers"):
            if self.model is not None and getattr(self, name) is not None:
                raise UserError(f"{flag(name)} applies only to --cell: {self.model} has a model")
        at_least_one(self, "hidden", "layers", "length", "batch")
        if self.out is not None:
            if self.out.suffix != ".png":
                raise UserError(f"--out {self.out}: must end with .png")
            can_be_new(self.out, "--out")


def run(words: Sequence[str]) -> int:
    """Print and plot the diagnosis; the exit code."""
    config = parse(DiagnoseConfig, words, "bptt diagnose")
    config.check()
    device = device_of(config.device)
    subject = _subject(config, device)
    steps, rows = subject.chunk.inputs.shape[:2]
    screen = Screen()
    screen.say(f"model       {subject.title}, {subject.parameters:,} parameters, on {device}")
    if config.run is not None:
        screen.say(f"run folder  {one_line(str(config.run))}")
    for name, told in subject.told.items():
        screen.say(f"{name:<12}{told}")
    unit = "characters" if "text" in subject.told else "steps"
    screen.say(f"sequence    {'1 lane' if rows == 1 else f'{rows} lanes'} of {steps} {unit}, from the zero state\n")
    with screen.waiting("measuring credit, exponents and truncations"):
        found, said = _measure(subject)
    for name, text in found.summary().items():
        screen.say(f"{name:<12}{text}")
    for title, table, *_ in found.tables():
        screen.say(f"\n{title}")
        screen.table(*table)
    screen.say("")
    for sentence in (*said, *found.advice()):
        screen.say(sentence)
    out = config.out if config.run is None or config.out is not None else config.run / PLOT
    if out is not None:
        try:
            replace(out, lambda path: _draw(found, subject.title, path))
        except OSError as error:
            raise UserError(f"{out}: the plot cannot be written ({error.strerror}). Choose another --out", 1) from None
        screen.say(f"\nThe plot is in {one_line(str(out))}")
    return 0


def _subject(config: DiagnoseConfig, device: torch.device) -> Subject:
    """What is diagnosed, on the device."""
    if config.own:
        return own(config, device, config.batch, lambda source: source.measured(config.length, config.batch))
    subject = _fresh(config) if config.run is None else _trained(config, config.run)
    with user_errors():  # too little memory there
        model = subject.model.to(device)
    chunk = on(subject.chunk, device)
    state = subject.state(chunk.inputs.shape[1])  # so far a function of the rows: it is made where the model is
    return dataclasses.replace(subject, model=model, chunk=chunk, state=state)


def _fresh(config: DiagnoseConfig) -> Subject:
    """The model that `bptt train` with these options and its default seed would begin with."""
    text, source = _text(config.data or PYTHON_DOCS, config.read_as == "text")
    vocabulary = Vocabulary.of(text)
    begun = TrainConfig(cell=config.cell, hidden=config.hidden, layers=config.layers).resolved()
    shape = (begun.cell or "", begun.hidden or 1, begun.layers or 1)
    torch.manual_seed(begun.seed)
    model = build(len(vocabulary), *shape)
    return _of_text(config, model, vocabulary.encode(text), model_named(*shape) + " before training", source, None)


def _trained(config: DiagnoseConfig, folder: Path) -> Subject:
    if not of_text(folder):
        trained, job = saved_job(folder)
        if config.data is not None:
            raise UserError(f"--data {config.data}: {folder} is a run on its own numbers or model. Leave it out")
        chunk = job.source.measured(config.length, config.batch)
        told = {"data": one_line(str(trained.data or trained.model)) + ", what is kept for validation"}
        rows_at = 1 if trained.model is None else rows_of(job.model, chunk.inputs)
        title = described(job.name, trained)
        return Subject(job.model, job.loss, chunk, job.start, rows_at, title, told, "step", trained)
    model, vocabulary = text_model(folder)
    trained = parse_train([f"--config={folder / CONFIG}"])
    text, source = _text(config.data or trained.data or PYTHON_DOCS, "text" in (config.read_as, trained.read_as))
    with user_errors(prefix=f"--data {source}: "):
        ids = vocabulary.encode(text)
    name = model_named(trained.cell or "", trained.hidden or 1, trained.layers or 1)
    # Layers of cuDNN have a backward pass in training mode only; for this model the two modes are otherwise the same.
    return _of_text(config, model.train(), ids, described(name, trained), source, trained)


def _of_text(
    config: DiagnoseConfig, model: CharModel, ids: torch.Tensor, title: str, source: str, trained: TrainConfig | None
) -> Subject:
    with user_errors(prefix="--data "):
        _, ids = split(ids)
    chunk = first_steps(ids, config.length, config.batch)
    told = {"text": f"{one_line(source)}, the last {len(ids):,} characters, kept for validation"}
    return Subject(model, model.loss, chunk, model.initial_state, 1, title, told, "character", trained)


def _text(data: str, surely: bool) -> tuple[str, str]:
    return data_text(data, surely), "Python documentation" if data == PYTHON_DOCS else data


def _measure(subject: Subject) -> tuple[bptt.Diagnosis, list[str]]:
    """What is found, credit being that of each lane's own loss; and what to say of the run's own strategy."""
    steps, rows = subject.chunk.inputs.shape[:2]
    most = max(1, steps // 2)  # every lag is then seen by half of the losses or more
    trained = subject.trained
    try:
        with user_errors():
            found = subject.given(bptt.diagnose, max_lag=most, truncations=ladder(most))
            strategy = None if trained is None else reading(trained).strategy
            dropped = math.nan
            if strategy is not None and truncates(strategy):
                dropped = subject.given(bptt.compare, strategies=[strategy], draws=3).entries[0].bias.value
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, bptt.NonFiniteLossError):
            raise UserError(
                f"the loss of step {cause.step} is not finite, so there is no gradient to look at", 1
            ) from None
        raise
    lanes = {name: rows * getattr(found, name) for name in ("norms", "mean", "quantiles")}
    said = [] if trained is None else [f"{trained.strategy}, this run's strategy, {of_own(strategy, steps, dropped)}."]
    return dataclasses.replace(found, **lanes), said


def of_own(strategy: Any, steps: int, dropped: float) -> str:
    """What a strategy drops of the gradient of so many steps; `dropped` is the share where it `truncates`."""
    kind = says(strategy, "kind")
    if kind == "unbiased":
        return "drops nothing on average, at the price of noise"
    if kind == "exact":
        return "drops nothing within a sequence"
    if not says(strategy, "lengths_known"):
        return "chose its length on the way"
    if not truncates(strategy):
        return "is biased: what its cuts drop, no factors make up for"
    windows = strategy.windows(lambda t: int(min(t, steps)), lambda **_: 0.5)
    if all(window.start == 0 and not window.weights for window in windows):
        return f"cuts nothing in {steps} steps; give a larger --length"
    return f"drops {share(dropped)} of this gradient"


def truncates(strategy: Any) -> bool:
    """Whether a strategy cuts at places that are known beforehand, so that one backward pass shows what it drops."""
    return says(strategy, "kind") == "biased" and says(strategy, "lengths_known") and first(strategy) is not None


def _draw(found: bptt.Diagnosis, title: str, path: Path) -> None:
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    found.plot(figure)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.savefig(path)
