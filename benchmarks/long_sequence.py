"""Does the exact gradient of a very long sequence fit, and what does it cost?

LSTM (8 -> 16), one sequence, full back-propagation through time with `memory=`:

1. memory: saved tensors and stored states, as the update reports them, against full storage (bytes per step, measured
   on a run that stores everything, times T). Target at T = 1e6: at most 1/300;
2. growth: time per step at 1e6 against 1e4 with the same number of replays. Target: at most 1.3;
3. cost: time against full storage at 1e5, where that fits. Target: at most 1.5.

Times are medians of pairs that ran side by side in changing order. The gradient under a budget is asserted equal to
the one with full storage, to float32 rounding.

    python benchmarks/long_sequence.py [--pairs 5] [--quick]
"""

import argparse
import sys

import torch
from torch import Tensor, nn

import bptt
from support import Guard, paired, report

SLOTS = bptt.Checkpoints(slots=1000, segment=1000)  # at 1e6 steps every segment's start has a slot: one replay each
BYTES = "2MiB"
SMALL, MEDIUM, LARGE = 10_000, 100_000, 1_000_000
MEMORY_TARGET, GROWTH_TARGET, COST_TARGET = 1 / 300, 1.3, 1.5


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[..., 0] - targets).square().mean(-1)


class Job:
    """The gradient of one sequence of `steps` steps."""

    def __init__(self, steps: int, memory: bptt.Checkpoints | str | None, repeat: int = 1):
        self.memory, self.repeat = memory, repeat
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(steps, 1, 8, generator=generator)
        self.targets = self.inputs[..., 0].cumsum(0).sin()
        torch.manual_seed(1)
        self.model = nn.LSTM(8, 16)
        self.update: bptt.Update | None = None

    def __call__(self) -> None:
        for _ in range(self.repeat):
            self.model.zero_grad()
            self.update = bptt.backward(self.model, loss, (self.inputs, self.targets), memory=self.memory)

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def bytes_a_step() -> float:
    """Of full storage: the slope between two lengths, since saved bytes are affine in the length."""
    reported = []
    for steps in (5_000, 10_000):
        job = Job(steps, None)
        job()
        reported.append(job.update.memory_bytes)
    return (reported[1] - reported[0]) / 5_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="undisturbed pairs a figure (at least 5 for a verdict)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the lengths, 1 pair, nothing judged")
    args = parser.parse_args()
    torch.set_num_threads(1)  # 16 units are no work to share: threads would only wait for one another
    shrink = 10 if args.quick else 1
    small, medium, large = SMALL // shrink, MEDIUM // shrink, LARGE // shrink
    pairs = 1 if args.quick else max(args.pairs, 5)
    guard = Guard(slack=float("inf") if args.quick else 1.3)
    full_bytes = bytes_a_step()
    rows, missed = [], []

    def judge(what: str, value: float, target: float) -> None:
        if not args.quick and value > target:
            missed.append(f"{what}: {value:.4g}, target {target:.4g}")

    for memory in (SLOTS, BYTES):
        name = memory if isinstance(memory, str) else f"{memory.slots} slots of {memory.segment}"
        stored, budgeted = Job(medium, None), Job(medium, memory)
        cost = paired(stored, budgeted, pairs, guard)
        torch.testing.assert_close(budgeted.gradient(), stored.gradient(), rtol=1e-3, atol=1e-6)
        rows.append(row(medium, "full storage", stored, full_bytes, cost.first, None))
        rows.append(row(medium, name, budgeted, full_bytes, cost.second, cost.ratio))
        judge(f"time against full storage at {medium} steps, {name}", cost.ratio, COST_TARGET)

        # the short job is repeated, so that both of a pair take long enough to be timed
        repeat = 10
        short, long = Job(small, SLOTS, repeat), Job(large, memory)
        growth = paired(short, long, pairs, guard)
        per_step = growth.ratio * small * repeat / large
        rows.append(row(small, f"{SLOTS.slots} slots of {SLOTS.segment}", short, full_bytes, growth.first, None))
        rows.append(row(large, name, long, full_bytes, growth.second, None))
        used = long.update.memory_bytes / (full_bytes * large)
        judge(f"memory of full storage at {large} steps, {name}", used, MEMORY_TARGET)
        if memory is SLOTS:
            judge(f"time per step at {large} against {small} steps", per_step, GROWTH_TARGET)
        print(
            f"{name}: {per_step:.3f} of the time per step at {small}, 1/{1 / used:.0f} of full storage at {large} steps"
        )
    headings = ["steps", "memory", "bytes used", "of full", "forwards", "us/step", "time / full storage"]
    name = "long_sequence_quick" if args.quick else "long_sequence"
    return report(name, headings, rows, missed, bytes_a_step_stored=full_bytes)


def row(steps: int, name: str, job: Job, full_bytes: float, took: float, ratio: float | None) -> list[object]:
    update = job.update
    assert update is not None
    return [
        f"{steps:,}",
        name,
        f"{update.memory_bytes:,}",
        f"1/{full_bytes * steps / update.memory_bytes:.0f}",
        f"{update.forward_steps / steps:.2f}",
        f"{1e6 * took / job.repeat / steps:.2f}",
        "-" if ratio is None else f"{ratio:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
