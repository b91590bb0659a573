"""Wrong use: one line on stderr, exit code 2, and no trace on disk."""

import os
import re
import subprocess
import sys

import pytest

from bptt.cli import EXTRAS, main

BAD_TRAIN = [
    (["--foo", "3"], "Unrecognized options: --foo, 3"),
    (["--hiden", "3"], "Did you mean --hidden?"),
    (["extra"], "extra: takes the form FILE.py:NAME"),
    (["--hidden"], "Missing value for argument '--hidden'"),
    (["--hidden", "x"], "--hidden: 'x' is not a whole number"),
    (["--hidden", "0"], "--hidden 0: must be at least 1"),
    (["--hidden", "1000000000"], "no memory for a model of this size"),
    (["--layers", "0"], "--layers 0"),
    (["--batch", "-3"], "--batch -3: must be at least 1"),
    (["--batch", "2000"], "--batch 2000: a text of 1620 characters is too short for a batch of 2000"),
    (["--cell", "foo"], "Expected one of gru, lstm, rnn"),
    (["--optimizer", "lbfgs"], "invalid choice 'lbfgs'"),
    (["--steps", "0"], "--steps 0: must be at least 1"),
    (["--steps", "3", "--epochs", "2"], "--steps and --epochs are not allowed together"),
    (["--minutes", "1", "--epochs", "2"], "not allowed together"),
    (["--minutes", "0"], "--minutes 0.0: must be a positive number"),
    (["--lr", "nan"], "--lr nan: must be a positive number"),
    (["--lr", "0"], "--lr 0.0"),
    (["--lr", "1e39"], "at most 1e30"),
    (["--clip", "-1"], "--clip -1.0"),
    (["--seed", "-1"], "--seed -1"),
    (["--device", "abacus"], "--device abacus: torch cannot use it here"),
    (["--device", "meta"], "--device meta: torch cannot use it here"),
    (["--strategy", "foo"], "full, tbptt:K1, tbptt:K1:K2, tbptt:K1:K2:N, artbp:L, random:L, adaptive:TOL, rtrl"),
    (["--strategy", "tbptt"], "the strategies are"),
    (["--strategy", "tbptt:1:2:3:4"], "the strategies are"),
    (["--strategy", "tbptt:x"], "'x' is not a whole number"),
    (["--strategy", "tbptt:0"], "k1"),
    (["--strategy", "tbptt:20:5"], "k2 must be at least k1"),
    (["--strategy", "full:3"], "the strategies are"),
    (["--strategy", "random"], "the strategies are"),
    (["--strategy", "artbp:inf"], "'inf' is not a number"),
    (["--strategy", "artbp:1"], "above 1"),
    (["--strategy", "artbp:50", "--alpha", "0.5"], "alpha"),
    (["--strategy", "artbp:50", "--every", "0"], "--every 0"),
    (["--strategy", "artbp:50", "--law", "constant", "--alpha", "3"], "--alpha applies only to --law polynomial"),
    (["--strategy", "artbp:50", "--sequence-length", "9"], "--sequence-length applies only to --strategy full"),
    (["--alpha", "3"], "--alpha applies only to --strategy artbp, not to tbptt:8"),
    (["--law", "constant"], "--law applies only to --strategy artbp"),
    (["--every", "3"], "--every applies only to --strategy artbp"),
    (["--strategy", "full"], "give --sequence-length too"),
    (["--strategy", "full", "--sequence-length", "405"], "has only 404 characters to predict"),
    (["--memory", "lots"], "memory='lots'"),
    (["--memory", "10B"], "the least that works"),
    (["--data", "missing"], "--data missing: no such file"),
    (["--data", "."], "--data .: this is a directory"),
    (["--data", "empty"], "--data empty: the file is empty"),
    (["--data", "one"], "holds only one character"),
    (["--data", "binary"], "--data binary: not a UTF-8 text"),
    (["--config", "missing"], "--config missing: cannot be read"),
    (["--config", "."], "--config .: cannot be read"),
    (["--config", "binary"], "--config binary: not a UTF-8 text"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD_TRAIN, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_train(train, folder, words, message):
    (folder / "empty").touch()
    (folder / "one").write_text("a")
    (folder / "binary").write_bytes(b"ab\xff")
    before = sorted(folder.iterdir())
    result = train(*words)
    assert result.code == 2
    assert result.error.startswith("bptt train: ")
    assert message in result.error
    assert sorted(folder.iterdir()) == before


def test_out_is_looked_at_before_the_data(train, folder):
    (folder / "file").touch()
    for out, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        result = train("--out", out, "--data", "missing")
        assert result.code == 2
        assert f"{out}: no run can be written here ({reason}" in result.error


def test_one_line_where_stdout_shows_frames_too(environment):  # captured stdout gets them in ASCII
    code = "import sys; from bptt.cli import main; sys.exit(main(['train', '--hiden', '3']))"
    environment["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == (
        "bptt train: Unrecognized options: --hiden, 3. Did you mean --hidden? See bptt train --help\n"
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is unwritable for root")
def test_out_without_permission(train, folder):
    (folder / "locked").mkdir(mode=0o500)
    result = train("--out", "locked/run", "--data", "missing")
    assert (result.code, "Permission denied" in result.error) == (2, True)


def test_a_folder_that_is_not_new_is_used_and_stays_on_failure(train, folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").write_text("keep")
    assert train("--out", "mine", "--data", "missing").code == 2
    assert [path.name for path in (folder / "mine").iterdir()] == ["notes"]
    assert train("--out", "mine", "--steps", 1).code == 0
    assert (folder / "mine" / "notes").read_text() == "keep"


def test_commands(bptt_):
    assert bptt_().code == 0
    assert bptt_("--help") == bptt_()
    assert "train" in bptt_().out
    assert bptt_("--version").out.startswith("bptt ")
    result = bptt_("tarin")
    assert result.code == 2
    assert result.error.startswith(
        "bptt: no command 'tarin'; there are train, sample, forecast, export, compare, plan, diagnose, verify, "
        "explain, doctor"
    )
    assert bptt_("doctor", "--gpu").error.startswith("bptt doctor: takes no options")


@pytest.mark.parametrize("command", ["train", "sample", "diagnose", "explain"])
def test_help_of_a_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert out.startswith(f"usage: bptt {command}")
    assert "Exit codes: 0 done" in out


def test_every_option_has_a_text_that_says_what_it_does(capsys):
    import dataclasses

    from bptt.cli.config import flag
    from bptt.cli.train_config import TrainConfig

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        word = "FILE.py:NAME" if field.name == "model" else flag(field.name)
        after = shown.split(f" {word} ", 1)[1].split(" --", 1)[0]
        assert len(re.findall("[a-z]{2,}", after)) > 3, field.name


def test_a_missing_package_is_one_line_that_says_what_to_install(environment):
    code = """if True:
        import sys
        from bptt.cli import main
        for package, command in (("yaml", "sample"), ("tyro", "explain")):
            sys.modules[package] = None
            print(main([command, "x"]), main(["doctor"]) == 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert {"yaml", "tyro"} <= EXTRAS
    assert done.stderr.splitlines() == [
        "bptt sample: the package yaml is missing. Run: pip install 'bptt[cli]'",
        "bptt explain: the package tyro is missing. Run: pip install 'bptt[cli]'",
    ]
    assert done.stdout.count("2 True") == 2


def test_doctor(bptt_, monkeypatch):
    result = bptt_("doctor")
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert rows["missing"] == "nothing"
    assert "tyro" in rows["extras"]
    assert "characters" in rows["text"]
    assert {"bptt", "python", "torch", "cpu", "memory", "device"} <= set(rows)


def test_doctor_names_what_is_missing(bptt_, monkeypatch):
    import importlib.metadata

    def version(name):
        if name == "rich":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "missing  rich. Run: pip install 'bptt[cli]'" in bptt_("doctor").out
