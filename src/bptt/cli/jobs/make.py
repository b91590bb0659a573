"""From options, or from a run folder, to a job."""

from __future__ import annotations

from pathlib import Path

import torch

from bptt.cli.folder import CONFIG, MODEL, SERIES, load_weights
from bptt.cli.jobs.job import Job
from bptt.cli.jobs.numeric import numeric_job
from bptt.cli.jobs.own import own_job
from bptt.cli.jobs.texts import text_job
from bptt.cli.printing import UserError
from bptt.cli.train_config import TrainConfig, parse_train


def make_job(config: TrainConfig, device: torch.device) -> Job:
    """The model, loss and data that the options name; the model on `device`.

    Raises: UserError for what can't be read, built, or told apart.
    """
    if config.model is not None:
        return own_job(config, device)
    if config.kind == "numbers":
        return numeric_job(config, device)
    return text_job(config, device)


def saved_job(folder: Path) -> tuple[TrainConfig, Job | None]:
    """The options of a run folder, and its job with the trained weights; None in its place for a run on a text.

    Raises: UserError where the folder isn't one, its data or code aren't there any more, or its weights don't fit.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a run folder with weights (no {CONFIG}). Give a DIR that bptt train wrote")
    config = parse_train([f"--config={folder / CONFIG}"])
    if not any((folder / name).is_file() for name in (SERIES, MODEL)):
        return config, None
    job = make_job(config, torch.device("cpu"))
    load_weights(folder, job.model, job.stamp)
    return config, job
