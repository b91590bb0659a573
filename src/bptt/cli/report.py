"""report.md of a run: how it went, what it wrote, how it was set up."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from bptt.analysis import Table
from bptt.analysis.history import History
from bptt.analysis.numbers import duration
from bptt.cli.jobs.job import Results
from bptt.cli.printing import block
from bptt.cli.train_config import TrainConfig


def report(
    config: TrainConfig, history: History, ended: str, facts: Mapping[str, str], results: Results, seconds: float
) -> str:
    """The report as Markdown.

    Arguments:
        ended: how the run ended, a sentence.
        facts: further rows of the first table.
        results: what the trained model shows.
        seconds: how long the run took.
    """
    reached = history.summary()
    if history.validations:
        loss = history.measure.text(history.validations[-1].loss)
        reached["validation"] = reached["validation"].replace(loss, f"**{loss}**", 1)
    rows = {**facts, **reached, "time": duration(seconds)}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    title = "Character model" if history.measure.in_bits else config.model or "Forecaster"
    parts = [f"# {title}", ended, f"| | |\n|---|---|\n{table}"]
    if history.step:
        parts.append(f"![{history.measure.per}](loss.png)\n\n![gradient norm](gradient_norm.png)")
    if len(history.validations) > 1:
        parts += ["## Validation", history.table().markdown()]
    if results.table is not None:
        parts += [f"## {results.title}", *results.notes, Table(*results.table, words=0).markdown()]
    parts += [f"![{told}]({name})" for name, told in results.plots.items()]
    if results.text:
        parts += ["## Sample", block(results.text)]
    settings = yaml.safe_dump(config.recorded(), sort_keys=False)
    parts += ["## Settings", block(settings), "`bptt train --config config.yaml` runs them again."]
    return "\n\n".join(parts) + "\n"
