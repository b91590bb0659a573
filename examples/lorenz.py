"""A controller trained through chaos: what a cotangent does on its way back over 1,000 steps, and what tames it.

    ż = (σ (y - x), x (ρ - z) - y + u, x y - β z),    u = 20 tanh(MLP(z)) held over a step of 0.02 (RK4)
    l_t = |z_t - C⁺|² / 200 + 1e-4 u_t²

The Lorenz system (σ, ρ, β) = (10, 28, 8/3) is chaotic: neighbours part by a factor of e about every 55 steps, and
cotangents grow likewise on their way back. The policy has to bring the system to rest at the fixed point C⁺ from
anywhere on the attractor. `diagnose` measures the growth; then each of `METHODS` trains for equally many passes. In a
pass of 1,000 steps forward and back, full BPTT makes one update, TBPTT(50) twenty, and ARTBP(50) about as many.

    python examples/lorenz.py [--seed 0] [--out build/lorenz] [--quick]
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

import bptt

D, SIGMA, RHO, BETA, DT, PUSH = torch.float64, 10.0, 28.0, 8 / 3, 0.02, 20.0
STEPS, TAIL, ROWS, PASSES, RATE, BOUND = 1_000, 200, 32, 25, 0.0025, 0.1
TARGET = torch.tensor([math.sqrt(BETA * (RHO - 1))] * 2 + [RHO - 1], dtype=D)  # C⁺
# ż = z·L + u (0, 1, 0) + x · (0, -z, y): three products of z side by side, (3, 9), and where the push is added
PARTS = [[[-SIGMA, SIGMA, 0], [RHO, -1, 0], [0, 0, -BETA]], [[1, 0, 0]] * 3, [[0, 0, 0], [0, 0, -1], [0, 1, 0]]]
PRODUCTS, PUSHED = torch.tensor(PARTS, dtype=D).flatten(0, 1).T.contiguous(), torch.tensor([0, PUSH] + 7 * [0], dtype=D)
METHODS = {  # strategy; bound on each row's cotangent at every step; bound on the norm of the mean gradient per step
    "full BPTT": (bptt.FullBPTT(), None, math.inf),
    "full, gradient clipped": (bptt.FullBPTT(), None, 1.0),
    "full, cotangent clipped": (bptt.FullBPTT(), BOUND, math.inf),
    "TBPTT(50)": (bptt.TruncatedBPTT(50), None, math.inf),
    "ARTBP(50)": (bptt.ARTBP(bptt.PolynomialLaw(alpha=3, mean_length=50)), None, math.inf),
}


def step(z: Tensor, push: Tensor) -> Tensor:
    """z (B, 3) one step of RK4 later; push: u/20 · PUSHED, (B, 9)."""
    at = total = z
    for weight, ahead in ((1 / 6, 1 / 2), (1 / 3, 1 / 2), (1 / 3, 1), (1 / 6, 0)):
        slope = torch.addcmul(*torch.addmm(push, at, PRODUCTS).split(3, 1))
        total, at = torch.add(total, slope, alpha=DT * weight), torch.add(z, slope, alpha=DT * ahead)
    return total


class Controlled(nn.Module):
    """A step `(_, z (B, 3)) -> ((z, u/20 (B, 1)), z)`; one policy per seed, each with a block of rows of z."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        made = [(torch.manual_seed(s), nn.Linear(3, 32, dtype=D), nn.Linear(32, 1, dtype=D)) for s in seeds]
        self.w1 = nn.Parameter(torch.stack([layer.weight.detach().T for _, layer, _ in made]))
        self.b1 = nn.Parameter(torch.stack([layer.bias.detach()[None] for _, layer, _ in made]))
        self.w2 = nn.Parameter(torch.stack([layer.weight.detach().T for *_, layer in made]) / 10)  # hardly pushes
        self.b2 = nn.Parameter(torch.stack([layer.bias.detach()[None] for *_, layer in made]) / 10)

    def forward(self, _: Tensor, z: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        seen = torch.add(-TARGET / 10, z, alpha=1 / 10).view(len(self.w1), -1, 3)
        u = torch.tanh(torch.baddbmm(self.b2, torch.tanh(torch.baddbmm(self.b1, seen, self.w1)), self.w2)).view(-1, 1)
        z = step(z, u * PUSHED)
        return (z, u), z


def cost(outputs: tuple[Tensor, Tensor], _: None) -> tuple[Tensor, Tensor]:
    """l_t of each row, and the distance to C⁺ as aux."""
    squares = (outputs[0] - TARGET).square().sum(-1)
    return squares / 200 + 1e-4 * (PUSH * outputs[1][..., 0]).square(), squares.detach().sqrt()


def starts(generators: Sequence[Generator], rows: int = ROWS) -> Tensor:
    """Points of the attractor, `rows` by each generator."""
    z = torch.cat([8 * torch.randn(rows, 3, dtype=D, generator=g) for g in generators]) + torch.tensor([0, 0, 25])
    for _ in range(500):
        z = step(z, torch.zeros_like(PUSHED))
    return z


def norms(model: Any) -> Tensor:
    """The norm of what `.grad` holds for each policy, for the mean over its own rows."""
    return len(model.step.w1) * torch.cat([p.grad.flatten(1) for p in model.parameters()], 1).norm(dim=1)


def gradient_norms(model: Any, z: Tensor, steps: int, bound: float | None = None) -> Tensor:
    """The gradient's norm for each policy: mean cost per step over `steps` steps from z; bound: as in `Method`."""
    clip = bound and bound / len(z)  # a row's loss counts 1/B
    bptt.backward(model, cost, (torch.zeros(steps), None), z, reduction="sum", state_batch_dim=0, clip_cotangent=clip)
    found = norms(model) / steps
    model.zero_grad()
    return found


def distance(model: Any, z: Tensor, steps: int = STEPS) -> Tensor:
    """|z_t - C⁺|, (steps, policies, rows)."""
    return bptt.evaluate(model, cost, [(torch.zeros(steps), None)], z).aux.unflatten(1, (len(model.step.w1), -1))


def train(method: Any, seeds: Sequence[int], passes: int = PASSES, steps: int = STEPS, rows: int = ROWS) -> Any:
    """The policies of these seeds, after `passes` runs from freshly drawn starts; the first seed draws the cuts."""
    strategy, bound, most = method
    model, generators = bptt.scan(Controlled(seeds)), [Generator().manual_seed(seed) for seed in seeds]
    adam = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.9))  # forgets an outlier in ten updates
    keywords = {"strategy": strategy, "reduction": "sum", "state_batch_dim": 0, "generator": generators[0]}
    keywords["clip_cotangent"] = bound and bound / (rows * len(seeds))
    for _ in range(passes):
        for _ in bptt.unroll(model, cost, [(torch.zeros(steps), None)], starts(generators, rows), **keywords):
            factors = (most * steps / norms(model)).clamp(max=1)[:, None, None]
            for p in model.parameters():
                p.grad *= len(seeds) * factors  # the mean over a policy's own rows
            adam.step()
            adam.zero_grad()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the policy's start, the system's starts and the cuts")
    parser.add_argument("--out", type=Path, default=Path("build/lorenz"), help="folder for the plot")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 60 steps, one pass")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # tensors this small are slower on several
    passes, steps, rows = (1, 60, 4) if args.quick else (PASSES, STEPS, ROWS)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    model, z = bptt.scan(Controlled([args.seed])), starts([Generator().manual_seed(args.seed + 1_000)], rows)
    found = bptt.diagnose(model, cost, (torch.zeros(min(steps, 300)), None), z[:4], state_batch_dim=0)
    print(f"untrained: {found.regime}, cotangents by {found.growth_rate:.3f} nats per step; ", end="")
    print(f"largest Lyapunov exponent {found.exponents[:, 0].mean() / DT:.2f} per unit of time")
    for name, bound in {"exact": None, "cotangent clipped": BOUND}.items():
        horizons = [steps // 20, steps // 5, steps // 2, steps]
        growth = [gradient_norms(model, z, t, bound).item() for t in horizons]
        left.loglog(horizons, growth, "o-", label=name)
        print(f"gradient, {name}: " + ", ".join(f"{g:.2g} over {t}" for g, t in zip(growth, horizons, strict=True)))
    for name, method in METHODS.items():
        away = distance(train(method, [args.seed], passes, steps, rows), z, steps)[:, 0].mean(1)
        print(f"{name:24} ends {away[-TAIL:].mean():6.2f} from C⁺")
        right.semilogy(away, label=name)
    left.set(title="norm of the gradient, untrained", xlabel="horizon in steps")
    right.set(title="mean distance to C⁺, trained", xlabel="steps")
    left.legend()
    right.legend(loc="lower right", bbox_to_anchor=(1, 0.11), fontsize=8, ncols=2)
    figure.savefig(args.out / "lorenz.png", dpi=90)


if __name__ == "__main__":
    main()
