"""What do two processes gain over one, on the same batch; and how often do they wait for each other?

LSTM (64 -> H) with a linear readout, cross entropy, windows of 64 steps, batch 32, SGD: one process with all rows, and
two of 16 rows each over gloo, with one thread per process. The two settings run side by side, one update each in
changing order; the figure is the median of the pairs' ratios, and 0.5 is the most that two processes can gain. After
the first three updates the weights of both are asserted to be the same. The exchanges of an update are counted:
agreements, of seven numbers per rank, and reductions of the gradients.

    python benchmarks/ranks.py [--pairs 21] [--quick]

There is no target: the result depends on the number of cores, and on the network between them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import bptt
from support import Guard, paired, report

INPUTS, CLASSES, BATCH, K = 64, 64, 32, 64
ROWS = [  # units, how gradients are averaged, memory
    (64, "average", None),
    (256, "average", None),
    (256, "average", "4MiB"),
    (256, "ddp", None),
    (256, "ddp", "4MiB"),
    (512, "ddp", None),
]
COUNTED = {"agreements": 0, "reductions": 0}


class Net(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, hidden)
        self.readout = nn.Linear(hidden, CLASSES)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.lstm(inputs, state)
        return self.readout(outputs), state


def stream(rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4 * K, BATCH, INPUTS, generator=generator)[:, rows]
    targets = torch.randint(CLASSES, (4 * K, BATCH), generator=generator)[:, rows]
    while True:
        yield inputs, targets


def updates(hidden: int, kind: str, memory: str | None, rows: slice) -> Iterator[list[Tensor]]:
    """The weights after each update. kind: "alone", or how the processes average."""
    torch.manual_seed(0)
    model: Any = Net(hidden)
    if kind == "ddp":
        model = DistributedDataParallel(model)
        model.register_comm_hook(None, allreduce_hook)  # what it does by itself, where it can be counted
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    loss, group = bptt.per_step(nn.CrossEntropyLoss()), dist.group.WORLD if kind == "average" else None
    for _ in bptt.unroll(
        model, loss, stream(rows), strategy=bptt.TruncatedBPTT(K), memory=memory, group=group, state_batch_dim=1
    ):
        if kind == "average":
            bptt.distributed.average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
        yield parameters


def counted(function: str, name: str) -> Any:
    """A function of torch.distributed that counts its calls."""
    original = getattr(dist, function)

    def called(*given: Any, **more: Any) -> Any:
        COUNTED[name] += 1
        return original(*given, **more)

    return called


def serve() -> None:
    """The second process: an update of the row that each line names, made together with the first one."""
    running: dict[int, Iterator[Any]] = {}
    for line in sys.stdin:
        row = int(line)
        if row not in running:
            running = {row: updates(*ROWS[row], slice(BATCH // 2, BATCH))}
        next(running[row])


def measured(row: int, other: Any, pairs: int, guard: Guard) -> list[Any]:
    hidden, kind, memory = ROWS[row]
    alone, half = updates(hidden, "alone", memory, slice(BATCH)), updates(hidden, kind, memory, slice(BATCH // 2))

    def together() -> list[Tensor]:
        other.stdin.write(f"{row}\n")
        other.stdin.flush()
        return next(half)

    for _ in range(3):
        for one, two in zip(next(alone), together(), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    COUNTED.update(agreements=0, reductions=0)
    together()
    exchanges = [COUNTED["agreements"], COUNTED["reductions"]]
    result = paired(lambda: next(alone), together, pairs, guard)
    times = [f"{1e3 * median:.1f}" for median in (result.first, result.second)]
    how = {"average": "average_gradients", "ddp": "DistributedDataParallel"}[kind]
    return [hidden, how, memory or "-", *times, f"{result.ratio:.2f}", result.spread, *exchanges, result.dropped]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=21, help="undisturbed pairs per row")
    parser.add_argument("--quick", action="store_true", help="3 pairs per row")
    parser.add_argument("--second", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = args.second or os.path.join(tempfile.mkdtemp(), "meeting")
    rank = int(args.second is not None)
    other: Any = None
    if rank == 0:
        other = subprocess.Popen([sys.executable, __file__, "--second", meeting], stdin=subprocess.PIPE, text=True)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if rank == 1:
        serve()
        return 0
    dist.all_gather, dist.all_reduce = counted("all_gather", "agreements"), counted("all_reduce", "reductions")
    guard = Guard(slack=float("inf") if args.quick else 1.3)
    try:
        rows = [measured(row, other, 3 if args.quick else args.pairs, guard) for row in range(len(ROWS))]
    finally:
        other.stdin.close()
        other.wait()
        dist.destroy_process_group()
        torch.set_num_threads(threads)
    names = ["units", "gradients by", "memory", "one, ms/update", "two, ms/update", "ratio", "quartiles"]
    headings = [*names, "agreements", "reductions", "dropped"]
    return report("ranks_quick" if args.quick else "ranks", headings, rows, [], judged=False)


if __name__ == "__main__":
    sys.exit(main())
