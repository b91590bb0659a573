"""The gradients: the full one in several ways, and what truncation and ARTBP make of its terms."""

from collections.abc import Iterator

from torch import Tensor

from bptt.analysis.explanation.tables import Section, Titled, labels, matrix, number, tiny, titled, triangle, weight
from bptt.analysis.explanation.work import Estimate, Work, cosine, difference, flat, relative_error
from bptt.analysis.shown import Table
from bptt.equations import Gradient


def gradients(work: Work) -> Section:
    """The full gradient, and that autograd and the engine agree with it."""
    others = work.others
    names = [name for name, part in work.full._asdict().items() if part is not None]
    cells = [
        [tiny(difference(getattr(other, name), getattr(work.full, name))) for other in others.values()]
        for name in names
    ]
    agreement = titled(
        "largest difference of an entry from the sums, as a part of the largest entry",
        ("", *others),
        [f"dL/d{name}" for name in names],
        cells,
    )
    return Section(
        "gradients",
        "The gradients",
        ("dL/dθ = Σ_t Σ_{k≤t} term (t, k)",),
        (
            f"The sums of all terms; and the same by the recursion of `bptt.equations.gradient_by_recursion`, by "
            f"torch's autograd through `bptt.nn.SimpleRNN`, and by `bptt.unroll` with `FullBPTT()`. Largest difference "
            f"from autograd and the others: {tiny(agreement_of(work))}; 64-bit numbers have 16 digits.",
        ),
        (*_parts(work.full, work), agreement),
    )


def truncation(work: Work) -> Section:
    """Which terms fall out, and the gradients that are left."""
    tau, steps = work.tau, work.trace.steps
    said = (
        (f"t - {tau} < k ≤ t", f"those of lag {tau} or more"),
        (f"k ≤ t in one subsequence of {tau}", "those that cross from one subsequence to another"),
    )
    exact = "dL/dV alone is" if work.full.c is None else "dL/dV and dL/dc alone are"
    lost = (
        f"Dropped terms are lost whatever the data: a truncated gradient is biased. {exact} exact, with all terms "
        f"at lag 0, and not shown again."
    )
    both = list(zip(work.truncated, said, strict=False))
    return Section(
        "truncation",
        "Truncation",
        (
            "dL/dθ ≈ Σ_t Σ_{k≤t} ω_tk term (t, k)",
            *(f"{estimate.name}: ω_tk = 1 for {where}, else 0" for estimate, (where, _) in both),
        ),
        (
            *(_dropped(estimate, which) for estimate, (_, which) in both),
            "Nothing is dropped here: the gradient is the full one." if tau == steps else lost,
        ),
        tuple(table for estimate in work.truncated for table in _estimate(estimate, work)),
    )


def artbp(work: Work) -> Section:
    """One draw with its compensation factors, and the mean over all draws."""
    pattern, steps, mean = work.pattern, work.trace.steps, work.expectation
    hazards, weights, cuts = pattern.hazards[1:], pattern.boundaries.tolist()[1:], pattern.cuts
    boundaries = titled(
        "boundaries: chance p_t of a cut, what was drawn, compensation factor w_t",
        ("steps", *(f"{t - 1}|{t}" for t in range(1, steps))),
        ("p_t", "drawn", "w_t"),
        (
            [number(p) for p in hazards],
            ["cut" if t in cuts else "kept" for t in range(1, steps)],
            [weight(w) for w in weights],
        ),
    )
    off = difference(mean.mean, flat(work.full))
    return Section(
        "artbp",
        "Randomised truncation: ARTBP",
        (
            "w_t = 0 with probability p_t, a cut, else 1 / (1 - p_t)",
            "c_t = Vᵀ e_t + w_{t+1} Wᵀ D_{t+1} c_{t+1}",
            "ω_tk = w_{k+1} · w_{k+2} · ... · w_t",
        ),
        (
            f"Each boundary between two steps is cut at random, p_t = law(k) for k steps since the last cut, here with "
            f"`{pattern.law}`. What passes a boundary that was kept is made larger by "
            f"1 / (1 - p_t), which makes up for the times it is cut. This draw: {_drawn(cuts, steps)}.",
            f"The mean over all patterns of cuts, {mean.patterns} here, each times its chance, is the full gradient: "
            f"largest difference {tiny(off)}. Unlike truncation ARTBP has no bias. It pays in variance: a draw is off "
            f"by {number(mean.deviation)} |dL/dθ|, root mean square.",
        ),
        (*([boundaries] if steps > 1 else []), *_estimate(work.draw, work)),
    )


def side_by_side(work: Work) -> Table:
    """A row a gradient: its norm, how far it is off, and how far the engine is off from it."""
    full = flat(work.full)
    rows = {"full": _row(full, flat(work.others["by bptt.unroll"]), full)}
    for estimate in (*work.truncated, work.draw):
        rows[estimate.name] = _row(flat(estimate.gradient), flat(estimate.by_engine), full)
    mean = work.expectation.mean
    rows[f"mean of ARTBP's {work.expectation.patterns}"] = (*_row(mean, mean, full)[:-1], "")
    return Table(("", "|g|", "error", "cosine", "unroll is off by"), [(name, *row) for name, row in rows.items()])


def comparison(work: Work) -> Section:
    """All gradients side by side."""
    return Section(
        "comparison",
        "Side by side",
        ("error = |g - dL/dθ| / |dL/dθ|, cosine = g · dL/dθ / (|g| |dL/dθ|)",),
        ("g is all parameters' gradient in one row of numbers. The last column: what `bptt.unroll` computes.",),
        (Titled("g", side_by_side(work)),),
    )


def further(work: Work) -> Section:
    """Where the rest is."""
    return Section(
        "further",
        "What to read next",
        (),
        (
            "The same to play with, by sliders and up to lag 60: `bptt explain --explorer explorer.html`.",
            "These sums as functions: `bptt.equations`, such as `pair_terms`, `truncated_gradient`, `artbp_gradient`.",
            f"Training with them: `bptt.unroll` with `strategy=` `FullBPTT()`, `{work.truncated[-1].name}` or "
            f"`ARTBP()`; on a text, `bptt train --strategy tbptt:64`.",
            "Werbos 1990, Backpropagation through time: what it does and how to do it. Pascanu, Mikolov & Bengio 2013, "
            "On the difficulty of training recurrent neural networks (arXiv 1211.5063). Williams & Peng 1990, An "
            "efficient gradient-based algorithm for on-line training. Tallec & Ollivier 2017, Unbiasing truncated "
            "backpropagation through time (arXiv 1705.08209).",
        ),
        (),
    )


def agreement_of(work: Work) -> float:
    """The largest difference of any entry between the four ways to the full gradient, relative to the largest entry."""
    return max(difference(flat(other), flat(work.full)) for other in work.others.values())


def _row(estimate: Tensor, by_engine: Tensor, full: Tensor) -> tuple[str, ...]:
    error = relative_error(estimate, full)
    return (
        number(estimate.norm().item()),
        tiny(error) if error < 1e-9 else number(error),
        number(cosine(estimate, full)),
        tiny(difference(by_engine, estimate)),
    )


def _dropped(estimate: Estimate, which: str) -> str:
    steps = len(estimate.weights)
    pairs = steps * (steps + 1) // 2
    count = pairs - int(estimate.weights.sum())
    return f"{estimate.name} drops {count} of the {pairs} terms, {which}." if count else f"{estimate.name} drops none."


def _drawn(cuts: tuple[int, ...], steps: int) -> str:
    if steps == 1:
        return "one step has no boundary"
    if not cuts:
        return "no boundary was cut, so every term with a lag is too large"
    return "cut between the steps " + ", ".join(f"{cut - 1} and {cut}" for cut in cuts)


def _estimate(estimate: Estimate, work: Work) -> Iterator[Titled]:
    yield triangle(f"ω_tk of {estimate.name}", estimate.weights, show=weight)
    exact = {"V": None, "c": None}  # have no term with a lag
    yield from _parts(estimate.gradient._replace(**exact), work, f", {estimate.name}")


def _parts(gradient: Gradient, work: Work, note: str = "") -> Iterator[Titled]:
    """The matrices of a gradient."""
    letters, one = labels(work.characters), (" ",)
    named = {"U": ((), letters), "W": ((), ()), "V": (letters, ()), "b": ((), one), "c": (letters, one)}
    for name, part in gradient._asdict().items():
        if part is not None:
            rows, columns = named[name]
            yield matrix(f"dL/d{name}{note}", part.view(len(part), -1), rows, columns)
