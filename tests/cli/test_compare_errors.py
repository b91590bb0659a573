"""Wrong use of `bptt compare`: one line, exit code 2, and nothing written."""

import pytest

from bptt.strategies.spec import GRAMMAR

BAD = [
    (["--strategies", "foo"], GRAMMAR),
    (["--strategies", "full,tbptt"], GRAMMAR),
    (["--strategies", ""], GRAMMAR),
    (["--strategies", "full,full"], "full is listed twice"),
    (["--strategies", "tbptt:20:5"], "k2 must be at least k1"),
    (["--strategies", "adaptive:-1"], "adaptive:-1"),
    (["--draws", "0"], "--draws 0: must be at least 3"),
    (["--seeds", "0"], "--seeds 0: must be at least 1"),
    (["--budget", "0"], "--budget 0: must be a number of steps"),
    (["--budget", "soon"], "--budget soon: must be a number of steps, such as 20000, or a time, such as 30s"),
    (["--budget", "1.5"], "--budget 1.5"),
    (["--budget", "49"], "--budget 49: full needs at least the 50 steps of a sequence"),
    (["--memory", "10B"], "--memory 10B: no strategy fits. The least that would is "),
    (["--memory", "10B", "--strategies", "tbptt:4"], "--memory 10B: no strategy fits. The least that would is "),
    (["--memory", "28KiB", "--strategies", "tbptt:1,adaptive:0.5"], "too little for adaptive:0.5 (the least is "),
    (["--memory", "lots"], "memory='lots'"),
    (["--task", "sudoku"], "sudoku"),
    (["--task", "copy", "--delay", "0"], "--task copy: CopyMemory(delay=0"),
    (["--task", "copy", "--symbols", "1"], "symbols=1"),
    (["--task", "delayed", "--delay", "1"], "DelayedCopy(delay=1): must be a whole number of at least 2"),
    (["--task", "adding", "--length", "1"], "Adding(length=1): must be a whole number of at least 2"),
    (["--task", "bernoulli", "--t1", "8"], "the two coins must be different"),
    (["--task", "influence", "--positive", "12"], "the -1 must outnumber the +1"),
    (["--task", "influence", "--hidden", "5"], "--hidden applies only to --task text, copy"),
    (["--delay", "5", "--t1", "2"], "--t1 applies only to --task bernoulli, not to delayed"),
    (["--data", "book.txt"], "--data applies only to --task text"),
    (["--task", "text", "--data", "missing"], "--data missing: no such file"),
    (["--hidden", "0"], "--hidden 0"),
    (["--hidden", "1000000000"], "no memory for a model of this size"),
    (["--lr", "0"], "--lr 0.0"),
    (["--clip", "nan"], "--clip nan"),
    (["--sequence-length", "0"], "--sequence-length 0"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_refused_in_one_line_and_nothing_written(bptt_, folder, words, said):
    result = bptt_("compare", *words)
    assert result.code == 2
    assert result.out == ""
    assert result.error.startswith("bptt compare: ")
    assert said in result.error
    assert list(folder.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(bptt_, folder):
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_text("mine")
    for words in ([], ["--overwrite"]):
        result = bptt_("compare", "--out", "plots", *words)
        assert result.code == 2
        assert "plots holds something else" in result.error
    (folder / "file").touch()
    result = bptt_("compare", "--out", "file")
    assert result.code == 2
    assert "file: no comparison can be written here" in result.error
    assert sorted(p.name for p in folder.rglob("*")) == ["file", "loss.png", "plots"]
