"""`bptt plan`: what it prints against runs by the library, a table that fits 80 columns, and errors of one line."""

import re

import pytest
import torch

import bptt
from bptt.cli.jobs.texts import build
from bptt.cli.plan import named
from bptt.cli.strategies import parse_strategy
from bptt.data import Vocabulary, lanes, load_text

BATCH, STEPS, HIDDEN = 2, 60, 8
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}


@pytest.fixture
def plan(bptt_, text):
    """`bptt plan` of a small problem; later words win."""

    def run(*words):
        return bptt_(
            "plan", "--data", text, "--hidden", HIDDEN, "--batch", BATCH, "--steps", STEPS, "--device", "cpu", *words
        )

    return run


def table(out):
    """The rows of the table: strategy, kept, gradient, reach, time, memory, and the remark."""
    lines = out.split("\n\n")[1].splitlines()
    assert lines[0].split() == ["strategy", "kept", "gradient", "reach", "time", "memory"]
    return [[*re.split(" {2,}", line.strip()), ""][:7] for line in lines[2:]]


def count(word):
    number, unit = word.split()
    return float(number) * UNITS[unit]


def ran(text, strategy, kept):
    """The most bytes that a run of that row holds."""
    whole = load_text(text)
    vocabulary = Vocabulary.of(whole)
    ids = lanes(vocabulary.encode(whole), BATCH)[: STEPS + 1]
    model = build(len(vocabulary), "gru", HIDDEN, 1)
    memory = None if kept == "all" else bptt.Checkpoints(*map(int, kept.split(" x ")))
    stream, state = [(ids[:-1], ids[1:])], model.initial_state(BATCH)
    updates = bptt.unroll(model, model.loss, stream, state, strategy=strategy, memory=memory)
    return max(update.memory_bytes for update in updates)


def test_memory_is_that_of_runs(plan, text):
    wanted = {"full": "exact", "tbptt:5": "biased", "tbptt:20:40": "biased"}
    # a short call of torch's own LSTM saves what oneDNN works in, more than the budget in some releases: so a GRU
    result = plan("--cell", "gru", "--strategies", ",".join(wanted), "--memory", "30KiB")
    assert (result.code, result.err) == (0, "")
    rows = table(result.out)
    assert [row[0] for row in rows] == ["full", *wanted]
    for name, kept, gradient, _, _, memory, remark in rows:
        assert gradient == wanted[name]
        rounding = 0.01 if kept == "all" else 0.05  # three digits are printed; checkpoints are predicted from a probe
        assert count(memory) == pytest.approx(ran(text, parse_strategy(name, "--strategies"), kept), rel=rounding)
        assert (remark == "too much") == (count(memory) > 30 * 2**10)
    assert [row[6] for row in rows] == ["too much", "best", "", ""]
    last = " ".join(result.out.split("\n\n")[-1].split())
    assert last.startswith(f"full, {rows[1][1].split()[0]} states kept, segments of ")
    assert f"is the fastest exact gradient that fits 30 KiB: {rows[1][4]} and {rows[1][5]} for 60 characters" in last


def test_the_least_biased_where_nothing_else_is_asked_for(plan):
    result = plan("--strategies", "tbptt:4,random:10,tbptt:20:40")
    rows = table(result.out)
    assert [row[0] for row in rows] == ["tbptt:4", "random:10 (biased)", "tbptt:20:40"]
    assert [row[6] for row in rows] == ["", "", "best"]
    assert "tbptt:20:40, all kept, is the least biased gradient: " in " ".join(result.out.split())
    torch.testing.assert_close(float(rows[0][3]), 2.5, atol=0.5, rtol=0)  # of 4 losses, 1 to 4 steps
    assert rows[2][3] == str(round((20 * 21 / 2 + 2 * sum(range(21, 41))) / 60))


def test_the_usual_strategies_fit_80_columns(plan, text):
    result = plan("--steps", 300, "--hidden", 16, "--memory", "80KiB")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if str(text) not in line]  # a path isn't broken
    assert [line for line in lines if len(line) > 80] == []
    rows = table(result.out)
    assert rows[0][:3] == ["full", "all", "exact"]
    assert any(row[0] == "artbp:64 --every 16" for row in rows)
    assert sum(row[6] == "best" for row in rows) == 1


def test_the_printed_strategy_is_what_the_options_take():
    for text in ("full", "tbptt:7", "tbptt:5:50", "artbp:50"):
        assert named(parse_strategy(text, "--strategies")) == text
    assert named(bptt.TruncatedBPTT(5, 5)) == "tbptt:5"


def test_a_budget_that_nothing_fits_says_the_least_that_would(plan):
    refused = plan("--memory", "100B")
    assert refused.code == 2
    assert refused.out == ""
    least = refused.error.split("The least that would is --memory ")[1].split(",")[0]
    assert "--memory '100B'" in refused.error
    assert plan("--memory", least).code == 0
    assert plan("--memory", int(least) - 1).code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategies", "tbppt:20"], ["--strategies tbppt:20", "tbptt:K1:K2, tbptt:K1:K2:N, artbp:L"]),
        (["--strategies", "tbptt:20:5"], ["k2 must be at least k1"]),
        (["--strategies", "full,full"], ["full is listed twice"]),
        (["--strategies", "full,adaptive:.5"], ["adaptive finds its lengths during training", "tbptt:20:39"]),
        (["--memory", "lots"], ["--memory 'lots'", "512MiB"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--batch", "0"], ["--batch 0"]),
        (["--batch", "5000"], ["--batch 5000", "too short"]),
        (["--data", "nowhere.txt"], ["--data nowhere.txt: no such file"]),
        (["--cell", "mamba"], ["mamba", "lstm"]),
        (["--device", "cray"], ["--device cray"]),
    ],
)
def test_wrong_use_is_one_line(plan, words, said):
    result = plan(*words)
    assert result.code == 2
    assert result.out == ""
    for word in said:
        assert word in result.error
