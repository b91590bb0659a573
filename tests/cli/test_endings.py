"""Runs that don't end as planned: Ctrl-C, non-finite numbers, an old run in the folder."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import bptt
from bptt.cli.folder import FILES, METRICS, PART, RunFolder


def steps(path, kind="train"):
    return [line["step"] for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]


def at_update(monkeypatch, number, action):
    """Call `action(optimizer)` in place of Adam's step number `number`."""
    step, count = torch.optim.Adam.step, [0]

    def counted(self, *args):
        count[0] += 1
        return action(self) if count[0] == number else step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


def contents(path):
    """Every file below `path`."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def poison(optimizer):
    optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))


def ctrl_c(*_):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_saves_between_updates(train, folder, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # a job in the background starts with it ignored
    at_update(monkeypatch, 7, ctrl_c)
    result = train("--steps", 100, "--out", "run")
    assert result.code == 130
    assert steps(folder / "run" / METRICS) == list(range(1, 8))
    assert steps(folder / "run" / METRICS, "valid") == []
    assert sorted(path.name for path in (folder / "run").iterdir()) == sorted(FILES)
    assert "Interrupted after 7 updates: not validated yet." in (folder / "run" / "report.md").read_text()
    assert "Interrupted after 7 updates: not validated yet." in result.out
    assert "Weights, report.md, plots and metrics are in run" in result.out
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_validation(train, folder, monkeypatch):
    evaluate = bptt.evaluate

    def interrupted(*args, **kwargs):
        ctrl_c()
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(bptt, "evaluate", interrupted)
    result = train("--steps", 80, "--out", "run")
    assert result.code == 130
    assert steps(folder / "run" / METRICS) == list(range(1, 11))
    assert "Interrupted after 10 updates: not validated yet." in result.out
    assert load_file(folder / "run" / "weights.safetensors")


def test_ctrl_c_in_the_last_validation(train, folder, monkeypatch):
    evaluate, count = bptt.evaluate, [0]

    def interrupted(*args, **kwargs):
        count[0] += 1
        if count[0] == 8:
            ctrl_c()
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(bptt, "evaluate", interrupted)
    result = train("--steps", 16, "--out", "run")
    assert result.code == 130
    assert steps(folder / "run" / METRICS, "valid") == [2, 4, 6, 8, 10, 12, 14]
    assert "Interrupted after 16 updates: validation " in result.out


def test_ctrl_c_twice_stops_at_once(train, folder, monkeypatch):
    def twice(optimizer):
        ctrl_c()
        ctrl_c()

    at_update(monkeypatch, 7, twice)
    result = train("--steps", 100, "--out", "run")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "bptt train: interrupted"
    assert not (folder / "run" / "weights.safetensors").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
@pytest.mark.deep
def test_ctrl_c_of_a_process(folder, text, environment):
    words = ["train", "--data", "text.txt", "--hidden", "8", "--batch", "4", "--steps", "1000000", "--out", "run"]
    code = f"import sys; from bptt.cli import main; sys.exit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    metrics = folder / "run" / METRICS
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "are in run" in out
    assert load_file(folder / "run" / "weights.safetensors")
    assert "Traceback" not in err


def test_a_non_finite_loss_keeps_the_last_good_weights(train, folder, monkeypatch):
    at_update(monkeypatch, 45, poison)  # validations after updates 10, 20, ..., 80
    result = train("--steps", 80, "--out", "run")
    assert result.code == 1
    assert "Stopped after 45 updates: " in result.error
    assert "step 360" in result.error  # update 46 begins with step 45 * 8
    assert "The weights of update 40 are in run." in result.error
    run = folder / "run"
    assert steps(run / METRICS) == list(range(1, 46))
    assert all(torch.isfinite(weight).all() for weight in load_file(run / "weights.safetensors").values())
    assert sorted(path.name for path in run.iterdir()) == sorted(FILES)
    assert "Stopped after 45 updates" in (run / "report.md").read_text()


def test_weights_poisoned_just_before_a_validation_are_not_saved(train, folder, monkeypatch):
    at_update(monkeypatch, 20, poison)
    result = train("--steps", 80, "--out", "run")
    assert result.code == 1
    assert "The weights of update 10 are in run." in result.error
    assert all(torch.isfinite(weight).all() for weight in load_file(folder / "run" / "weights.safetensors").values())


def test_weights_poisoned_just_before_ctrl_c_are_not_saved(train, folder, monkeypatch):
    def both(optimizer):
        poison(optimizer)
        ctrl_c()

    at_update(monkeypatch, 15, both)
    result = train("--steps", 80, "--out", "run")
    assert result.code == 1
    assert (
        "Stopped after 15 updates: a weight is not finite. The weights of update 10 are in run."
        in result.err.splitlines()[-1]
    )
    assert all(torch.isfinite(weight).all() for weight in load_file(folder / "run" / "weights.safetensors").values())


def test_a_non_finite_gradient_stops_before_it_is_used(train, folder, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    norms = iter([1.0] * 5 + [float("inf")])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: clip(*args) * next(norms))
    result = train("--steps", 80, "--out", "run")
    assert result.code == 1
    assert "Stopped after 5 updates: the gradient of steps 40 to 47 is not finite (norm inf)" in result.error
    assert "No weights were saved" in result.error
    assert steps(folder / "run" / METRICS) == [1, 2, 3, 4, 5]


def test_a_run_is_not_overwritten_unasked(train, folder):
    train("--steps", 4, "--out", "run")
    before = contents(folder / "run")
    result = train("--steps", 4, "--out", "run", "--seed", "5")
    assert result.code == 2
    assert result.error == "bptt train: run already holds a run. Choose another --out, or give --overwrite"
    assert contents(folder / "run") == before


def test_overwrite_replaces_the_run(train, folder):
    train("--steps", 4, "--out", "run")
    (folder / "run" / "notes").write_text("mine")
    assert train("--steps", 6, "--out", "run", "--cell", "gru", "--overwrite").code == 0
    assert steps(folder / "run" / METRICS)[-1] == 6
    assert "cell: gru" in (folder / "run" / "config.yaml").read_text()
    assert sorted(path.name for path in (folder / "run").iterdir()) == sorted([*FILES, "notes"])


@pytest.mark.parametrize("way", ["data", "memory", "poison", "kill"])
def test_overwrite_keeps_the_old_run_until_there_is_a_new_one(train, folder, monkeypatch, way):
    train("--steps", 4, "--out", "run")
    before = contents(folder / "run")
    words = ["--steps", 80, "--out", "run", "--cell", "gru", "--overwrite"]
    if way == "data":
        assert train(*words, "--data", "missing").code == 2
    elif way == "memory":
        assert train(*words, "--memory", "10B").code == 2
    else:
        at_update(monkeypatch, 5, poison if way == "poison" else lambda _: exec("raise KeyboardInterrupt"))
        result = train(*words)
        assert result.code == (1 if way == "poison" else 130)
        assert way == "kill" or "run still holds the run before it" in result.error
        assert steps(folder / "run" / PART)[-1] == (5 if way == "poison" else 4)  # the metrics of the failed run
        (folder / "run" / PART).unlink()
    assert contents(folder / "run") == before


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    run = RunFolder(folder / "run", overwrite=False)
    run.write("report.md", "old")

    def half(path):
        path.write_text("new, but")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.replace("report.md", half)
    run.close()
    assert (folder / "run" / "report.md").read_text() == "old"
    assert not list((folder / "run").glob(".*"))


def test_a_full_disk_is_one_line(train, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "log", full)
    result = train("--steps", 4, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"


def test_a_full_disk_leaves_whole_lines(train, folder, monkeypatch):
    """The run's own disk: half a line is taken back, and the error is one line, though closing fails too."""

    class Filling(io.FileIO):
        def write(self, data):
            if self.tell() > 1000:
                super().write(bytes(data)[:10])
                raise OSError(28, "No space left on device")
            return super().write(data)

        def close(self):
            super().close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("io.FileIO", Filling)
    result = train("--steps", 40, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"
    lines = (folder / "run" / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"train"' in line] == list(range(1, len(lines) + 1))


def test_a_full_disk_before_the_first_update_leaves_nothing(train, folder, monkeypatch):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "publish", full)
    result = train("--steps", 4, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"
    assert not (folder / "run").exists()


def test_too_little_device_memory_is_one_line(train, folder, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        yield

    monkeypatch.setattr(bptt, "unroll", full)
    result = train("--steps", 4, "--out", "run")
    assert result.code == 2
    assert result.error == "bptt train: CUDA out of memory. Tried to allocate 2 GiB"
    assert not (folder / "run").exists()
