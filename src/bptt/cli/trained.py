"""What `bptt train` left in a folder, with errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bptt.cli.printing import UserError, user_errors
from bptt.data import Vocabulary
from bptt.models import CharModel, Forecaster
from bptt.models.saved import CONFIG, WEIGHTS, damaged
from bptt.models.text import load_vocabulary
from bptt.runs import load_weights


def text_model(folder: Path) -> tuple[CharModel, Vocabulary]:
    """The character model of a run folder. Raises UserError."""
    with user_errors():
        return CharModel.load(folder)


def forecaster(folder: Path) -> tuple[Forecaster, dict[str, Any]]:
    """The forecaster of a run folder, and what its `series.json` says. Raises UserError."""
    with user_errors():
        return Forecaster.load(folder)


def vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a run folder. Raises UserError."""
    with user_errors(), damaged(folder):
        return load_vocabulary(folder)


def fill(folder: Path, model: Any, stamp: dict[str, str]) -> None:
    """Put the weights of a run folder into its model. Raises UserError."""
    try:
        load_weights(folder / WEIGHTS, model, stamp, CONFIG)
    except ValueError as error:
        raise UserError(f"{folder}: damaged run folder ({error})") from error
