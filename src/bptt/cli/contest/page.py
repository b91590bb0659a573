"""The comparison as one HTML page, which needs nothing from outside and runs no script."""

from __future__ import annotations

from pathlib import Path

import torch

import bptt
from bptt.cli.contest import tables
from bptt.cli.contest.contest import Found
from bptt.cli.contest.drawing import svg
from bptt.cli.contest.gradients import WHEN
from bptt.cli.contest.panels import cost_panels, gradient_panels, looks, loss_panels, marks
from bptt.cli.contest.results import standings
from bptt.cli.contest.verdict import verdict
from bptt.cli.html import templates
from bptt.cli.printing import printable


def page(found: Found, command: str) -> str:
    """The page. command: what makes the same comparison again."""
    placed, seeds = standings(found), found.config.seeds or 1
    environment = templates(Path(__file__).parent)
    environment.filters |= {"printable": printable, "minus": lambda text: text.replace("-", "−")}
    facts = {
        **found.setting.facts,
        "budget": f"{found.budget} for each run",
        "seeds": f"{seeds}, each with its own first weights and data" if seeds > 1 else "one",
        "versions": f"bptt {bptt.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
    }
    return environment.get_template("report.html.j2").render(
        title=found.setting.title,
        verdict=verdict(found),
        facts=facts,
        command=command,
        looks={found.label(name): look for name, look in looks(found.names).items()},
        groups=[
            ("Learning", loss_panels(found, placed)),
            ("Gradient", gradient_panels(placed)),
            ("Windows and cost", cost_panels(placed)),
        ],
        svg=svg,
        marks=marks(found),
        results=tables.results(found),
        gradients=[tables.gradients(found, when) for when in WHEN],
        parameters=[tables.by_parameter(found, when) for when in WHEN],
        draws=found.config.draws,
        diverged={f"{each.label}, seed {run.seed}": run.diverged for each in placed for run in each.diverged},
        reference=found.reference and f"{found.label(found.reference.strategy)}, seed {found.reference.seed}",
        measured=found.setting.measured.inputs.shape[0],
        seeds=seeds,
    )
