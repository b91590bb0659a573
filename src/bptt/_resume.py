"""The iterator that `unroll` returns, which can be saved between two updates and resumed in another process."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch

from bptt import _recurrence, _tree
from bptt._influence import resumed
from bptt._memory import Budget
from bptt._results import Update
from bptt._run import Progress, Run
from bptt._snapshot import noise_restored
from bptt._tree import Tree
from bptt.strategies.base import Strategy

FORMAT = 1


class Updates(Iterator[Update]):
    """What `unroll` returns: an iterator over updates, with PyTorch's protocol for saving and loading.

    state_dict() is valid between two updates, before the first and after the last. It holds plain data and small
    tensors, which `torch.save`, torch.distributed.checkpoint and, taken apart, safetensors can store: the step, the
    state that the next window starts from (with k1 < k2 that isn't `Update.state`), the strategy's progress, what is
    carried of ∂s/∂θ, what a budget has measured, the state of `generator` (or of torch's default one for the CPU, which
    is set again on loading), the stream's place, and what must be the same in the resumed run: strategy, reduction,
    rows.

    load_state_dict(state) makes a new iterator, not yet begun, continue after the saved update, with the same bits if
    the model computes the same. Before it, load the parameters, the optimiser and the noise that isn't ours (a GPU's,
    NumPy's) yourself. A stream with `state_dict` and `load_state_dict` of its own, such as torchdata's
    StatefulDataLoader, goes to the chunk that holds the next window's first step; any other stream is read again from
    its start and skipped up to there, so pass it from its start.
    Raises ValueError for anything but such a state, for a state of a different run, naming what differs, and in a run
    that has begun.
    """

    def __init__(self, run: Run, strategy: Strategy) -> None:
        self._run, self._strategy, self._watch = run, strategy, run.watch()
        self._progress = Progress(carried=run.options.state)
        self._pending: dict[str, Any] | None = None
        self._updates: Iterator[tuple[Progress, Update]] | None = None
        self._rows: int | None = None
        self._made = False
        self._drawn: torch.Tensor | None = None

    def __iter__(self) -> "Updates":
        return self

    def __next__(self) -> Update:
        with self._run.ranks.telling():
            return self._following()

    def _following(self) -> Update:
        if self._updates is None:
            if self._pending is not None:
                self._resume(self._pending)
            self._updates = self._run.updates(self._strategy, self._watch, self._progress)
        before = self._noise()
        try:
            self._progress, update = next(self._updates)
        except StopIteration:
            raise
        except BaseException:
            self._drawn = before  # the window that failed may have drawn its length
            raise
        self._made = True
        return update

    def _noise(self) -> torch.Tensor:
        generator = self._run.options.generator
        return torch.get_rng_state() if generator is None else generator.get_state()

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, to continue from."""
        if self._pending is not None:
            return copy.deepcopy(self._pending)
        progress, options = self._progress, self._run.options
        if progress.strategy is None and self._made:
            raise ValueError(
                f"{self._strategy!r} gives no progress with its windows, so the run can't continue after this one: see "
                f"Window.progress."
            )
        carried = None if progress.step == 0 else _tree.map_leaves(torch.clone, _tree.bare(progress.carried))
        return {
            "format": FORMAT,
            "step": progress.step,
            "carried": carried,
            "strategy": copy.deepcopy(progress.strategy),
            "influence": None if progress.influence is None else progress.influence.state_dict(),
            "generator": self._noise() if self._drawn is None else self._drawn.clone(),
            "stream": self._run.time.position(progress.step),
            "budget": self._run.memory.state() if isinstance(self._run.memory, Budget) else None,
            "run": {"strategy": _described(self._strategy), "reduction": options.reduction, "rows": self._rows_now()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        if self._updates is not None or self._pending is not None:
            raise ValueError("load_state_dict: this run has begun already; call unroll again and load before the loop.")
        _check(state, {"strategy": _described(self._strategy), "reduction": self._run.options.reduction})
        self._pending = copy.deepcopy(state)

    def _resume(self, state: dict[str, Any]) -> None:
        options, time, step = self._run.options, self._run.time, state["step"]
        time.go_to(state["stream"], step)
        if options.generator is not None:
            options.generator.set_state(state["generator"])
        else:
            torch.set_rng_state(state["generator"])
        rows = measured = state["run"].get("measured")
        carried = options.state if step == 0 else state["carried"]
        if time.upto(step + 1) > step:
            rows = time.rows_at(step)
            if state["run"]["rows"] not in (None, rows):
                raise ValueError(
                    f"load_state_dict: the saved run has {state['run']['rows']} batch rows, this stream has {rows}."
                )
            if step > 0:
                carried = self._shaped(carried, step)
        if state["budget"] is not None and isinstance(self._run.memory, Budget) and measured in (None, rows):
            self._run.memory.load(state["budget"])  # of as many rows
        influence = self._run.influence(self._strategy)
        if influence is not None and state.get("influence") and time.upto(step + 1) > step:
            influence = resumed(influence, state["influence"], carried)
        self._progress, self._pending = Progress(step, carried, state["strategy"], influence), None

    def _shaped(self, carried: Tree, step: int) -> Tree:
        """The saved state, on the device and in the containers of the state that the model starts from, if known."""
        options = self._run.options
        p, inputs = options.problem, self._run.time.inputs_at(step)
        like = options.state
        if like is None:
            like = options.initial_state
            with torch.no_grad(), noise_restored(_tree.leaves(inputs)):
                like = like() if callable(like) else like
        like = _recurrence.zero_state(p.model, inputs, p.time_dim) if like is None else like
        device = next(leaf.device for leaf in _tree.leaves(inputs if like is None else like))
        carried = _tree.map_leaves(lambda leaf: leaf.to(device), carried)
        return carried if like is None else _tree.conformed(carried, like, "load_state_dict: the state", "the model's")

    def _rows_now(self) -> int | None:
        time, step = self._run.time, self._progress.step
        if self._updates is not None and time.end > step:
            self._rows = time.rows_at(step)
        return self._rows


def _described(strategy: Strategy) -> str:
    """A strategy as a text that is the same in every process: functions by their names."""
    return re.sub(r"<function ([\w.<>]+) at 0x[0-9a-f]+>", r"\1", repr(strategy))


def _check(state: Any, run: dict[str, str]) -> None:
    """Raise unless it is a state of `state_dict`, of this format and this run."""
    keys = ("step", "carried", "strategy", "generator", "stream", "budget", "run")
    if not isinstance(state, dict) or state.get("format") != FORMAT or not all(key in state for key in keys):
        got = f"format {state['format']}" if isinstance(state, dict) and "format" in state else type(state).__name__
        raise ValueError(
            f"load_state_dict: {got} isn't a state of a run in format {FORMAT}: pass what state_dict() gave."
        )
    if not isinstance(state["step"], int) or state["step"] < 0 or not isinstance(state["run"], dict):
        raise ValueError(f"load_state_dict: step={state['step']!r} isn't a step: the state is damaged.")
    for name, here in run.items():
        if (saved := state["run"].get(name)) != here:
            raise ValueError(f"load_state_dict: the saved run has {name}={saved}, this one has {name}={here}.")
