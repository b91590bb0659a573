"""Do the claims that are taught about truncated back-propagation through time hold when they are measured?

1. Full BPTT is slow, and its memory grows with the length: an LSTM at T = 250 and 1,000; an update through 1,000 steps
   against one of TBPTT(50) on the same stream.
2. Truncation biases towards short-term influence: influence balancing (Tallec & Ollivier 2017), whose parameter helps
   at once and harms later. The gradient of TBPTT(10) has the wrong sign.
3. Random lengths alone reduce the bias, with the factors they remove it: s_t = a s_{t-1} + x_t at a = 0.9, windows of
   10 on average, cut by row; the 99 % interval tells whether the bias is zero.
4. Gradients vanish or explode with the initialisation, and clipping cures the second: a linear network of 8 units with
   W = r times an orthogonal matrix, ‖∂h_50/∂h_0‖ = r^50 √8; then SGD on it with and without clipping.
5. ARTBP's practical gain over TBPTT is small: that is ptb_char.py, beside this file.

    python benchmarks/reproductions/claims.py [--quick]

Every claim has a condition that decides it, in the last column. `--quick` draws less and judges nothing.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.data.tasks import InfluenceBalancing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import report

A, ROWS, STEPS, UNITS = 0.9, 100, 50, 8
Row = tuple[str, str, str, str, bool]
"""Claim, what was measured, the value, what it should be, and whether it is."""


def memory_and_time() -> list[Row]:
    """Claim 1."""
    torch.manual_seed(0)
    model, loss, held, seconds = nn.LSTM(16, 64), bptt.per_step(nn.MSELoss()), {}, {}
    for steps in (250, 1000):
        chunk = torch.randn(steps, 16, 16), torch.randn(steps, 16, 64)
        for name, strategy in (("full", bptt.FullBPTT()), ("TBPTT(50)", bptt.TruncatedBPTT(50))):
            taken: list[float] = []
            updates: list[bptt.Update] = []
            for _ in range(3):
                began = time.perf_counter()
                updates = list(bptt.unroll(model, loss, [chunk], strategy=strategy))
                taken.append((time.perf_counter() - began) / len(updates))
            held[name, steps] = max(update.memory_bytes for update in updates)
            seconds[name, steps] = statistics.median(taken)
    full, cut = (held[name, 1000] / held[name, 250] for name in ("full", "TBPTT(50)"))
    slow = seconds["full", 1000] / seconds["TBPTT(50)", 1000]
    claim = "full BPTT is slow, its memory grows"
    return [
        (claim, "bytes at T = 1000 over those at 250, full", f"{full:.2f}", "3.8 to 4.2", 3.8 <= full <= 4.2),
        (claim, "the same, TBPTT(50)", f"{cut:.2f}", "1", abs(cut - 1) < 0.01),
        (claim, "time of an update at T = 1000, full over TBPTT(50)", f"{slow:.1f}", "> 5", slow > 5),
    ]


def short_term() -> list[Row]:
    """Claim 2."""
    task, found = InfluenceBalancing(), {}
    for k in (10, 100, 200, None):
        model = task.model()
        strategy = bptt.FullBPTT() if k is None else bptt.TruncatedBPTT(k)
        stream, state = task.stream(1000, 1000), task.start()
        for _ in bptt.unroll(model, task.loss, stream, state, strategy=strategy, reduction="sum"):
            pass  # gradients add up; no parameter moves
        assert model.theta.grad is not None
        found[k] = model.theta.grad.item()
    claim = "truncation biases to the short term"
    wanted = {10: ("< 0: the wrong sign", lambda r: r < 0), 200: ("0.5 to 1", lambda r: 0.5 < r <= 1)}
    return [
        (claim, f"gradient of TBPTT({k}) over the exact one", f"{found[k] / found[None]:.3f}", text, met(ratio))
        for k, (text, met) in wanted.items()
        for ratio in [found[k] / found[None]]
    ]


def random_lengths(draws: int) -> list[Row]:
    """Claim 3."""
    x, y = torch.randn(2, STEPS, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.full((ROWS,), A, dtype=torch.float64, requires_grad=True)
    law = bptt.ConstantLaw(10)
    fixed, alone, factors = bptt.compare(
        bptt.scan(lambda x, s: (a * s + x, a * s + x)),
        lambda outputs, targets: (outputs - targets) ** 2,
        (x.expand(STEPS, ROWS), y.expand(STEPS, ROWS)),
        torch.zeros(ROWS, dtype=torch.float64),
        strategies=[
            bptt.TruncatedBPTT(10),
            bptt.ARTBP(law, per_row=True, compensate=False),
            bptt.ARTBP(law, per_row=True),
        ],
        draws=draws,
        state_batch_dim=0,
        params=[a],
        generator=torch.Generator().manual_seed(0),
    ).entries
    claim = "random lengths reduce bias, factors remove it"

    def shown(entry: bptt.Compared) -> str:
        value, low, high = entry.signed_bias
        return f"{value:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if entry.draws > 1 else "")

    less = abs(fixed.signed_bias.value)
    low, high = alone.signed_bias.low, alone.signed_bias.high
    return [
        (claim, "relative bias, lengths of 10", shown(fixed), "not 0", less > 0.01),
        (
            claim,
            "random lengths, no factors",
            shown(alone),
            "nearer to 0, without it",
            max(abs(low), abs(high)) < less and low * high > 0,
        ),
        (
            claim,
            "random lengths, factors",
            shown(factors),
            "around 0",
            factors.signed_bias.low <= 0 <= factors.signed_bias.high,
        ),
    ]


class Linear(nn.Module):
    """h_t = W h_{t-1} + x_t with W = r times an orthogonal matrix; the outputs are the states."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(radius * nn.init.orthogonal_(torch.empty(UNITS, UNITS, dtype=torch.float64)))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h @ self.weight.T + x
        return h, h


def learned(radius: float, clip: float | None, updates: int) -> tuple[float, float]:
    """First and last mean loss of SGD towards h = x, with or without clipping; infinite where it broke down."""
    torch.manual_seed(0)
    step = Linear(radius)
    model, optimizer = bptt.scan(step), torch.optim.SGD(step.parameters(), lr=0.01)
    losses = []
    try:
        for _ in range(updates):
            x = torch.randn(STEPS, 16, UNITS, dtype=torch.float64)
            start = torch.zeros(16, UNITS, dtype=torch.float64)
            losses.append(bptt.backward(model, bptt.per_step(nn.MSELoss()), (x, x), start).mean_loss.item())
            if clip is not None:
                nn.utils.clip_grad_norm_(step.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    except bptt.NonFiniteLossError:
        losses.append(math.inf)
    return losses[0], losses[-1]


def initialisation(updates: int) -> list[Row]:
    """Claim 4."""
    claim, rows = "gradients vanish or explode, clipping cures", []
    for radius, wanted, met in ((0.8, "< 1e-3", lambda n: n < 1e-3), (1.2, "> 1e3", lambda n: n > 1e3)):
        torch.manual_seed(0)
        model = bptt.scan(Linear(radius))
        state = torch.zeros(UNITS, dtype=torch.float64, requires_grad=True)
        last = model(torch.zeros(STEPS, UNITS, dtype=torch.float64), state)[1]
        jacobian = torch.stack([torch.autograd.grad(entry, state, retain_graph=True)[0] for entry in last])
        norm = jacobian.norm().item()
        rows.append((claim, f"‖∂h_50/∂h_0‖ at radius {radius}", f"{norm:.3g}", wanted, met(norm)))
    for clip in (None, 1.0):
        first, last = learned(1.2, clip, updates)
        name = "no clipping" if clip is None else "gradient norm clipped at 1"
        met = last > first if clip is None else last < 0.01 * first
        wanted = "larger, or not finite" if clip is None else "< 1 % of the first"
        text = f"{first:.3g} -> {last:.3g}"
        rows.append((claim, f"loss of {updates} updates at radius 1.2, {name}", text, wanted, met))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="The claims that are taught, each measured.")
    parser.add_argument("--quick", action="store_true", help="few draws and updates: nothing is judged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    draws, updates = (5, 5) if args.quick else (400, 300)
    found = [*memory_and_time(), *short_term(), *random_lengths(draws), *initialisation(updates)]
    rows: list[list[Any]] = [[*row[:4], "yes" if row[4] else "no"] for row in found]
    missed = [] if args.quick else [f"{row[1]}: {row[2]}, should be {row[3]}" for row in found if not row[4]]
    headings = ["claim", "measured", "value", "should be", "holds"]
    return report("claims_quick" if args.quick else "claims", headings, rows, missed)


if __name__ == "__main__":
    sys.exit(main())
