"""What the forward strategies reach on series that never end, beside truncation and beside published figures.

A tanh network of 64 units reads 8 lanes of a series and predicts the next value by a linear readout, with an update
after every step: Adam 1e-3, W, U uniform within 1/√n, state and influence reset every 200 steps, 15,000 steps. NMSE
is the squared error over a lane's variance, averaged over the last 2,500 steps; the cosine is that of an update's
gradient to RTRL's for the same weights, which change as training goes on, over the last 200 steps of every 3,000.

The figures beside ours are those of a table published in 2026 for the same task (results and code of "Certified
low-rank real-time recurrent learning for dense recurrent neural networks"), in which KF-RTRL has .0384 / .0286 /
.0126 and cosine .512, and RFLO .0704 / .0572 / .0442 and .288. Its TBPTT(25) makes one update for each window of 25
steps, 600 in all where every other method makes 15,000: that is our line TBPTT(25). TBPTT(1, 25) makes an update per
step, like the others, through the last 25 steps. Its UORO keeps a product for each lane, ours one for all, which is
noisier. Its SnAp-1 masks J before a step's loss goes through it, as the method's authors do, where ours sends the loss
through the step exactly and masks what it carries on: the cosine of the published form is taken along our run of it, by
a recursion written out here.

    python benchmarks/online.py [--strategies "RTRL;SnAp-1"] [--series henon,...] [--seeds 3] [--steps 15000]

Every run that is finished is a file in results/online/ and isn't run again, so what was stopped goes on where it was;
the table is of all that there are. A run of RTRL takes many minutes, one of the others a minute or two. Targets:
RTRL and SnAp-1 at most twice the published NMSE; SnAp-1 < TBPTT(25) < UORO on two series or more; cosines of UORO and
of the published form of SnAp-1 within .1.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

import bptt
import bptt.nn
from support import RESULTS, report

UNITS, LANES, RESET, TAIL, FULL = 64, 8, 200, 2_500, 15_000
EVERY = 3_000
"""Steps, of whose last 200 the cosines are taken."""
MASKED = "SnAp-1 as published"
STRATEGIES: dict[str, Any] = {
    "SnAp-1": bptt.SnAp(order=1),
    "TBPTT(1, 25)": bptt.TruncatedBPTT(k1=1, k2=25),
    "TBPTT(25)": bptt.TruncatedBPTT(25),
    "UORO": bptt.UORO(),
    "RTRL": bptt.RTRL(),
}
PUBLISHED = {  # Hénon, Mackey-Glass, Lorenz
    "RTRL": (0.0052, 0.0180, 0.0051),
    "SnAp-1": (0.0052, 0.0050, 0.0024),
    "UORO": (0.658, 0.0497, 0.0425),
    "TBPTT(25)": (0.0311, 0.0080, 0.0054),
}
PUBLISHED_COSINES = {MASKED: 0.505, "UORO": 0.056}


def henon(steps: int, generator: torch.Generator) -> Tensor:
    """x' = 1 - 1.4 x² + y, y' = .3 x, (steps, lanes)."""
    x, y = 0.1 * torch.rand(2, LANES, dtype=torch.float64, generator=generator)
    found = []
    for _ in range(steps + 100):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        found.append(x)
    return torch.stack(found[100:])


def mackey_glass(steps: int, generator: torch.Generator) -> Tensor:
    """x' = .2 x(t - 17) / (1 + x(t - 17)^10) - .1 x by Euler's steps of 1, (steps, lanes)."""
    past = list(1.2 + 0.2 * torch.rand(18, LANES, dtype=torch.float64, generator=generator))
    for _ in range(steps + 300):
        late = past[-18]
        past.append(past[-1] + 0.2 * late / (1 + late**10) - 0.1 * past[-1])
    return torch.stack(past[-steps:])


def lorenz(steps: int, generator: torch.Generator) -> Tensor:
    """x of σ = 10, ρ = 28, β = 8/3 by Euler's steps of .01, every second one, (steps, lanes)."""
    x, y, z = 1 + torch.rand(3, LANES, dtype=torch.float64, generator=generator)
    found = []
    for _ in range(2 * steps + 1000):
        x, y, z = x + 0.1 * (y - x), y + 0.01 * (x * (28 - z) - y), z + 0.01 * (x * y - 8 / 3 * z)
        found.append(x)
    return torch.stack(found[1000::2])


SERIES = {"henon": henon, "mackey-glass": mackey_glass, "lorenz": lorenz}


def series_of(name: str, steps: int, seed: int) -> bptt.Chunk:
    """A series, each lane of mean 0 and variance 1, and its next values, with the resets."""
    values = SERIES[name](steps + 1, torch.Generator().manual_seed(seed))
    values = ((values - values.mean(0)) / values.std(0)).float()[..., None]
    return bptt.Chunk(values[:-1], values[1:], torch.arange(steps) % RESET == 0)


class Readout(nn.Module):
    """The squared error of a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(UNITS, 1)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.line(outputs) - targets).square()


class Masked:
    """SnAp-1 as its authors have it, E <- diag(D) E + I and then g = δ E, of a tanh layer from a reset on."""

    def __init__(self, layer: bptt.nn.RNN) -> None:
        self.layer, self.state = layer, torch.zeros(LANES, UNITS)
        self.traces = torch.zeros(LANES, UNITS, UNITS + 3)

    def gradient(self, x: Tensor, state: Tensor, cotangent: Tensor) -> Tensor:
        """The gradient of a step from x (B, 1) to `state` (B, n), whose loss has that cotangent, by parameter."""
        slope, ones = 1 - state**2, torch.ones(LANES, 2)
        operand = torch.cat([x, self.state, ones], 1)
        self.traces *= (slope * self.layer.weight_hh_l0.detach().diagonal())[..., None]
        self.traces += slope[..., None] * operand[:, None]
        self.state = state
        rows = (cotangent[..., None] * self.traces).sum(0)
        return torch.cat([part.flatten() for part in rows.split([1, UNITS, 1, 1], 1)])


class Stretch:
    """RTRL beside a run, and the published form of SnAp-1, for the weights of each update, from a reset on."""

    def __init__(self, layer: bptt.nn.RNN, readout: Readout, chunk: bptt.Chunk, k1: int, masked: bool) -> None:
        self.layer, self.readout, self.chunk = layer, readout, chunk
        self.exact = bptt.unroll(layer, readout, [chunk], strategy=bptt.RTRL(k1))
        self.masked = Masked(layer) if masked else None
        self.steps = 0

    def cosines(self, name: str, state: Tensor) -> dict[str, float]:
        """Of the gradient that an update has left, which stays; state: after the update's steps, (1, B, n)."""
        weights = [*self.layer.parameters(), *self.readout.parameters()]
        own = [p.grad for p in weights]
        found = {name: torch.cat([p.grad.flatten() for p in self.layer.parameters()])}
        if self.masked is not None:
            leaf = state[0].detach().requires_grad_()
            loss = self.readout(leaf, self.chunk.targets[self.steps]).sum()
            (cotangent,) = torch.autograd.grad(loss, leaf)
            found[MASKED] = self.masked.gradient(self.chunk.inputs[self.steps], leaf.detach(), cotangent)
        for p in weights:
            p.grad = None
        self.steps = next(self.exact).t1
        true = torch.cat([p.grad.flatten() for p in self.layer.parameters()])
        for p, gradient in zip(weights, own, strict=True):
            p.grad = gradient
        return {name: torch.cosine_similarity(g, true, dim=0).item() for name, g in found.items()}


def trained(name: str, chunk: bptt.Chunk, seed: int) -> tuple[float, dict[str, float]]:
    """The NMSE at the end, and the mean cosines."""
    torch.manual_seed(seed)
    layer, readout, strategy = bptt.nn.RNN(1, UNITS), Readout(), STRATEGIES[name]
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], 1e-3)
    errors, steps, stretch = list[float](), len(chunk.inputs), None
    first = max(0, min(EVERY, steps) - RESET)
    cosines: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(seed)
    for update in bptt.unroll(layer, readout, [chunk], strategy=strategy, generator=generator):
        if update.t0 % EVERY == first and name != "RTRL":
            rest = bptt.Chunk(*(x[update.t0 : update.t0 + RESET] for x in chunk[:3]))
            stretch = Stretch(layer, readout, rest, strategy.k1, masked=name == "SnAp-1")
        if stretch is not None:
            for form, cosine in stretch.cosines(name, update.state).items():
                cosines.setdefault(form, []).append(cosine)
            stretch = None if update.t1 % EVERY == 0 or update.t1 == steps else stretch
        optimizer.step()
        optimizer.zero_grad()
        errors += [update.mean_loss.item()] * update.steps
    return statistics.fmean(errors[-TAIL:]), {form: statistics.fmean(each) for form, each in cosines.items()}


def run(series: str, name: str, seed: int, steps: int) -> None:
    """One of the table's runs, unless its file is there."""
    file = RESULTS / "online" / f"{steps}-{series}-{name}-{seed}.json"
    if file.exists():
        return
    began = time.perf_counter()
    error, cosines = trained(name, series_of(series, steps, seed), seed)
    found = {"series": series, "strategy": name, "seed": seed, "steps": steps, "nmse": error, "cosines": cosines}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**found, "seconds": time.perf_counter() - began}))
    print(*found.values(), flush=True)


def finished(steps: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs of so many steps that there are, by series and strategy."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted((RESULTS / "online").glob(f"{steps}-*.json")):
        known = json.loads(file.read_text())
        found.setdefault((known["series"], known["strategy"]), []).append(known)
    return found


def judged(runs: dict[tuple[str, str], list[dict[str, Any]]], steps: int) -> int:
    """The table of NMSE and cosines."""
    rows, missed = [], []
    errors = {pair: statistics.fmean(each["nmse"] for each in found) for pair, found in runs.items()}
    for series, name in itertools.product(SERIES, STRATEGIES):
        found = [each["nmse"] for each in runs.get((series, name), [])]
        if not found:
            continue
        published = PUBLISHED[name][list(SERIES).index(series)] if name in PUBLISHED else ""
        spread = statistics.stdev(found) if len(found) > 1 else ""
        rows.append([series, name, errors[series, name], spread, len(found), published])
        if name in ("RTRL", "SnAp-1") and errors[series, name] > 2 * published:
            missed.append(f"{series}: {name} {errors[series, name]:.4f}, published {published}")
    whole = steps == FULL and errors.keys() == set(itertools.product(SERIES, STRATEGIES))
    if whole:
        ordered = [errors[s, "SnAp-1"] < errors[s, "TBPTT(25)"] < errors[s, "UORO"] for s in SERIES]
        if sum(ordered) < 2:
            missed.append(f"SnAp-1 < TBPTT(25) < UORO on {sum(ordered)} series")
    for name in (*STRATEGIES, MASKED):
        found = [each["cosines"].get(name) for each in itertools.chain(*runs.values())]
        found = [cosine for cosine in found if cosine is not None]
        if not found:
            continue
        cosine, published = statistics.fmean(found), PUBLISHED_COSINES.get(name)
        spread = statistics.stdev(found) if len(found) > 1 else ""
        rows.append(["cosine to RTRL", name, cosine, spread, len(found), "" if published is None else published])
        if published is not None and abs(cosine - published) > 0.1:
            missed.append(f"cosine of {name} {cosine:.3f}, published {published}")
    headings = ["series", "strategy", "NMSE", "spread", "runs", "published"]
    return report("online" if whole else "online_quick", headings, rows, missed if whole else [], steps=steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default=None, help="which, with semicolons between them; all unless given")
    parser.add_argument("--series", default=",".join(SERIES), help="which, by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--steps", type=int, default=FULL, help="of a run")
    parser.add_argument("--quick", action="store_true", help="50 steps of one series: a try-out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(STRATEGIES) if args.strategies is None else args.strategies.split(";")
    if args.quick:
        args.seeds, args.steps, args.series = 1, 50, "henon"
        for file in (RESULTS / "online").glob("50-*.json"):
            file.unlink()
    for seed, series, name in itertools.product(range(args.seeds), args.series.split(","), names):
        run(series, name, seed, args.steps)
    return judged(finished(args.steps), args.steps)


if __name__ == "__main__":
    sys.exit(main())
