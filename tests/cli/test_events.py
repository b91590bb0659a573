"""TensorBoard's own reader finds in a run's events what its metrics say, however the run ended."""

import json
import shutil
import sys
import time

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bptt.cli.folder import CURVES, EVENTS, FILES, METRICS


def read(run):
    """What TensorBoard reads in the folder: {curve: [(step, value)]}, {text: [text]}."""
    found = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    curves = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {
        tag: [e.tensor_proto.string_val[0].decode() for e in found.Tensors(tag)] for tag in found.Tags()["tensors"]
    }
    return curves, texts


def recorded(run):
    """The same curves, from the metrics; TensorBoard keeps numbers as float32."""
    curves = {}
    for line in map(json.loads, (run / METRICS).read_text().splitlines()):
        for name in CURVES:
            if line.get(name) is not None:
                curves.setdefault(f"{line['kind']}/{name}", []).append((line["step"], float(np.float32(line[name]))))
    return curves


def test_events_are_the_metrics(train, folder):
    result = train("--steps", 16, "--out", "run", "--strategy", "artbp:6")
    curves, texts = read(folder / "run")
    assert curves == recorded(folder / "run")
    assert set(curves) == {f"train/{name}" for name in CURVES} | {"valid/loss", "valid/bpc"}
    assert len(curves["train/loss"]) == 16
    assert len({window for _, window in curves["train/window"]}) > 1
    assert [step for step, _ in curves["valid/bpc"]] == list(range(2, 17, 2))
    assert "    cell: lstm\n" in texts["settings"][0]
    assert "    strategy: artbp:6\n" in texts["settings"][0]
    [sample] = texts["sample"]
    assert all(line.startswith("    ") for line in sample.splitlines())
    assert "\n".join(line[4:] for line in sample.splitlines()) in result.out
    assert "tensorboard --logdir run\n" in result.out


def test_points_lie_at_the_time_of_their_update(train, folder):
    before = time.time()
    train("--steps", 8, "--out", "run")
    after = time.time()
    found = EventAccumulator(str(folder / "run"))
    found.Reload()
    times = [event.wall_time for event in found.Scalars("train/loss")]
    assert times == sorted(times)
    assert before <= times[0] < times[-1] <= after


def test_overwriting_mixes_no_runs(train, folder):
    train("--steps", 16, "--out", "run")
    train("--steps", 8, "--out", "run", "--cell", "gru", "--overwrite")
    curves, texts = read(folder / "run")
    assert curves == recorded(folder / "run")
    assert len(curves["train/loss"]) == 8  # those before the first weights, when the old run still stood, among them
    assert len(texts["settings"]) == len(texts["sample"]) == 1
    assert "    cell: gru\n" in texts["settings"][0]


def test_a_killed_run_leaves_its_events(train, folder, monkeypatch):
    """What lies on the disk in the middle of an update is what a kill there would leave."""
    step, count = torch.optim.Adam.step, [0]

    def watched(self, *args):
        count[0] += 1
        if count[0] == 12:
            shutil.copytree(folder / "run", folder / "killed")
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    train("--steps", 16, "--out", "run")
    curves, texts = read(folder / "killed")
    assert curves == recorded(folder / "killed")
    assert [update for update, _ in curves["train/loss"]] == list(range(1, 12))
    assert set(texts) == {"settings"}


def test_it_trains_without_tensorboard(train, bptt_, folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"] + ["tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    result = train("--steps", 4, "--out", "run")
    assert (result.code, result.err) == (0, "")
    assert "tensorboard" not in result.out
    assert sorted(path.name for path in (folder / "run").iterdir()) == sorted(set(FILES) - {EVENTS})


def test_doctor_tells_that_tensorboard_is_missing(bptt_, monkeypatch):
    import importlib.metadata

    version = importlib.metadata.version

    def without(name):
        if name == "tensorboard":
            raise importlib.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    [line] = [line for line in bptt_("doctor").out.splitlines() if line.startswith("missing")]
    assert "tensorboard" in line
    assert "pip install 'bptt[cli]'" in line
