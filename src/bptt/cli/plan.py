"""`bptt plan`: what `bptt.plan` predicts for a character model, and the strategy to take."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import tyro

import bptt
from bptt.cli.config import at_least_one, at_most, flag, parse
from bptt.cli.files import data_text
from bptt.cli.jobs.texts import named as model_named
from bptt.cli.model import build, loss
from bptt.cli.printing import UserError, duration, one_line, size, user_errors
from bptt.cli.screen import Screen
from bptt.cli.strategies import labelled, parse_strategies
from bptt.cli.train import device_of
from bptt.cli.train_config import TrainConfig
from bptt.data import PYTHON_DOCS, Vocabulary, lanes
from bptt.strategies import says

STEPS_MOST = 1_000_000
"""Characters of a sequence; every window of it is counted, and times go on in proportion."""
PROBE = 256
"""Characters a lane that are read for the probe; `bptt.plan` repeats them."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Predict time and memory of each strategy for a character model, from a short probe, and name the one to take.

    That is the fastest exact one that fits the budget, else the fastest unbiased one, else the least biased.

    Exit codes: 0 done; 1 output cannot be written; 2 wrong use, such as a budget that no strategy fits; 141 nobody
    reads it any more.
    """

    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """Kind of recurrent layer."""
    hidden: int = 256
    """Units of a recurrent layer."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    data: Annotated[str, tyro.conf.arg(metavar="FILE|python-docs")] = PYTHON_DOCS
    """UTF-8 text file, or Python's own documentation."""
    batch: int = 32
    """Lanes of the text that are read side by side."""
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
        at_least_one(self, "hidden", "layers", "batch", "steps")
        at_most(self, steps=STEPS_MOST)
        try:  # the library knows which texts are sizes
            bptt.unroll(torch.nn.RNN(1, 1), loss, [], strategy=bptt.FullBPTT(), memory=self.memory)
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
    text = data_text(config.data)
    vocabulary = Vocabulary.of(text)
    with user_errors(prefix=f"--batch {config.batch}: "):
        ids = lanes(vocabulary.encode(text), config.batch)[: PROBE + 1].to(device)
    torch.manual_seed(TrainConfig.seed)
    screen = Screen()
    with user_errors():
        model = build(len(vocabulary), config.cell, config.hidden, config.layers).to(device)
        try:
            with screen.waiting("measuring short windows"):
                found = bptt.plan(
                    model,
                    loss,
                    bptt.Chunk(ids[:-1], ids[1:]),
                    model.initial_state(config.batch),
                    steps=config.steps,
                    memory=config.memory,
                    strategies=None if wanted is None else list(wanted.values()),
                    state_batch_dim=1,
                )
        except bptt.BudgetError as error:
            raise UserError(
                f"--memory {config.memory!r}: no strategy fits. The least that would is --memory {error.least}, for "
                f"{error.strategy}. Give that much, or use smaller batches."
            ) from None
    title = model_named(config.cell, config.hidden, config.layers)
    screen.say(f"model     {title}, {sum(p.numel() for p in model.parameters()):,} parameters, on {device}")
    screen.say(f"sequence  {config.batch} x {config.steps:,} characters of {one_line(config.data)}")
    screen.say(f"budget    {config.memory or 'none'}\n")
    _show(screen, found)
    return 0


def _show(screen: Screen, found: bptt.Plan) -> None:
    names = ("strategy", "kept", "gradient", "reach", "time", "memory", "")
    rows = [
        (
            named(row.strategy),
            "all" if row.memory is None else f"{row.memory.slots} x {row.memory.segment}",
            row.gradient,
            f"{row.reach:,.0f}",
            took(row.seconds),
            size(row.memory_bytes),
            "best" if row is found.best else "" if row.fits else "too much",
        )
        for row in found.rows
    ]
    screen.table(names, rows, words=3)
    screen.say("\nkept    all that is needed, or so many states x segments of steps that run again")
    screen.say("reach   steps that a loss is differentiated through, its own included: the mean\n")
    screen.say(textwrap.fill(reason(found), screen.console.width))


def reason(found: bptt.Plan) -> str:
    """The best row, and why it is."""
    best, memory = found.best, found.best.memory
    kept = "all kept" if memory is None else f"{memory.slots} states kept, segments of {memory.segment} steps"
    what = "least biased" if best.gradient == "biased" else f"fastest {best.gradient}"
    within = "" if found.budget is None else f" that fits {size(found.budget)}"
    return (
        f"{named(best.strategy)}, {kept}, is the {what} gradient{within}: {took(best.seconds)} and "
        f"{size(best.memory_bytes)} for {found.steps:,} characters a lane."
    )


def took(seconds: float) -> str:
    """A time, short ones in milliseconds.

    >>> took(0.0123), took(2.5)
    ('12 ms', '2.5 s')
    """
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds:.2f} s" if seconds < 1 else duration(seconds)


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
