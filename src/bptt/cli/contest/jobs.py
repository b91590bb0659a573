"""Runs of a comparison side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from bptt.analysis.race import Run, Stopped, Watch
from bptt.analysis.race.runner import Runner
from bptt.cli.contest.config import CompareConfig, parse_budget
from bptt.cli.contest.settings import setting
from bptt.cli.printing import UserError
from bptt.cli.strategies import parse_strategies

LOOKED = 0.1
"""Seconds after which a wish to end is looked for."""


def runs_of(
    config: CompareConfig, each: list[tuple[str, int]], watch: Watch
) -> Iterator[tuple[Run, dict[str, torch.Tensor]]]:
    """Runs by name of strategy and seed, as they are finished, `config.jobs` of them side by side.

    Raises: Stopped; UserError of the first that fails.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([__name__])  # imported once, not in each process
    stop = context.Event()
    pool = ProcessPoolExecutor(config.jobs, context, _begin, (config, stop, torch.get_num_threads()))
    try:
        left = {pool.submit(_one, *one) for one in each}
        while left:
            done, left = wait(left, LOOKED, FIRST_COMPLETED)
            for future in done:
                if (found := future.result()) is not None:
                    run, weights = found
                    yield run, {name: torch.from_numpy(value) for name, value in weights.items()}
            if watch.asked():
                stop.set()
                raise Stopped
    except BrokenProcessPool:
        if watch.asked():
            raise Stopped from None
        raise UserError("a process of --jobs was killed. Give fewer; finished runs are kept", 1) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_here: dict[str, Any] = {}
"""Of a process that makes runs: what they have in common."""


def _begin(config: CompareConfig, stop: Any, threads: int) -> None:
    """Make ready for runs: Ctrl-C is for the first process to answer, and without that one none goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a file of the user's may print
        chosen = setting(config)
    strategies = parse_strategies(config.strategies or "")
    _here.update(setting=chosen.setting, strategies=strategies, budget=parse_budget(config.budget or ""), stop=stop)


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)


def _one(name: str, seed: int) -> tuple[Run, Any] | None:
    strategy, stop = _here["strategies"][name], _here["stop"]
    runner = Runner(_here["setting"], name, strategy, seed, _here["budget"], lambda fraction, run: None, stop.is_set)
    run = runner.train()
    return None if run is None else (run, {name: t.numpy() for name, t in runner.weights().items()})
