"""Runs that stop and go on: to the bit, from what is whole, and never over what is good."""

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from bptt.cli.folder import METRICS
from bptt.runs import Interrupt, snapshots
from cli.test_endings import at_update, contents, ctrl_c, poison

STRATEGIES = {
    "tbptt:8": [],
    "tbptt:5:13:4": ["--layers", 2],
    "artbp:12": ["--cell", "gru"],
    "artbp:15 memory": ["--memory", "40KiB"],
    "adaptive:.5": ["--cell", "rnn"],
    "full": ["--sequence-length", 30, "--optimizer", "sgd"],
}


def records(path):
    lines = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed", "memory_bytes")} for line in lines]


def same_weights(one, other):
    one, other = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


DEEP = {"tbptt:8", "artbp:12"}
"""Those whose ground others cover."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.deep) if name in DEEP else name for name in STRATEGIES]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(train, bptt_, folder, monkeypatch, name):
    words = ["--strategy", name.split()[0], *STRATEGIES[name], "--steps", 40]
    assert train(*words, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        assert train(*words, "--out", "parts").code == 130
    with monkeypatch.context() as patch:  # updates are counted anew, and it stops a second time
        stop_at(patch, 9)
        result = bptt_("train", "--resume", "parts")
        assert result.code == 130
        assert "going on    after update 13" in result.out
        assert "bptt train --resume parts" in result.out
    assert bptt_("train", "--resume", "parts").code == 0
    assert same_weights(folder / "whole", folder / "parts")
    assert records(folder / "whole") == records(folder / "parts")


def stop_at(monkeypatch, number):
    """Ctrl-C while an optimizer makes its step `number`."""
    for kind in (torch.optim.Adam, torch.optim.SGD):
        step, count = kind.step, [0]

        def counted(self, *args, step=step, count=count):
            count[0] += 1
            if count[0] == number:
                ctrl_c()
            return step(self, *args)

        monkeypatch.setattr(kind, "step", counted)


def test_a_finished_run_may_train_on(train, bptt_, folder):
    assert train("--steps", 20, "--out", "whole").code == 0
    assert train("--steps", 12, "--out", "parts").code == 0
    assert bptt_("train", "--resume", "parts", "--steps", 20).code == 0
    assert same_weights(folder / "whole", folder / "parts")
    before = load_file(folder / "parts" / "weights.safetensors")
    assert bptt_("train", "--resume", "parts").code == 0  # nothing is left to do
    assert all(torch.equal(before[name], now) for name, now in load_file("parts/weights.safetensors").items())
    assert records(folder / "parts")[-1]["step"] == 20


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.deep)]
)
def test_a_signal_ends_a_run_that_goes_on(text, folder, environment, bptt_, number, code):
    words = ["train", "--data", "text.txt", "--hidden", "8", "--batch", "4", "--steps", "1000000", "--out", "run"]
    program = f"import sys; from bptt.cli import main; sys.exit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (path := folder / "run" / METRICS).exists() or path.stat().st_size < 1000:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert f"stopping after this update; {number.name} again stops at once" in err
    assert "bptt train --resume run" in out
    step = records(folder / "run")[-1]["step"]
    assert bptt_("train", "--resume", "run", "--steps", str(step + 3)).code == 0
    assert [r["step"] for r in records(folder / "run") if r["kind"] == "train"] == list(range(1, step + 4))


def test_a_killed_run_goes_on_without_a_repeated_line(train, bptt_, folder, monkeypatch):
    """Killed between two checkpoints: what the metrics hold after the last one is made again."""
    assert train("--steps", 40, "--out", "whole").code == 0

    def kill(*_):
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        at_update(monkeypatch, 23, kill)
        train("--steps", 40, "--out", "parts")
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9 << 8
    assert records(folder / "parts")[-1]["step"] == 22
    result = bptt_("train", "--resume", "parts")
    assert result.code == 0
    assert "going on    after update 20" in result.out
    assert records(folder / "whole") == records(folder / "parts")
    assert same_weights(folder / "whole", folder / "parts")


@pytest.fixture
def stopped(train, folder, monkeypatch):
    """A run that stopped after update 13 of 40, with checkpoints of updates 10 and 13."""
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        assert train("--steps", 40, "--out", "run").code == 130
    assert sorted(os.listdir("run/checkpoints")) == ["0000000010", "0000000013"]
    return folder / "run"


HARMS = [("state.json", "cut"), ("tensors.safetensors", "flipped"), ("hashes.json", "gone")]
ALL_HARMS = itertools.product(["state.json", "tensors.safetensors", "hashes.json"], ["cut", "flipped", "gone"])


@pytest.mark.parametrize(
    ("name", "harm"),
    [*HARMS, *(pytest.param(*each, marks=pytest.mark.deep) for each in ALL_HARMS if each not in HARMS)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(stopped, train, bptt_, folder, name, harm):
    path = stopped / "checkpoints" / "0000000013" / name
    harmed(path, harm)
    result = bptt_("train", "--resume", "run")
    assert result.code == 0
    assert "the checkpoint of update 13 is damaged (" in result.out.replace("\n            ", " ")
    assert "going on    after update 10" in result.out
    assert train("--steps", 40, "--out", "whole").code == 0
    assert same_weights(folder / "whole", stopped)


def harmed(path, harm):
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])


def test_what_cannot_go_on_says_so_and_stays_as_it_is(stopped, bptt_, folder, text):
    def refused(*words):
        before = contents(stopped)
        result = bptt_("train", "--resume", *words)
        assert result.code == 2
        assert contents(stopped) == before
        return result.error

    assert "--lr doesn't go with --resume" in refused("run", "--lr", "0.1")
    assert "--resume missing: no such folder" in refused("missing")
    os.mkdir("empty")
    assert "--resume empty: it holds no checkpoint" in refused("empty")
    assert os.listdir("empty") == []

    config = stopped / "config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("lr: 0.01", "lr: 0.02"))
    assert "config.yaml: lr is 0.02, but the run began with 0.01" in refused("run")
    config.write_text(kept)

    kept = text.read_text()
    text.write_text(kept.replace("fox", "cat"))
    assert "text.txt was changed since the run began" in refused("run")
    text.unlink()
    assert "text.txt: no such file" in refused("run")
    text.write_text(kept)

    metrics = stopped / METRICS
    kept = metrics.read_text()
    metrics.write_text(kept.replace('"step": 2', '"step": 3'))
    assert "the lines of metrics.jsonl up to update 13 aren't those that were written" in refused("run")
    metrics.write_text(kept)

    for each in (stopped / "checkpoints").iterdir():
        harmed(each / "state.json", "cut")
    error = refused("run")
    assert "update 13 is damaged (state.json isn't what was saved)" in error
    assert "update 10 is damaged" in error


def test_a_full_disk_leaves_the_checkpoints_that_were_there(train, bptt_, folder, monkeypatch):
    assert train("--steps", 40, "--out", "whole").code == 0
    before = {}

    def full(path, to_disk=snapshots.to_disk):
        if "checkpoints" in str(path) and len(list((folder / "run" / "checkpoints").glob("*"))) == 3:
            before.update({k: v for k, v in contents(folder / "run").items() if ".part" not in k})
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(path)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "to_disk", full)
        result = train("--steps", 40, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"
    after = contents(folder / "run")
    assert {k: v for k, v in after.items() if "checkpoints" in k} == {
        k: v for k, v in before.items() if "checkpoints" in k
    }
    assert bptt_("train", "--resume", "run").code == 0
    assert same_weights(folder / "whole", folder / "run")


@pytest.mark.parametrize(
    ("policy", "strategy"),
    [
        ("skip", ["artbp:12"]),
        ("back", ["tbptt:8"]),
        ("skip", ["full", "--sequence-length", 30]),
        pytest.param("skip", ["tbptt:8"], marks=pytest.mark.deep),
        pytest.param("back", ["artbp:12"], marks=pytest.mark.deep),
        pytest.param("back", ["full", "--sequence-length", 30], marks=pytest.mark.deep),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_is_not_finite_is_left_out(train, bptt_, folder, monkeypatch, policy, strategy):
    """A gradient that is infinite at update 23 of 40; stopped and gone on with, the run ends the same."""
    clip, count = torch.nn.utils.clip_grad_norm_, [0]

    def poisoned(parameters, most):
        count[0] += 1
        return clip(parameters, most) * (math.inf if count[0] == 23 else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    words = ["--strategy", *strategy, "--non-finite", policy, "--steps", 40]
    result = train(*words, "--out", "whole")
    assert result.code == 0
    out = " ".join(result.out.split())
    assert "is not finite (norm inf): left out" in out
    assert ("as they were after update 20" in out) == (policy == "back")
    assert "Finished after 40 updates, 1 more left out as not finite: validation" in out
    kinds = [record["kind"] for record in records(folder / "whole")]
    assert kinds.count("train") == 40
    assert kinds.count("left_out") == 1
    count[0] = 0
    with monkeypatch.context() as patch:
        stop_at(patch, 27)
        assert train(*words, "--out", "parts").code == 130
    assert bptt_("train", "--resume", "parts").code == 0
    assert records(folder / "whole") == records(folder / "parts")
    assert same_weights(folder / "whole", folder / "parts")


@pytest.mark.parametrize("policy", ["stop", "skip", "back"])
def test_a_loss_that_is_not_finite(train, folder, monkeypatch, policy):
    """Weights that a step has made NaN: skipping doesn't help, going back to the last checkpoint does."""
    at_update(monkeypatch, 23, poison)
    result = train("--non-finite", policy, "--steps", 40, "--out", "run")
    assert result.code == (0 if policy == "back" else 1)
    assert all(weight.isfinite().all() for weight in load_file("run/weights.safetensors").values())
    left_out = [record for record in records(folder / "run") if record["kind"] == "left_out"]
    assert len(left_out) == {"stop": 0, "skip": 20, "back": 1}[policy]
    assert all("the loss at step" in record["reason"] for record in left_out)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_signals_that_were_ignored_before(number, code):
    """SIGINT is by every shell for its jobs in the background, and asks all the same; SIGHUP by nohup, and doesn't."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(number)
        assert interrupt.code == code
    finally:
        signal.signal(number, before)


def test_between_validations_too_only_what_is_finite_is_saved(train, folder, monkeypatch):
    """A checkpoint after every update; the one of weights that a step has made NaN isn't made."""
    monkeypatch.setattr("bptt.cli.training.SAVE_SECONDS", -1)
    at_update(monkeypatch, 23, poison)
    result = train("--non-finite", "back", "--steps", 40, "--out", "run")
    assert result.code == 0
    assert "as they were after update 22" in " ".join(result.out.split())
