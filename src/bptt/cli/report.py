"""report.md of a run: how it went, what it wrote, how it was set up."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from bptt.analysis import Table
from bptt.analysis.numbers import duration
from bptt.cli.history import History
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
    table = "\n".join(f"| {name} | {value} |" for name, value in _rows(config, history, facts, seconds).items())
    title = "Character model" if history.measure.in_bits else config.model or "Forecaster"
    parts = [f"# {title}", ended, f"| | |\n|---|---|\n{table}"]
    if history.step:
        parts.append(f"![{history.measure.per}](loss.png)\n\n![gradient norm](gradient_norm.png)")
    if len(history.validations) > 1:
        parts += ["## Validation", _validations(history)]
    if results.table is not None:
        parts += [f"## {results.title}", *results.notes, Table(*results.table, words=0).markdown()]
    parts += [f"![{told}]({name})" for name, told in results.plots.items()]
    if results.text:
        parts += ["## Sample", block(results.text)]
    settings = yaml.safe_dump(config.recorded(), sort_keys=False)
    parts += ["## Settings", block(settings), "`bptt train --config config.yaml` runs them again."]
    return "\n\n".join(parts) + "\n"


def _rows(config: TrainConfig, history: History, facts: Mapping[str, str], seconds: float) -> dict[str, str]:
    rows, measure = dict(facts), history.measure
    if history.validations:
        last = history.validations[-1]
        best = min(history.validations, key=lambda v: v.loss)
        lower = (last.loss - best.loss) * measure.factor > 5e-4
        better = f" (lowest: {measure.number(best.loss)} after update {best.step})" if lower else ""
        rows["validation"] = f"**{measure.text(last.loss)}** after update {last.step}{better}"
    if history.step:
        recent = min(50, history.step)
        rows["training"] = f"{measure.text(history.recent())}, mean of the last {recent} updates"
        rows["updates"] = f"{history.step:,}, on {history.total:,} {measure.unit}s"
        rows["clipped"] = f"{history.clipped / history.step:.0%} of the updates" if config.clip else "never"
    return {**rows, "time": duration(seconds)}


def _validations(history: History) -> str:
    measure = history.measure
    rows = [[f"{v.step:,}", f"{v.read:,}", measure.number(v.loss), duration(v.seconds)] for v in history.validations]
    return Table(["update", f"{measure.unit}s", measure.per, "time"], rows, words=0).markdown()
