"""The processes that torchrun started for one run: which of them speaks, whose lanes are whose, what all agree on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from bptt.cli.printing import UserError

WHERE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and other launchers, say to each process."""


def started() -> tuple[int, int]:
    """The number of this process, and how many were started with it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if not all(name in os.environ for name in WHERE):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def local() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", started()[0]))


def restarts() -> tuple[int, int]:
    """How often torchrun has started this run again, and how often it may."""
    said = os.environ.get
    return int(said("TORCHELASTIC_RESTART_COUNT", 0)), int(said("TORCHELASTIC_MAX_RESTARTS", 0))


class Ranks:
    """The processes of a run; or one alone, which agrees with itself at no cost.

    rank, size: which one this is, and how many there are. group: as the library's calls take it.
    """

    def __init__(self) -> None:
        self.rank, self.size = started()
        self._began = self.size > 1 and not dist.is_initialized()
        if self._began:
            _join()
        self.group = dist.group.WORLD if self.size > 1 else None

    def close(self) -> None:
        """Nothing more is agreed on; a second call does nothing."""
        if self._began:
            self._began = False
            dist.destroy_process_group()

    def most(self, value: float) -> float:
        """The largest of all ranks' numbers."""
        return value if self.size == 1 else max(self.all(value))

    def all(self, value: Any) -> list[Any]:
        """What each rank has."""
        if self.size == 1:
            return [value]
        if isinstance(value, float | int):
            mine = torch.tensor([float(value)], dtype=torch.float64)
            each = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(each, mine)
            return [one.item() for one in each]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def sums(self, values: list[float]) -> list[float]:
        """The sums over ranks."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def told(self, function: Callable[[], Any], tell: bool = True) -> Any:
        """What `function` gives on the first rank, or its error, on all of them.

        tell: False keeps the result to the first rank; None elsewhere.
        """
        if self.size == 1:
            return function()
        result: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = function()
            except Exception as failed:
                error = failed
        sent = [(result if tell else None, _plain(error))]
        dist.broadcast_object_list(sent, src=0)
        if (error := error or sent[0][1]) is not None:
            raise error
        return result if self.rank == 0 else sent[0][0]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """A block whose error on any rank is raised on all."""
        error: Exception | None = None
        try:
            yield
        except Exception as failed:
            error = failed
        found = self.all(_plain(error)) if self.size > 1 else []
        if error is not None:
            raise error
        for rank, other in enumerate(found):
            if other is not None:
                raise UserError(f"rank {rank}: {other}", other.code)

    def share(self, rows: int) -> slice:
        """This rank's lanes out of so many; all of them where there are fewer than ranks."""
        if rows < self.size:
            return slice(0, rows)
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def same_buffers(self, model: nn.Module, name: str) -> None:
        """Raise UserError where buffers are those of a rank's own rows: none of them could be saved as the model's."""
        buffers = dict(model.named_buffers()) if self.size > 1 else {}
        if not buffers:
            return
        first, *others = self.all({key: _digest(buffer) for key, buffer in buffers.items()})
        differs = next((key for key in first for other in others if other[key] != first[key]), None)
        if differs is not None:
            raise UserError(f"{name}: its buffer {differs} differs between processes; train it in one", 1)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def gone(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    return isinstance(error, RuntimeError) and all(word in str(error) for word in ("peer", "onnection"))


def _join() -> None:
    """Make the processes a group: by gloo, and NCCL for tensors of CUDA."""
    store, rank, size = next(iter(dist.rendezvous("env://")))  # pyright: ignore[reportPrivateImportUsage]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # which still holds where those before a restart were
        store = dist.PrefixStore(f"start {restarts()[0]}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(store=store, rank=rank, world_size=size)


def _plain(error: Exception | None) -> UserError | None:
    """An error that any rank can read."""
    if error is None or isinstance(error, UserError):
        return error
    return UserError(f"{type(error).__name__}: {error}", 1)


def together(function: Callable[[Ranks], int]) -> int:
    """Call `function` in each process of a run, of which the first one alone says anything; its exit code."""
    rank, size = started()
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if rank > 0:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        ranks = Ranks()
        stack.callback(ranks.close)
        try:
            return function(ranks)
        except RuntimeError as error:
            if size == 1 or not gone(error):
                raise
            failed = UserError("another process of this run has ended. Go on with --resume, or by --max-restarts", 1)
        except UserError as error:
            failed = error
        except KeyboardInterrupt:
            if rank == 0:
                raise
            return 130
        if rank == 0:
            raise failed
        return failed.code
