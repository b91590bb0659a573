"""Strategies of one's own, of no class that the command line knows: it asks them, and has a sentence for each."""

import math
from dataclasses import replace

import pytest

import bptt
from bptt.analysis.race import Budget
from bptt.analysis.race.runner import Runner
from bptt.analysis.verdict import verdicts
from bptt.cli.contest.config import CompareConfig
from bptt.cli.contest.fits import must_fit
from bptt.cli.contest.settings import setting
from bptt.cli.diagnose import of_own
from bptt.cli.plan import named
from bptt.cli.printing import UserError
from bptt.cli.reading import CHUNK, Reading, reading
from bptt.cli.strategies import labelled
from bptt.cli.train import _ends
from bptt.cli.train_config import TrainConfig
from bptt.strategies import says

SEQUENCE = 50  # steps of the task's sequences


class Plain:
    """Windows of 8 steps; of itself it says nothing."""

    def windows(self, upto, draw, progress=None):
        a = progress or 0
        while (b := upto(a + 8)) > a:
            yield bptt.Window(a, a, b, b, progress=b)
            a = b

    def divisor(self, window):
        return window.steps

    def __repr__(self):
        return f"{type(self).__name__}()"


class Drawn(Plain):
    """Cut at random after every 4 steps."""

    def windows(self, upto, draw, progress=None):
        a = last = progress or 0
        while (t := upto(last + 4)) > last:
            last = t
            if draw() < 0.5:
                yield bptt.Window(a, a, t, t, progress=t)
                a = t
        if last > a:
            yield bptt.Window(a, a, last, last, progress=last)


class Whole(Plain):
    """The stream in one window."""

    sequences = True

    def windows(self, upto, draw, progress=None):
        if progress is None:
            end = upto(math.inf)
            yield bptt.Window(0, 0, end, end, progress=end)


class Found(Plain):
    """Lengths that training finds."""

    lengths_known = False


def own(base, **said):
    """A strategy that says so of itself."""
    return type("Mine", (base,), said)()


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (own(Whole, kind="exact"), "drops nothing within a sequence"),
        (own(Plain, kind="exact"), "drops nothing within a sequence"),
        (own(Drawn, kind="unbiased"), "drops nothing on average, at the price of noise"),
        (own(Drawn, kind="biased"), "is biased: what its cuts drop, no factors make up for"),
        (own(Plain, kind="biased"), "drops 25% of this gradient"),
        (Plain(), "drops 25% of this gradient"),
        (Whole(), "cuts nothing in 40 steps; give a larger --length"),
        (Found(), "chose its length on the way"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{type(value).__base__.__name__}-{says(value, 'kind')}",
)
def test_what_a_strategy_drops(strategy, said):
    assert of_own(strategy, 40, 0.25) == said


@pytest.mark.parametrize(("k1", "k2"), [(4, 7), (4, 12), (4, 43), (40, 40), (50, 60), (39, 40), (1, 40), (1, 39)])
def test_a_truncation_that_cuts_nothing_is_one_whose_windows_start_at_the_start(k1, k2):
    strategy = bptt.TruncatedBPTT(k1, k2)
    starts = [max(0, a - (k2 - k1)) for a in range(0, 40, k1)]
    assert ("cuts nothing" in of_own(strategy, 40, 0.25)) == (max(starts) == 0)


def test_one_of_known_lengths_is_measured_as_a_built_in_one_is(bptt_, train, monkeypatch):
    assert train("--steps", 2, "--out", "run").code == 0
    by_library = bptt_("diagnose", "run", "--length", 40).out
    assert "tbptt:8, this run's strategy, drops " in by_library
    monkeypatch.setattr("bptt.cli.reading.parse_strategy", lambda *words: Plain())
    assert bptt_("diagnose", "run", "--length", 40).out == by_library


@pytest.mark.parametrize(
    ("strategy", "label"),
    [
        (Plain(), "random"),
        (own(Plain, kind="exact"), "random"),
        (own(Drawn, kind="unbiased"), "random"),
        (Drawn(), "random (biased)"),
        (own(Drawn, kind="biased"), "random (biased)"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{type(value).__base__.__name__}-{says(value, 'kind')}",
)
def test_labelled_by_what_it_is_whatever_its_name(strategy, label):
    assert labelled("random", strategy) == label


def test_named_by_its_text_or_by_what_python_calls_it():
    assert named(Plain()) == "Plain()"
    assert named(own(Plain, spec="mine:8")) == "mine:8"
    assert named(bptt.ARTBP(every=3, compensate=False)) == "random:50 (biased) --every 3"
    assert named(bptt.ARTBP(bptt.ConstantLaw(4))) == str(bptt.ARTBP(bptt.ConstantLaw(4)))


def test_a_plan(bptt_, text, monkeypatch):
    words = ["plan", "--data", text, "--hidden", 8, "--batch", 2, "--steps", 60, "--strategies", "mine"]
    monkeypatch.setattr("bptt.cli.plan.parse_strategies", lambda words: {"mine": Plain()})
    assert "Plain(), all kept, is the least biased gradient: " in " ".join(bptt_(*words).out.split())
    monkeypatch.setattr("bptt.cli.plan.parse_strategies", lambda words: {"mine:3": Found()})
    assert "--strategies mine: mine finds its lengths during training. Plan tbptt:K:2K-1" in bptt_(*words).error


@pytest.mark.parametrize(
    ("strategy", "chunk_length"),
    [(Plain(), 8), (Drawn(), CHUNK), (own(Drawn, reach=7.5), 8), (Found(), CHUNK)],
    ids=["fixed", "drawn", "drawn-of-known-mean", "found"],
)
def test_how_much_is_read_at_once(monkeypatch, strategy, chunk_length):
    monkeypatch.setattr("bptt.cli.reading.parse_strategy", lambda *words: strategy)
    assert reading(TrainConfig(strategy="mine")) == Reading(strategy, chunk_length)
    with pytest.raises(UserError, match="--sequence-length applies only to --strategy full, not to mine"):
        reading(TrainConfig(strategy="mine", sequence_length=20))


def test_sequences_are_asked_for(monkeypatch):
    strategy = Whole()
    monkeypatch.setattr("bptt.cli.reading.parse_strategy", lambda *words: strategy)
    with pytest.raises(UserError, match="--strategy mine takes finite sequences: give --sequence-length too"):
        reading(TrainConfig(strategy="mine"))
    assert reading(TrainConfig(strategy="mine", sequence_length=20)) == Reading(strategy, 20, sequences=True)


def test_windows_longer_than_the_text():
    config = TrainConfig(strategy="mine:4")
    for strategy in (Plain(), own(Found, reach=101), own(Plain, reach=100)):
        _ends(config, Reading(strategy, CHUNK), 100, "character")
    with pytest.raises(UserError, match=r"windows of 101 characters, .* give a strategy with windows of that or less"):
        _ends(config, Reading(own(Plain, reach=101), CHUNK), 100, "character")


@pytest.fixture(scope="module")
def task():
    return setting(CompareConfig(hidden=4, batch=2, sequence_length=SEQUENCE).resolved())


def fit(task, strategies, steps=200, memory=None):
    must_fit(replace(task, setting=replace(task.setting, memory=memory)), strategies, Budget(steps, None))


def refused(task, strategies, steps=200, memory=None):
    with pytest.raises(UserError) as error:
        fit(task, strategies, steps, memory)
    return str(error.value)


def test_a_comparison_that_can_t_be(task):
    assert "--budget 49: mine needs at least the 50 steps" in refused(task, {"mine": Whole()}, 49)
    assert "leave mine out of --strategies" in refused(task, {"mine": Whole()}, 49)
    fit(task, {"mine": Whole(), "other": own(Found, reach=201)}, SEQUENCE)
    long = {"mine": own(Plain, reach=201)}
    assert "--strategies mine: windows of 201 steps, but --budget 200 has only 200" in refused(task, long)


def test_a_comparison_in_too_little_memory_names_the_least_of_each(task):
    """Of `unroll`'s own errors, by their field: it works, and one byte less doesn't."""
    strategies = {"mine": Whole(), "tbptt:4": bptt.TruncatedBPTT(4)}
    said = refused(task, strategies, memory="10B")
    least = int(said.split("The least that would is ")[1].split("B, for ")[0])
    assert said.startswith("--memory 10B: no strategy fits. ")
    name = said.split(", for ")[1]
    fit(task, {name: strategies[name]}, memory=f"{least}B")
    assert refused(task, strategies, memory=f"{least - 1}B") == said.replace("10B", f"{least - 1}B", 1)
    other = next(each for each in strategies if each != name)
    more = refused(task, strategies, memory=f"{least}B")
    assert more.startswith(f"--memory {least}B: too little for {other} (the least is ")
    fit(task, strategies, memory=more.split("the least is ")[1].split(")")[0])
    assert refused(task, strategies, memory="lots").startswith("memory='lots': ")


def test_a_run_takes_one_sequence_after_the_other(task):
    """Where the strategy asks for sequences; else the stream as it comes, to the budget's last step."""
    for base, windows in ((Whole, {50: 2}), (Plain, {8: 15})):
        runner = Runner(task.setting, "mine", base(), 0, Budget(120, None), lambda *_: None, lambda: False)
        assert runner.train().windows == windows


def test_the_verdict_believes_intervals_and_not_names():
    def measured(strategy, bias, signed):
        rest = {"variance": bptt.Estimate(1.0, 1.0, 1.0), "cosine": bptt.Estimate(1.0, 1.0, 1.0), "parameters": {}}
        cost = dict.fromkeys(("seconds", "memory_bytes", "updates", "forward_steps", "backward_steps"), 1)
        return [
            bptt.Compared(bptt.Estimate(*bias), bptt.Estimate(*signed), strategy=strategy, draws=60, **rest, **cost)
        ]

    def said(**found):
        return verdicts(found)["least biased of the others"]

    zero, off = (0.0, -0.1, 0.1), (0.3, 0.2, 0.4)
    mine, other = own(Drawn, kind="unbiased"), own(Drawn, kind="biased")
    near, wide, far = (0.1, 0.0, 0.15), (0.0, 0.0, 0.3), (0.3, 0.2, 0.4)
    assert said(a=measured(mine, far, off), b=measured(other, near, zero)).startswith(
        "b, off by at most 15% (60 draws)"
    )
    told = said(a=measured(mine, wide, zero), b=measured(other, near, zero))
    assert told == "undecided between b, off by at most 15% (60 draws); a, off by at most 30% (60 draws)"
    assert "a (along the exact" in verdicts({"a": measured(mine, far, off)})["biased, whatever it says"]
    assert "biased, whatever it says" not in verdicts({"a": measured(other, far, off)})
