"""report.md of a run: how it went, what it wrote, how it was set up."""

from __future__ import annotations

import yaml

from bptt.cli.history import History
from bptt.cli.printing import bits, block, duration
from bptt.cli.train_config import TrainConfig


def report(
    config: TrainConfig, history: History, ended: str, facts: dict[str, str], sample: str, seconds: float
) -> str:
    """The report as Markdown.

    Arguments:
        ended: how the run ended, a sentence.
        facts: further rows of the first table.
        sample: text the model wrote, or "".
        seconds: how long the run took.
    """
    rows = dict(facts)
    if history.validations:
        last = history.validations[-1]
        best = min(history.validations, key=lambda v: v.bpc)
        better = f" (lowest: {bits(best.bpc)} after update {best.step})" if best.bpc < last.bpc - 5e-4 else ""
        rows["validation"] = f"**{bits(last.bpc)} bits per character** after update {last.step}{better}"
    if history.step:
        rows["training"] = (
            f"{bits(history.recent_bpc())} bits per character, mean of the last {min(50, history.step)} updates"
        )
        rows["updates"] = f"{history.step:,}, on {history.total_chars:,} characters"
        rows["clipped"] = f"{history.clipped / history.step:.0%} of the updates" if config.clip else "never"
    rows["time"] = duration(seconds)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    parts = ["# Character model", ended, f"| | |\n|---|---|\n{table}"]
    if history.step:
        parts.append("![bits per character](loss.png)\n\n![gradient norm](gradient_norm.png)")
    if len(history.validations) > 1:
        lines = "\n".join(
            f"| {v.step:,} | {v.chars:,} | {bits(v.bpc)} | {duration(v.seconds)} |" for v in history.validations
        )
        parts += ["## Validation", f"| update | characters | bits per character | time |\n|--:|--:|--:|--:|\n{lines}"]
    if sample:
        parts += ["## Sample", block(sample)]
    settings = yaml.safe_dump(config.recorded(), sort_keys=False)
    parts += ["## Settings", block(settings), "`bptt train --config config.yaml` runs them again."]
    return "\n\n".join(parts) + "\n"
