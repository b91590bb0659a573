"""From options to a job."""

from __future__ import annotations

import torch

from bptt.cli.jobs.job import Job
from bptt.cli.jobs.numeric import numeric_job
from bptt.cli.jobs.texts import text_job
from bptt.cli.train_config import TrainConfig


def make_job(config: TrainConfig, device: torch.device) -> Job:
    """The model, loss and data that the options name; the model on `device`.

    Raises: UserError for what can't be read, built, or told apart.
    """
    if config.kind == "numbers":
        return numeric_job(config, device)
    return text_job(config, device)
