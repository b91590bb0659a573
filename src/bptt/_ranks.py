"""What the processes that train one model agree on, so that none continues alone; free of cost in a single process.

A rank is a process of a torch.distributed group. Every agreement gathers one entry of a few numbers from each rank, in
the same form for all kinds of agreement, so that a rank that has failed takes part in whichever one the others come to
next, and all raise.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from bptt import _torch
from bptt._errors import NonFiniteError, NonFiniteGradientError, NonFiniteLossError
from bptt.strategies.windows import Probe, Window

ENDED, WINDOW, PROBE, FINE, FAILED = range(5)
"""What an entry says of its rank: its stream has ended, what it runs next, nothing of note, or that it has an error."""


class Entry(NamedTuple):
    """What a rank says at an agreement, as numbers that float64 can hold.

    kind: one of the five above. start, first, stop: of the window or probe. tail: whether the stream ends at `stop`.
    calls: a digest of how the model is called in the window, where calls communicate.
    value: a number to be averaged.
    """

    kind: float
    start: float = 0
    first: float = 0
    stop: float = 0
    tail: float = 0
    calls: float = 0
    value: float = 0


class Ranks:
    """The processes that train together, by the wrapper of their model or by `group=`; or one process alone.

    wrappers: the modules that average gradients in their backward passes, DDP's or FSDP2's.
    """

    def __init__(self, group: Any = None, wrappers: Iterable[nn.Module] = (), device: Any = "cpu") -> None:
        self._group, self.wrappers, self._device = group, list(wrappers), device
        self.size = dist.get_world_size(group) if is_running() and (group is not None or self.wrappers) else 1
        self.alone = self.size == 1
        self._broadcasts = any(_broadcasts(wrapper) for wrapper in self.wrappers)
        self._sharded = [wrapper for wrapper in self.wrappers if not isinstance(wrapper, DDP)]
        self._apart = False
        self.talks = not self.alone and (self._broadcasts or bool(self._sharded))
        self._known: BaseException | None = None

    @classmethod
    def of(cls, things: Iterable[Tensor | nn.Module], group: Any) -> "Ranks":
        """The ranks of a run.

        things: what model and loss hold or close over, looked at if a group of processes was initialised.
        """
        if not is_running():
            return cls()
        things = list(things)
        modules = [module for thing in things if isinstance(thing, nn.Module) for module in thing.modules()]
        wrappers = [module for module in dict.fromkeys(modules) if isinstance(module, _wrapping())]
        device = next((thing.device for thing in things if isinstance(thing, Tensor) and not thing.is_meta), "cpu")
        return cls(_group_of(wrappers) if group is None else group, wrappers, device)

    def check(self, model: Any, params: Any, memory: Any, probes: bool) -> None:
        """Raise ValueError for a wrapper that this run can't serve.

        params, memory: as in `unroll`. probes: whether the strategy asks for some.
        """
        inside = getattr(model, _torch.WRAPPED, model) not in self.wrappers
        for wrapper in self.wrappers if not self.alone else ():
            left_out = {id(p) for p in wrapper.parameters() if p.requires_grad} - set(map(id, params or ()))
            if params is not None and (left_out or not isinstance(wrapper, DDP)):
                raise ValueError(
                    f"params= can't go with {type(wrapper).__name__}, which averages the gradients of all parameters: "
                    f"leave it out, and freeze what isn't trained with requires_grad_(False) before wrapping."
                )
            if isinstance(wrapper, DDP) and _torch.joins(wrapper):
                raise ValueError(
                    "DistributedDataParallel.join() is active: leave it out, since ranks whose stream has ended take "
                    "part with zeros by themselves until all have."
                )
            if isinstance(wrapper, DDP) and wrapper.static_graph and (memory is not None or (probes and inside)):
                raise ValueError(
                    f"DistributedDataParallel(static_graph=True) averages in every backward pass of its first update, "
                    f"of which {'memory= takes' if memory is not None else 'probes take'} several: leave static_graph "
                    f"out."
                )

    def sharded(self) -> bool:
        """Whether parameters are shards; after calls that left them whole, they are shards again."""
        for wrapper in self._sharded:
            cast(Any, wrapper).reshard()
        return bool(self._sharded)

    def quiet(self, quiet: bool = True) -> AbstractContextManager[None]:
        """A block whose backward passes leave gradients to be averaged by a later one."""
        return self._unaveraged() if quiet and self.wrappers and not self.alone else nullcontext()

    @contextmanager
    def _unaveraged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for wrapper in self.wrappers:
                if isinstance(wrapper, DDP):
                    stack.enter_context(wrapper.no_sync())
                else:
                    sharded: Any = wrapper
                    sharded.set_requires_gradient_sync(False, recurse=False)
                    stack.callback(sharded.set_requires_gradient_sync, True, recurse=False)
            yield

    def flushes(self, calls: int) -> bool:
        """Whether a backward pass through that many calls, each of which averages, would not average exactly once."""
        return not self.alone and bool(self._sharded) and (self._apart or calls > 1)

    @contextmanager
    def gathered(self, probe: bool = False) -> Iterator[None]:
        """A block that calls the model differently from rank to rank, or step by step: shards are kept together for it.

        probe: whether it calls the model step by step; else the last agreement has shown what applies.
        """
        with ExitStack() as stack:
            for wrapper in self._sharded if (probe or self._apart) and not self.alone else ():
                stack.enter_context(_torch.gathered(wrapper))
            yield

    def turn(self, item: Window | Probe | None, tail: bool, even: bool, calls: int) -> bool:
        """Agree on what comes next: False if all streams have ended; ValueError on all ranks if windows differ.

        item: this rank's, None if its stream has ended. tail: whether the stream ends with it. even: whether streams
        must be equally long. calls: how the model is called, as in `Entry`.
        """
        if item is None:
            mine = Entry(ENDED)
        elif isinstance(item, Probe):
            mine = Entry(PROBE, item.start, item.start, item.stop, calls=calls)
        else:
            mine = Entry(WINDOW, item.start, item.first, item.stop, float(tail and not even), calls)
        entries = self._agreed(mine)
        going = [entry for entry in entries if entry.kind != ENDED]
        if not going:
            return False
        stop, even = max(entry.stop for entry in going), even and len(going) < self.size
        cut = any(entry.stop != stop and not entry.tail for entry in going)
        if even or cut or len({entry[:3] for entry in going}) > 1:
            self._differ(entries)
        self._apart = self.talks and (len(going) < self.size or len({entry.calls for entry in going}) > 1)
        if self._apart and self._broadcasts:
            self._fail(
                f"steps {_steps(going[0])}: the ranks call the model a different number of times, since rows reset, "
                f"are masked or have ended at other steps, and each call communicates buffers. Give "
                f"DistributedDataParallel broadcast_buffers=False, or let rows reset at the same steps."
            )
        return True

    def settle(self, error: Exception | None = None) -> None:
        """Continue together, or raise on all ranks the error that the first of them has met."""
        if self.alone:
            if error is not None:
                raise error
        elif error is None:
            self._agreed(Entry(FINE))
        else:
            self._gather(Entry(FAILED))
            raise self._blamed(error) from error

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A block whose errors the other ranks learn of at the next agreement that they come to."""
        try:
            yield
        except StopIteration:
            raise
        except Exception as error:
            if not self.alone and error is not self._known:
                self._gather(Entry(FAILED))
                self._blamed(error)
                self._known = error
            raise

    def fine(self, fine: bool) -> bool:
        """Whether it is on all ranks."""
        return fine if self.alone else all(entry.value for entry in self._agreed(Entry(FINE, value=float(fine))))

    def found(self, error: NonFiniteGradientError, known: bool) -> NoReturn:
        """Raise on all ranks the error of the first one that knows the step; each rank has looked for it."""
        if self.alone:
            raise error
        told = self._objects((known, str(error), error.step))
        rank = next((rank for rank, each in enumerate(told) if each[0]), None)
        message, step = told[rank or 0][1:]
        self._known = NonFiniteGradientError(message if rank is None else f"rank {rank}: {message}", step)
        raise self._known

    def mean(self, value: float) -> float:
        """The mean over ranks."""
        return sum(entry.value for entry in self._agreed(Entry(FINE, value=value))) / self.size

    def means(self, values: list[Tensor]) -> list[Tensor]:
        """The means over ranks of tensors of one dtype and device, entry by entry, by one reduction."""
        if self.alone:
            return values
        flat = torch.cat([value.reshape(-1) for value in values])
        dist.all_reduce(flat, group=self._group)
        parts = (flat / self.size).split([value.numel() for value in values])
        return [part.reshape(value.shape) for part, value in zip(parts, values, strict=True)]

    def pooled(self, total: Tensor, valid: Any, rows: int) -> tuple[Tensor, Tensor]:
        """Summed losses and weights, both averaged over rows, as if one process had the rows of all ranks."""
        self.settle()
        given = torch.tensor([float(total) * rows, float(valid) * rows, rows], dtype=torch.float64)
        total_of_all, valid_of_all, count = self.means([given.to(self._device)])[0]
        return (total_of_all / count).to(total), (valid_of_all / count).to(total)

    def check_averaged(self) -> None:
        """Raise ValueError if DDP still waits for gradients of this window."""
        for wrapper in self.wrappers if not self.alone else ():
            if isinstance(wrapper, DDP) and not _torch.is_reduced(wrapper):
                raise ValueError(
                    "DistributedDataParallel still waits for gradients of parameters that this window's backward pass "
                    "left out, so that .grad isn't the mean over ranks: freeze before wrapping what isn't trained, or "
                    "wrap with find_unused_parameters=True."
                )

    def _gather(self, mine: Entry) -> list[Entry]:
        """Every rank's entry."""
        if self.alone:
            return [mine]
        given = torch.tensor(mine, dtype=torch.float64, device=self._device)
        found = [torch.empty_like(given) for _ in range(self.size)]
        dist.all_gather(found, given, group=self._group)
        return [Entry(*row) for row in torch.stack(found).tolist()]

    def _agreed(self, mine: Entry) -> list[Entry]:
        """Every rank's entry, none of which has failed."""
        entries = self._gather(mine)
        if any(entry.kind == FAILED for entry in entries):
            raise self._blamed(None)
        return entries

    def _objects(self, mine: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self._group)
        return found

    def _blamed(self, error: Exception | None) -> Exception:
        """What to raise here, if this rank has met `error` or another rank has met one."""
        step = error.step if isinstance(error, NonFiniteError) else None
        told = self._objects(None if error is None else (type(error).__name__, str(error), step))
        rank, (kind, message, step) = next((rank, each) for rank, each in enumerate(told) if each is not None)
        for known in (NonFiniteLossError, NonFiniteGradientError):
            if kind == known.__name__:
                error = known(f"rank {rank}: {message}", step)
        self._known = error or RuntimeError(f"rank {rank} can't go on: {kind}: {message}")
        return self._known

    def _differ(self, entries: list[Entry]) -> NoReturn:
        """The first two windows that differ, with their ranks."""
        other = next(r for r, entry in enumerate(entries) if entry[:5] != entries[0][:5])
        told = " and ".join(f"rank {r} {_named(entries[r])}" for r in (0, other))
        self._fail(
            f"the ranks' windows differ: {told}. Gradients of different windows can't be averaged: give every rank the "
            f"same strategy, ARTBP a generator of the same seed, and streams of the same steps."
        )

    def _fail(self, message: str) -> NoReturn:
        """An error that all ranks raise, since all of them know of it."""
        self._known = ValueError(message)
        raise self._known


def _named(entry: Entry) -> str:
    if entry.kind == ENDED:
        return "has ended"
    what = "window" if entry.kind == WINDOW else "probe"
    graph = f" (its graph from step {entry.start:.0f})" if entry.start != entry.first else ""
    return f"has the {what} of steps {_steps(entry)}{graph}"


def _steps(entry: Entry) -> str:
    return f"{entry.first:.0f} to {entry.stop - 1:.0f}"


def is_running() -> bool:
    """Whether a group of processes was initialised."""
    return dist.is_available() and dist.is_initialized()


def _wrapping() -> tuple[type, ...]:
    """The classes of wrappers that may be in use; nothing is imported for it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return (DDP, *(() if fsdp is None else (fsdp.FSDPModule,)))


def _broadcasts(wrapper: nn.Module) -> bool:
    """Whether its forward communicates more than shards: buffers or batch statistics."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in wrapper.modules()):
        return True
    return isinstance(wrapper, DDP) and wrapper.broadcast_buffers and any(True for _ in wrapper.buffers())


def _group_of(wrappers: list[nn.Module]) -> Any:
    """The processes that a wrapper averages over; all processes if it spreads them over several axes."""
    for wrapper in wrappers:
        if isinstance(wrapper, DDP):
            return wrapper.process_group
        meshes = (getattr(p, "device_mesh", None) for p in wrapper.parameters())
        mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
        if mesh is not None:
            return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
    return None


def check_group(value: Any) -> None:
    """Raise unless it is a process group that this process belongs to, or None."""
    if value is None or (dist.is_available() and isinstance(value, dist.ProcessGroup)):
        return
    if is_running() and value is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group= is a process group that this process isn't in: call unroll on its members only.")
    raise TypeError(f"group={value!r}: pass a process group such as torch.distributed.group.WORLD, or None.")
