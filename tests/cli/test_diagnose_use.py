"""`bptt diagnose` in use: its plot, wrong use, odd models, and names from outside."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bptt.cli import main

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = ["--cell", "rnn", "--hidden", "10", "--batch", "4", "--strategy", "tbptt:8", "--steps", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run folder for all tests here."""
    path = tmp_path_factory.mktemp("trained")
    (path / "text.txt").write_text(TEXT)
    assert main(["train", "--data", str(path / "text.txt"), *SMALL, "--out", str(path / "run")]) == 0
    return path / "run"


@pytest.fixture
def run(trained, folder):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(trained, folder / "run"))


def test_before_training(bptt_, folder, text):
    words = ["diagnose", "--cell", "lstm", "--hidden", 6, "--data", "text.txt"]
    result = bptt_(*words)
    assert (result.code, result.err) == (0, "")
    assert "lstm of 6 units before training" in result.out
    assert "1 lane of 179 characters" in result.out
    assert re.search("(?m)^ 50 ", result.out)  # lags up to half of it
    assert "radius" not in result.out
    assert [path.name for path in folder.iterdir()] == ["text.txt"]
    assert bptt_(*words, "--length", 1, "--batch", 1, "--out", "new.png").code == 0
    assert bptt_(*words).out == result.out


@pytest.mark.usefixtures("real_plots")
def test_the_plot_is_a_png_and_replaces_the_one_before(bptt_, run):
    before = set(run.iterdir())
    (run / "diagnosis.png").write_text("the one before")
    result = bptt_("diagnose", run, "--length", 30)
    assert f"The plot is in {run}/diagnosis.png" in " ".join(result.out.split())
    assert (run / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert set(run.iterdir()) == before | {run / "diagnosis.png"}


def test_a_plot_that_cannot_be_written(bptt_, run):
    (run / "diagnosis.png").mkdir()
    before = sorted(run.rglob("*"))
    result = bptt_("diagnose", run, "--length", 6)
    assert result.code == 1
    assert "diagnosis.png: the plot cannot be written" in result.error
    assert "share of the gradient" in result.out
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a run folder or a model of your own, or --cell"),
        (["run", "--cell", "rnn"], "one of them"),
        (["run", "--hidden", "3"], "--hidden applies only to --cell"),
        (["run", "--layers", "3"], "--layers applies only to --cell"),
        (["missing"], "missing is not a run folder"),
        (["."], ". is not a run folder with weights"),
        (["run", "--length", "180"], "the 180 characters kept for validation make 1 lane of only 179"),
        (["run", "--length", "60", "--batch", "3"], "make 3 lanes of only 59 to predict"),
        (["run", "--length", "0"], "--length 0: must be at least 1"),
        (["run", "--batch", "0"], "--batch 0"),
        (["run", "--batch", "91"], "--batch 91: a text of 180 characters is too short for a batch of 91"),
        (["run", "--data", "missing"], "--data missing: no such file"),
        (["run", "--data", "other.txt"], "--data other.txt: not in the vocabulary of 29 characters: 'Z'"),
        (["--cell", "rnn", "--data", "short.txt"], "too short to train and validate on"),
        (["--cell", "foo"], "invalid choice 'foo' for argument '--cell'"),
        (["--cell", "rnn", "--hidden", "1000000000"], "no memory for a model of this size"),
        (["--cell", "rnn", "--device", "abacus"], "--device abacus: torch cannot use it here"),
        (["run", "--out", "text.txt"], "--out text.txt: must end with .png"),
        (["run", "--out", "mine.png"], "--out mine.png: exists already"),
        (["run", "--out", "no/x.png"], "--out no/x.png: give a file in a folder that exists"),
        (["run", "--lenght", "3"], "Did you mean --length?"),
    ],
)
def test_errors(bptt_, folder, run, text, words, message):
    for name, content in (("other.txt", "Zebra"), ("short.txt", "ab"), ("mine.png", "mine")):
        (folder / name).write_text(content)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = bptt_("diagnose", *words)
    assert (result.code, result.out) == (2, "")
    assert result.error.startswith("bptt diagnose: ")
    assert message in result.error
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_config(bptt_, run):
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "nonsense: 3\n")
    result = bptt_("diagnose", run)
    assert (result.code, "unknown key 'nonsense'" in result.error) == (2, True)


def test_a_loss_that_is_not_finite(bptt_, run):
    weights = load_file(run / "weights.safetensors")
    weights["decoder.weight"].fill_(3e38)
    save_file(weights, run / "weights.safetensors")
    result = bptt_("diagnose", run, "--length", 6)
    assert (result.code, "the loss of step 0 is not finite" in result.error) == (1, True)
    assert not (run / "diagnosis.png").exists()


def test_nothing_from_outside_is_markup_or_control(bptt_, trained, folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    name, data = "[/b]\x1b[31m<script>", "[red]\x1b[34m\u202e<script>.txt"
    shutil.copytree(trained, folder / name)
    (folder / data).write_text(TEXT)
    result = bptt_("diagnose", name, "--data", data, "--length", 6)
    assert (result.code, result.err) == (0, "")
    assert "run folder  [/b]\\x1b[31m<script>" in result.out
    assert "[red]\\x1b[34m\\u202e<script>.txt" in result.out
    assert "The plot is in [/b]\\x1b[31m<script>/diagnosis.png" in result.out
    assert not re.search("\x1b\\[3[14]m|\u202e", result.out)
    (folder / name / "weights.safetensors").unlink()
    for words in ([name], ["--cell", "rnn", "--data", "\x1b[31m\n"], ["--cell", "rnn", "--out", f"{name}/\x1b"]):
        assert not set("\x1b\n") & set(bptt_("diagnose", *words).error)


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: bptt diagnose")
    assert "Exit codes: 0 done" in out


@pytest.mark.usefixtures("real_plots")
def test_a_model_without_any_gradient(bptt_, run):
    weights = load_file(run / "weights.safetensors")
    weights["decoder.weight"].zero_()
    weights["decoder.bias"][0] = 3e4  # one certain character, whatever the text
    save_file(weights, run / "weights.safetensors")
    (run.parent / "one.txt").write_text("\n" * 3000 + "the")
    result = bptt_("diagnose", run, "--data", "one.txt", "--length", 6, "--batch", 2)
    assert (result.code, result.err) == (0, "")
    assert "memory      none: " in result.out
    assert "The gradient is zero, so there is nothing to drop." in result.out
    assert (run / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
