"""A fuzzy system identified by BPTT: nine rules in words that replace a nonlinear plant.

    y⁺ = y y1 (y + 2.5) / (1 + y² + y1²) + u        (Narendra & Parthasarathy 1990)

The plant is driven by u uniform in [-2, 2] and measured with noise of 0.1. A Takagi-Sugeno system of 3 x 3 rules on
(y, y1) has to follow it on its own output, so it is trained on free runs: the gradient goes back through them, in full,
truncated, and truncated at random. Every rule starts as one linear law (ARX, by least squares). The end sets lie at the
data's 3 and 97 % quantiles, the middle one is free; all data belong to some set by at least 0.2. The test is a sine.

    python examples/fuzzy.py [--seed 0] [--out build/fuzzy] [--quick]
"""

import argparse
import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

import bptt
from bptt.models import TakagiSugeno

D = torch.float64
STEPS, ROWS, NOISE, PASSES, COVER = 50, 60, 0.1, 800, 0.2
LOSS = bptt.per_step(torch.nn.MSELoss())
METHODS = {  # and Adam's first rate: truncation makes five updates per pass
    "full": (bptt.FullBPTT(), 0.1),
    "TBPTT(10)": (bptt.TruncatedBPTT(10), 0.05),
    "ARTBP(10)": (bptt.ARTBP(bptt.PolynomialLaw(alpha=3, mean_length=10), every=5), 0.05),
}


def autonomous(y: Tensor, y1: Tensor) -> Tensor:
    """What the plant adds to u."""
    return y * y1 * (y + 2.5) / (1 + y**2 + y1**2)


def plant(u: Tensor) -> Tensor:
    """y for u (T, ...), from rest."""
    y, before, found = torch.zeros_like(u[0]), torch.zeros_like(u[0]), []
    for value in u:
        y, before = autonomous(y, before) + value, y
        found.append(y)
    return torch.stack(found)


class Record(NamedTuple):
    u: Tensor  # (T, B)
    y: Tensor  # (T, B), measured

    def regressors(self) -> Tensor:
        """(y, y1, u, 1) before each measurement, (T·B, 4)."""
        padded = torch.cat([torch.zeros_like(self.y[:2]), self.y])
        return torch.stack([padded[1:-1], padded[:-2], self.u, torch.ones_like(self.u)], -1).flatten(0, 1)


def measured(seed: int, steps: int = STEPS, rows: int = ROWS) -> Record:
    torch.manual_seed(seed)
    u = 4 * torch.rand(steps, rows, dtype=D) - 2
    return Record(u, plant(u) + NOISE * torch.randn(steps, rows, dtype=D))


def untrained(data: Record) -> TakagiSugeno:
    """Every rule is the ARX law."""
    low, high = torch.quantile(data.y.flatten(), torch.tensor([0.03, 0.97], dtype=D)).tolist()
    beyond = max(low - data.y.min().item(), data.y.max().item() - high) / ((high - low) / 2)  # in mean gaps
    narrowest = max(0.4, 1.01 * beyond / math.sqrt(-2 * math.log(COVER)))
    model = TakagiSugeno(low, high, widths=(narrowest, 0.8), closest=0.3, dtype=D)
    model.set_affine(torch.linalg.lstsq(data.regressors(), data.y.flatten()[:, None]).solution[:, 0])
    return model


@torch.no_grad()
def one_step_ahead(model: TakagiSugeno, data: Record) -> TakagiSugeno:
    """The same sets, with consequents by least squares on the measured y, y1 instead of the system's own."""
    model, x = copy.deepcopy(model), data.regressors()
    away = x[:, None, :2] - model.prototypes()  # (N, 9, 2): consequents are about the prototypes
    terms = torch.cat([away, x[:, None, 2:].expand(-1, 9, -1)], -1) * model.firing(x[:, :2])[..., None]
    solution = torch.linalg.lstsq(terms.flatten(1), data.y.flatten()[:, None]).solution
    model.consequents.copy_(solution.view_as(model.consequents))
    return model


def train(model: TakagiSugeno, data: Record, name: str, seed: int, passes: int = PASSES) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=METHODS[name][1])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes)
    generator, rest = torch.Generator().manual_seed(seed), torch.zeros(data.y.shape[1], 2, dtype=D)
    stream = [(data.u[..., None], data.y)]
    for _ in range(passes):
        for _ in bptt.unroll(model, LOSS, stream, rest, strategy=METHODS[name][0], generator=generator):
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def free_run(model: TakagiSugeno) -> tuple[Tensor, Tensor, float]:
    """The plant and the system on 200 steps of the sine, and the root mean square of their difference."""
    u = torch.sin(2 * math.pi * torch.arange(200, dtype=D) / 25)
    wanted, found = plant(u), model(u[:, None], torch.zeros(2, dtype=D))[0]
    return wanted, found, (found - wanted).square().mean().sqrt().item()


def right_labels(model: TakagiSugeno) -> int:
    """Rules whose consequent at the prototype, without input, lies in the same set as the plant's."""
    said, true = model.labels(model.consequents[:, -1]), model.labels(autonomous(*model.prototypes().unbind(1)))
    return sum(a == b for a, b in zip(said, true, strict=True))


def plot(models: dict[str, TakagiSugeno], data: Record, path: Path) -> None:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    sets, run = figure.subplots(1, 2, width_ratios=[1, 1.6])
    y = torch.linspace(data.y.min().item(), data.y.max().item(), 300, dtype=D)
    for model, style, name in ((models["linear ARX"], ":", "before"), (models["full"], "-", "after")):
        for i, mu in enumerate(model.memberships(y).detach().T):
            sets.plot(y, mu, style, color=f"C{i}", label=f"{model.sets[i]}, {name} training")
    sets.set(xlabel="y, y1", ylabel="membership", title="the fuzzy sets (full BPTT)", ylim=(0, 1.75))
    run.plot(free_run(models["full"])[0][:75], "k", linewidth=4, alpha=0.3, label="plant")
    for name, model in models.items():
        _, found, error = free_run(model)
        run.plot(found[:75], linewidth=1, label=f"{name}: RMSE {error:.3f}")
    run.set(xlabel="step", ylabel="y", title="free run on the sine", ylim=(-3, 6))
    for axes in (sets, run):
        axes.legend(fontsize=7, ncols=2, loc="upper center")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the data and of ARTBP's cuts")
    parser.add_argument("--out", type=Path, default=Path("build/fuzzy"), help="folder for the plot")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # rows of nine numbers: threads would only wait for one another
    data = measured(args.seed, 20, 10) if args.quick else measured(args.seed)
    models = {"linear ARX": untrained(data), "one step ahead": one_step_ahead(untrained(data), data)}
    for name in METHODS:
        train(models.setdefault(name, untrained(data)), data, name, args.seed, 3 if args.quick else PASSES)
    for name, model in models.items():
        print(f"{name}: RMSE of the free run on the sine {free_run(model)[2]:.3f}, {right_labels(model)} of 9 labels")
    print("", "The rules found by full BPTT:", *models["full"].rules(), sep="\n")
    plot(models, data, args.out / "fuzzy.png")


if __name__ == "__main__":
    main()
