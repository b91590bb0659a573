"""Does an unbiased gradient find the optimum where truncation walks away from it?

Influence balancing (Tallec & Ollivier 2017, arXiv 1705.08209; constants of Vicol et al. 2023, google/persistent_es):

    s_{t+1} = A s_t + θ v,    A_ii = A_{i,i+1} = 1/2,    v = (+1 ten times, -1 thirteen times),    s_0 = ones
    l_t = ½ (s_t[0] - 1)²,    optimum θ* = -1/6

θ moves s[0] up within ten steps and, through the chain, further down later: the gradient of a short window has the
wrong sign. The losses of a window are summed, the state is carried, SGD takes one step per update with learning rate
1e-5.

    python benchmarks/influence_balancing.py [--steps 60000] [--seed 0]

The values expected at 60,000 steps, computed twice and independently of this code, are in `EXPECTED`. Runs with fewer
steps are trial runs, and nothing is judged.
"""

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import bptt
from bptt.data.tasks import InfluenceBalancing
from support import report

TASK = InfluenceBalancing()
LOST, CHUNK = 1e4, 1_000

# name: (strategy, expected θ, tolerance); None: |θ| passes `LOST`
EXPECTED = {
    "TBPTT k=1": (bptt.TruncatedBPTT(k1=1), 23.53, 0.01 * 23.53),
    "TBPTT k=10": (bptt.TruncatedBPTT(k1=10), None, None),
    "TBPTT k=100": (bptt.TruncatedBPTT(k1=100), 4.274, 0.01 * 4.274),
    "TBPTT k=200": (bptt.TruncatedBPTT(k1=200), TASK.optimum, 1e-3),
    "ARTBP α=6 T0=16": (bptt.ARTBP(law=bptt.PolynomialLaw(alpha=6, mean_length=16)), TASK.optimum, 1e-3),
    "ARTBP α=3 T0=50": (bptt.ARTBP(law=bptt.PolynomialLaw(alpha=3, mean_length=50)), TASK.optimum, 1e-3),
    "RTRL": (bptt.RTRL(), TASK.optimum, 1e-4),
    "UORO": (bptt.UORO(), TASK.optimum, 1e-4),
}
TRACE = "diagonal trace", 100.0
"""Each unit keeps its own influence alone; expected beyond this. SnAp-1 is exact here, as θ writes all units."""


class StepByStep(nn.Module):
    """The definition: one step of the recurrence. There is no input; a step is only counted by one."""

    def __init__(self, theta: nn.Parameter):
        super().__init__()
        self.theta = theta
        self.A, self.v = TASK.dynamics()

    def forward(self, _: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.A @ state + self.theta * self.v
        return state[0], state


def check_against_definition() -> None:
    """Losses, last state and gradient of the fast recurrence are those of the step-by-step one."""
    fast = TASK.model()
    slow = bptt.scan(StepByStep(fast.theta))
    for steps in (1, 7, 300):
        results = []
        for model in (slow, fast):
            chunk = next(TASK.stream(steps, steps))
            update = bptt.backward(model, TASK.loss, chunk, TASK.start(), reduction="sum")
            results.append((update.loss, update.state, fast.theta.grad.clone()))
            fast.theta.grad = None
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def run(strategy: object, steps: int, seed: int) -> tuple[float, int, int]:
    """θ after `steps` time steps, or after the update that lost it; and the time steps and updates made."""
    model = TASK.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=TASK.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    done = updates = 0
    stream, state = TASK.stream(CHUNK, steps), TASK.start()
    for update in bptt.unroll(model, TASK.loss, stream, state, strategy=strategy, reduction="sum", generator=generator):
        optimizer.step()
        optimizer.zero_grad()
        done, updates = update.t1, updates + 1
        if abs(model.theta.item()) > LOST:
            break
    return model.theta.item(), done, updates


def trace(steps: int) -> float:
    """θ after `steps` time steps with e_i ← A_ii e_i + v_i in the place of the influence."""
    A, v = TASK.dynamics()
    theta, state, kept = 0.5, TASK.start(), 0.0
    for _ in range(steps):
        state = A @ state + theta * v
        kept = A[0, 0].item() * kept + v[0].item()
        theta -= TASK.learning_rate * (state[0].item() - 1) * kept
    return theta


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=TASK.steps, help="time steps (the expectations hold for 60000)")
    parser.add_argument("--seed", type=int, default=0, help="of ARTBP's cuts")
    args = parser.parse_args()
    torch.set_num_threads(1)  # 23 numbers: threads would only wait for one another
    check_against_definition()

    rows, missed = [], []
    for name, (strategy, expected, tolerance) in EXPECTED.items():
        began = time.perf_counter()
        theta, done, updates = run(strategy, args.steps, args.seed)
        wanted = f"beyond ±{LOST:g}" if expected is None else f"{expected:.4f} ± {tolerance:.2g}"
        met = abs(theta) > LOST if expected is None else abs(theta - expected) <= tolerance
        if args.steps == TASK.steps and not met:
            missed.append(f"{name}: θ = {theta:.5f}, expected {wanted}")
        rows.append([name, f"{theta:.5f}", wanted, done, updates, f"{time.perf_counter() - began:.1f}"])
    began, theta = time.perf_counter(), trace(args.steps)
    if args.steps == TASK.steps and abs(theta) <= TRACE[1]:
        missed.append(f"{TRACE[0]}: θ = {theta:.5f}, expected beyond {TRACE[1]:g}")
    seconds = f"{time.perf_counter() - began:.1f}"
    rows.append([TRACE[0], f"{theta:.5f}", f"beyond ±{TRACE[1]:g}", args.steps, args.steps, seconds])
    headings = ["strategy", "θ at the end", f"expected at {TASK.steps} steps", "steps", "updates", "seconds"]
    name = "influence_balancing" if args.steps == TASK.steps else "influence_balancing_quick"
    return report(name, headings, rows, missed, optimum=TASK.optimum, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
