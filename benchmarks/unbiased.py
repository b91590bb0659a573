"""Is ARTBP unbiased in practice: does the interval of its bias cover zero as often as it should?

The scalar recurrence s_t = a s_{t-1} + x_t with l_t = (s_t - y_t)², a = 0.9, T = 50, cut at random by row:

    dL/da = Σ_t l'(s_t) S_t,    S_t = s_{t-1} + w a S_{t-1},   w = 0 at a cut, else 1 / (1 - p)

Each row of a batch has an `a` of its own and the same data, so its gradient is one independent draw, and the signed
bias of a run of R rows is the mean over R draws. `bptt.compare` gives its 99 % interval from 2,000 draws, for 100
seeds: zero must lie in at least 95 of the intervals. As a control, the same cuts without the factors 1 / (1 - p): there
it must lie in 5 at most. Bias and variance of a draw are known exactly, by a recursion over the steps since the last
cut.

    python benchmarks/unbiased.py [--seeds 100] [--draws 2000]

With fewer seeds or draws it is a trial run, and nothing is judged.
"""

import argparse
import statistics
import sys

import torch

import bptt
from support import report

A, T, SEEDS, DRAWS, ROWS = 0.9, 50, 100, 2_000, 100
COVERED, CONTROL = 0.95, 0.05

POLYNOMIAL, CONSTANT = bptt.PolynomialLaw(alpha=3, mean_length=10), bptt.ConstantLaw(mean_length=10)
STRATEGIES = {
    "polynomial α=3 T0=10": bptt.ARTBP(law=POLYNOMIAL, per_row=True),
    "constant T0=10": bptt.ARTBP(law=CONSTANT, per_row=True),
    "constant T0=10, no factors": bptt.ARTBP(law=CONSTANT, per_row=True, compensate=False),
}


def data() -> torch.Tensor:
    """x and y, (2, T), always the same."""
    return torch.randn(2, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def compare(strategies: list[bptt.ARTBP], draws: int, seed: int) -> bptt.Comparison:
    """`draws` draws, ROWS of them a run."""
    a = torch.full((ROWS,), A, dtype=torch.float64, requires_grad=True)
    chunk = bptt.Chunk(*data()[:, :, None].expand(2, T, ROWS))
    return bptt.compare(
        bptt.scan(lambda x, s: (a * s + x, a * s + x)),
        lambda outputs, targets: (outputs - targets) ** 2,
        chunk,
        torch.zeros(ROWS, dtype=torch.float64),
        strategies=strategies,
        draws=draws // ROWS,
        state_batch_dim=0,
        params=[a],
        generator=torch.Generator().manual_seed(seed),
    )


def exact(strategy: bptt.ARTBP) -> tuple[float, float]:
    """(E G - g*) / g* and Var G / g*² of a draw, from E[G^m; age], age the steps since the last cut, and S at each."""
    state, ages, influence, full, reach = 0.0, [(1.0, 0.0, 0.0)], [0.0], 0.0, 0.0
    for x, y in data().T.tolist():
        reach = state + A * reach
        before, state = state, A * state + x
        influence = [before + part for part in influence]
        slope = 2 * (state - y)
        full += slope * reach
        steps = [slope * s for s in influence]
        ages = [(p, g + p * d, h + 2 * g * d + p * d * d) for (p, g, h), d in zip(ages, steps, strict=True)]
        hazards = [strategy.law(k) for k in range(1, len(ages) + 1)]
        cut = tuple(sum(p * age[m] for p, age in zip(hazards, ages, strict=True)) for m in range(3))
        ages = [cut, *(tuple((1 - p) * v for v in age) for p, age in zip(hazards, ages, strict=True))]
        kept = [A * s / (1 - p if strategy.compensate else 1) for p, s in zip(hazards, influence, strict=True)]
        influence = [0.0, *kept]
    mean, second = (sum(age[m] for age in ages) for m in (1, 2))
    return (mean - full) / full, (second - mean**2) / full**2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="intervals for each strategy")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"for each interval, a multiple of {ROWS}")
    args = parser.parse_args()
    torch.set_num_threads(1)  # 100 numbers: threads would only wait for one another
    judged = (args.seeds, args.draws) == (SEEDS, DRAWS)

    found = [compare(list(STRATEGIES.values()), args.draws, seed).entries for seed in range(args.seeds)]
    rows, missed = [], []
    for i, (name, strategy) in enumerate(STRATEGIES.items()):
        entries = [entries[i] for entries in found]
        bias, variance = exact(strategy)
        covered = sum(e.signed_bias.low <= 0 <= e.signed_bias.high for e in entries)
        right = sum(e.signed_bias.low <= bias <= e.signed_bias.high for e in entries)
        met = covered >= COVERED * args.seeds if strategy.compensate else covered <= CONTROL * args.seeds
        wanted = f">= {COVERED:.0%}" if strategy.compensate else f"<= {CONTROL:.0%}"
        if judged and not (met and right >= COVERED * args.seeds):
            missed.append(f"{name}: zero lies in {covered} of {args.seeds} intervals, the exact bias in {right}")
        sampled = statistics.fmean(e.variance.value for e in entries)
        means = statistics.fmean(e.signed_bias.value for e in entries)
        rows.append([name, f"{covered} of {args.seeds}", wanted, right, bias, means, variance, sampled])
    headings = ["strategy", "zero covered", "wanted", "exact bias covered"]
    headings += ["exact bias", "mean of estimates", "exact variance", "mean of estimates"]
    file = "unbiased" if judged else "unbiased_quick"
    return report(file, headings, rows, missed, a=A, T=T, seeds=args.seeds, draws=args.draws, rows_a_run=ROWS)


if __name__ == "__main__":
    sys.exit(main())
