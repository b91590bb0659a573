"""From options, or from a run folder, to a job."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from bptt.cli.folder import CONFIG, MODEL, SERIES
from bptt.cli.jobs.job import Job
from bptt.cli.jobs.numeric import numeric_job
from bptt.cli.jobs.own import own_job
from bptt.cli.jobs.texts import text_job
from bptt.cli.train_config import TrainConfig, parse_train
from bptt.cli.trained import fill


def make_job(config: TrainConfig, device: torch.device) -> Job:
    """The model, loss and data that the options name; the model on `device`.

    Raises: UserError for what can't be read, built, or told apart.
    """
    if config.model is not None:
        return own_job(config, device)
    if config.kind == "numbers":
        return numeric_job(config, device)
    return text_job(config, device)


def of_text(folder: Path) -> bool:
    """Whether a folder isn't that of a run on numbers, or of a model of the user's."""
    with contextlib.suppress(OSError):  # such as a name that is too long
        return not any((folder / name).is_file() for name in (SERIES, MODEL))
    return True


def saved_job(folder: Path) -> tuple[TrainConfig, Job]:
    """The options of a run folder that isn't of a text, and its job with the trained weights.

    Raises: UserError where its data or code aren't there any more, or its weights don't fit.
    """
    config = parse_train([f"--config={folder / CONFIG}"])
    job = make_job(config, torch.device("cpu"))
    fill(folder, job.model, dict(job.stamp))
    return config, job
