"""`bptt train` in several processes: the run of one, whatever stops it, and however many go on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from bptt.cli.folder import METRICS
from cli.test_endings import contents
from cli.test_resume import stop_at
from support.launched import command
from support.own_model import NET
from support.processes import Processes


@pytest.fixture(scope="module")
def four():
    group = Processes(4)
    yield group
    group.stop()


STRATEGIES = {
    "tbptt:5:13": ["--accumulate", 3],
    "artbp:12": ["--memory", "20KiB"],
    "adaptive:.5": [],
    "full": ["--sequence-length", 30],
}
TORCHRUN = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "3"}


def words(folder, name, *more):
    """A run on numbers in float64, of eight lanes, where one target in ten is missing."""
    (folder / "net.py").write_text(NET.replace("return Net()", "return Net().double()"))
    draw = np.random.default_rng(0)
    values = draw.normal(size=(2000, 2))
    np.save(folder / "x.npy", values)
    np.save(folder / "y.npy", np.where(draw.random((2000, 2)) < 0.1, np.nan, values[::-1]))
    how = ["--strategy", name, *STRATEGIES[name], "--batch", 8, "--lr", 0.01, "--device", "cpu", "--steps", 20]
    return ["train", "net.py:make", "--data", "x.npy", "--targets", "y.npy", *how, *more]


def records(path):
    """The metrics without what a clock says, and what depends on each rank's own rows."""
    lines = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed", "memory_bytes", "forward_steps")} for line in lines]


def same(one, other, tolerance=0.0):
    """Weights and metrics."""
    weights = [load_file(path / "weights.safetensors") for path in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=tolerance, atol=tolerance)
    for a, b in zip(records(one), records(other), strict=True):
        assert a.pop("kind") == b.pop("kind")
        assert b == (pytest.approx(a, rel=1e-5) if tolerance else a)


def spoken(results, code):
    """What the first rank said: the others say nothing."""
    assert [result[0] for result in results] == [code] * len(results), results
    assert all(result[1:] == ("", "") for result in results[1:])
    return results[0]


@pytest.mark.thin
@pytest.mark.parametrize("name", STRATEGIES)
def test_ranks_come_and_go(pair, bptt_, folder, monkeypatch, name):
    """Two, stopped by a signal to the second of them; one; two again: the run of one throughout."""
    run = words(folder, name)
    assert bptt_(*run, "--out", "whole").code == 0
    _, out, err = spoken(pair(command, folder, [*run, "--out", "parts"], {}, 1, 7, signal.SIGINT), 130)
    assert "processes   2, of 4 lanes each" in out
    assert "bptt train --resume parts" in out
    assert err == ""
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        result = bptt_("train", "--resume", "parts")
    assert result.code == 130
    assert "going on    after update 7" in result.out
    assert "processes 1, was 2" in " ".join(result.out.split())
    spoken(pair(command, folder, ["train", "--resume", "parts"]), 0)
    same(folder / "whole", folder / "parts", 1e-10)


@pytest.mark.deep
def test_two_then_one_then_four(pair, four, bptt_, folder, monkeypatch):
    run = words(folder, "tbptt:5:13")
    assert bptt_(*run, "--out", "whole").code == 0
    spoken(pair(command, folder, [*run, "--out", "parts"], {}, 0, 7, signal.SIGTERM), 143)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert bptt_("train", "--resume", "parts").code == 130
    spoken(four(command, folder, ["train", "--resume", "parts"]), 0)
    same(folder / "whole", folder / "parts", 1e-10)


@pytest.mark.deep
def test_a_restart_goes_on_and_ends_with_the_same_bits(pair, folder):
    """All end at once, as torchrun has them; the same command goes on, and doesn't with other settings."""
    run = words(folder, "tbptt:5:13")
    spoken(pair(command, folder, [*run, "--out", "whole"]), 0)
    died = pair(command, folder, [*run, "--out", "parts"], TORCHRUN, 0, 12, "die")
    assert [each[0] for each in died] == [None, None]
    again = {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}
    before = contents(folder / "parts")
    _, _, err = spoken(pair(command, folder, [*run, "--out", "parts", "--lr", 0.02], again), 2)
    assert "parts already holds a run, whose --lr is 0.01. Choose another --out" in err
    assert contents(folder / "parts") == before
    _, out, _ = spoken(pair(command, folder, [*run, "--out", "parts"], again), 0)
    assert "going on    after update 10" in out
    same(folder / "whole", folder / "parts")


@pytest.mark.parametrize(
    ("more", "variables", "told"),
    [
        (["--batch", 7], {}, "--batch 7: 2 processes can't have equally many of 7 lanes; give 6, say"),
        (["--device", "mps"], {}, "--device mps: 2 processes run on cpu, or on cuda with a device each"),
        (["--law", "constant"], {}, "--law applies only to --strategy artbp"),
        ([], TORCHRUN, "torchrun --max-restarts goes on with the run in --out: give --out DIR"),
        (["--out", "run", "--overwrite"], TORCHRUN, "--overwrite doesn't go with torchrun --max-restarts"),
    ],
)
def test_what_several_processes_cannot_do_is_said_once(pair, folder, more, variables, told):
    run, before = words(folder, "tbptt:5:13"), {*os.listdir(folder), "__pycache__"}
    _, _, err = spoken(pair(command, folder, [*run, *more], variables), 2)
    assert err.startswith(f"bptt train: {told}")
    assert err.count("\n") == 1
    assert {*os.listdir(folder), "__pycache__"} == before


def test_streams_and_commands_that_are_not_shared(pair, folder):
    own = NET.replace("import nn", "import nn, zeros").replace("Net()", "Net(), None, [(zeros(9, 4, 2),) * 2]")
    (folder / "own.py").write_text(own)
    _, _, err = spoken(pair(command, folder, ["train", "own.py:make", "--device", "cpu"]), 2)
    assert "own.py:make: its stream can't be shared by 2 processes; give --data, or one" in err
    _, _, err = spoken(pair(command, folder, ["compare", "--seeds", 1]), 2)
    assert err == "bptt compare: runs in one process; leave torchrun out\n"


def test_buffers_of_a_rank_s_own_rows_are_refused(pair, folder):
    run = words(folder, "tbptt:5:13")
    normed = NET.replace("return self.out(hidden)", "return self.out(self.norm(hidden.flatten(0, 1)).view_as(hidden))")
    normed = normed.replace("nn.Linear(6, 2)", "nn.Linear(6, 2)\n        self.norm = nn.BatchNorm1d(6)")
    (folder / "net.py").write_text(normed)
    _, _, err = spoken(pair(command, folder, [*run, "--out", "run"]), 1)
    assert err == "bptt train: net.py:make: its buffer norm.running_mean differs between processes; train it in one\n"


def test_what_one_rank_meets_is_said_by_the_first(pair, folder):
    run = words(folder, "tbptt:5:13")
    only = "from torch.distributed import get_rank\nassert get_rank() == 0, 'not here'\n"
    (folder / "net.py").write_text(only + (folder / "net.py").read_text())
    _, _, err = spoken(pair(command, folder, [*run, "--out", "run"]), 2)
    assert err.startswith("bptt train: rank 1: net.py:make: running net.py failed (AssertionError: not here, line 2 of")
    assert not (folder / "run").exists()


KILLS = """\
import os, signal


class Dying(Net):
    calls = 0

    def forward(self, x, state=None):
        Dying.calls += 1
        if (os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT"), Dying.calls) == ("1", "0", 60):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x, state)


def make():
    return Dying().double()
"""


@pytest.mark.deep
def test_a_rank_killed_under_torchrun(pair, folder, environment):
    run = words(folder, "tbptt:5:13")
    (folder / "net.py").write_text(NET.replace("import nn", "import nn\n") + KILLS)
    spoken(pair(command, folder, [*run, "--out", "whole"]), 0)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["--max-restarts", "1", "-m", "bptt", *map(str, run), "--out", "parts"]
    result = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "going on    after update" in result.stdout
    same(folder / "whole", folder / "parts")


@pytest.mark.deep
def test_torchrun_is_asked_to_end(folder, environment):
    run = [*words(folder, "tbptt:5:13")[:-2], "--steps", 1_000_000, "--out", "run"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bptt"]
    process = subprocess.Popen(
        [*launch, *map(str, run)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (path := folder / "run" / METRICS).exists() or path.stat().st_size < 3000:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "Interrupted after" in out
    assert "bptt train --resume run" in out
    assert err.count("stopping after this update") == 1
