"""Sizes that no machine has, windows and files that never end: refused before anything is allocated or read."""

import itertools
import os
import resource
import signal

import pytest

import bptt
from bptt.cli import room
from bptt.cli.jobs.texts import build
from bptt.cli.printing import UserError, user_errors
from bptt.models.layers import CELLS

COMPARE = ["compare", "--budget", "200", "--seeds", "1", "--hidden", "4", "--draws", "3", "--strategies", "tbptt:4"]
TRAIN = ["--steps", "1", "--hidden", "4", "--batch", "2"]  # the text of these tests has 810 characters a lane then


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_arithmetic_is_that_of_the_model(cell, layers):
    model = build(11, cell, 5, layers)
    assert room.numbers_of(11, cell, 5, layers) == sum(p.numel() for p in model.parameters())


def test_what_can_be_had(monkeypatch):
    """The machine's memory, or what a limit of the shell leaves of it."""
    whole = room.memory_here()
    assert 0 < whole < 2**60
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**20, 2**20))
    assert room.memory_here() == 0
    with pytest.raises(UserError, match=r"--hidden 9: this would take 7 B or more, and 0 B can be had"):
        room.must_have_room(7, "--hidden 9", "this")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("Storage size calculation overflowed with sizes=[10000000000]"), True),
        (OverflowError("Python int too large to convert to C long"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_too_little_memory(error, is_one):
    kind, said = (UserError, "not enough memory") if is_one else (type(error), "shapes")
    with pytest.raises(kind, match=said), user_errors():
        raise error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hidden", "1000000"], "would take"),
        (["--hidden", "9223372036854775807"], "would take"),
        (["--layers", "100000"], "--layers 100000: must be at most 1,000"),
        (["--layers", "9223372036854775807"], "must be at most 1,000"),
        (["--layers", "99999999999999999999"], "must be at most 2**63 - 1"),
        (["--hidden", "100000", "--layers", "900"], "would take"),
    ],
)
def test_models_that_no_machine_has(bptt_, train, text, words, message):
    for result in (
        train(*words),
        bptt_("plan", "--data", text, "--batch", 2, *words),
        bptt_("diagnose", "--cell", "gru", "--data", text, *words),
    ):
        assert result.code == 2
        assert message in result.error


def test_a_window_that_no_machine_has(train, monkeypatch):
    monkeypatch.setattr(room, "memory_here", lambda: 2e6)
    result = train("--strategy", "tbptt:400", "--hidden", "100", "--steps", "1")
    assert result.code == 2
    assert "--strategy tbptt:400 --hidden 100: a window of 400 characters would take" in result.error
    assert "Give --memory" in result.error


@pytest.mark.parametrize(
    "words",
    [
        ["--delay", "99999999999"],
        ["--delay", "9223372036854775807"],
        ["--batch", "1000000000"],
        ["--symbols", "1000000000"],
        ["--hidden", "1000000"],
        ["--sequence-length", "10000000000"],
        ["--task", "copy", "--length", "99999999999"],
        ["--task", "adding", "--length", "99999999999"],
        ["--task", "adding", "--length", "99999999999999999999"],
        ["--task", "bernoulli", "--t1", "99999999999"],
        ["--task", "text", "--hidden", "1000000"],
        ["--task", "text", "--batch", "1000000000"],
        ["--seeds", "1000000000000"],
        ["--draws", "1000000000000"],
    ],
    ids=" ".join,
)
def test_comparisons_that_no_machine_has(bptt_, folder, words):
    result = bptt_(*COMPARE, *words)
    assert result.code == 2
    assert result.error.startswith("bptt compare: --")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("words", [["--size", "100000"], ["--sequence-length", "10000000000"]], ids=" ".join)
def test_a_chain_that_no_machine_has(bptt_, words):
    common = ["compare", "--task", "influence", "--budget", "200", "--draws", "3", "--strategies", "tbptt:4"]
    result = bptt_(*common, *words)
    assert result.code == 2
    assert "would take" in result.error


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (["tbptt:1000000"], "windows of 1,000,000 characters"),
        (["tbptt:810"], "has only 809 to predict; give K1 of that or less"),
        (["tbptt:1:1000000"], "give K2 of that or less"),
        (["artbp:10000000000"], "windows of 10,000,000,000 characters"),
        (["random:1e300"], "give L of that or less"),
        (["artbp:4", "--every", "1000000000000"], "give --every of that or less"),
        (["artbp:4", "--alpha", "1e308"], "nothing would ever be cut"),
        (["artbp:1e300", "--law", "constant"], "give L of that or less"),
        (["full", "--sequence-length", "810"], "only 809 characters"),
    ],
)
def test_windows_longer_than_the_text(train, folder, strategy, message):
    before = sorted(folder.iterdir())
    result = train(*TRAIN, "--strategy", *strategy)
    assert result.code == 2
    assert message in result.error
    assert sorted(folder.iterdir()) == before


def test_a_window_of_the_whole_text(train):
    assert train(*TRAIN, "--strategy", "tbptt:809").code == 0


@pytest.mark.parametrize("word", ["tbptt:1_0", "tbptt: 10", "tbptt:１０", "artbp:1_0", "tbptt:" + "0" * 300 + "4"])
def test_numbers_are_written_plainly(bptt_, train, word):
    assert "is not a" in train("--strategy", word).error
    assert "is not a" in bptt_(*COMPARE, "--strategies", word).error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategies", "tbptt:1000000"], "windows of 1,000,000 steps, but --budget 200 has only 200"),
        (["--strategies", "tbptt:1:1000000"], "--budget 200 has only 200"),
        (["--strategies", "tbptt:4,artbp:1e300"], "--strategies artbp:1e300: windows of"),
        (["--strategies", "random:1e10", "--budget", "5s"], "--strategies random:1e10: a window of"),
        (["--strategies", "tbptt:99999999999", "--budget", "5s", "--memory", "1MiB"], "give 10,000,000 or less"),
        (["--task", "text", "--strategies", "tbptt:100000", "--budget", "5s"], "one pass through the text has only"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_comparisons_of_windows_that_never_end(bptt_, folder, words, message):
    result = bptt_(*COMPARE, *words)
    assert result.code == 2
    assert message in result.error
    assert not list(folder.iterdir())


def test_a_plan_that_would_never_end(bptt_, text):
    assert (
        "--steps 99999999999: must be at most 1,000,000" in bptt_("plan", "--data", text, "--steps", 99999999999).error
    )


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_a_window_that_is_still_being_read(train, folder, monkeypatch):
    """A law that never cuts, and one Ctrl-C while the text is read again and again."""

    class Never(bptt.ARTBP):
        reach = 4  # it says

    never = Never(bptt.ConstantLaw(1e12))
    monkeypatch.setattr("bptt.cli.reading.parse_strategy", lambda *words: never)

    read = itertools.count()

    def tenth(chunk, device):
        if next(read) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return chunk

    monkeypatch.setattr("bptt.cli.reading.moved", tenth)
    result = train("--strategy", "artbp:4", "--out", "run")
    assert result.code == 130
    assert "Interrupted after 0 updates" in result.out
    assert (folder / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/random", "fifo", ".", "large"])
def test_data_that_is_no_file_or_never_ends(bptt_, folder, name):
    os.mkfifo(folder / "fifo")
    with open(folder / "large", "wb") as file:
        file.truncate(2**42)
    for words in (["train"], ["plan"], ["diagnose", "--cell", "rnn"], ["compare", "--task", "text"], ["explain"]):
        result = bptt_(*words, "--data", name)
        assert result.code == 2
        assert f"--data {name}: " in result.error


def test_the_law_that_never_cuts():
    with pytest.raises(ValueError, match="nothing would ever be cut"):
        bptt.PolynomialLaw(alpha=1e308, mean_length=50)
    assert 0 < bptt.PolynomialLaw(alpha=1e300, mean_length=50)(1) < 1
