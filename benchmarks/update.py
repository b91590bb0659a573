"""How fast is a whole update of the character model: layer, readout with its loss, clipping, Adam, and `unroll`?

Embedding 64, one layer of 256 units, 96 symbols, batch 32, windows of 64 steps, clipped to norm 1. "plain" is the loop
that everyone writes with torch.nn's layer, linear, cross entropy and Adam; "bptt" is `unroll` with `bptt.nn`'s layer,
`LinearCrossEntropyLoss` and the fused Adam. Losses of both are asserted equal (1e-4); then they run side by side, and
the figure is the median of the pairs' ratios. The parts are timed alone, in the same process.

    python benchmarks/update.py [--pairs 41] [--quick]

No target is judged here: the one that was set compares with an older commit.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import bptt
from support import Guard, paired, report

EMBEDDING, HIDDEN, SYMBOLS, BATCH, STEPS = 64, 256, 96, 32, 64


class Net(nn.Module):
    def __init__(self, cls: Any):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, EMBEDDING)
        self.layer = cls(EMBEDDING, HIDDEN)

    def forward(self, ids: Tensor, state: Any, cotangent_weight: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.layer(ids, state, cotangent_weight=cotangent_weight, embedding=self.embedding.weight)


def stream(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    ids = torch.randint(SYMBOLS, (steps + 1, BATCH), generator=torch.Generator().manual_seed(1))
    while True:
        yield ids[:-1], ids[1:]


def plain(cell: str, steps: int) -> Iterator[Tensor]:
    """The hand-written loop; yields one loss per window."""
    torch.manual_seed(0)
    embedding, layer = nn.Embedding(SYMBOLS, EMBEDDING), getattr(nn, cell)(EMBEDDING, HIDDEN)
    readout, state = nn.Linear(HIDDEN, SYMBOLS), None
    params = [p for module in (embedding, layer, readout) for p in module.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)
    for ids, targets in stream(steps):
        hidden, state = layer(embedding(ids), state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = functional.cross_entropy(readout(hidden).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def ours(cell: str, steps: int) -> Iterator[Tensor]:
    torch.manual_seed(0)
    net = Net(getattr(bptt.nn, cell))
    loss = bptt.nn.LinearCrossEntropyLoss(HIDDEN, SYMBOLS, bias=True, reduction="none")
    params = [*net.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)
    zeros = torch.zeros(1, BATCH, HIDDEN)
    state = (zeros, zeros.clone()) if cell == "LSTM" else zeros
    for update in bptt.unroll(net, loss, stream(steps), state, strategy=bptt.TruncatedBPTT(steps, steps)):
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield update.mean_loss


def by_torch(steps: int) -> Callable[[], object]:
    """Readout and loss by torch, forward and backward."""
    x, targets = torch.randn(steps * BATCH, HIDDEN, requires_grad=True), torch.randint(SYMBOLS, (steps * BATCH,))
    linear = nn.Linear(HIDDEN, SYMBOLS)
    return lambda: torch.autograd.grad(functional.cross_entropy(linear(x), targets), [x, *linear.parameters()])


def by_us(steps: int) -> Callable[[], object]:
    x, targets = torch.randn(steps * BATCH, HIDDEN, requires_grad=True), torch.randint(SYMBOLS, (steps * BATCH,))
    loss = bptt.nn.LinearCrossEntropyLoss(HIDDEN, SYMBOLS, bias=True)
    return lambda: torch.autograd.grad(loss(x, targets), [x, *loss.parameters()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=41, help="undisturbed pairs per row")
    parser.add_argument("--quick", action="store_true", help="3 pairs per row, few steps")
    args = parser.parse_args()
    guard = Guard(slack=float("inf") if args.quick else 1.3)
    steps, pairs, rows = 4 if args.quick else STEPS, 3 if args.quick else args.pairs, []
    for cell in ("RNN", "GRU", "LSTM"):
        theirs, found = plain(cell, steps), ours(cell, steps)
        for _ in range(5):
            torch.testing.assert_close(next(found), next(theirs), rtol=1e-4, atol=1e-5)
        taken = paired(lambda it=found: next(it), lambda it=theirs: next(it), pairs, guard)
        rows.append([f"{cell}, an update", taken.second, taken.first, taken.ratio, taken.spread, taken.pairs])
    taken = paired(by_us(steps), by_torch(steps), pairs, guard)
    rows.append(["readout with loss", taken.second, taken.first, taken.ratio, taken.spread, taken.pairs])
    shown = [[name, f"{1e3 * a:.2f}", f"{1e3 * b:.2f}", f"{ratio:.2f}", *more] for name, a, b, ratio, *more in rows]
    headings = ["what", "plain torch, ms", "bptt, ms", "plain / bptt", "quartiles", "pairs"]
    return report("update_quick" if args.quick else "update", headings, shown, [], judged=False)


if __name__ == "__main__":
    sys.exit(main())
