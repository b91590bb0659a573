"""A fluid flow as a recurrence: is the solver right, is its gradient right, and what can be found with it?

The flow and its observations are those of examples/flow.py: 32 x 32 points, float64, dt 0.02, ν = 0.05, six Fourier
modes of force, seen at 51 points every tenth step with 5 % noise. Data and model share the solver. Each part answers
one question:

    vortices   Taylor-Green vortices carried by a mean flow (1, 0.5) against the closed form, 1,000 steps. Target: at
               most 1e-6 of the initial maximum; 4th order in dt
    gradient   over 1,000 steps against central differences (eps 1e-6). Target: 1e-5 of its norm
    memory     the gradient of 2,000 steps at 64 x 64 in 16 MiB of saved tensors and stored states, against the one in
               64 MiB. Target: equal to 1e-10 of its norm
    identify   ν and force from 2ν and from ν/2 without force, 3 seeds, by L-BFGS on the exact gradient over horizons of
               100, 300 and 1,000 steps. Target: ν within 0.5 %, the force within 1 % (relative L2)
    adam       Adam (rate 0.01) on the exact gradient from (1.2 ν, 0.8 f). Target: within 2 % and 5 %
    drift      the same Adam by TBPTT(50) for as many passes, started at the truth. Target: it gets more than 50 % away
               in ν, so there is something to cure. By ARTBP(50), 20 passes, 5 draws of its cuts: no target
    unbiased   the mean of ARTBP's gradient over all patterns of cuts at three boundaries in 500 steps, weighted by
               their probabilities, against the exact one. Target: equal to 1e-10 of its norm

    python benchmarks/flow.py [--only PART] [--quick]
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bptt
from bptt.models import Flow
from support import report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import flow as example  # not this file: the folder above was put first

D = torch.float64
Row = list[Any]  # question, measured, target, whether it was met (None: no target)


@dataclass(frozen=True)
class Scale:
    """How much of it is run."""

    size: int = 32
    fine: int = 64
    steps: int = 1_000
    seeds: int = 3
    draws: int = 5
    exact_passes: int = 100
    passes: int = 20
    iterations: int = 30  # of L-BFGS, for each horizon
    cut: int = 125  # steps between the draws of `unbiased`


QUICK = Scale(size=12, fine=12, steps=40, seeds=1, draws=1, exact_passes=1, passes=1, iterations=2, cut=5)


def met(question: str, value: float, target: float) -> Row:
    return [question, value, f"<= {target:g}", value <= target]


def gradient(flow: Flow) -> Tensor:
    """What `.grad` holds, and nothing is left there."""
    found = torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
    flow.zero_grad()
    return found


def away(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def costs(name: str, curve: example.Curve) -> list[Row]:
    """What a run took: no target."""
    taken = {"evaluations": len(curve), "seconds": curve.seconds, "MiB": curve.memory / 2**20}
    return [[f"{name}, {what}", value, "", None] for what, value in taken.items()]


def vortices_error(dt: float, seconds: float, size: int) -> float:
    """Of 2 cos(x - Ut) cos(y - Vt) e^{-2νt}, which is carried and decays: u·∇w = 0."""
    u, v = mean = (1.0, 0.5)
    flow = Flow(size, example.VISCOSITY, dt=dt, mean=mean, dtype=D)
    x, y = flow.grid()
    steps = round(seconds / dt)
    with torch.no_grad():
        found = flow.vorticity(flow(torch.zeros(steps), flow.spectrum(2 * torch.cos(x) * torch.cos(y)))[0])
    t = dt * torch.arange(1, steps + 1, dtype=D)[:, None, None]
    exact = 2 * torch.cos(x - u * t) * torch.cos(y - v * t) * torch.exp(-2 * example.VISCOSITY * t)
    return (found - exact).abs().max().item() / 2


def vortices(scale: Scale) -> list[Row]:
    coarse, fine = (vortices_error(dt, scale.steps * 0.005, scale.size) for dt in (0.1, 0.05))
    order = math.log2(coarse / fine)
    return [
        met("vortices: error at dt 0.02", vortices_error(0.02, scale.steps * 0.02, scale.size), 1e-6),
        ["vortices: order in dt", order, "4 within 0.1", abs(order - 4) <= 0.1],
    ]


def central_differences(scale: Scale) -> list[Row]:
    problem = example.Problem(0, scale.steps, scale.size)
    flow, eps = example.guess(problem, 1.2, 0.8), 1e-6
    chunk = problem.chunk(scale.steps)
    bptt.backward(flow, problem.loss, chunk, problem.start, memory=example.BUDGET, reduction="sum")
    exact, found = gradient(flow), []
    for p in flow.parameters():
        for entry in p.data.view(-1):
            kept, values = entry.item(), []
            for moved in (kept + eps, kept - eps):
                entry.fill_(moved)
                values.append(bptt.evaluate(flow, problem.loss, [chunk], problem.start).loss.item())
            entry.fill_(kept)
            found.append((values[0] - values[1]) / (2 * eps))
    return [met("gradient: from central differences", away(torch.tensor(found, dtype=D), exact), 1e-5)]


def memory(scale: Scale) -> list[Row]:
    steps = 2 * scale.steps
    problem = example.Problem(0, steps, scale.fine)
    flow = example.guess(problem, 1.2, 0.8)
    found, used = [], []
    for budget in ("16MiB", "64MiB"):
        update = bptt.backward(flow, problem.loss, problem.chunk(steps), problem.start, memory=budget)
        used.append(update.memory_bytes / 2**20)
        found.append(gradient(flow))
    return [
        met("memory: MiB under 16 MiB", used[0], 16),
        ["memory: MiB under 64 MiB", used[1], "", None],
        met("memory: gradients apart", away(*found), 1e-10),
    ]


def identify(scale: Scale) -> list[Row]:
    rows = []
    for seed in range(scale.seeds):
        problem = example.Problem(seed, scale.steps, scale.size)
        for factor in (2.0, 0.5):
            flow = example.guess(problem, factor)
            curve = example.staged(problem, flow, scale.iterations)
            off, force = problem.error(flow)
            name = f"identify: seed {seed} from {factor:g} ν"
            rows += [met(f"{name}, ν", off, 0.005), met(f"{name}, force", force, 0.01), *costs(name, curve)]
            print(*rows[-5:], sep="\n", file=sys.stderr, flush=True)
    return rows


def adam(scale: Scale) -> list[Row]:
    problem = example.Problem(0, scale.steps, scale.size)
    flow = example.guess(problem, 1.2, 0.8)
    curve = example.streamed(problem, flow, bptt.FullBPTT(), scale.exact_passes)
    off, force = problem.error(flow)
    return [met("adam: ν", off, 0.02), met("adam: force", force, 0.05), *costs("adam", curve)]


def drift(scale: Scale) -> list[Row]:
    problem = example.Problem(0, scale.steps, scale.size)
    flow = example.guess(problem, 1.0, 1.0)
    curve = example.streamed(problem, flow, example.STRATEGIES["TBPTT(50)"], scale.exact_passes)
    off, force = problem.error(flow)
    farthest = max(abs(value / example.VISCOSITY - 1) for _, value, _ in curve)
    name = "drift: TBPTT(50)"
    rows = [[f"{name}, ν at its farthest", farthest, "> 0.5", farthest > 0.5]]
    rows += [[f"{name}, ν", off, "", None], [f"{name}, force", force, "", None], *costs(name, curve)]
    for seed in range(scale.draws):
        flow = example.guess(problem, 1.0, 1.0)
        curve = example.streamed(problem, flow, example.STRATEGIES["ARTBP(50)"], scale.passes, seed)
        off, force = problem.error(flow)
        name = f"drift: ARTBP(50), draw {seed}"
        rows += [[f"{name}, ν", off, "", None], [f"{name}, force", force, "", None], *costs(name, curve)]
    return rows


def unbiased(scale: Scale) -> list[Row]:
    """Draws until each of the eight patterns of cuts was met; the parameters stay where they are."""
    steps = 4 * scale.cut
    problem = example.Problem(0, steps, scale.size)
    flow, chunk = example.guess(problem, 1.2, 0.8), problem.chunk(steps)
    bptt.backward(flow, problem.loss, chunk, problem.start, memory=example.BUDGET, reduction="sum")
    exact = gradient(flow)
    law = bptt.ConstantLaw(mean_length=1.5 * scale.cut)
    cut = 1 - (1 - law(1)) ** scale.cut
    generator, found = torch.Generator().manual_seed(0), {}
    while len(found) < 8:
        updates = bptt.unroll(
            flow,
            problem.loss,
            [chunk],
            problem.start,
            strategy=bptt.ARTBP(law, every=scale.cut),
            memory=example.BUDGET,
            reduction="sum",
            generator=generator,
        )
        ends = tuple(update.t1 for update in updates)[:-1]
        found[ends] = gradient(flow)
    weighed = [cut ** len(ends) * (1 - cut) ** (3 - len(ends)) * g for ends, g in found.items()]
    return [
        met("unbiased: mean over all cuts, from the exact gradient", away(torch.stack(weighed).sum(0), exact), 1e-10),
        ["unbiased: the farthest of them", max(away(g, exact) for g in found.values()), "", None],
    ]


PARTS = {
    "vortices": vortices,
    "gradient": central_differences,
    "memory": memory,
    "identify": identify,
    "adam": adam,
    "drift": drift,
    "unbiased": unbiased,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", choices=PARTS, help="one part; default: all of them")
    parser.add_argument("--quick", action="store_true", help="tiny, nothing judged")
    args = parser.parse_args()
    torch.set_num_threads(1)  # grids this small are slower on several
    rows: list[Row] = []
    for part in [args.only] if args.only else PARTS:
        rows += PARTS[part](QUICK if args.quick else Scale())
    missed = [] if args.quick else [f"{row[0]}: {row[1]:.4g}, not {row[2]}" for row in rows if row[3] is False]
    name = "_".join(["flow", *([args.only] if args.only else []), *(["quick"] if args.quick else [])])
    return report(name, ["question", "measured", "target"], [row[:3] for row in rows], missed)


if __name__ == "__main__":
    sys.exit(main())
