"""Does `bptt.plan` predict what runs take?

Five points (T, B, H, budget) for nn.RNN, nn.LSTM and a user's step under `scan`. A plan is made from the first steps of
each problem; then its rows are run, and compared:

1. memory: predicted over measured `Update.memory_bytes`. Target: within 15 %;
2. time: predicted over measured seconds, each divided by that of a reference step (a matrix product with tanh) timed
   beside it, so that it doesn't matter if the machine has become slower. Target: within 30 %, for the rows that fit: no
   probe is as large as those that don't.

    python benchmarks/plan.py [--runs 5] [--quick]
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import bptt
from support import Guard, report, seconds

POINTS = [
    (500, 8, 32, None),
    (1000, 4, 64, "1MiB"),
    (1500, 16, 64, "4MiB"),
    (3000, 1, 16, "256KiB"),
    (800, 32, 128, "16MiB"),
]
INPUTS, PROBE = 8, 256
LOSS = bptt.per_step(nn.MSELoss())
MEMORY_TARGET, TIME_TARGET = 0.15, 0.30


class Step(nn.Module):
    """A user's step: a leaky tanh unit."""

    def __init__(self, hidden: int):
        super().__init__()
        self.inner = nn.Linear(INPUTS + hidden, hidden)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = 0.9 * state + 0.1 * torch.tanh(self.inner(torch.cat([x, state], -1)))
        return state, state


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "RNN": lambda hidden: nn.RNN(INPUTS, hidden),
    "LSTM": lambda hidden: nn.LSTM(INPUTS, hidden),
    "step": lambda hidden: bptt.scan(Step(hidden)),
}


class Reference:
    """What a time is divided by: a fixed amount of small matrix products, about 2 ms."""

    def __init__(self):
        self.matrix, self.rows = torch.randn(64, 64) / 8, torch.randn(16, 64)

    def __call__(self) -> float:
        def steps() -> None:
            rows = self.rows
            for _ in range(200):
                rows = torch.tanh(rows @ self.matrix)

        return min(seconds(steps) for _ in range(5))


class Job:
    """The gradient that a row of a plan speaks of."""

    def __init__(self, model: nn.Module, chunk: tuple[Tensor, Tensor], state: Tensor | None, row: bptt.PlanRow):
        self.model, self.chunk, self.state, self.row = model, chunk, state, row
        self.held = 0

    def __call__(self) -> None:
        self.model.zero_grad()
        update = bptt.backward(
            self.model, LOSS, self.chunk, self.state, strategy=self.row.strategy, memory=self.row.memory
        )
        self.held = update.memory_bytes

    def timed(self, reference: Reference, guard: Guard, count: int) -> float:
        """Median of `count` undisturbed runs in units of the reference; of what there is after 8 times the attempts."""
        calm: list[float] = []
        every: list[float] = []
        while len(calm) < count and len(every) < 8 * count:
            quiet, beside = guard.quiet(), reference()
            taken = seconds(self) / statistics.mean([beside, reference()])
            every.append(taken)
            if guard.quiet() and quiet:
                calm.append(taken)
        return statistics.median(calm or every)


def strategies(steps: int) -> list[object]:
    return [bptt.FullBPTT(), bptt.TruncatedBPTT(64), bptt.TruncatedBPTT(steps // 20, steps // 10)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per row, of which the median counts (at least 5)")
    parser.add_argument("--quick", action="store_true", help="one point, one run a row, nothing judged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = 1 if args.quick else max(args.runs, 5)
    guard = Guard(slack=float("inf") if args.quick else 1.3)
    reference = Reference()
    rows, missed = [], []
    for steps, batch, hidden, budget in POINTS[:1] if args.quick else POINTS:
        torch.manual_seed(0)
        inputs, targets = torch.randn(steps, batch, INPUTS), torch.randn(steps, batch, hidden)
        for name, make in MODELS.items():
            model = make(hidden)
            state = torch.zeros(batch, hidden) if name == "step" else None
            guard.wait(0 if args.quick else 10)
            before = reference()
            found = bptt.plan(
                model,
                LOSS,
                (inputs[:PROBE], targets[:PROBE]),
                state,
                steps=steps,
                memory=budget,
                strategies=strategies(steps),
            )
            planned_beside = statistics.mean([before, reference()])
            for row in found.rows:
                run = Job(model, (inputs, targets), state, row)
                run()
                taken = run.timed(reference, guard, count)
                memory, ratio = row.memory_bytes / run.held, row.seconds / planned_beside / taken
                what = f"{name} T={steps} B={batch} H={hidden} {row.strategy} {row.memory}"
                if abs(memory - 1) > MEMORY_TARGET:
                    missed.append(f"{what}: {memory:.2f} of the bytes, target within {MEMORY_TARGET:.0%}")
                if row.fits and abs(ratio - 1) > TIME_TARGET:
                    missed.append(f"{what}: {ratio:.2f} of the time, target within {TIME_TARGET:.0%}")
                kept = "stored" if row.memory is None else f"{row.memory.slots} x {row.memory.segment}"
                truncated = isinstance(row.strategy, bptt.TruncatedBPTT)
                which = f"TBPTT({row.strategy.k1}, {row.strategy.k2})" if truncated else "full"
                best = "*" if row == found.best else ""
                took = f"{1e3 * row.seconds:.2f}"
                rows.append(
                    [name, steps, batch, hidden, budget, which, kept, best, took, f"{memory:.3f}", f"{ratio:.2f}"]
                )
    headings = ["model", "T", "B", "H", "budget", "strategy", "memory", "best", "predicted ms", "bytes", "time"]
    if args.quick:
        missed = []
    return report("plan_quick" if args.quick else "plan", headings, rows, missed, probe_steps=PROBE)


if __name__ == "__main__":
    sys.exit(main())
