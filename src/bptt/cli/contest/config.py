"""The options of `bptt compare`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bptt.analysis.race import Budget
from bptt.cli.config import PLAIN, at_least_one, at_most, flag
from bptt.cli.data_options import OF_NUMBERS, DataOptions
from bptt.cli.printing import UserError

OWN = "own"
"""A model of the user's own, in the place of a task."""
NETWORK = ("text", "copy", "delayed", "adding", "bernoulli")
BELONGS = {
    "data": ("text", OWN),
    "read_as": ("text", OWN),
    **dict.fromkeys(OF_NUMBERS, (OWN,)),
    "delay": ("copy", "delayed"),
    "length": ("copy", "adding"),
    "symbols": ("copy", "delayed"),
    "t1": ("bernoulli",),
    "t2": ("bernoulli",),
    "size": ("influence",),
    "positive": ("influence",),
    "sequence_length": ("text", "delayed", "bernoulli", "influence", OWN),
    **dict.fromkeys(("cell", "hidden"), NETWORK),
    **dict.fromkeys(("batch", "clip"), (*NETWORK, OWN)),
}
"""Option -> the tasks that have it; options that are not listed belong to all."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "delayed": {
        "strategies": "full,tbptt:4,tbptt:4:12,artbp:8,random:8,adaptive:0.5",
        "budget": "6000",
        "sequence_length": 50,
        "delay": 5,
        "cell": "gru",
        "lr": 0.01,
    },
    "copy": {"strategies": "full,tbptt:10,tbptt:10:60,artbp:20,adaptive:0.5", "budget": "40000", "delay": 30},
    "adding": {"strategies": "full,tbptt:10,tbptt:10:60,artbp:20,adaptive:0.5", "budget": "40000", "length": 50},
    "bernoulli": {
        "strategies": "full,tbptt:5,tbptt:5:20,artbp:10,random:10,adaptive:0.5",
        "budget": "12000",
        "sequence_length": 100,
    },
    "text": {
        "strategies": "full,tbptt:5,tbptt:50,tbptt:25:75,artbp:50,adaptive:0.5",
        "budget": "10000",
        "sequence_length": 200,
        "data": "python-docs",
        "hidden": 64,
        "batch": 32,
    },
    OWN: {
        "strategies": "full,tbptt:5,tbptt:50,artbp:50,adaptive:0.5",
        "budget": "10000",
        "sequence_length": 200,
        "clip": 1.0,
    },
    "influence": {
        "strategies": "full,tbptt:10,tbptt:100,tbptt:200,artbp:50",
        "budget": "60000",
        "sequence_length": 1000,
        "lr": 1e-5,
        "seeds": 1,
        "draws": 20,
    },
}
COMMON = {"cell": "lstm", "hidden": 32, "batch": 16, "clip": 1.0}
"""Of every task with a network; a task's own defaults go before."""


@dataclasses.dataclass(frozen=True)
class CompareConfig(DataOptions):
    """Train the same model from the same start by several strategies, on equal budgets, and report what each one gets.

    The folder gets report.html (one page that needs no network), results.json (all numbers), loss.png, gradients.png,
    windows.png, and a file for each finished run. A comparison that was stopped, or killed, goes on from its finished
    runs when the same command is given again with the same --out.

    Exit codes: 0 done; 1 something cannot be written; 2 wrong use; 130, 143 or 129 stopped by Ctrl-C, SIGTERM or
    SIGHUP, finished runs kept.
    """

    task: Annotated[Literal["text", "copy", "delayed", "adding", "bernoulli", "influence"] | None, PLAIN] = None
    """What is learned, unless it is a model of your own. delayed if not given.
    delayed: repeat each input after --delay steps.
    copy: repeat --length symbols after --delay steps.
    adding: add two marked numbers of --length.
    bernoulli: coins that depend on those of --t1 and --t2 steps ago.
    influence: one parameter whose near effect has the wrong sign.
    text: the next character."""
    strategies: Annotated[str | None, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="")] = None
    """Any of full, tbptt:K1, tbptt:K1:K2, artbp:L, random:L, adaptive:TOL, rtrl[:K1], uoro[:K1] and snap:N[:K1], by
    commas. Some of each if not given.
    random:L cuts like artbp:L without its factors, and is biased: it shows what they are for."""
    seeds: Annotated[int | None, PLAIN] = None
    """Runs of each strategy, each from other first weights and data. 3 if not given, 1 for influence."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="STEPS|SECONDSs", help_behavior_hint="")] = None
    """What each run may use: steps of the data, such as 20000, or time, such as 30s or 5min. A minute or two in all if
    not given."""
    draws: Annotated[int | None, PLAIN] = None
    """Draws of a random strategy, for the bias and variance of its gradient; at least 3. 60 if not given, 20 for
    influence."""
    delay: Annotated[int | None, PLAIN] = None
    """copy, delayed: steps from an input to its repetition. 30 for copy, 5 for delayed, if not given."""
    length: Annotated[int | None, PLAIN] = None
    """copy: symbols to repeat, 10 if not given. adding: steps of a sequence, 50 if not given."""
    symbols: Annotated[int | None, PLAIN] = None
    """copy, delayed: how many different ones. 8 for copy, 4 for delayed, if not given."""
    t1: Annotated[int | None, PLAIN] = None
    """bernoulli: steps back to the coin that raises the chance. 3 if not given."""
    t2: Annotated[int | None, PLAIN] = None
    """bernoulli: steps back to the coin that lowers it. 8 if not given."""
    size: Annotated[int | None, PLAIN] = None
    """influence: length of the chain. 23 if not given."""
    positive: Annotated[int | None, PLAIN] = None
    """influence: how many places the parameter drives up; the others it drives down. 10 if not given."""
    sequence_length: Annotated[int | None, PLAIN] = None
    """Steps of the sequences that full takes of data without an end; the others read it as it comes. 50 for delayed,
    100 for bernoulli, 200 for text, 1000 for influence, if not given."""
    cell: Annotated[Literal["rnn", "gru", "lstm"] | None, PLAIN] = None
    """Kind of recurrent layer. lstm if not given, gru for delayed."""
    hidden: Annotated[int | None, PLAIN] = None
    """Units of the layer. 32 if not given, 64 for text."""
    batch: Annotated[int | None, PLAIN] = None
    """Rows, or lanes of a text, read side by side. 16 if not given, 32 for text."""
    lr: Annotated[float | None, PLAIN] = None
    """Learning rate of Adam, for influence of SGD. 0.003 if not given, 0.01 for
    delayed, 1e-5 for influence."""
    clip: Annotated[float | None, PLAIN] = None
    """Largest norm of the gradient; 0 never clips. 1 if not given."""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """Memory budget for what a backward pass needs, such as 64KiB: same gradients, more time."""
    jobs: Annotated[int, PLAIN] = 1
    """So many runs at once, each in a process of its own, with the results of one after the other; a budget of time is
    then one of a machine that they share. 1 if not given."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder; with finished runs of the same comparison, it goes on. A new dated folder under runs/ if not given."""
    overwrite: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """Allow a folder that holds another comparison; its files are replaced once this one is finished."""

    def check(self) -> None:
        """Raise `UserError` for options that the task doesn't have, and for numbers that cannot be."""
        if self.model is not None and self.task is not None:
            raise UserError(f"--task {self.task}: {self.model} is compared on its own data. Leave one of them out")
        for name, tasks in BELONGS.items():
            if self.learned not in tasks and getattr(self, name) is not None:
                where = (
                    f"--task {', '.join(t for t in tasks if t != OWN)}" if tasks != (OWN,) else "a model of your own"
                )
                raise UserError(f"{flag(name)} applies only to {where}, not to {self.learned}")
        if self.task != "text":
            self.check_data()
        at_least_one(self, "seeds", "sequence_length", "hidden", "batch", "jobs")
        at_most(self, seeds=10_000, draws=1_000_000, jobs=1000)
        if self.draws is not None and self.draws < 3:
            raise UserError(f"--draws {self.draws}: must be at least 3, for a variance and its interval")
        if self.lr is not None and not 0 < self.lr <= 1e30:
            raise UserError(f"--lr {self.lr}: must be a positive number, and at most 1e30")
        if self.clip is not None and not 0 <= self.clip < math.inf:
            raise UserError(f"--clip {self.clip}: must be a positive number, or 0 to never clip")
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def learned(self) -> str:
        """The task, OWN for a model of the user's."""
        return OWN if self.model is not None else self.task or "delayed"

    def resolved(self) -> CompareConfig:
        """With the task's defaults filled in, so that a record of the comparison names them."""
        network = COMMON if self.learned in NETWORK else {}
        task = {} if self.model is not None else {"task": self.learned}
        defaults = {"seeds": 3, "lr": 3e-3, "draws": 60, **network, **DEFAULTS[self.learned], **task}
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def recorded(self) -> dict[str, Any]:
        """What makes this comparison the one it is: every option that has a value, but where and how it is made."""
        how = ("out", "overwrite", "jobs")
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k not in how}


def parse_budget(text: str) -> Budget:
    """A `Budget` of "20000" (steps), "30s", "5min" or "1h".

    Raises: UserError.

    >>> parse_budget("20000"), str(parse_budget("1.5min"))
    (Budget(steps=20000, seconds=None), '1 min 30 s of training')
    """
    try:
        return Budget.of(text)
    except ValueError:
        raise UserError(
            f"--budget {text}: must be a number of steps, such as 20000, or a time, such as 30s or 5min"
        ) from None
