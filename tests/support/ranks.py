"""What each rank of a test does: training on its own rows, with a wrapper or without; and the same in one process."""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import bptt

F64 = torch.float64
T, ROWS = 23, 32


class Model(nn.Module):
    """A GRU and a readout, whose first state is None."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.head = nn.GRU(3, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)

    def forward(self, inputs, state=None):
        hidden, state = self.rnn(inputs, state)
        return self.head(hidden), state


def per_row(outputs, targets):
    return (outputs - targets).square().mean(-1)


def of_window(outputs, targets, mask=None):
    """The mean over rows of a ratio over the window's steps."""
    errors = (outputs - targets).square().mean(-1)
    errors = errors if mask is None else errors * mask
    return (errors.sum(0) / (1 + targets.square().sum((0, 2)))).mean()


def data(length=T, rows=ROWS):
    generator = torch.Generator().manual_seed(7)
    xs, ys = (torch.randn(length, rows, n, dtype=F64, generator=generator) for n in (3, 2))
    mask = torch.rand(length, rows, generator=generator) < 0.7
    return xs, ys, mask


def chunks(rows, masked=False, length=T, resets=()):
    """The rows' stream in chunks of 10 steps."""
    xs, ys, mask = data()
    starts = torch.zeros(T, ROWS, dtype=torch.bool)
    for t, row in resets:
        starts[t, row] = True
    for a in range(0, length, 10):
        b = min(a + 10, length)
        given = [xs[a:b, rows], ys[a:b, rows]]
        yield bptt.Chunk(*given, starts[a:b, rows] if resets else None, mask[a:b, rows] if masked else None)


def wrapped(kind, model, **options):
    if kind == "ddp":
        return DDP(model, **options)
    return fully_shard(model) if kind == "fsdp" else model


def run(model, kind, strategy, rows, *, loss=per_row, masked=False, resets=(), length=T, seed=0, lr=0.3, **options):
    """Train: (the weights at the end, the steps of each update)."""
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=lr), []
    if kind == "average":
        options["group"] = dist.group.WORLD
    generator = torch.Generator().manual_seed(seed)
    stream = chunks(rows, masked, length, resets)
    updates = bptt.unroll(model, loss, stream, strategy=strategy, generator=generator, state_batch_dim=1, **options)
    for update in updates:
        if kind == "average":
            bptt.distributed.average_gradients(model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        steps.append((update.start, update.t0, update.t1))
    return weights(model), steps


def weights(model):
    values = [p.detach() for p in model.parameters()]
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).numpy().copy() for p in values]


def mine():
    """This rank's rows."""
    rank, each = dist.get_rank(), ROWS // dist.get_world_size()
    return slice(rank * each, (rank + 1) * each)


def train(kind, strategy, options, wrapper=None):
    """On this rank's rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of views that it returns
        return run(wrapped(kind, Model(), **(wrapper or {})), kind, strategy, mine(), **options)


def alone(strategy, options):
    """In one process, on all rows."""
    return run(Model(), "none", strategy, slice(None), **options)


def refused(kind, strategy, options, wrapper=None, poison=None, memory=None, again=True):
    """(error's class, text, step, whether `.grad` is untouched) of a run that ends in an error on this rank.

    poison: (rank, step): a target that is NaN. again: train afterwards, to see that nothing is left of it.
    """
    model = wrapped(kind, Model(), **(wrapper or {}))
    options = dict(options, group=dist.group.WORLD) if kind == "average" else options
    stream = list(chunks(mine()))
    if poison is not None and poison[0] == dist.get_rank():
        stream[poison[1] // 10].targets[poison[1] % 10, 0] = float("nan")
    try:
        for _ in bptt.unroll(model, per_row, stream, strategy=strategy, memory=memory, **options):
            for p in model.parameters():
                p.grad = None
        return None
    except (ValueError, RuntimeError) as error:
        untouched = all(p.grad is None for p in model.parameters())
        return type(error).__name__, str(error), getattr(error, "step", None), untouched


def artbp_of_own_seed(kind):
    generator = torch.Generator().manual_seed(dist.get_rank())
    return refused(kind, bptt.ARTBP(bptt.ConstantLaw(mean_length=5)), {"generator": generator})


def static(strategy, options):
    return train("ddp", strategy, options, {"static_graph": True})
