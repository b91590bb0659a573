"""The options of each command as frozen dataclasses: flags, YAML keys and what a run folder records are all these."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from bptt.cli.printing import UserError

T = TypeVar("T")

_HOW_LONG = tyro.conf.create_mutex_group(required=False, title="how long (one of them; 1500 updates if none is given)")
_PLAIN = tyro.conf.arg(help_behavior_hint="")  # the text itself says what happens without the flag


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a character model on a text by back-propagation through time, and write a run folder.

    The folder gets weights.safetensors, config.yaml, vocabulary.json, metrics.jsonl, loss.png, gradient_norm.png and
    report.md. The last tenth of the text is kept for validation; weights are saved at each validation.

    Exit codes: 0 done; 1 a loss or gradient became non-finite (the last good weights stay); 2 wrong use; 130 stopped
    with Ctrl-C, everything saved.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with any of these options as keys; flags go before it. A run's own config.yaml will do."""
    data: Annotated[str, tyro.conf.arg(metavar="FILE|python-docs")] = "python-docs"
    """UTF-8 text file, or Python's own documentation (about 465,000 characters)."""
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """Kind of recurrent layer."""
    hidden: int = 256
    """Units of a recurrent layer."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    strategy: Annotated[str, tyro.conf.arg(metavar="tbptt:K1[:K2]|artbp:L|full")] = "tbptt:64"
    """Which gradient.
    tbptt:K1[:K2] updates every K1 characters, through the last K2 (truncated).
    artbp:L cuts at random, L characters apart on average (unbiased).
    full takes the exact gradient of finite sequences."""
    law: Annotated[Literal["polynomial", "constant"] | None, _PLAIN] = None
    """artbp: probability of a cut as a function of the characters since the last one. Polynomial if not given."""
    alpha: Annotated[float | None, _PLAIN] = None
    """artbp with the polynomial law: its exponent, above 1. 3 if not given."""
    every: Annotated[int | None, _PLAIN] = None
    """artbp: cuts only after multiples of this many characters. 1 if not given, as in the paper."""
    sequence_length: Annotated[int | None, _PLAIN] = None
    """full: characters a sequence; each starts from the zero state."""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """Memory budget for what the backward pass needs, such as 512MiB: same gradient, more time."""
    batch: int = 32
    """The text is cut into this many lanes that are read side by side."""
    steps: Annotated[int | None, _HOW_LONG, _PLAIN] = None
    """Stop after this many updates of the weights."""
    epochs: Annotated[int | None, _HOW_LONG, _PLAIN] = None
    """Stop after reading the training text this many times."""
    minutes: Annotated[float | None, _HOW_LONG, _PLAIN] = None
    """Stop after this many minutes, validation included."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """Rule of torch.optim that makes a step of a gradient."""
    lr: float = 3e-3
    """Learning rate of the optimizer."""
    clip: float = 1.0
    """Largest norm of the gradient, larger ones are scaled down to it; 0 never clips."""
    seed: int = 0
    """Seed of the first weights and of artbp's cuts."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "auto"
    """Where to train; auto takes an accelerator if torch sees one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder. A new dated folder under runs/ if not given."""
    overwrite: Annotated[tyro.conf.FlagCreatePairsOff[bool], _PLAIN] = False
    """Allow a folder that holds a run; its files are replaced once this run has weights to save."""

    def check(self) -> None:
        """Raise `UserError` for a number that no run can have."""
        for name in ("hidden", "layers", "batch", "steps", "epochs", "every", "sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} {value}: must be at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes {self.minutes}: must be a positive number")
        if not 0 < self.lr <= 1e30:  # beyond that an optimizer's step has no place in a float32
            raise UserError(f"--lr {self.lr}: must be a positive number, and at most 1e30")
        if not 0 <= self.clip < math.inf:
            raise UserError(f"--clip {self.clip}: must be a positive number, or 0 to never clip")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be between 0 and 2**63 - 1")

    def resolved(self) -> TrainConfig:
        """With the defaults that depend on other options filled in, so that a record of the run names them."""
        values: dict[str, Any] = {}
        if self.steps is None and self.epochs is None and self.minutes is None:
            values["steps"] = 1500
        if self.strategy.startswith("artbp"):
            values["law"] = self.law or "polynomial"
            values["every"] = 1 if self.every is None else self.every
            if values["law"] == "polynomial":
                values["alpha"] = 3.0 if self.alpha is None else self.alpha
        return dataclasses.replace(self, **values)

    def recorded(self) -> dict[str, Any]:
        """What a run folder keeps: every option that has a value, but where the run is written to."""
        where = ("config", "out", "overwrite")
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k not in where}


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Let a trained model write text: the prompt and what the model makes of it.

    Exit codes: 0 done; 2 wrong use.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Run folder that `bptt train` wrote."""
    prompt: str = ""
    """Text to go on from; every character must occur in the training text."""
    temperature: float = 0.8
    """Below 1 bolder about likely characters, above 1 more varied; 0 always takes the likeliest."""
    length: int = 500
    """Characters to write."""
    seed: int = 0
    """Another seed writes another text."""

    def check(self) -> None:
        """Raise `UserError` for a number that cannot be."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature}: must be positive, or 0 for the likeliest character")
        if self.length < 1:
            raise UserError(f"--length {self.length}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be between 0 and 2**63 - 1")


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig:
    """Measure how far back a character model's credit reaches, whether it fades or grows, and what truncation drops.

    The model is that of a run folder, or one with --cell as it is before training. It reads the end of the text, which
    training keeps for validation, from the zero state. The plot is diagnosis.png in the run folder.

    Exit codes: 0 done; 1 the loss is not finite or the plot cannot be written; 2 wrong use.
    """

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder that `bptt train` wrote; or else give --cell."""
    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, _PLAIN] = None
    """Without DIR: kind of recurrent layer of a model with its first weights."""
    hidden: Annotated[int | None, _PLAIN] = None
    """With --cell: units of a layer. 256 if not given."""
    layers: Annotated[int | None, _PLAIN] = None
    """With --cell: recurrent layers, one on top of the other. 1 if not given."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|python-docs", help_behavior_hint="")] = None
    """Text to read. The run's own if not given; with --cell, Python's own documentation."""
    length: Annotated[int | None, _PLAIN] = None
    """Characters of the sequence; lags up to half of it are measured. 200, or what the text has, if not given."""
    batch: Annotated[int | None, _PLAIN] = None
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
        for name in ("hidden", "layers", "length", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} {value}: must be at least 1")
        if self.out is not None:
            if self.out.suffix != ".png":
                raise UserError(f"--out {self.out}: must end with .png")
            if self.out.exists():
                raise UserError(f"--out {self.out}: exists already. Choose another name")
            if not self.out.parent.is_dir():
                raise UserError(f"--out {self.out}: there is no folder {self.out.parent}")


def flag(name: str) -> str:
    """The flag of a field: `sequence_length` is `--sequence-length`."""
    return "--" + name.replace("_", "-")


def parse(cls: type[T], words: Sequence[str], prog: str) -> T:
    """An instance of the dataclass `cls` from command line words.

    Raises: UserError of one line for anything the flags don't allow; SystemExit(0) after `--help` was shown.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(cls, args=list(words), prog=prog, config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_reduce(shown.getvalue())} See {prog} --help") from None


def parse_train(words: Sequence[str]) -> TrainConfig:
    """The configuration of a training run: flags before the `--config` file before the defaults.

    The file's options become words in front of the user's own, so that both are checked alike and the last one wins.

    Raises: UserError; SystemExit(0) after `--help`.
    """
    prog = "bptt train"
    config = parse(TrainConfig, words, prog)
    if config.config is not None:
        given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
        values = _read(config.config)
        try:
            parse(TrainConfig, _words(values), prog)
        except UserError as error:
            raise UserError(f"{config.config}: {error}") from None
        config = parse(TrainConfig, [*_words(_overruled(values, given)), *words], prog)
    config.check()
    return config.resolved()


def _overruled(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The file's values without those that a flag makes pointless: `--minutes` sets aside the file's steps."""
    how_long = ("steps", "epochs", "minutes")
    sets_aside = {
        **dict.fromkeys(how_long, how_long),
        "strategy": ("law", "alpha", "every", "sequence_length"),
        "law": ("alpha",),
    }
    gone = {name for flag_ in given for name in sets_aside.get(flag_, ())}
    return {name: value for name, value in values.items() if name not in gone}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {path}: not a YAML file ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: must hold lines like `hidden: 256`")
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "config"]
    for key, value in values.items():
        if key not in names:
            raise UserError(f"--config {path}: unknown key {key!r}; the keys are {', '.join(names)}")
        if isinstance(value, list | dict):
            raise UserError(f"--config {path}: {key} must be one value, not a {type(value).__name__}")
    return values


def _words(values: dict[str, Any]) -> list[str]:
    """Command line words for the values of a file; null and `overwrite: false` say nothing."""
    words = []
    for name, value in values.items():
        if name == "overwrite" and isinstance(value, bool):
            words += [flag(name)] * value
        elif value is not None:
            words.append(f"{flag(name)}={value}")
    return words


def _reduce(shown: str) -> str:
    """The sentence in tyro's box of several lines, and the first flag it suggests instead."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │") for line in shown.splitlines()]
    sections = [""]
    for line in lines:
        if line and not line.strip("─-"):
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    if not lines[0].startswith("╭"):  # where stdout can't show a frame, the title is a section of its own
        sections = sections[1:]
    message = sections[0].rstrip(".!") + "."
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", " ".join(sections))
    return f"{message} Did you mean {meant[1]}?" if meant else message
