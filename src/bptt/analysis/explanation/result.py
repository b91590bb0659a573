"""What `explain` returns: every number of a small network's gradients, told in sections, as text, page and plot."""

import html
import importlib
import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bptt.analysis.explanation import derivation, estimates
from bptt.analysis.explanation.tables import LEVELS, Section, number, tiny
from bptt.analysis.explanation.text import text
from bptt.analysis.explanation.work import Work, flat, relative_error
from bptt.analysis.shown import Shown, Table, axes

ORDER = (
    derivation.network,
    derivation.forward,
    derivation.jacobians,
    derivation.cotangents,
    derivation.terms,
    estimates.gradients,
    estimates.truncation,
    estimates.artbp,
    estimates.comparison,
    estimates.further,
)
"""The sections in the order of the derivation."""


@dataclass(frozen=True, eq=False)
class Explanation(Work, Shown):
    """What `explain` found: printed, the whole derivation with its numbers; in a notebook too, with formulas set.

    network, x, y: what was given, float64, y int64 where it is classes. sources: where parameters and sequence come
        from. characters: what the components of x_t and o_t stand for, or "".
    tau: terms that truncation keeps. term: the (t, k) that is written out.
    law, cuts: of ARTBP, and which boundaries it cut. drawn: its gradient by `unroll`, with these cuts.

    All else is computed from these when it is asked for. Arrays by term have entry [t, k], zero for k > t:
    trace: the forward pass, a `Trace`. jacobians: ∂h_t/∂h_k, (T, T, H, H). cotangents: ∂l_t/∂h_k, (T, T, H).
    terms: a `Gradient` of arrays (T, T, ...). full: dL/dθ. others: the same by recursion, autograd and `unroll`.
    truncated, draw: what stands in for it. pattern: ARTBP's cuts, with chances and weights.
    expectation: ARTBP over all patterns.
    """

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """What is told: equations, texts and tables, in the order of the derivation."""
        return tuple(section(self) for section in ORDER)

    def verdict(self) -> str:
        """How well the ways to the full gradient agree, and what truncation and ARTBP make of it: a line each."""
        full, steps, mean = flat(self.full), self.trace.steps, self.expectation
        count = steps * (steps + 1) // 2
        said = [
            f"full gradient: the sum of {count} terms for W and U, |dL/dθ| = {number(full.norm().item())}; recursion, "
            f"autograd and unroll differ by {tiny(estimates.agreement_of(self))} of it at most"
        ]
        for each in self.truncated:
            dropped = count - int(each.weights.sum())
            off = number(relative_error(flat(each.gradient), full))
            said.append(f"{each.name}: drops {dropped} of the {count} terms, off by {off} |dL/dθ|")
        said.append(
            f"ARTBP: the mean over all {mean.patterns} patterns of cuts is the full gradient; one draw is off by "
            f"{number(mean.deviation)} |dL/dθ|, root mean square"
        )
        return "\n".join(said)

    def table(self) -> Table:
        """The gradients side by side: norm, relative error, cosine, and how far `unroll` is off."""
        return estimates.side_by_side(self)

    def records(self) -> list[dict[str, Any]]:
        """One for each term (t, k): its norm, that of each parameter's part, and its weight in each estimate."""
        norms = {
            f"norm_{name}": part.flatten(2).norm(dim=-1)
            for name, part in self.terms._asdict().items()
            if part is not None
        }
        norm = sum(each.square() for each in norms.values()) ** 0.5
        numbers = {"norm": norm, **norms, **{each.name: each.weights for each in (*self.truncated, self.draw)}}
        return [
            {"t": t, "k": k, "lag": t - k, **{name: values[t, k].item() for name, values in numbers.items()}}
            for t in range(self.trace.steps)
            for k in range(t + 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """A heat map of the terms' norms, a row a loss and a column a step of the parameters' use."""
        return _plot(self, axes(ax))

    def text(self, width: int | None = None, styled: bool = False) -> str:
        """The whole derivation as text of so many columns; those of the terminal if None.

        styled: with a terminal's codes for bold and dim.
        """
        t, k = self.term
        return text(self.sections, derivation.term(self, t, k), width or shutil.get_terminal_size().columns, styled)

    def page(self) -> str:
        """One page of HTML, which needs no network and runs no script: a click on a term shows its path and factors.

        Raises ImportError without jinja2 and latex2mathml, which the `cli` extra brings.
        """
        return pages("page").page(self)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        try:
            return str(pages("page").notebook(self))
        except ImportError:  # the texts as they are printed
            return f"<pre>{html.escape(self.text(100))}</pre>"


def pages(name: str) -> Any:
    """A module of pages. Raises ImportError for what the `cli` extra would have brought."""
    try:
        return importlib.import_module(f"bptt.analysis.explanation.report.{name}")
    except ImportError as error:
        raise ImportError(f"a page needs {error.name}, which isn't installed: pip install 'bptt[cli]'.") from None


def _plot(found: Explanation, ax: Any) -> Any:
    """The terms of all parameters together, on a scale of factors of two; as numbers too, where these have room."""
    steps, records = range(found.trace.steps), found.records()
    largest = max(record["norm"] for record in records)
    norms = [[float("nan")] * len(steps) for _ in steps]
    for record in records:
        t, k, norm = record["t"], record["k"], record["norm"]
        norms[t][k] = norm
        if len(steps) <= 6:
            ink = "white" if norm > largest / 8 else "black"
            ax.text(k, t, number(norm), ha="center", va="center", color=ink)
    scale = {"norm": "log", "vmin": largest / 2**LEVELS, "vmax": largest} if largest else {"vmin": 0, "vmax": 1}
    ax.figure.colorbar(ax.imshow(norms, cmap="Blues", **scale), ax=ax, label="norm of all parameters' parts")
    ax.set_xticks(steps)
    ax.set_yticks(steps)
    ax.set_xlabel("step k, where the parameters are used")
    ax.set_ylabel("step t of the loss")
    ax.set_title("Terms (t, k) of dL/dθ")
    return ax
