"""A fluid's viscosity and force, found from sparse noisy observations over 1,000 steps of its flow.

The flow w_t + u·∇w = ν ∇²w + f on [0, 2π)² (`bptt.models.Flow`) is seen at 51 of 32 x 32 points every tenth step, with
5 % noise; its start is known, ν and the six Fourier modes of f are not. The exact gradient, under a memory budget,
drives L-BFGS over 100, 300 and 1,000 steps in turn; TBPTT and ARTBP, whose gradients belong to no function that a line
search could descend, drive Adam. All start at 2ν without force. Data and model share the solver: this shows that the
parameters can be found through it, not that the solver is right.

    python examples/flow.py [--seed 0] [--out build/flow] [--quick]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import bptt
from bptt.models import Flow

VISCOSITY, FORCE, NOISE, POINTS, EVERY = 0.05, 0.3, 0.05, 51, 10
MODES = [(1, 2), (2, 1), (2, -1), (0, 3), (3, 1), (1, -3)]
STEPS, SHARES, BUDGET, RATE = 1_000, (0.1, 0.3, 1.0), "16MiB", 0.01
ARTBP = bptt.ARTBP(bptt.PolynomialLaw(alpha=3, mean_length=50), every=EVERY)
STRATEGIES = {"TBPTT(50)": bptt.TruncatedBPTT(50), "ARTBP(50)": ARTBP}


class Problem:
    """A true flow, its start, and the observations: `targets` (steps, POINTS), of which every tenth row counts."""

    def __init__(self, seed: int, steps: int, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(seed)
        given = torch.randn(len(MODES), 2, generator=generator, dtype=torch.float64)
        given *= FORCE / given.square().sum().div(2).sqrt()  # the mean square of a cos + b sin is (a² + b²)/2
        self.truth = Flow(size, VISCOSITY, MODES, given, dtype=torch.float64).requires_grad_(False)
        self.start = self.truth.random_state(generator=generator)
        places = torch.randperm(size * size, generator=generator)[:POINTS, None]
        self.points = torch.cat([places // size, places % size], dim=1)
        clean = self.truth.observe(self.truth(torch.zeros(steps), self.start)[0], self.points)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        self.targets = clean + NOISE * clean.square().mean().sqrt() * noise

    def loss(self, spectra: Tensor, targets: Tensor) -> Tensor:
        return (self.truth.observe(spectra, self.points) - targets).square().mean(-1)

    def chunk(self, steps: int) -> bptt.Chunk:
        return bptt.Chunk(torch.zeros(steps), self.targets[:steps], mask=torch.arange(1, steps + 1) % EVERY == 0)

    def error(self, flow: Flow) -> tuple[float, float]:
        """|ν - ν*|/ν* and the force's relative L2 error."""
        force = self.truth.force()
        return abs(flow.viscosity.item() / VISCOSITY - 1), ((flow.force() - force).norm() / force.norm()).item()


class Curve(list[tuple[float, float, float]]):
    """(passes over all steps so far, ν, the force's error) after each evaluation; seconds, and the most bytes kept."""

    def __init__(self) -> None:
        self.begun, self.seconds, self.memory = time.perf_counter(), 0.0, 0

    def add(self, problem: Problem, flow: Flow, steps: int) -> None:
        passes = steps / len(problem.targets) + (self[-1][0] if self else 0)
        self.append((passes, flow.viscosity.item(), problem.error(flow)[1]))
        self.seconds = time.perf_counter() - self.begun


def guess(problem: Problem, viscosity: float, force: float = 0.0) -> Flow:
    """A flow whose viscosity and force are these multiples of the true ones."""
    given = force * problem.truth.coefficients
    return Flow(problem.truth.size, viscosity * VISCOSITY, MODES, given, dtype=torch.float64)


def staged(problem: Problem, flow: Flow, iterations: int = 30) -> Curve:
    """L-BFGS on the exact gradient, over a tenth of the steps, three tenths, and all."""
    curve = Curve()
    for steps in (round(share * len(problem.targets)) for share in SHARES):
        kind = {"max_iter": iterations, "tolerance_change": 1e-8, "line_search_fn": "strong_wolfe"}

        def closure(steps: int = steps) -> Tensor:
            flow.zero_grad()
            update = bptt.backward(flow, problem.loss, problem.chunk(steps), problem.start, memory=BUDGET)
            curve.memory = max(curve.memory, update.memory_bytes)
            curve.add(problem, flow, steps)
            return update.loss / steps

        torch.optim.LBFGS(flow.parameters(), **kind).step(closure)
    return curve


def streamed(problem: Problem, flow: Flow, strategy: Any, passes: int, seed: int = 0) -> Curve:
    """Adam, one update per window, for that many passes over all steps."""
    curve, steps, optimizer = Curve(), len(problem.targets), torch.optim.Adam(flow.parameters(), lr=RATE)
    keywords = {"strategy": strategy, "memory": BUDGET, "generator": torch.Generator().manual_seed(seed)}
    for _ in range(passes):
        for update in bptt.unroll(flow, problem.loss, [problem.chunk(steps)], problem.start, **keywords):
            optimizer.step()
            optimizer.zero_grad()
            curve.memory = max(curve.memory, update.memory_bytes)
        curve.add(problem, flow, steps)
    return curve


def plot(problem: Problem, flows: dict[str, Flow], curves: dict[str, Curve], path: Path) -> None:
    """The last vorticity, true and as found by each method; ν and the force's error over the passes."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    panels, (left, right) = upper.subplots(1, 1 + len(flows)), lower.subplots(1, 2)
    for axes, (name, flow) in zip(panels, {"true": problem.truth, **flows}.items(), strict=True):
        with torch.no_grad():
            last = flow.vorticity(flow(torch.zeros(len(problem.targets)), problem.start)[1])
        image = axes.imshow(last.T.numpy(), origin="lower", cmap="RdBu_r", vmin=-3, vmax=3)
        axes.set(title=f"vorticity, {name}", xticks=[], yticks=[])
    panels[0].plot(*problem.points.T.numpy(), "k.", markersize=2)
    upper.colorbar(image, ax=panels, shrink=0.8)
    for name, curve in curves.items():
        passes, viscosity, force = zip(*curve, strict=True)
        left.semilogy(passes, viscosity, ".-", label=name)
        right.semilogy(passes, force, ".-", label=name)
    left.axhline(VISCOSITY, color="black", linestyle=":", label="true")
    left.legend()
    for axes, title in ((left, "viscosity"), (right, "error of the force, relative")):
        axes.set(title=title, xlabel="passes over all steps")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the flow, the points and the noise")
    parser.add_argument("--out", type=Path, default=Path("build/flow"), help="folder for the plot")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 12 x 12 points, 40 steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # grids this small are slower on several
    case, passes, iterations = (Problem(args.seed, 40, 12), 1, 3) if args.quick else (Problem(args.seed, STEPS), 12, 30)
    flows = {name: guess(case, 2.0) for name in ("exact", *STRATEGIES)}
    curves = {"exact": staged(case, flows["exact"], iterations)}
    curves |= {name: streamed(case, flows[name], strategy, passes) for name, strategy in STRATEGIES.items()}
    print(f"{'':10} {'error of ν':>12} {'of the force':>12} {'passes':>8} {'seconds':>8} {'MiB':>6}")
    for name, curve in curves.items():
        errors = "{:12.2%} {:12.2%}".format(*case.error(flows[name]))
        print(f"{name:10} {errors} {curve[-1][0]:8.1f} {curve.seconds:8.1f} {curve.memory / 2**20:6.1f}")
    plot(case, flows, curves, args.out / "flow.png")
    print(f"data and model share the solver; see {args.out / 'flow.png'}")


if __name__ == "__main__":
    main()
