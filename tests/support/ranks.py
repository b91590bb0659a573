"""What each rank of a test does: training on its own rows, with a wrapper or without; and the same in one process."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import bptt
from bptt import _torch
from support.pages import code

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


def run(
    model, kind, strategy, rows, *, loss=per_row, masked=False, resets=(), length=T, seed=0, lr=0.3, dim=1, **options
):
    """Train: (the weights at the end, the steps of each update)."""
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=lr), []
    if kind == "average":
        options["group"] = dist.group.WORLD
    generator = torch.Generator().manual_seed(seed)
    stream = chunks(rows, masked, length, resets)
    updates = bptt.unroll(model, loss, stream, strategy=strategy, generator=generator, state_batch_dim=dim, **options)
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


def steep(outputs, targets):
    """Finite, and its derivative isn't where the first target is beyond 50."""
    far = targets[..., 0] > 50
    flat = torch.where(far, 0 * outputs[..., 0], 1.0).sqrt()
    return torch.where(far, flat, per_row(outputs, targets))


def poisoned(rank, step, value):
    """This rank's stream, with one target that it can't stand on one rank; with `value` an error, the stream fails."""
    for number, chunk in enumerate(chunks(mine())):
        if dist.get_rank() == rank and step // 10 == number:
            if isinstance(value, Exception):
                raise value
            chunk.targets[step % 10, 0] = value
        yield chunk


def refused(kind, strategy, options, wrapper=None, stream=None, loss=per_row):
    """(the error's class, its text, its step, whether `.grad` is untouched) on this rank, by a run that ends in one."""
    model = wrapped(kind, Model(), **(wrapper or {}))
    options = dict(options, group=dist.group.WORLD) if kind == "average" else dict(options)
    seeds = options.pop("seeds", None)
    if seeds is not None:
        options["generator"] = torch.Generator().manual_seed(seeds[dist.get_rank()])
    if options.pop("params", False):
        options["params"] = list(model.parameters())[:1]
    length = options.pop("lengths", {}).get(dist.get_rank(), T)
    stream = chunks(mine(), length=length) if stream is None else poisoned(*stream)
    try:
        for _ in bptt.unroll(model, loss, stream, strategy=strategy, **options):
            for p in model.parameters():
                p.grad = None
        return None
    except (ValueError, RuntimeError) as error:
        untouched = all(p.grad is None for p in model.parameters())
        return type(error).__name__, str(error), getattr(error, "step", None), untouched


def joined(strategy):
    """Under DDP.join()."""
    model = DDP(Model())
    with model.join():
        try:
            next(bptt.unroll(model, per_row, chunks(mine()), strategy=strategy))
        except ValueError as error:
            return str(error)


def uneven(kind, strategy, lengths, options):
    """Streams of different lengths."""
    options = dict(options, length=lengths[dist.get_rank()])
    return train(kind, strategy, options)


def alone_uneven(strategy, lengths, options):
    """The weights by one process, whose mask leaves out what lies after the end of a third of the rows."""
    xs, ys, _ = data()
    each = ROWS // len(lengths)
    rows = each * len(lengths)
    mask = torch.arange(T)[:, None] < torch.tensor(lengths).repeat_interleave(each)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(0)
    chunk = bptt.Chunk(xs[:, :rows], ys[:, :rows], None, mask)
    for _ in bptt.unroll(model, per_row, [chunk], strategy=strategy, generator=generator, **options):
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def averagings(kind, strategy, options):
    """(updates, reductions of gradients) of a run."""
    counted = []

    def counting(name, original):
        def function(*more, **keywords):
            counted.append(name)
            return original(*more, **keywords)

        return function

    def hook(_, bucket):
        counted.append("bucket")
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    names = {"average": ["all_reduce"], "fsdp": ["reduce_scatter_tensor", "reduce_scatter_single"]}
    model = wrapped(kind, Model())
    if kind == "ddp":
        model.register_comm_hook(None, hook)
        return len(run(model, kind, strategy, mine(), **options)[1]), len(counted)
    with pytest.MonkeyPatch.context() as patch:
        for name in names[kind]:
            if original := getattr(dist, name, None):
                patch.setattr(dist, name, counting(name, original))
        return len(run(model, kind, strategy, mine(), **options)[1]), len(counted)


class Step(nn.Module):
    """One step, to be lifted by scan."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.head = nn.Linear(7, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)

    def forward(self, x, state):
        state = torch.tanh(self.inner(torch.cat([x, state], -1)))
        return self.head(state), state


class Normed(Model):
    """With buffers, which DDP broadcasts unless it is told not to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=F64))


def hidden(kind, strategy, options):
    """Wrappers that aren't the model itself: within scan, or closed over; shards within shards."""
    if kind == "nested":
        model = Model()
        fully_shard(model.head)
        return run(fully_shard(model), "fsdp", strategy, mine(), **options)
    if kind == "one":
        return run(
            bptt.scan(Step()), "none", strategy, slice(None), state=torch.zeros(ROWS, 4, dtype=F64), dim=0, **options
        )
    step = DDP(Step())
    model = bptt.scan(step)
    if kind == "closure":
        inner = model
        model = lambda x, s: inner(x, s)  # noqa: E731
        model.parameters = step.parameters
    start = torch.zeros(ROWS // 2, 4, dtype=F64)
    return run(model, "ddp", strategy, mine(), state=start, dim=0, **options)


def buffers(strategy, resets, broadcast):
    """A wrapper that broadcasts buffers, or one that doesn't, with rows that reset."""
    try:
        return run(DDP(Normed(), broadcast_buffers=broadcast), "ddp", strategy, mine(), resets=resets)
    except ValueError as error:
        return str(error)


def evaluated(split, group):
    """(loss, mean loss) over the rows of all ranks: the first of them have the first `split`."""
    own = slice(0, split) if dist.get_rank() == 0 else slice(split, ROWS)
    model = DDP(Model())
    found = bptt.evaluate(model, per_row, chunks(own, masked=True), group=dist.group.WORLD if group else None)
    return found.loss.item(), found.mean_loss.item()


def merged(kind, strategy):
    """The gradient by `backward`."""
    model = wrapped(kind, Model())
    options = {"group": dist.group.WORLD} if kind == "average" else {}
    xs, ys, mask = data()
    chunk = (xs[:, mine()], ys[:, mine()], None, mask[:, mine()])
    bptt.backward(model, per_row, chunk, strategy=strategy, reduction="valid", **options)
    if kind == "average":
        bptt.distributed.average_gradients(model.parameters())
    return [p.grad.numpy() for p in model.parameters()]


def averaged():
    """Gradients of several kinds by average_gradients, and what it refuses."""
    rank = dist.get_rank()
    params = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (F64, F64, torch.float32, torch.complex128, F64)]
    params[0].grad = torch.tensor([1.0, 2.0], dtype=F64) * (1 + rank)
    if rank == 1:  # the other has none
        params[1].grad = torch.tensor([4.0, 8.0], dtype=F64)
    params[2].grad = torch.full((2,), 1e38)  # whose sum overflows
    params[3].grad = torch.tensor([1 + 2j, 0], dtype=torch.complex128) * rank
    same = params[0].grad
    bptt.distributed.average_gradients(params)
    told = []
    sparse = nn.Embedding(3, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    for wrong in (sparse.parameters(), fully_shard(nn.Linear(2, 2)).parameters(), [1.0]):
        try:
            bptt.distributed.average_gradients(wrong)
        except TypeError as error:
            told.append(str(error))
    return [p.grad if p.grad is None else p.grad.tolist() for p in params], params[0].grad is same, told


def private():
    """What `_torch` takes from wrappers, as it can be observed."""
    model = DDP(nn.Linear(2, 2, dtype=F64))
    seen = [_torch.joins(model), _torch.unwrapped(model) is model.module]
    with model.join():
        seen.append(_torch.joins(model))
    outputs = model(torch.ones(2, dtype=F64))
    torch.autograd.backward([outputs.sum()], inputs=[model.module.weight])
    seen.append(_torch.is_reduced(model))
    fine = DDP(nn.Linear(2, 2, dtype=F64))
    fine(torch.ones(2, dtype=F64)).sum().backward()
    seen.append(_torch.is_reduced(fine))
    sharded = fully_shard(nn.Linear(2, 2, dtype=F64))
    with torch.no_grad(), _torch.gathered(sharded):
        sharded(torch.ones(2, dtype=F64))
        seen.append(type(sharded.weight) is nn.Parameter)
        if dist.get_rank() == 0:  # which would wait for the other
            sharded(torch.ones(2, dtype=F64))
    return [*seen, hasattr(sharded.weight, "full_tensor")]


def resumed(strategy):
    """The weights of a run that another one goes on with after two updates."""
    model = DDP(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    def updates(seed):
        generator = torch.Generator().manual_seed(seed)
        return bptt.unroll(model, per_row, list(chunks(mine())), strategy=strategy, generator=generator)

    def train_on(some):
        for _ in some:
            optimizer.step()
            optimizer.zero_grad()

    first, second = updates(0), updates(5)
    train_on(zip(range(2), first, strict=False))
    second.load_state_dict(first.state_dict())
    train_on(second)
    return weights(model)


def relayed(kind, strategy, options, split, steps, given=None):
    """A run that stops after so many updates: (weights, the state with the rows of all ranks).

    kind: "one", on all rows; or ranks whose rows are cut at `split`. given: the two to go on from.
    """
    rows = slice(None) if kind == "one" else slice(0, split) if dist.get_rank() == 0 else slice(split, ROWS)
    group = None if kind == "one" else dist.group.WORLD
    model = Model()
    if given is not None:
        torch.nn.utils.vector_to_parameters(
            torch.cat([torch.as_tensor(w).flatten() for w in given[0]]), model.parameters()
        )
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.3), torch.Generator().manual_seed(0)
    run = bptt.unroll(
        model,
        per_row,
        list(chunks(rows)),
        strategy=strategy,
        generator=generator,
        group=group,
        state_batch_dim=1,
        **options,
    )
    if given is not None:
        run.load_state_dict(bptt.distributed.narrow_state(given[1], slice(rows.start, rows.stop)))
    for count, _ in enumerate(run, 1):
        if group is not None:
            bptt.distributed.average_gradients(model.parameters(), group)
        optimizer.step()
        optimizer.zero_grad()
        if count == steps:
            break
    return weights(model), bptt.distributed.gather_state(run.state_dict(), group=group)


def apart():
    """Gathered after different updates."""
    try:
        relayed("one", bptt.TruncatedBPTT(5), {}, None, 1 + dist.get_rank())
    except ValueError as error:
        return str(error)


def page(path):
    """The blocks of a page as this rank runs them: the weights after it has ended."""
    namespace = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(dist.get_rank()))
        for block in code(path):
            exec(compile(block.text, str(path), "exec"), namespace)
    return [namespace["size"], weights(namespace["model"])]
