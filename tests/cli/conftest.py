"""Small texts, small runs, and `bptt` as a function that returns what a shell would show."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

import bptt
from bptt.cli import main
from support.drawing import quick_savefig

TINY = ["--hidden", "12", "--batch", "4", "--strategy", "tbptt:8", "--lr", "0.01", "--device", "cpu"]
"""A run of a second: few units, few lanes, short windows."""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr; fails if there are none or several."""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.rstrip("\n")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test in a folder of its own, on a terminal of 80 columns that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def real_plots():
    """Ask for it to have plots as a user gets them; without it they are small: drawing takes most of a small run."""


@pytest.fixture(autouse=True)
def quick_plots(request, monkeypatch):
    if "real_plots" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", quick_savefig)


@pytest.fixture
def environment():
    """For a process of its own: this bptt, installed or not, on one thread."""
    return {**os.environ, "PYTHONPATH": str(Path(bptt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def bptt_(capsys):
    def run(*words: object) -> Result:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def text(folder):
    """A text that even 12 units learn something of."""
    path = folder / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    return path


@pytest.fixture
def train(bptt_, text):
    """`bptt train` on the small text with small settings; later words win."""

    def run(*words: object) -> Result:
        return bptt_("train", "--data", text, *TINY, *words)

    return run
