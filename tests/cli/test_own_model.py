"""A model of the user's own in a file: what is printed is what the library's calls say."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bptt
from bptt.cli.folder import VOCABULARY
from bptt.data import Lanes
from support.own_model import NET

MODEL = f"""{NET}

class Text(nn.Module):
    def __init__(self, scores=29):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(29, 5), nn.GRU(5, 6), nn.Linear(6, scores)

    def forward(self, x, state=None):
        hidden, state = self.cell(self.embed(x), state)
        return self.out(hidden), state

def of_text():
    return Text()

def of_more():
    return Text(40)

def with_stream():
    import bptt, torch
    from bptt.data import Lanes
    return Net(), bptt.per_step(nn.MSELoss()), Lanes(torch.randn(600, 2), 3, 10, epochs=None)

def read_ahead():
    from bptt.data import Prefetch
    model, loss, stream = with_stream()
    return model, loss, Prefetch(stream, 4)
"""


@pytest.fixture
def data(folder):
    (folder / "net.py").write_text(MODEL)
    values = np.random.default_rng(0).normal(size=(1000, 2)).cumsum(0).astype(np.float32)
    np.save(folder / "x.npy", values)
    return torch.from_numpy(values)


def test_verify_says_what_the_library_says(bptt_, data):
    made = {"__name__": "net"}
    exec(NET, made)
    chunk = next(Lanes(data[800:], 4, 32))
    found = bptt.verify(made["make"](), bptt.per_step(nn.MSELoss()), chunk._replace(is_start=None), state_batch_dim=1)
    result = bptt_("verify", "net.py:make", "--data", "x.npy")
    assert result.code == 0
    assert result.out.split("\n")[: len(found.answers)] == str(found).split("\n")


def test_train_and_go_on(bptt_, folder, data):
    for out, steps in (("whole", 20), ("part", 7)):
        words = ["--data", "x.npy", "--strategy", "tbptt:5", "--batch", 4, "--steps", steps, "--out", out]
        assert bptt_("train", "net.py:make", *words).code == 0
    assert '"sha256"' in (folder / "whole" / "model.json").read_text()
    assert bptt_("train", "--resume", "part", "--steps", 20).code == 0
    whole, part = ((folder / run / "weights.safetensors").read_bytes() for run in ("whole", "part"))
    assert whole == part
    (folder / "net.py").write_text(MODEL + "\n")
    result = bptt_("train", "--resume", "part", "--steps", 30)
    assert (result.code, "net.py:make was changed since the run began" in result.error) == (2, True)


@pytest.mark.parametrize("name", ["with_stream", "read_ahead"])
def test_a_stream_of_its_own_goes_on_too(bptt_, folder, data, name):
    for out, steps in (("whole", 20), ("part", 7)):
        words = ["--strategy", "tbptt:3:8", "--steps", steps, "--out", out]
        assert bptt_("train", f"net.py:{name}", *words).code == 0
    assert bptt_("train", "--resume", "part", "--steps", 20).code == 0
    whole, part = ((folder / run / "weights.safetensors").read_bytes() for run in ("whole", "part"))
    assert whole == part


def test_diagnose_and_plan(bptt_, data):
    result = bptt_("diagnose", "net.py:make", "--data", "x.npy", "--length", 20, "--batch", 2)
    assert (result.code, result.err) == (0, "")
    assert "sequence    2 lanes of 20 steps" in result.out
    result = bptt_("plan", "net.py:make", "--data", "x.npy", "--steps", 40, "--strategies", "full,tbptt:5")
    assert (result.code, result.err) == (0, "")


@pytest.mark.deep
def test_compare(bptt_, data):
    words = ["--strategies", "full,tbptt:5", "--budget", 200, "--seeds", 1, "--sequence-length", 20, "--out", "c"]
    result = bptt_("compare", "net.py:make", "--data", "x.npy", *words)
    assert (result.code, result.err) == (0, "")
    assert "exact gradient: full" in result.out


@pytest.mark.parametrize(
    ("file", "word", "message"),
    [
        ("import nothing_there", "bad.py:make", "running bad.py failed (ModuleNotFoundError: No module"),
        ("def make(:", "bad.py:make", "running bad.py failed (SyntaxError"),
        ("def make(): return 3", "bad.py:make", "make() returned int: it must return a module"),
        ("def make(): raise KeyError('k')", "bad.py", "make() failed (KeyError: 'k', line 1 of bad.py)"),
        ("raise SystemExit(3)", "bad.py", "running bad.py failed (SystemExit: 3"),
        ("x = 1", "bad.py:make", "bad.py has no function make"),
        ("from torch import nn\ndef make(): return nn.Identity()", "bad.py", "no parameter to train"),
        ("from torch import nn\ndef make(): return nn.GRU(5, 4)", "bad.py", "fails on the data, inputs (2, 8, 2)"),
        ("", "missing.py:make", "missing.py cannot be read"),
    ],
)
def test_what_can_t_be(bptt_, folder, data, file, word, message):
    (folder / "bad.py").write_text(file + "\n")
    result = bptt_("train", word, "--data", "x.npy", "--steps", 1, "--out", "run")
    assert result.code == 2
    assert message in result.error
    assert not (folder / "run").exists()


def test_a_model_of_a_text_writes(bptt_, folder, data, text):
    words = ["--data", "text.txt", "--strategy", "tbptt:5", "--batch", 4, "--steps", 30, "--out", "run"]
    assert bptt_("train", "net.py:of_text", *words).code == 0
    result = bptt_("sample", "run", "--temperature", 0, "--length", 20, "--prompt", "the ")
    assert result.code == 0
    made = {"__name__": "net"}
    exec(MODEL, made)
    model, vocabulary = made["of_text"](), bptt.data.Vocabulary(json.loads((folder / "run" / VOCABULARY).read_text()))
    model.load_state_dict(load_file(folder / "run" / "weights.safetensors"))
    written = "the "
    for _ in range(20):
        written += vocabulary.decode(model(vocabulary.encode(written)[:, None])[0][-1, 0].argmax()[None])
    assert result.out == written + "\n"
    (folder / "net.py").write_text(MODEL + "\n")
    assert "net.py:of_text was changed since the run began" in bptt_("sample", "run").error


@pytest.mark.parametrize("temperature", [0, 1])
def test_what_writes_no_text(bptt_, folder, data, text, temperature):
    words = ["--data", "text.txt", "--strategy", "tbptt:5", "--batch", 4, "--steps", 2, "--out"]
    assert bptt_("train", "net.py:of_more", *words, "more").code == 0
    result = bptt_("sample", "more", "--temperature", temperature)
    assert result.code == 2
    assert (
        "for a text of 29 distinct characters it must give scores of shape (1, 1, 29), not (1, 1, 40)" in result.error
    )
    words = ["--data", "x.npy", "--strategy", "tbptt:5", "--batch", 4, "--steps", 2, "--out"]
    assert bptt_("train", "net.py:make", *words, "numbers").code == 0
    assert "its model was trained on numbers" in bptt_("sample", "numbers").error
