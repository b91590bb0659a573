"""`bptt compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial

from bptt.analysis.race import Contest, Race, Stopped
from bptt.analysis.race.jobs import KilledError
from bptt.analysis.race.result import WHEN
from bptt.cli.config import parse
from bptt.cli.contest.config import CompareConfig, parse_budget
from bptt.cli.contest.fits import must_fit
from bptt.cli.contest.folder import PAGE, ContestFolder
from bptt.cli.contest.progress import Bars
from bptt.cli.contest.settings import chosen_again, setting
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.screen import Screen
from bptt.cli.strategies import parse_strategies
from bptt.cli.streams import tell_of_signal
from bptt.runs import Interrupt
from bptt.strategies import says


def run(words: Sequence[str]) -> int:
    """Compare as `words` say; the exit code."""
    config = parse(CompareConfig, words, "bptt compare")
    config.check()
    config = config.resolved()
    strategies, budget = parse_strategies(config.strategies or ""), parse_budget(config.budget or "")
    chosen = setting(config)
    must_fit(chosen, strategies, budget)
    folder = ContestFolder(config, chosen.digest)
    again = shlex.join(["bptt", "compare", *words, *([] if config.out else ["--out", str(folder.path)])])
    interrupt, seeds = Interrupt(tell=tell_of_signal), config.seeds or 1
    parts = len(strategies) * (seeds + len(WHEN))
    bars = Bars(parts, chosen.setting.parameter, interrupt)
    contest = Contest(chosen.setting, strategies, budget, seeds, folder, bars)
    runs = seeds * len(strategies)
    try:
        kept = contest.kept()
        with interrupt:
            with bars, user_errors():
                bars.say(f"task        {chosen.setting.title}")
                bars.say(f"folder      {one_line(str(folder.path))}")
                if kept:
                    bars.say(f"going on    {kept} of {runs} runs are finished and kept")
                if config.jobs > 1:
                    _side_by_side(config, contest)
                found = contest.run()
            found.save(folder.inside, again, config.recorded())
            folder.finish()
    except Stopped:
        raise UserError(f"stopped; {contest.kept()} of {runs} runs are kept. Go on: {again}", interrupt.code) from None
    except OSError as error:
        raise UserError(f"{folder.path}: writing failed ({error.strerror})", 1) from None
    finally:
        folder.close()
    _show(found, Screen(), one_line(str(folder.path)))
    return 0


def _side_by_side(config: CompareConfig, contest: Contest) -> None:
    """Make the runs that aren't kept in processes of their own, and keep each as it is finished. Raises Stopped."""
    try:
        contest.side_by_side(partial(chosen_again, config), config.jobs, (chosen_again.__module__,))
    except KilledError:
        raise UserError("a process of --jobs was killed. Give fewer; finished runs are kept", 1) from None


def _show(found: Race, screen: Screen, path: str) -> None:
    screen.say("")
    for each in found.standings:
        screen.say(f"{each.label}: {says(each.strategy, 'words')}")
    screen.say("")
    screen.table(*found.table())
    screen.say("")
    for name, text in found.sentences().items():
        screen.say(f"{name}: {text}")
    screen.say(f"\nThe report is {path}/{PAGE}")
