"""The options of `bptt explain`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bptt.cli.config import PLAIN, is_seed
from bptt.cli.printing import UserError

_SEQUENCE = tyro.conf.create_mutex_group(required=False, title="the sequence (drawn at random if none is given)")


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
    """Work through back-propagation through time on a small network, with every number shown.

    Forward values, Jacobians, each term (t, k) of the gradients, their agreement with autograd, and what truncation and
    ARTBP make of them: as tables in the terminal and, with --out, as one HTML page.

    Exit codes: 0 done; 1 output cannot be written; 2 wrong use; 141 nobody reads it any more.
    """

    text: Annotated[str | None, _SEQUENCE, tyro.conf.arg(metavar="STR", help_behavior_hint="")] = None
    """Predict each next character of this text, up to 13 of them, one-hot; steps and sizes follow from it."""
    data: Annotated[Path | None, _SEQUENCE, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """CSV file of numbers, a row per step: the columns of x_t, then those of the target y_t, or its class."""
    steps: Annotated[int | None, PLAIN] = None
    """T, at most 12. 4 if not given, or what the text or data have."""
    input: Annotated[int | None, PLAIN] = None
    """Components of x_t, at most 16. 1 if not given, or what the text or data have."""
    hidden: int = 2
    """Units of the hidden state, at most 8."""
    output: Annotated[int | None, PLAIN] = None
    """Components of o_t, at most 16. 1 if not given, or as many as there are classes, at least 2."""
    nonlinearity: Literal["identity", "tanh", "relu", "sigmoid"] = "tanh"
    """The activation f."""
    loss: Annotated[Literal["squared_error", "softmax_cross_entropy"] | None, PLAIN] = None
    """The loss of a step. squared_error if not given, for a text softmax_cross_entropy."""
    bias: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """With b in the hidden layer and c in the output."""
    radius: float = 0.9
    """Spectral radius of W, 0.1 to 10: below 1 long lags fade, above they may explode."""
    seed: int = 0
    """Seed of the parameters, of the sequence where it is drawn, and of ARTBP's cuts."""
    term: Annotated[str | None, tyro.conf.arg(metavar="T,K", help_behavior_hint="")] = None
    """The term to write out: loss of step T, parameters' use at step K. Lag 2 of the last loss if not given."""
    tau: Annotated[int | None, PLAIN] = None
    """Terms that truncation keeps of each sum, and the length of subsequences. 2 if not given."""
    mean_length: float = 2.0
    """Mean window of ARTBP, polynomial law, above 1."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html", help_behavior_hint="")] = None
    """Write the page too, one file that needs no network."""
    explorer: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html", help_behavior_hint="")] = None
    """Write a page to play with: sliders for the term, the network and the strategy, on a network of its own."""
    overwrite: Annotated[tyro.conf.FlagCreatePairsOff[bool], PLAIN] = False
    """Allow a file that exists; it is replaced."""

    def check(self) -> None:
        """Raise `UserError` for what no example can have."""
        if not 0.1 <= self.radius <= 10:
            raise UserError(f"--radius {self.radius}: must be 0.1 to 10")
        is_seed(self.seed)
        if not 1 < self.mean_length < math.inf:
            raise UserError(f"--mean-length {self.mean_length}: must be a number of steps above 1")
