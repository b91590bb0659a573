"""Numbers in order on the command line: forecasts against NumPy's own arithmetic, exports against the model."""

import importlib.util
import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

from bptt.forecast import Errors
from bptt.models import Forecaster

SMALL = ["--hidden", "8", "--strategy", "tbptt:16", "--device", "cpu"]


@pytest.fixture
def series(folder):
    """1,000 steps of a season of 12 in noise, and a column that never changes."""
    generator = np.random.default_rng(0)
    y = 100 + 3 * np.sin(2 * np.pi * np.arange(1000) / 12) + generator.normal(size=1000)
    table = np.stack([y, generator.normal(size=1000), np.full(1000, 7.0)], 1)
    np.savetxt(folder / "s.csv", table, delimiter=",", header="y,z,c", comments="", fmt="%.5f")
    return np.loadtxt(folder / "s.csv", delimiter=",", skiprows=1, dtype=np.float32).astype(float)


@pytest.fixture
def trained(bptt_, series):
    def run(*words):
        return bptt_("train", "--data", "s.csv", "--targets", "y", "--horizon", 5, *SMALL, *words)

    return run


def test_errors_by_horizon(trained, folder, series):
    result = trained("--steps", 60, "--out", "run")
    assert (result.code, result.err) == (0, "")
    assert "column c never changes in the training part: it tells nothing" in result.out
    assert "12 steps (found)" in result.out
    found = json.loads((folder / "run" / "forecast.json").read_text())
    y, at = series[:, 0], np.arange(900, 995)  # the last tenth, but for what has no target
    assert found["steps"] == len(at)
    for i, h in enumerate(range(1, 6)):
        for name, guess in (("persistence", y[at]), ("seasonal-naive (12)", y[at + h - 12])):
            assert found["baselines"][name][i] == pytest.approx(np.sqrt(np.mean((y[at + h] - guess) ** 2)))
    assert Errors.from_dict(found).to_dict() == found  # as a notebook reads it
    model, known = Forecaster.load(folder / "run")
    assert known["horizons"] == [1, 2, 3, 4, 5]
    inputs = torch.from_numpy(series[900 - 256 : 995])[:, None]  # read after 256 steps of context
    with torch.no_grad():
        made = model(inputs)[0][256:, 0, :, 0].numpy()
    truth = np.stack([y[at + h] for h in range(1, 6)], 1)
    assert found["rmse"] == pytest.approx(np.sqrt(((made - truth) ** 2).mean(0)))
    assert torch.allclose(model.mean, torch.from_numpy(series[:800].mean(0)))


def test_a_run_that_goes_on_ends_with_the_same_bits(trained, bptt_, folder):
    trained("--steps", 40, "--out", "whole")
    trained("--steps", 17, "--out", "part")
    assert bptt_("train", "--resume", "part", "--steps", 40).code == 0
    for name in ("tensors.safetensors",):
        whole, part = (folder / run / "checkpoints" / f"{40:010}" / name for run in ("whole", "part"))
        assert whole.read_bytes() == part.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_best_weights_stay_where_a_run_is_interrupted(trained, bptt_, folder, monkeypatch):
    """Those of the lowest validation, whatever the weights are at Ctrl-C; the run that goes on ends with the same."""
    words = ["--steps", 64, "--lr", 0.1]  # validations rise and fall
    trained(*words, "--out", "whole")
    points = [line for line in read(folder / "whole") if line["kind"] == "valid"]
    best = min(points, key=lambda point: point["loss"])["step"]
    assert best < 62
    step, count = torch.optim.Adam.step, itertools.count(1)

    def counted(self, *args):
        if next(count) == best + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", counted)
        assert trained(*words, "--out", "part").code == 130
    weights = (folder / "whole" / "weights.safetensors").read_bytes()
    assert (folder / "part" / "weights.safetensors").read_bytes() == weights
    assert bptt_("train", "--resume", "part").code == 0
    assert (folder / "part" / "weights.safetensors").read_bytes() == weights


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_forecasts_step_by_step_in_blocks_and_in_two_calls(trained, bptt_, folder):
    trained("--steps", 20, "--out", "run")
    rows = (folder / "s.csv").read_text().splitlines()
    (folder / "a.csv").write_text("\n".join(rows[:101]) + "\n")
    (folder / "b.csv").write_text("\n".join(rows[:1] + rows[101:301]) + "\n")
    (folder / "ab.csv").write_text("\n".join(rows[:301]) + "\n")

    def made(*words):
        result = bptt_("forecast", "run", "--overwrite", "--out", "f.csv", *words)
        assert result.code == 0, result.err
        return np.loadtxt(folder / "f.csv", delimiter=",", skiprows=1)[:, 1:]

    whole = made("--data", "ab.csv")
    assert whole.shape == (300, 5)
    assert made("--data", "ab.csv", "--block", 64) == pytest.approx(whole, rel=1e-6)
    first, second = (made("--data", name, "--state", "state") for name in ("a.csv", "b.csv"))
    assert np.array_equal(np.concatenate([first, second]), whole)
    trained("--steps", 21, "--out", "run", "--overwrite")
    result = bptt_("forecast", "run", "--data", "a.csv", "--state", "state")
    assert (result.code, "is of other weights" in result.error) == (2, True)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_exports_give_the_same_numbers(trained, bptt_, folder, cell):
    trained("--steps", 3, "--out", "run", "--cell", cell, "--layers", 2)
    assert bptt_("export", "run", "--to", "onnx").code == bptt_("export", "run", "--to", "torch").code == 0
    model, _ = Forecaster.load(folder / "run")
    inputs = torch.randn(150, 2, 3) * 3 + 50
    inputs[7, 0, 1] = float("nan")
    with torch.no_grad():
        expected = model(inputs, model.initial_state(2))[0]
    session = InferenceSession(folder / "run" / "model.onnx")
    names = [each.name for each in session.get_inputs()][1:]
    spec = importlib.util.spec_from_file_location("exported", folder / "run" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = module.load()
    for block in (1, 64, 150):
        state = [torch.zeros(2, 2, 8).numpy() for _ in names]
        carried = plain.initial_state(2)
        for piece, wanted in zip(inputs.split(block), expected.split(block), strict=True):
            given = dict(zip(names, state, strict=True))
            outputs, *state = session.run(None, {"inputs": piece.numpy(), **given})
            assert np.abs(outputs - wanted.numpy()).max() < 1e-5
            with torch.no_grad():
                outputs, carried = plain(piece, carried)
            assert (outputs - wanted).abs().max() < 1e-5


def test_a_second_file(bptt_, folder):
    x = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.tanh(x + 0.5 * np.roll(x, 1)).astype(np.float32))
    result = bptt_("train", "--data", "x.npy", "--targets", "y.npy", *SMALL, "--steps", 300, "--lr", 0.01, "--out", "r")
    assert result.code == 0
    assert json.loads((folder / "r" / "forecast.json").read_text())["energy_left"][0] < 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "s.csv"], "s.csv: a table. To forecast its numbers, give --horizon 1"),
        (["--data", "n.txt"], "n.txt: holds a table of numbers"),
        (["--data", "i.npy"], "i.npy: whole numbers"),
        (["--data", "s.csv", "--targets", "q"], "--targets q: no column 'q'; there are y, z, c"),
        (["--data", "s.csv", "--targets", "c"], "column c never changes in the training part"),
        (["--data", "s.csv", "--columns", "q", "--horizon", 1], "no column q"),
        (["--data", "s.csv", "--horizon", 600], "too few to train on"),
        (["--horizon", 1], "--horizon applies only to numbers"),
        (["--data", "inf.npy"], "step 950 is infinite in column 2"),
    ],
)
def test_what_can_t_be(bptt_, folder, series, words, message):
    (folder / "n.txt").write_text("1 2.5\n3 4\n-5 6e3\n7 8\n")
    np.save(folder / "i.npy", np.arange(500))
    series[950, 1] = np.inf
    np.save(folder / "inf.npy", series)
    result = bptt_("train", *words, *SMALL, "--steps", 1, "--out", "run")
    assert result.code == 2
    assert message in result.error
    assert not (folder / "run").exists()
