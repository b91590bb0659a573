"""`bptt explain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import bptt
from bptt.cli.config import can_be_written, parse
from bptt.cli.explanation import explorer
from bptt.cli.explanation.config import ExplainConfig
from bptt.cli.explanation.derivation import term
from bptt.cli.explanation.example import make
from bptt.cli.explanation.page import page
from bptt.cli.explanation.sections import sections
from bptt.cli.explanation.terminal import show
from bptt.cli.explanation.work import work
from bptt.cli.printing import UserError, one_line
from bptt.cli.writing import write

EXAMPLES = {"--out": "explain.html", "--explorer": "explorer.html"}


def run(words: Sequence[str]) -> int:
    """Print the worked example, and write the page if asked to; the exit code."""
    config = parse(ExplainConfig, words, "bptt explain")
    config.check()
    _may_write(config)
    generator = torch.Generator().manual_seed(config.seed)
    example = make(config, generator)
    steps = len(example.sequence.x)
    tau, (t, k) = _tau(config.tau, steps), _term(config.term, steps)
    worked = work(example, tau, bptt.PolynomialLaw(mean_length=config.mean_length), generator)
    told = sections(worked)
    shown = show(told, term(worked, t, k))
    if config.out is not None:
        _write("--out", config.out, page(worked, told, (t, k)))
        shown += f"\nThe page is {one_line(str(config.out))}\n"
    if config.explorer is not None:
        _write("--explorer", config.explorer, explorer.page())
        shown += f"\nThe explorer is {one_line(str(config.explorer))}\n"
    sys.stdout.write(shown)
    return 0


def _write(name: str, out: Path, text: str) -> None:
    try:
        write(out, text)
    except OSError as error:
        raise UserError(f"{name} {out}: cannot be written ({error.strerror})") from None


def _tau(tau: int | None, steps: int) -> int:
    if tau is None:
        return min(2, steps)
    if not 1 <= tau <= steps:
        raise UserError(f"--tau {tau}: must be 1 to {steps}: a sum over {steps} steps has no more terms")
    return tau


def _term(word: str | None, steps: int) -> tuple[int, int]:
    """(t, k) of `--term`."""
    if word is None:
        return steps - 1, max(steps - 3, min(1, steps - 1))
    try:
        t, k = (int(part) for part in word.split(","))
    except ValueError:
        raise UserError(f"--term {word}: must be two steps, T,K, such as 3,1") from None
    if not 0 <= t < steps:
        raise UserError(f"--term {word}: there is no loss of step {t}; the steps are 0 to {steps - 1}")
    if not 0 <= k <= t:
        raise UserError(f"--term {word}: the loss of step {t} has terms for the steps 0 to {t} only, none of step {k}")
    return t, k


def _may_write(config: ExplainConfig) -> None:
    """Refuse before anything is computed."""
    files = {"--out": config.out, "--explorer": config.explorer}
    if config.overwrite and not any(files.values()):
        raise UserError("--overwrite applies only to --out and --explorer")
    if config.out is not None and config.out == config.explorer:
        raise UserError(f"--explorer {config.explorer}: is --out too; give two files")
    for name, out in files.items():
        if out is None:
            continue
        can_be_written(out, name)
        try:
            if out.is_dir() or not out.parent.is_dir():
                raise UserError(f"{name} {out}: give a file in a folder that exists, such as {EXAMPLES[name]}")
            if out.exists() and not config.overwrite:
                raise UserError(f"{out} exists already. Choose another {name}, or give --overwrite")
        except OSError as error:
            raise UserError(f"{name} {out}: cannot be written ({error.strerror})") from None
