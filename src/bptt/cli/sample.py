"""`bptt sample`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from bptt.analysis.numbers import printable
from bptt.cli.config import at_least_one, at_most, is_seed, parse
from bptt.cli.folder import MODEL, VOCABULARY
from bptt.cli.jobs.own import made_again, stepping
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.trained import fill, text_model
from bptt.cli.trained import vocabulary as saved_vocabulary
from bptt.data import Vocabulary
from bptt.models import write
from bptt.models.text import Step

LENGTH_MOST = 100_000_000
"""Characters; more would take days."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Let a trained model write text: the prompt and what the model makes of it.

    Exit codes: 0 done; 1 output cannot be written; 2 wrong use; 141 nobody reads it any more.
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
        at_least_one(self, "length")
        at_most(self, length=LENGTH_MOST)
        is_seed(self.seed)


def run(words: Sequence[str]) -> int:
    """Print the prompt and what the model writes after it, as it is written; the exit code."""
    config = parse(SampleConfig, words, "bptt sample")
    config.check()
    step, vocabulary = _of_own(config.run) if (config.run / MODEL).is_file() else _of_text(config.run)
    with user_errors(prefix="--prompt: "):
        vocabulary.encode(config.prompt)
    generator = torch.Generator().manual_seed(config.seed)
    sys.stdout.write(printable(config.prompt))
    with user_errors(prefix=f"{config.run}: "):
        for character in write(step, vocabulary, config.prompt, config.length, config.temperature, generator):
            sys.stdout.write(printable(character))
            sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _of_text(run: Path) -> tuple[Step, Vocabulary]:
    model, vocabulary = text_model(run)
    return model.stepping(), vocabulary


def _of_own(run: Path) -> tuple[Step, Vocabulary]:
    """Of a run of the user's own model, which must be of a text."""
    if not (run / VOCABULARY).is_file():
        raise UserError(f"{one_line(str(run))}: its model was trained on numbers, and bptt sample writes text")
    vocabulary = saved_vocabulary(run)
    made = made_again(run)
    fill(run, made.model, {"sha256": made.digest})
    return stepping(made, len(vocabulary)), vocabulary
