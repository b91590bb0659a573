"""`bptt compare`: its numbers against a hand-written loop, its folder, and how it goes on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from markupsafe import Markup
from torch import nn

import bptt
from bptt.data.tasks import DelayedCopy, InfluenceBalancing

STRATEGIES = "full,tbptt:4,artbp:5"
SMALL = ["--hidden", "5", "--batch", "3", "--delay", "2", "--sequence-length", "20", "--draws", "3", "--seeds", "1"]
HELD_OUT = 10**9


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Plots have tests of their own."""
    monkeypatch.setattr("bptt.analysis.race.report.page.svg", lambda panel: Markup("<svg></svg>"))


@pytest.fixture
def compare(bptt_, folder):
    """`bptt compare` on a small task into the folder "out"; later words win. The results."""

    def run(*words):
        result = bptt_("compare", *SMALL, "--strategies", STRATEGIES, "--budget", 200, "--out", "out", *words)
        assert (result.code, result.err) == (0, "")
        return json.loads((folder / "out" / "results.json").read_text())

    return run


def by_hand(chunks, k, lr, clip):
    """The layers after a loop with `detach`, torch's own."""
    torch.manual_seed(0)
    initial, readout = bptt.nn.GRU(6, 5), nn.Linear(5, 6)
    own = nn.GRU(6, 5)
    own.load_state_dict(initial.state_dict())
    parameters = [*own.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    state = torch.zeros(1, 3, 5)
    for chunk in chunks:
        for a in range(0, len(chunk.inputs), k):
            outputs, state = own(chunk.inputs[a : a + k], state)
            losses = nn.functional.cross_entropy(
                readout(outputs).flatten(0, 1), chunk.targets[a : a + k].flatten(), reduction="none"
            ).view(len(outputs), -1)
            if chunk.mask is not None:
                losses = losses * chunk.mask[a : a + k, None]
            (losses.mean(1).sum() / k).backward()
            state = state.detach()
            nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
    return own, readout


@torch.no_grad()
def held_out_loss(own, readout):
    total = count = 0.0
    state = torch.zeros(1, 32, 5)
    for chunk in itertools.islice(DelayedCopy(delay=2).stream(32, 20, seed=HELD_OUT), 25):
        outputs, state = own(chunk.inputs, state)
        losses = nn.functional.cross_entropy(readout(outputs).transpose(1, 2), chunk.targets, reduction="none").mean(1)
        mask = torch.ones(len(losses)) if chunk.mask is None else chunk.mask
        total, count = total + (losses * mask).sum().item(), count + mask.sum().item()
    return total / count


def test_a_run_is_that_of_a_loop_by_hand(compare):
    found = compare("--strategies", "tbptt:4", "--lr", 0.02, "--clip", 0.5)["strategies"]["tbptt:4"]
    chunks = itertools.islice(DelayedCopy(delay=2).stream(3, 20, seed=0), 10)
    expected = held_out_loss(*by_hand(chunks, 4, 0.02, 0.5))
    assert found["loss"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["runs"][0]["points"][0]["loss"] > 1.05 * expected  # it learned, so that the updates count
    assert (found["updates"], found["steps"], found["windows"]) == (50, 200, {"4": 50})


def test_results_over_seeds(compare):
    found = compare("--seeds", 2)
    for name, entry in found["strategies"].items():
        losses = [run["points"][-1]["loss"] for run in entry["runs"]]
        assert entry["loss"]["mean"] == pytest.approx(sum(losses) / 2)
        assert entry["loss"]["deviation"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
        assert [run["steps"] for run in entry["runs"]] == [200, 200], name
    starts = {run["points"][0]["loss"] for entry in found["strategies"].values() for run in entry["runs"]}
    assert len(starts) == 2  # one start a seed, whatever the strategy
    assert found["strategies"]["full"]["gradient"]["start"]["bias"][0] == 0
    assert found["strategies"]["tbptt:4"]["gradient"]["end"]["bias"][0] > 0.01
    assert found["strategies"]["artbp:5"]["gradient"]["end"]["draws"] == 3


def test_the_only_parameter_follows_the_recursion(bptt_, folder):
    """TBPTT(10) of influence balancing, by s and ds/dθ from step to step."""
    words = ["--task", "influence", "--strategies", "tbptt:10", "--budget", 300, "--lr", 1e-3, "--draws", 3]
    assert bptt_("compare", *words, "--sequence-length", 50, "--out", "out").code == 0
    found = json.loads((folder / "out" / "results.json").read_text())["strategies"]["tbptt:10"]
    matrix, effect = InfluenceBalancing().dynamics()
    theta, state = 0.5, torch.ones(23, dtype=torch.float64)
    for _ in range(30):
        slope, gradient = torch.zeros_like(state), 0.0
        for _ in range(10):
            state, slope = matrix @ state + theta * effect, matrix @ slope + effect
            gradient += ((state[0] - 1) * slope[0]).item()
        theta -= 1e-3 * gradient
    assert found["parameter"] == pytest.approx(theta, rel=1e-9)
    assert abs(theta - 0.5) > 0.01


def test_divergence_is_a_result(bptt_, folder):
    words = ["--task", "influence", "--strategies", "tbptt:10,full", "--lr", 2e-4, "--budget", 3000]
    result = bptt_("compare", *words, "--sequence-length", 100, "--draws", 3, "--out", "out")
    assert (result.code, result.err) == (0, "")
    found = json.loads((folder / "out" / "results.json").read_text())["strategies"]
    assert found["tbptt:10"]["loss"] is None
    assert "beyond" in found["tbptt:10"]["runs"][0]["diverged"]
    assert found["full"]["runs"][0]["diverged"] is None
    assert "diverged: tbptt:10" in result.out


def test_the_same_options_go_on(compare, bptt_, folder):
    whole = compare("--seeds", 2)
    (folder / "out" / "parts" / "run_tbptt-4_1.json").unlink()
    (folder / "out" / "report.html").unlink()
    kept = {p: p.stat().st_mtime_ns for p in (folder / "out" / "parts").iterdir() if "tbptt-4_1" not in p.name}
    again = compare("--seeds", 2)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for name, entry in whole["strategies"].items():
        assert again["strategies"][name]["loss"] == entry["loss"]
    other = bptt_("compare", *SMALL, "--strategies", STRATEGIES, "--budget", 220, "--seeds", 2, "--out", "out")
    assert other.code == 2
    assert "budget is 200 there, 220 here" in other.error


@pytest.mark.deep  # benchmarks/crash.py kills more of them; going on from finished parts is above
def test_a_killed_comparison_goes_on(bptt_, folder, environment):
    """SIGINT, which says how to go on, and then SIGKILL; the folder is found again without being named."""
    words = ["compare", *SMALL, "--strategies", "tbptt:2,tbptt:3", "--seeds", "2", "--budget", "1500"]
    command = [sys.executable, "-c", "import sys; from bptt.cli import main; sys.exit(main())", *words]

    def started(finished):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len([*folder.glob("runs/*/parts/run_*.json")]) < finished:
            time.sleep(0.01)
        return process

    process = started(1)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert "runs are kept. Go on: bptt compare --hidden 5" in err.splitlines()[-1]
    held = len([*folder.glob("runs/*/parts/run_*.json")])
    assert held >= 1
    process = started(held + 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    result = bptt_(*words)
    assert result.code == 0
    assert "of 4 runs are finished and kept" in result.out
    assert len([*folder.glob("runs/*")]) == 1
    assert result.out.count("seed ") < 4 - held + 1
