"""`bptt compare`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import partial

from bptt.cli.config import parse
from bptt.cli.contest import tables
from bptt.cli.contest.config import CompareConfig, parse_budget
from bptt.cli.contest.contest import Contest, Found, Stopped
from bptt.cli.contest.drawing import png
from bptt.cli.contest.folder import PAGE, RESULTS, ContestFolder
from bptt.cli.contest.page import page
from bptt.cli.contest.panels import cost_panels, gradient_panels, loss_panels
from bptt.cli.contest.progress import Bars
from bptt.cli.contest.results import numbers, standings
from bptt.cli.contest.runner import must_fit
from bptt.cli.contest.settings import setting
from bptt.cli.contest.verdict import verdict
from bptt.cli.interrupt import Interrupt
from bptt.cli.printing import UserError, one_line
from bptt.cli.screen import Screen
from bptt.cli.strategies import parse_strategies
from bptt.cli.writing import jsonable


def run(words: Sequence[str]) -> int:
    """Compare as `words` say; the exit code."""
    config = parse(CompareConfig, words, "bptt compare")
    config.check()
    config = config.resolved()
    strategies, budget = parse_strategies(config.strategies or ""), parse_budget(config.budget or "")
    chosen = setting(config)
    must_fit(chosen, strategies, budget, config.memory)
    folder = ContestFolder(config, chosen.digest)
    again = shlex.join(["bptt", "compare", *words, *([] if config.out else ["--out", str(folder.path)])])
    interrupt = Interrupt()
    contest = Contest(config, chosen, strategies, budget, folder, interrupt)
    try:
        kept = contest.kept()
        with interrupt:
            with Bars(contest.parts) as bars:
                bars.say(f"task        {chosen.title}")
                bars.say(f"folder      {one_line(str(folder.path))}")
                if kept:
                    bars.say(f"going on    {kept} of {contest.total} runs are finished and kept")
                found = contest.run(bars)
            _write(found, folder, again)
    except Stopped:
        raise UserError(
            f"stopped; {contest.kept()} of {contest.total} runs are kept. Go on: {again}", interrupt.code
        ) from None
    except OSError as error:
        raise UserError(f"{folder.path}: writing failed ({error.strerror})", 1) from None
    finally:
        folder.close()
    _show(found, Screen(), one_line(str(folder.path)))
    return 0


def _write(found: Found, folder: ContestFolder, again: str) -> None:
    placed = standings(found)
    panels = loss_panels(found, placed), gradient_panels(placed), cost_panels(placed)
    for name, row in zip(("loss.png", "gradients.png", "windows.png"), panels, strict=True):
        folder.replace(name, partial(png, row, found))
    folder.write(RESULTS, json.dumps(jsonable(numbers(found)), indent=1) + "\n")
    folder.write(PAGE, page(found, again))
    folder.finish()


def _show(found: Found, screen: Screen, path: str) -> None:
    table = tables.brief(found)
    screen.say("")
    screen.table(table.columns, table.rows, words=1)
    screen.say("")
    for name, text in verdict(found).items():
        screen.say(f"{name}: {text}")
    screen.say(f"\nThe report is {path}/{PAGE}")
