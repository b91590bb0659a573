"""`bptt plan`: what `bptt.plan` predicts for a character model, and the strategy to take."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import tyro

import bptt
from bptt.cli.config import PLAIN, at_least_one, at_most, flag, parse
from bptt.cli.data_options import DataOptions
from bptt.cli.files import data_text
from bptt.cli.jobs.texts import build
from bptt.cli.jobs.texts import named as model_named
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.screen import Screen
from bptt.cli.strategies import labelled, parse_strategies
from bptt.cli.subject import Subject, own
from bptt.cli.train import device_of
from bptt.cli.train_config import TrainConfig
from bptt.data import PYTHON_DOCS, Vocabulary, lanes
from bptt.models import CharModel
from bptt.strategies import says

STEPS_MOST = 1_000_000
"""Characters of a sequence; every window of it is counted, and times go on in proportion."""
PROBE = 256
"""Characters a lane that are read for the probe; `bptt.plan` repeats them."""


@dataclasses.dataclass(frozen=True)
class PlanConfig(DataOptions):
    """Predict time and memory of each strategy for a character model, or one of your own, from a short probe, and name
    the one to take.

    That is the fastest exact one that fits the budget, else the fastest unbiased one, else the least biased.

    Exit codes: 0 done; 1 output cannot be written; 2 wrong use, such as a budget that no strategy fits; 141 nobody
    reads it any more.
    """

    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, PLAIN] = None
    """Kind of recurrent layer. lstm if not given."""
    hidden: Annotated[int | None, PLAIN] = None
    """Units of a recurrent layer. 256 if not given."""
    layers: Annotated[int | None, PLAIN] = None
    """Recurrent layers, one on top of the other. 1 if not given."""
    batch: Annotated[int | None, PLAIN] = None
    """Lanes of the data that are read side by side. 32 if not given, fewer for a short series."""
    steps: int = 1000
    """Characters of a sequence, in each lane."""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """Memory budget for what the backward pass needs, such as 512MiB. No bound if not given."""
    strategies: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """What to consider, such as full,artbp:50,tbptt:64. If not given: full, artbp, and truncations of some lengths."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")] = "auto"
    """Where to train; auto takes an accelerator if torch sees one."""

    def check(self) -> None:
        """Raise `UserError` for a number that cannot be."""
        self.check_data()
        if self.model is None and self.kind == "numbers":
            raise UserError(f"--data {self.data}: bptt plan reads a text, or numbers for a model of your own")
        at_least_one(self, "hidden", "layers", "batch", "steps")
        at_most(self, steps=STEPS_MOST)
        try:  # the library knows which texts are sizes
            bptt.unroll(torch.nn.RNN(1, 1), CharModel.loss, [], strategy=bptt.FullBPTT(), memory=self.memory)
        except ValueError:
            raise UserError(f'--memory {self.memory!r}: give a size such as "512MiB" or "2GB"') from None


def run(words: Sequence[str]) -> int:
    """Print the prediction; the exit code."""
    config = parse(PlanConfig, words, "bptt plan")
    config.check()
    wanted = None if config.strategies is None else parse_strategies(config.strategies)
    finds = [name.split(":")[0] for name, each in (wanted or {}).items() if not says(each, "lengths_known")]
    if finds:
        raise UserError(
            f"--strategies {config.strategies}: {finds[0]} finds its lengths during training. Plan tbptt:K:2K-1 for "
            f"the K that you expect, such as tbptt:20:39"
        )
    device = device_of(config.device)
    subject = _subject(config, device)
    rows, unit = subject.chunk.inputs.shape[1], subject.unit
    data = config.data or (PYTHON_DOCS if config.model is None else f"the stream of {config.model}")
    screen = Screen()
    with user_errors():
        try:
            with screen.waiting("measuring short windows"):
                strategies = None if wanted is None else list(wanted.values())
                found = subject.given(bptt.plan, steps=config.steps, memory=config.memory, strategies=strategies)
        except bptt.BudgetError as error:
            raise UserError(
                f"--memory {config.memory!r}: no strategy fits. The least that would is --memory {error.least}, for "
                f"{error.strategy}. Give that much, or use smaller batches."
            ) from None
    screen.say(f"model     {subject.title}, {subject.parameters:,} parameters, on {device}")
    screen.say(f"sequence  {rows} x {config.steps:,} {unit}s of {one_line(data)}")
    screen.say(f"budget    {config.memory or 'none'}\n")
    screen.table(*found.table(named))
    screen.say("\nkept    all that is needed, or so many states x segments of steps that run again")
    screen.say("reach   steps that a loss is differentiated through, its own included: the mean\n")
    screen.say(textwrap.fill(found.verdict(named, unit).removesuffix(".") + " a lane.", screen.console.width))
    return 0


def _subject(config: PlanConfig, device: torch.device) -> Subject:
    if config.model is not None:

        def first(source: Any) -> bptt.Chunk:
            return source.measured(None, None) if source.steps is None else next(source.stream(PROBE, 1))

        return own(config, device, config.batch, first)
    begun = TrainConfig(cell=config.cell, hidden=config.hidden, layers=config.layers, batch=config.batch).resolved()
    shape, batch = (begun.cell or "", begun.hidden or 1, begun.layers or 1), begun.batch or 1
    data = config.data or PYTHON_DOCS
    text = data_text(data, config.read_as == "text")
    vocabulary = Vocabulary.of(text)
    with user_errors(prefix=f"--batch {batch}: "):
        ids = lanes(vocabulary.encode(text), batch)[: PROBE + 1].to(device)
    torch.manual_seed(TrainConfig.seed)
    with user_errors():
        model = build(len(vocabulary), *shape).to(device)
    chunk = bptt.Chunk(ids[:-1], ids[1:])
    return Subject(model, model.loss, chunk, model.initial_state(batch), 1, model_named(*shape), {}, "character")


def named(strategy: Any) -> str:
    """A strategy as `--strategies` takes it, and what that grammar has no words for.

    >>> named(bptt.TruncatedBPTT(5, 50)), named(bptt.ARTBP(every=16)), named(bptt.FullBPTT())
    ('tbptt:5:50', 'artbp:50 --every 16', 'full')
    """
    text, beside = says(strategy, "spec"), ""
    for field in dataclasses.fields(strategy) if text is None and dataclasses.is_dataclass(type(strategy)) else ():
        if text is None and field.init and field.default is not dataclasses.MISSING:
            text = says(dataclasses.replace(strategy, **{field.name: field.default}), "spec")
            beside = f" {flag(field.name)} {getattr(strategy, field.name)}"
    return str(strategy) if text is None else labelled(text, strategy) + beside
