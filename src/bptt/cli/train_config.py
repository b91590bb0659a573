"""The options of `bptt train`: flags, YAML keys and what a run folder records are all these."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bptt.cli.config import PLAIN, at_least_one, flag, is_seed, parse
from bptt.cli.data_options import BUILT_IN, OF_NUMBERS, DataOptions
from bptt.cli.files import read_settings
from bptt.cli.printing import UserError
from bptt.cli.strategies import LAWFUL
from bptt.data import PYTHON_DOCS

HOW_LONG = ("steps", "epochs", "minutes")
BATCH, STEPS = 32, 1500
HOW = "how long (one of them; 1500 updates if none is given, of long windows of numbers fewer)"
_HOW_LONG = tyro.conf.create_mutex_group(required=False, title=HOW)


@dataclasses.dataclass(frozen=True)
class TrainConfig(DataOptions):
    """Train by back-propagation through time: a character model on a text, a forecaster on numbers in order, or a model
    of your own on either. A run folder keeps everything.

    The folder gets weights.safetensors, config.yaml, metrics.jsonl, loss.png, gradient_norm.png, report.md, what the
    data need beside them (vocabulary.json, or series.json, forecast.json and forecast.png), and events that TensorBoard
    shows. The last tenth of a text, and the last fifth of a series, is kept for validation; weights are saved at each
    validation, with a checkpoint that --resume goes on from.

    Exit codes: 0 done; 1 a loss or gradient became non-finite, or something cannot be written (the last good weights
    stay); 2 wrong use; 130, 143 or 129 stopped by Ctrl-C, SIGTERM or SIGHUP, everything saved.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with any of these options as keys; flags go before it. A run's own config.yaml will do."""
    season: Annotated[int | None, PLAIN] = None
    """Numbers: steps of a season; forecasts are compared with the last one again. Looked for if not given."""
    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, PLAIN] = None
    """Kind of recurrent layer. lstm if not given."""
    hidden: Annotated[int | None, PLAIN] = None
    """Units of a recurrent layer. 256 for a text, 64 for numbers, if not given."""
    layers: Annotated[int | None, PLAIN] = None
    """Recurrent layers, one on top of the other. 1 if not given."""
    strategy: Annotated[str, tyro.conf.arg(metavar="tbptt:K1[:K2[:N]]|artbp:L|full|...")] = "tbptt:64"
    """Which gradient.
    tbptt:K1[:K2[:N]] updates every K1 characters, through the last K2 (truncated), after a burn-in of N.
    artbp:L cuts at random, L characters apart on average (unbiased).
    full takes the exact gradient of finite sequences.
    adaptive:TOL truncates where the gradient's relative error stays below TOL, as estimated on the way.
    random:L cuts like artbp without its factors (biased), to see what they are for.
    rtrl[:K1], uoro[:K1], snap:N[:K1] update every K1 characters (1) and carry forward what came before: exactly, as an
    unbiased random product, or as far as it reaches within N steps."""
    law: Annotated[Literal["polynomial", "constant"] | None, PLAIN] = None
    """artbp, random: chance of a cut as a function of the characters since the last one. Polynomial if not given."""
    alpha: Annotated[float | None, PLAIN] = None
    """artbp, random with the polynomial law: its exponent, above 1. 3 if not given."""
    every: Annotated[int | None, PLAIN] = None
    """artbp, random: cuts only after multiples of this many characters. 1 if not given, as in the paper."""
    sequence_length: Annotated[int | None, PLAIN] = None
    """full: characters a sequence; each starts from the zero state."""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """Memory budget for what the backward pass needs, such as 512MiB: same gradient, more time."""
    batch: Annotated[int | None, PLAIN] = None
    """The data are cut into this many lanes that are read side by side. 32 if not given, fewer for a short series."""
    steps: Annotated[int | None, _HOW_LONG, PLAIN] = None
    """Stop after this many updates of the weights."""
    epochs: Annotated[int | None, _HOW_LONG, PLAIN] = None
    """Stop after reading the training data this many times."""
    minutes: Annotated[float | None, _HOW_LONG, PLAIN] = None
    """Stop after this many minutes, validation included."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """Rule of torch.optim that makes a step of a gradient."""
    lr: float = 3e-3
    """Learning rate of the optimizer."""
    clip: float = 1.0
    """Largest norm of the gradient, larger ones are scaled down to it; 0 never clips."""
    non_finite: Literal["stop", "skip", "back"] = "stop"
    """A loss or gradient that is NaN or infinite: stop the run; skip, which leaves that part of the text out and goes
    on behind it from the zero state; back, which does so with the weights of the last checkpoint."""
    accumulate: int = 1
    """So many windows, one after the other, make an update of the weights: by the mean of their gradients."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What most of the model is computed in, by autocast; the state is carried in float32. In fp16 losses are scaled,
    and a step whose gradient overflows is left out and counted."""
    compile: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """Compile the model by torch.compile: pays for a model of your own with a loop over steps in Python."""
    seed: int = 0
    """Seed of the first weights and of artbp's cuts."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "auto"
    """Where to train; auto takes an accelerator if torch sees one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder. A new dated folder under runs/ if not given."""
    overwrite: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """Allow a folder that holds a run; its files are replaced once this run has weights to save."""

    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Go on with the run in DIR where its last checkpoint was saved, as if it hadn't stopped. Of the other options,
    steps, epochs or minutes may go with it, to train longer."""

    def check(self) -> None:
        """Raise `UserError` for a number that no run can have."""
        at_least_one(self, "hidden", "layers", "batch", "steps", "epochs", "every", "sequence_length", "accumulate")
        at_least_one(self, "season")
        self.check_data()
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes {self.minutes}: must be a positive number")
        if not 0 < self.lr <= 1e30:  # beyond that an optimizer's step has no place in a float32
            raise UserError(f"--lr {self.lr}: must be a positive number, and at most 1e30")
        if not 0 <= self.clip < math.inf:
            raise UserError(f"--clip {self.clip}: must be a positive number, or 0 to never clip")
        is_seed(self.seed)

    def resolved(self) -> TrainConfig:
        """With the defaults that depend on other options filled in, so that a record of the run names them."""
        values: dict[str, Any] = {}
        if all(getattr(self, name) is None for name in HOW_LONG) and (self.kind != "numbers" or self.model is not None):
            values["steps"] = STEPS
        if self.model is None:
            values["data"] = self.data or PYTHON_DOCS
            defaults = {"cell": "lstm", "hidden": 256 if self.kind == "text" else 64, "layers": 1}
            values |= {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.batch is None and self.kind == "text":
            values["batch"] = BATCH
        if self.strategy.split(":")[0] in LAWFUL:
            values["law"] = self.law or "polynomial"
            values["every"] = 1 if self.every is None else self.every
            if values["law"] == "polynomial":
                values["alpha"] = 3.0 if self.alpha is None else self.alpha
        return dataclasses.replace(self, **values)

    def recorded(self) -> dict[str, Any]:
        """What a run folder keeps: every option that has a value, but where the run is written to."""
        where = ("config", "out", "overwrite", "resume")
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k not in where}


def parse_train(words: Sequence[str]) -> TrainConfig:
    """The configuration of a training run: flags before the `--config` file before the defaults.

    The file's options become words in front of the user's own, so that both are checked alike and the last one wins.

    Raises: UserError; SystemExit(0) after `--help`.
    """
    prog = "bptt train"
    config = parse(TrainConfig, words, prog)
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    if config.resume is not None:
        other = sorted(given - {"resume", *HOW_LONG})
        if other:
            raise UserError(f"{flag(other[0])} doesn't go with --resume: a run goes on as it began. Leave it out")
        return config
    if config.config is not None:
        values = _read(config.config)
        try:
            parse(TrainConfig, _words(values), prog)
        except UserError as error:
            raise UserError(f"{config.config}: {error}") from None
        if config.model is not None:
            given.add("model")
            values.pop("model", None)
        config = parse(TrainConfig, [*_words(_overruled(values, given)), *words], prog)
    config.check()
    return config.resolved()


def _overruled(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The file's values without those that a flag makes pointless: `--minutes` sets aside the file's steps."""
    sets_aside = {
        **dict.fromkeys(HOW_LONG, HOW_LONG),
        "model": BUILT_IN,
        "data": ("read_as", *OF_NUMBERS, "season"),
        "strategy": ("law", "alpha", "every", "sequence_length"),
        "law": ("alpha",),
    }
    gone = {name for flag_ in given for name in sets_aside.get(flag_, ())}
    return {name: value for name, value in values.items() if name not in gone}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_settings(path, as_written=True)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in ("config", "resume")]
    for key in values:
        if key not in names:
            raise UserError(f"--config {path}: unknown key {key!r}; the keys are {', '.join(names)}")
    return values


def _words(values: dict[str, Any]) -> list[str]:
    """Command line words for the values of a file; null and `overwrite: false` say nothing."""
    switches = [field.name for field in dataclasses.fields(TrainConfig) if isinstance(field.default, bool)]
    words = []
    for name, value in values.items():
        if name in switches and isinstance(value, bool):
            words += [flag(name)] * value
        elif name == "model" and value is not None:
            words.append(str(value))
        elif value is not None:
            words.append(f"{flag(name)}={value}")
    return words
