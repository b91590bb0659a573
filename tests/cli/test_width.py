"""Lines fit the terminal, whatever its width, and nothing in them is broken or lost."""

import re

import pytest

from bptt.cli.printing import command, fields, fitted
from bptt.cli.screen import Screen

WIDTHS = (40, 60, 80, 132)
LONG = "a-run-folder-with-a-long-name-0123456789-0123456789-012345"


def columns(out):
    """The widest line, and lines of one word aside: a name that is longer than the terminal stays whole."""
    return max((len(line) for line in out.splitlines() if " " in line.strip()), default=0)


def without_sample(out):
    return re.sub(r"(?s)\nsample at.*\nFinished", "\nFinished", out)


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.mark.thin
def test_train_and_diagnose(train, bptt_, width):
    words = ["--layers", 2, "--strategy", "artbp:12", "--optimizer", "rmsprop", "--steps", 3]
    result = train(*words, "--out", LONG)
    assert result.code == 0
    out = without_sample(result.out)
    assert columns(out.replace(LONG, "name")) <= width
    if width >= 80:
        assert columns(out) <= width
        assert re.findall(r"^update +3  validation [\d.]+ bits/char  training [\d.]+  \S+ chars  [\d.]+ s$", out, re.M)
    assert " ".join(f"bptt sample {LONG} --temperature 0.6".split()) in " ".join(out.replace("\\\n", " ").split())
    result = bptt_("diagnose", LONG, "--length", 30)
    assert result.code == 0
    assert columns(result.out.replace(LONG, "name")) <= width
    assert "of lag 1" in " ".join(result.out.split())


@pytest.mark.thin
def test_plan_and_compare(bptt_, text, width, monkeypatch):
    monkeypatch.setattr("bptt.analysis.race.Race.save", lambda *args: None)  # drawing takes most of the time
    common = ["--hidden", 4, "--batch", 2]
    result = bptt_("plan", "--data", text, "--steps", 50, *common, "--strategies", "full,artbp:5,tbptt:1:20")
    assert result.code == 0
    assert columns(result.out) <= width
    assert "…" not in result.out
    strategies = "tbptt:4,random:8,tbptt:00000000004:000000012"
    result = bptt_("compare", "--budget", 40, "--seeds", 1, "--draws", 3, *common, "--strategies", strategies)
    assert result.code == 0
    assert columns(result.out) <= width
    assert "…" not in result.out


def test_a_line_of_a_long_run():
    """A million updates, billions of characters, hours: no value is broken."""
    shown = ["update 1,000,000", "validation 1.769 bits/char", "training 1.769", "2.53G chars", "12.1 h"]
    for width in range(30, 100):
        lines = fields(shown, width).splitlines()
        assert max(map(len, lines)) <= width
        assert [value for line in lines for value in re.split(" {2,}", line.strip())] == shown


def test_no_word_is_broken_or_lost():
    text = "text        a/very/long-name.txt, the last 12,345 characters, kept for validation"
    for width in range(40, 100):
        lines = fitted(text, width).splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(lines).split() == text.split()
    assert fitted("name        " + "x" * 100, 80).split() == ["name", "x" * 100]
    assert fitted("", 80) == ""
    assert fitted("a\n\nb", 80) == "a\n\nb"


def test_a_command_can_be_copied_from_any_width():
    words = ["bptt sample", "'a run/of mine'", "--temperature 0.6"]
    for width in range(30, 100):
        shown = command("More text:", words, width)
        assert max(map(len, shown.splitlines())) <= width
        assert (
            " ".join(shown.replace("\\\n", " ").split()) == "More text: bptt sample 'a run/of mine' --temperature 0.6"
        )


def test_a_table_that_is_too_wide_keeps_its_values(capsys, monkeypatch):
    rows = [["tbptt:4:12", "8.629KiB", ""], ["full", "1.1MiB", "best"]]
    monkeypatch.setenv("COLUMNS", "20")
    Screen().table(["strategy", "memory", ""], rows, words=1)
    assert capsys.readouterr().out == ("strategy tbptt:4:12\nmemory 8.629KiB\nstrategy full\nmemory 1.1MiB  best\n")
    monkeypatch.setenv("COLUMNS", "40")
    Screen().table(["strategy", "memory", ""], rows, words=1)
    assert "tbptt:4:12   8.629KiB" in capsys.readouterr().out
