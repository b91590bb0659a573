"""What a run needs beside its weights to go on to the bit, and what must be as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import bptt
from bptt.cli.config import flag
from bptt.cli.files import read_settings
from bptt.cli.folder import CHECKPOINTS
from bptt.cli.printing import UserError, one_line
from bptt.cli.ranks import restarts
from bptt.cli.train_config import HOW_LONG, TrainConfig
from bptt.runs.exchange import READY


def resumed(asked: TrainConfig, saved: dict[str, Any], settings: Path) -> TrainConfig:
    """The options of the run that goes on: as it began, but for how long.

    Arguments:
        asked: the command's options.
        saved: those that the checkpoint holds.
        settings: the folder's file of them, which may name another end.

    Raises: UserError if that file names anything else than the checkpoint.
    """
    held = {**saved}
    if settings.exists():
        try:
            held = read_settings(settings)
        except UserError as error:
            raise UserError(f"--resume: {settings}: {error}") from None
    for name in sorted({*held, *saved} - set(HOW_LONG)):
        if held.get(name) != saved.get(name):
            raise UserError(
                f"--resume: {settings}: {name} is {one_line(str(held.get(name)))}, but the run began with "
                f"{one_line(str(saved.get(name)))}. Put it back, or start a new run with --config"
            )
    ends = {name: getattr(asked, name) for name in HOW_LONG}
    if all(end is None for end in ends.values()):
        ends = {name: held.get(name) for name in HOW_LONG}
    config = TrainConfig(**{**saved, **ends}, out=asked.resume)
    config.check()
    return config


def restarted(asked: TrainConfig) -> bool:
    """Whether torchrun starts a run again that has written a checkpoint: it goes on.

    Raises: UserError for options that leave it open which run is meant.
    """
    restart, most = restarts()
    if not most or asked.resume is not None:
        return False
    if asked.overwrite:
        raise UserError("--overwrite doesn't go with torchrun --max-restarts, which goes on with the run in --out")
    if asked.out is None:
        raise UserError("torchrun --max-restarts goes on with the run in --out: give --out DIR")
    return restart > 0 and any((asked.out / name).is_dir() for name in (CHECKPOINTS, READY))


def same_run(asked: TrainConfig, saved: dict[str, Any], path: Path) -> None:
    """Raise UserError where the run in a folder began with other options than a restart has."""
    for name, value in asked.recorded().items():
        if saved.get(name) != value:
            raise UserError(
                f"{path} already holds a run, whose {flag(name)} is {one_line(str(saved.get(name)))}. Choose another "
                f"--out"
            )


def must_be(saved: dict[str, Any], data: str, code: str, processes: int) -> str | None:
    """What differs from when the run was saved and changes its last bits, in a line; None if nothing does.

    data, code: digests of what is read, and of the user's own file. processes: how many train.

    Raises: UserError if either isn't the same any more.
    """
    for name, now, option in (("data", data, "--data "), ("code", code, "")):
        if saved[name] != now:
            source = option + one_line(str(saved["config"]["data" if name == "data" else "model"]))
            raise UserError(f"--resume: {source} was changed since the run began. Put it back, or start a new run")
    changed = {name: (saved["versions"].get(name), now) for name, now in versions(processes).items()}
    told = [f"{name} {now}, was {before}" for name, (before, now) in changed.items() if before != now]
    return f"not as it was: {'; '.join(told)}. The last bits may differ" if told else None


def versions(processes: int) -> dict[str, str]:
    """What a run's bits depend on beside its settings."""
    threads = str(torch.get_num_threads())
    return {"bptt": bptt.__version__, "torch": torch.__version__, "threads": threads, "processes": str(processes)}
