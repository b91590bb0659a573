"""Runs of a race side by side, each in a process of its own."""

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from bptt.analysis.race.runner import Run, Runner
from bptt.analysis.race.setting import Budget, Setting

LOOKED = 0.1
"""Seconds after which a wish to end is looked for."""
Make = Callable[[], tuple[Setting, dict[str, Any], Budget]]


class KilledError(RuntimeError):
    """A process that made runs was killed."""


def side_by_side(
    make: Make, jobs: int, each: list[tuple[str, int]], asked: Callable[[], bool], preload: tuple[str, ...] = ()
) -> Iterator[tuple[Run, dict[str, torch.Tensor]] | None]:
    """Runs by name of strategy and seed, as they are finished, `jobs` of them at once; None where it was to end.

    make: called once in each process, to which it is sent. asked: whether to end. preload: modules that all
        processes need, imported once.

    Raises: KilledError; the error of the first run that fails.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([__name__, *preload])
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _begin, (make, stop, torch.get_num_threads()))
    try:
        left = {pool.submit(_one, *one) for one in each}
        while left:
            done, left = wait(left, LOOKED, FIRST_COMPLETED)
            for future in done:
                if (found := future.result()) is not None:
                    run, weights = found
                    yield run, {name: torch.from_numpy(value) for name, value in weights.items()}
            if asked():
                yield None
                return
    except BrokenProcessPool:
        if not asked():
            raise KilledError("a process of jobs= was killed. Give fewer; finished runs are kept.") from None
        yield None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_here: dict[str, Any] = {}
"""Of a process that makes runs: what they have in common."""


def _begin(make: Make, stop: Any, threads: int) -> None:
    """Make ready for runs: Ctrl-C is for the first process to answer, and without that one none goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()):  # a file of the user's may print
        setting, strategies, budget = make()
    _here.update(setting=setting, strategies=strategies, budget=budget, stop=stop)


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _one(name: str, seed: int) -> tuple[Run, Any] | None:
    strategy, stop = _here["strategies"][name], _here["stop"]
    runner = Runner(_here["setting"], name, strategy, seed, _here["budget"], lambda fraction, run: None, stop.is_set)
    run = runner.train()
    return None if run is None else (run, {name: t.numpy() for name, t in runner.weights().items()})
