"""`bptt sample`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from bptt.cli.config import SampleConfig, parse
from bptt.cli.folder import load
from bptt.cli.model import write
from bptt.cli.printing import printable, user_errors


def run(words: Sequence[str]) -> int:
    """Print the prompt and what the model writes after it, as it is written; the exit code."""
    config = parse(SampleConfig, words, "bptt sample")
    config.check()
    model, vocabulary = load(config.run)
    with user_errors(prefix="--prompt: "):
        vocabulary.encode(config.prompt)
    generator = torch.Generator().manual_seed(config.seed)
    sys.stdout.write(printable(config.prompt))
    for character in write(model, vocabulary, config.prompt, config.length, config.temperature, generator):
        sys.stdout.write(printable(character))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
