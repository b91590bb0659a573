"""What does `bptt.unroll` cost over a hand-written detach loop?

LSTM (64 -> 256) with a linear readout, cross entropy, batch 32, one stream, SGD after every window of k steps, the same
seeds and data. Both loops are asserted to give the same losses. They then run side by side, one window each in changing
order; the figure is the median of the pairs' ratios. It doesn't include what a run costs once, at its first window.

    python benchmarks/overhead.py [--pairs 41] [--quick]

Target: at most 1.03 at k1 = k2 = 64. The row k = 20 is for information: the shorter the window, the more its fixed cost
shows.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import bptt
from support import Guard, paired, report

INPUTS, HIDDEN, CLASSES, BATCH = 64, 256, 64, 32
CHUNK = 4  # windows per chunk of the stream
TARGET, TARGET_K = 1.03, 64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, HIDDEN)
        self.readout = nn.Linear(HIDDEN, CLASSES)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, state = self.lstm(inputs, state)
        return self.readout(outputs), state


def setup() -> tuple[Net, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = Net()
    state = (torch.zeros(1, BATCH, HIDDEN), torch.zeros(1, BATCH, HIDDEN))
    return net, torch.optim.SGD(net.parameters(), lr=0.1), state


def stream(k: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(CHUNK * k, BATCH, INPUTS, generator=generator)
    targets = torch.randint(CLASSES, (CHUNK * k, BATCH), generator=generator)
    while True:
        yield inputs, targets


def by_hand(k: int) -> Iterator[Tensor]:
    """The loop that everyone writes; yields one loss per window."""
    net, optimizer, state = setup()
    criterion = nn.CrossEntropyLoss()
    for inputs, targets in stream(k):
        for a in range(0, len(inputs), k):
            logits, state = net(inputs[a : a + k], state)
            state = tuple(leaf.detach() for leaf in state)
            loss = criterion(logits.flatten(0, 1), targets[a : a + k].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.detach()


def by_unroll(k: int) -> Iterator[Tensor]:
    """Its replacement. With reduction="mean" a window's divisor is k, as in the loop above."""
    net, optimizer, state = setup()
    loss = bptt.per_step(nn.CrossEntropyLoss())
    for update in bptt.unroll(net, loss, stream(k), state, strategy=bptt.TruncatedBPTT(k1=k, k2=k)):
        optimizer.step()
        optimizer.zero_grad()
        yield update.mean_loss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=41, help="undisturbed pairs per row (15 at least for a verdict)")
    parser.add_argument("--quick", action="store_true", help="3 pairs per row, nothing judged")
    args = parser.parse_args()
    pairs = 3 if args.quick else max(args.pairs, 15)
    guard = Guard(slack=float("inf") if args.quick else 1.3)

    rows, missed = [], []
    for k in (TARGET_K, 20):
        hand, engine = by_hand(k), by_unroll(k)
        for _ in range(2 * CHUNK):
            torch.testing.assert_close(next(engine), next(hand), rtol=1e-5, atol=1e-6)
        result = paired(lambda it=hand: next(it), lambda it=engine: next(it), pairs, guard)
        judged = k == TARGET_K
        if judged and not args.quick and result.ratio > TARGET:
            missed.append(f"k = {k}: {result.ratio:.3f} times the hand-written loop, target {TARGET}")
        milliseconds = [f"{1e3 * median:.2f}" for median in (result.first, result.second)]
        target = f"<= {TARGET}" if judged else "-"
        rows.append([k, *milliseconds, f"{result.ratio:.3f}", result.spread, target, result.pairs, result.dropped])
    headings = [
        "k1 = k2",
        "by hand, ms/window",
        "unroll, ms/window",
        "ratio",
        "quartiles",
        "target",
        "pairs",
        "dropped",
    ]
    return report("overhead_quick" if args.quick else "overhead", headings, rows, missed)


if __name__ == "__main__":
    sys.exit(main())
