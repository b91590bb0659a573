"""`bptt train --precision` and `--accumulate`: the weights of a loop by hand, also by a run that was stopped."""

import json
import runpy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bptt
from bptt.cli.folder import METRICS
from bptt.data.stream import Reading
from cli.test_endings import ctrl_c
from cli.test_resume import records, stop_at
from support import oracle
from support.own_model import NET

K, UPDATES = 5, 9
F64, HALF = torch.float64, torch.float16


@pytest.fixture
def words(folder):
    (folder / "net.py").write_text(NET)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32))
    how = ["--strategy", f"tbptt:{K}", "--batch", 8, "--lr", 0.01, "--device", "cpu", "--steps", UPDATES]
    return ["train", "net.py:make", "--data", "x.npy", "--horizon", 1, *how]


def by_hand(folder, accumulate, scaler):
    """(weights, how many steps were left out): windows of truncated BPTT, a step of Adam for so many of them."""
    torch.manual_seed(0)
    model = runpy.run_path(str(folder / "net.py"))["make"]()
    optimizer, state = torch.optim.Adam(model.parameters(), lr=0.01), torch.zeros(1, 8, 6)
    stream = bptt.data.Lanes(np.load(folder / "x.npy")[:3200], 8, K, epochs=None)
    left_out = made = 0
    while made < UPDATES:
        for _ in range(accumulate):
            chunk = next(stream)
            with torch.autocast("cpu", HALF, enabled=scaler.is_enabled()):
                outputs, state = model(chunk.inputs, state.detach().float())
                loss = torch.nn.functional.mse_loss(outputs, chunk.targets) / accumulate  # the mean over K steps, too
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        made, left_out = made + bool(finite), left_out + (not finite)
    return model.state_dict(), left_out


def stop_while_reading(monkeypatch, number):
    """Ctrl-C in the middle of a step: its other windows are read first. Two chunks are looked at before training."""
    read, count = Reading.__next__, [0]

    def counted(self):
        count[0] += 1
        if count[0] == number + 2:
            ctrl_c()
        return read(self)

    monkeypatch.setattr(Reading, "__next__", counted)


@pytest.mark.parametrize(
    ("accumulate", "precision"), [(1, "fp16"), (4, "fp32"), pytest.param(3, "fp16", marks=pytest.mark.deep)]
)
def test_a_run_ends_with_the_weights_of_a_loop_by_hand(bptt_, words, folder, monkeypatch, accumulate, precision):
    """In fp16 from a scale so large that the first gradients overflow: their steps are left out, the stream goes on."""
    scaler, init = torch.amp.GradScaler, torch.amp.GradScaler.__init__
    scale = {"init_scale": 2.0**24, "growth_interval": 4}
    monkeypatch.setattr(scaler, "__init__", lambda self, *a, **k: init(self, *a, **{**scale, **k}))
    run = [*words, "--accumulate", accumulate, "--precision", precision]
    want, left_out = by_hand(folder, accumulate, scaler("cpu", enabled=precision == "fp16"))
    assert (left_out > 0) == (precision == "fp16")
    result = bptt_(*run, "--out", "whole")
    assert result.code == 0
    got = load_file(folder / "whole" / "weights.safetensors")
    oracle.assert_close([got[name] for name in want], list(want.values()), 1e-6)
    told = " ".join(result.out.split())
    assert (
        f"Finished after {UPDATES} updates{f', {left_out} more left out as fp16 overflowed' * bool(left_out)}:" in told
    )
    lines = [json.loads(line) for line in (folder / "whole" / METRICS).read_text().splitlines()]
    assert sum(line["kind"] == "overflowed" for line in lines) == left_out
    assert [line["read"] for line in lines if line["kind"] == "train"] == [
        40 * accumulate * n for n in range(1, UPDATES + 1)
    ]
    with monkeypatch.context() as patch:
        stop_at(patch, 4) if accumulate == 1 else stop_while_reading(patch, 3 * accumulate + 2)
        result = bptt_(*run, "--out", "parts")
    assert result.code == 130
    assert ("Interrupted after 4 updates" in result.out) == (left_out == 0 or accumulate == 1)
    assert bptt_("train", "--resume", "parts").code == 0
    stopped = load_file(folder / "parts" / "weights.safetensors")
    assert all(torch.equal(stopped[name], got[name]) for name in got)
    assert records(folder / "whole") == records(folder / "parts")


def test_bf16(bptt_, words, folder):
    """Lower than float32, and near it."""
    outcomes = []
    for precision in ("fp32", "bf16"):
        assert bptt_(*words, "--precision", precision, "--out", precision).code == 0
        outcomes.append(load_file(folder / precision / "weights.safetensors"))
    for name, value in outcomes[0].items():
        assert value.dtype == outcomes[1][name].dtype == torch.float32
        assert torch.allclose(value, outcomes[1][name], atol=0.01)
    assert any(not torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


@pytest.mark.parametrize(
    ("own", "more", "told"),
    [
        ("", ["--accumulate", 0], "--accumulate 0: must be at least 1"),
        (".double()", ["--precision", "bf16"], "--precision bf16: the model has parameters in float64, which stay so"),
        ("", ["--precision", "fp16"], "--precision fp16: torch has no LSTM in fp16 on a CPU. Give --cell gru, or"),
        ("", ["--precision", "fp8"], "invalid choice 'fp8'"),
    ],
)
def test_what_cannot_be(bptt_, words, folder, own, more, told):
    (folder / "net.py").write_text(NET.replace("nn.GRU", "nn.LSTM").replace("return Net()", f"return Net(){own}"))
    result = bptt_(*words, *more, "--out", "run")
    assert result.code == 2
    assert told in result.error
    assert not (folder / "run").exists()
