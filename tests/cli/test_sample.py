"""Text out of a run folder, and nothing but text on the screen."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from bptt.cli import main
from bptt.data import Vocabulary
from bptt.models import CharModel, write

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
TINY = ["--hidden", "12", "--batch", "4", "--strategy", "tbptt:8", "--lr", "0.01", "--device", "cpu"]
NASTY = "[/b] [red]x[/red] \x1b[31m \x07 <script>alert(1)</script> ```\n# no\n| a |\u202e\u2028 :smile: $x$\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run folder for all tests here."""
    path = tmp_path_factory.mktemp("trained")
    (path / "text.txt").write_text(TEXT)
    assert main(["train", "--data", str(path / "text.txt"), *TINY, "--steps", "30", "--out", str(path / "run")]) == 0
    return path / "run"


@pytest.fixture
def run(trained, folder):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(trained, folder / "run"))


def test_prompt_and_so_many_characters(bptt_, run):
    result = bptt_("sample", run, "--prompt", "the qu", "--length", 40)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("the qu")
    assert len(result.out) == 6 + 40 + 1
    assert set(result.out) <= set(TEXT)


def test_a_seed_writes_one_text(bptt_, run):
    one = bptt_("sample", run, "--seed", 1).out
    assert one == bptt_("sample", run, "--seed", 1).out
    assert one != bptt_("sample", run, "--seed", 2).out
    assert len(one) == 501


def test_temperature_zero_is_the_likeliest_whatever_the_seed(bptt_, run):
    greedy = bptt_("sample", run, "--temperature", 0, "--seed", 1).out
    assert greedy == bptt_("sample", run, "--temperature", 0, "--seed", 2).out
    assert greedy == bptt_("sample", run, "--temperature", 1e-300, "--seed", 3).out
    model, vocabulary = CharModel.load(run)
    with torch.no_grad():
        scores, _ = model(vocabulary.encode("\n" + greedy[:-1])[:, None], None)
    assert vocabulary.decode(scores[:, 0].argmax(-1)[:-1]) == greedy[:-1]


def test_the_distribution_is_the_model_s_at_that_temperature():
    vocabulary = Vocabulary("abc")
    model = CharModel(3, "gru", 4).eval()
    generator = torch.Generator().manual_seed(0)
    drawn = "".join(next(write(model.stepping(), vocabulary, "b", 1, 0.5, generator)) for _ in range(4000))
    with torch.no_grad():
        expected = (model(vocabulary.encode("b")[:, None], None)[0][0, 0] / 0.5).softmax(0)
    observed = torch.tensor([drawn.count(c) / 4000 for c in "abc"])
    assert torch.allclose(observed, expected, atol=5 * (0.25 / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--prompt", "Ünknown"], r"--prompt: not in the vocabulary of 29 characters: 'U', 'Ü'|'Ü'"),
        (["run", "--temperature", "-1"], "--temperature -1.0: must be positive, or 0 for the likeliest character"),
        (["run", "--temperature", "nan"], "--temperature nan"),
        (["run", "--length", "0"], "--length 0"),
        (["run", "--seed", "-1"], "--seed -1"),
        (["."], r"\. is not a run folder with weights .no weights.safetensors."),
        (["missing"], "missing is not a run folder"),
        (["text.txt"], "text.txt is not a run folder"),
        ([], "DIR"),
    ],
)
def test_errors(bptt_, run, text, words, message):
    result = bptt_("sample", *words)
    assert result.code == 2
    assert result.out == ""
    assert result.error.startswith("bptt sample: ")
    assert re.search(message, result.error), result.error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.safetensors", b""),
        ("weights.safetensors", b"garbage, not a safetensors file"),
        ("weights.safetensors", None),
        ("config.yaml", b"cell: lstm"),
        ("config.yaml", b"- 1"),
        ("config.yaml", b"cell: [lstm"),
        ("config.yaml", b"cell: abacus\nhidden: 12\nlayers: 1"),
        ("config.yaml", b"cell: lstm\nhidden: 13\nlayers: 1"),
        ("config.yaml", b"cell: lstm\nhidden: 99999999999\nlayers: 1"),
        ("config.yaml", b"\xff"),
        ("vocabulary.json", b'"abc"'),
        ("vocabulary.json", b'["a"'),
        ("vocabulary.json", b"7"),
    ],
)
def test_damaged_folders(bptt_, run, name, content):
    content = (run / name).read_bytes()[:-20] if content is None else content
    (run / name).write_bytes(content)
    result = bptt_("sample", run)
    assert result.code == 2
    assert result.out == ""
    assert str(run) in result.error or "no memory for a model" in result.error


def test_nothing_from_outside_is_markup_or_control(bptt_, folder, monkeypatch):
    """From data, prompt, file names and errors: shown as it is, control characters as escapes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    data, out = "[b]\x1b[31m`|<script>.txt", "run[/b]\x1b[32m\nx"
    (folder / data).write_text(NASTY * 40)
    small = ["--hidden", 4, "--batch", 2, "--strategy", "tbptt:4", "--steps", 3, "--lr", 1e-9]
    result = bptt_("train", "--data", data, "--out", out, *small)
    assert (result.code, result.err) == (0, "")
    assert "[b]\\x1b[31m`|<script>.txt" in result.out
    assert "run[/b]\\x1b[32m x" in result.out
    assert not re.search("\x1b\\[3[12]m|\x07|\u202e|\u2028", result.out)
    report = (folder / out / "report.md").read_text()
    assert not re.search("[\x1b\x07\u202e\u2028]", report)
    outside = report.split("\n\n## Sample\n\n")[1].split("\n\n## Settings")[0]
    assert all(line.startswith("    ") for line in outside.splitlines())
    assert "<script>" not in re.sub("(?m)^    .*$", "", report)
    assert json.loads((folder / out / "vocabulary.json").read_text()) == "".join(sorted(set(NASTY)))

    result = bptt_("sample", out, "--prompt", NASTY, "--length", 200)
    assert result.code == 0
    assert result.out.startswith(
        "[/b] [red]x[/red] \\x1b[31m \\x07 <script>alert(1)</script> ```\n# no\n| a |\\u202e\\u2028 "
    )
    assert not re.search("[\x1b\x07\u202e\u2028]", result.out)
    for words in (["sample", "no\x1b[31m\nrun"], ["sample", out, "--prompt", "\x1b\x02"], ["train", "--\x1b[31mx"]):
        result = bptt_(*words)
        assert result.code == 2
        assert not set("\x1b\x02\x07") & set(result.error)
