"""The comparison as one HTML page, which needs nothing from outside and runs no script."""

from __future__ import annotations

from pathlib import Path

import torch

import bptt
from bptt.analysis.numbers import printable
from bptt.analysis.race import Race
from bptt.analysis.race.report import tables
from bptt.analysis.race.report.drawing import svg
from bptt.analysis.race.report.panels import cost_panels, gradient_panels, looks, loss_panels, marks
from bptt.analysis.race.report.templates import templates
from bptt.analysis.race.result import WHEN
from bptt.strategies import says


def page(found: Race, command: str) -> str:
    """The page. command: what makes the same comparison again."""
    placed, seeds = found.standings, found.seeds
    environment = templates(Path(__file__).parent)
    environment.filters |= {"printable": printable, "minus": lambda text: text.replace("-", "−")}
    facts = {
        **found.facts,
        "budget": f"{found.budget} for each run",
        "seeds": f"{seeds}, each with its own first weights and data" if seeds > 1 else "one",
        "versions": f"bptt {bptt.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
    }
    return environment.get_template("report.html.j2").render(
        title=found.title,
        verdict=found.sentences(),
        facts=facts,
        command=command,
        looks=looks([each.label for each in placed]),
        words={each.label: says(each.strategy, "words") for each in placed},
        groups=[
            ("Learning", loss_panels(found)),
            ("Gradient", gradient_panels(placed)),
            ("Windows and cost", cost_panels(placed)),
        ],
        svg=svg,
        marks=marks(found),
        results=tables.results(found),
        gradients=[tables.gradients(found, when) for when in WHEN],
        parameters=[tables.by_parameter(found, when) for when in WHEN],
        draws=found.draws,
        diverged={f"{each.label}, seed {run.seed}": run.diverged for each in placed for run in each.diverged},
        reference=found.reference and "{}, seed {}".format(*found.reference),
        measured=found.steps,
        seeds=seeds,
    )
