"""`bptt diagnose`: a model on a stretch of text, measured by `bptt.diagnose` and by the truncations themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import bptt
from bptt.cli.config import PLAIN, at_least_one, can_be_written, flag, parse
from bptt.cli.diagnosis import Measured, ladder, show, truncates
from bptt.cli.files import data_text
from bptt.cli.folder import CONFIG, load
from bptt.cli.jobs.texts import named as model_named
from bptt.cli.model import CharModel, build, loss
from bptt.cli.plots import diagnosis_plot
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.reading import reading
from bptt.cli.screen import Screen
from bptt.cli.train import described, device_of
from bptt.cli.train_config import TrainConfig, parse_train
from bptt.cli.writing import replace
from bptt.data import PYTHON_DOCS, Vocabulary, lanes, split

PLOT = "diagnosis.png"
LENGTH, LANES = 200, 8
CHAINS = {1: 1024, 10: 1024, 100: 256}
"""Lags of the products of Jacobians -> up to how many numbers of state they are taken; beyond, it takes minutes."""


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig:
    """Measure how far back a character model's credit reaches, whether it fades or grows, and what truncation drops.

    The model is that of a run folder, or one with --cell as it is before training. It reads the end of the text, which
    training keeps for validation, from the zero state. The plot is diagnosis.png in the run folder.

    Exit codes: 0 done; 1 the loss is not finite or something cannot be written; 2 wrong use.
    """

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder that `bptt train` wrote; or else give --cell."""
    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, PLAIN] = None
    """Without DIR: kind of recurrent layer of a model with its first weights."""
    hidden: Annotated[int | None, PLAIN] = None
    """With --cell: units of a layer. 256 if not given."""
    layers: Annotated[int | None, PLAIN] = None
    """With --cell: recurrent layers, one on top of the other. 1 if not given."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|python-docs", help_behavior_hint="")] = None
    """Text to read. The run's own if not given; with --cell, Python's own documentation."""
    length: Annotated[int | None, PLAIN] = None
    """Characters of the sequence; lags up to half of it are measured. 200, or what the text has, if not given."""
    batch: Annotated[int | None, PLAIN] = None
    """Sequences to read side by side. 8, or what the text has, if not given."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "cpu"
    """Where to measure. An accelerator pays off for thousands of units."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Where to draw the plot instead, a new file. With --cell there is no plot if not given."""

    def check(self) -> None:
        """Raise `UserError` for options that don't go together, and for a number or file that cannot be."""
        if (self.run is None) == (self.cell is None):
            raise UserError("give a run folder, or --cell for a model before training: one of the two")
        for name in ("hidden", "layers"):
            if self.run is not None and getattr(self, name) is not None:
                raise UserError(f"{flag(name)} applies only to --cell: {self.run} has a model")
        at_least_one(self, "hidden", "layers", "length", "batch")
        if self.out is not None:
            if self.out.suffix != ".png":
                raise UserError(f"--out {self.out}: must end with .png")
            can_be_written(self.out, "--out")
            try:
                if self.out.exists():
                    raise UserError(f"--out {self.out}: exists already. Choose another name")
                if not self.out.parent.is_dir():
                    raise UserError(f"--out {self.out}: there is no folder {self.out.parent}")
            except OSError as error:
                raise UserError(f"--out {self.out}: cannot be written ({error.strerror})") from None


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is diagnosed. trained: how it was trained; None for first weights."""

    model: CharModel
    vocabulary: Vocabulary
    ids: torch.Tensor
    title: str
    source: str
    trained: TrainConfig | None


def run(words: Sequence[str]) -> int:
    """Print and plot the diagnosis; the exit code."""
    config = parse(DiagnoseConfig, words, "bptt diagnose")
    config.check()
    device = device_of(config.device)
    subject = _fresh(config) if config.run is None else _trained(config, config.run)
    with user_errors():  # too little memory there
        model = subject.model.to(device)
    chunk, validation = _sequence(config, subject)
    steps, rows = chunk.inputs.shape
    screen = Screen()
    screen.say(f"model       {subject.title}, {sum(p.numel() for p in model.parameters()):,} parameters, on {device}")
    if config.run is not None:
        screen.say(f"run folder  {one_line(str(config.run))}")
    screen.say(f"text        {one_line(subject.source)}, the last {validation:,} characters, kept for validation")
    screen.say(f"sequence    {_lanes(rows)} of {steps} characters, from the zero state\n")
    with screen.waiting("measuring credit, exponents and truncations"):
        chunk = bptt.Chunk(chunk.inputs.to(device), chunk.targets.to(device))
        measured = _measure(model, chunk, subject.trained)
    show(screen, measured)
    out = config.out if config.run is None or config.out is not None else config.run / PLOT
    if out is not None:
        try:
            replace(out, lambda path: diagnosis_plot(measured, subject.title, path))
        except OSError as error:
            raise UserError(f"{out}: the plot cannot be written ({error.strerror}). Choose another --out", 1) from None
        screen.say(f"\nThe plot is in {one_line(str(out))}")
    return 0


def _fresh(config: DiagnoseConfig) -> Subject:
    """The model that `bptt train` with these options and its default seed would begin with."""
    text, source = _text(config.data or PYTHON_DOCS)
    vocabulary = Vocabulary.of(text)
    begun = TrainConfig(cell=config.cell, hidden=config.hidden, layers=config.layers).resolved()
    shape = (begun.cell or "", begun.hidden or 1, begun.layers or 1)
    torch.manual_seed(begun.seed)
    model = build(len(vocabulary), *shape)
    title = model_named(*shape) + " before training"
    return Subject(model, vocabulary, vocabulary.encode(text), title, source, None)


def _trained(config: DiagnoseConfig, folder: Path) -> Subject:
    model, vocabulary = load(folder)
    trained = parse_train([f"--config={folder / CONFIG}"])
    text, source = _text(config.data or trained.data or PYTHON_DOCS)
    with user_errors(prefix=f"--data {source}: "):
        ids = vocabulary.encode(text)
    name = model_named(trained.cell or "", trained.hidden or 1, trained.layers or 1)
    # Layers of cuDNN have a backward pass in training mode only; for this model the two modes are otherwise the same.
    return Subject(model.train(), vocabulary, ids, described(name, trained), source, trained)


def _text(data: str) -> tuple[str, str]:
    return data_text(data), "Python documentation" if data == PYTHON_DOCS else data


def _sequence(config: DiagnoseConfig, subject: Subject) -> tuple[bptt.Chunk, int]:
    """The first steps of the lanes of the validation text, and how many characters that text has."""
    with user_errors(prefix="--data "):
        _, ids = split(subject.ids)
    count = len(ids)
    batch = config.batch or max(1, min(LANES, count // ((config.length or LENGTH) + 1)))
    with user_errors(prefix=f"--batch {batch}: "):
        read = lanes(ids, batch)
    most = len(read) - 1
    length = min(LENGTH, most) if config.length is None else config.length
    if length > most:
        raise UserError(
            f"--length {length}: the {count:,} characters kept for validation make {_lanes(batch)} of only {most:,} to "
            f"predict; give that or less"
        )
    return bptt.Chunk(read[:length], read[1 : length + 1]), count


def _lanes(count: int) -> str:
    return "1 lane" if count == 1 else f"{count} lanes"


def _measure(model: CharModel, chunk: bptt.Chunk, trained: TrainConfig | None) -> Measured:
    steps, rows = chunk.inputs.shape
    state = model.initial_state(rows)
    size = sum(leaf[:, 0].numel() for leaf in (state if isinstance(state, tuple) else (state,)))
    most = max(1, steps // 2)  # every lag is then seen by half of the losses or more
    taus = ladder(most)
    try:
        with user_errors():
            found = bptt.diagnose(
                model,
                loss,
                chunk,
                state,
                state_batch_dim=1,
                max_lag=most,
                truncations=taus,
                singular_lags=[k for k, largest in CHAINS.items() if k <= most and size <= largest],
            )
            strategies: list[Any] = [bptt.TruncatedBPTT(tau) for tau in taus]
            own = None if trained is None else reading(trained).strategy
            if own is not None and truncates(own):
                strategies.append(own)
            shares = _dropped(model, chunk, state, strategies)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, bptt.NonFiniteLossError):
            raise UserError(
                f"the loss of step {cause.step} is not finite, so there is no gradient to look at", 1
            ) from None
        raise
    windows = dict(zip(taus, shares, strict=False))
    return Measured(found, windows, own, shares[-1], None if trained is None else trained.strategy)


def _dropped(model: CharModel, chunk: bptt.Chunk, state: Any, strategies: Sequence[Any]) -> list[float]:
    """‖g - g_S‖ / ‖g‖ of each strategy S, g being the full gradient of the summed loss; NaN where g is zero."""

    def gradient(strategy: Any) -> torch.Tensor:
        model.zero_grad()
        bptt.backward(model, loss, chunk, state, strategy=strategy, reduction="sum")
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()

    full = gradient(bptt.FullBPTT())
    return [((gradient(strategy) - full).norm() / full.norm()).item() for strategy in strategies]
