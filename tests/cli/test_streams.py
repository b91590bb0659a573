"""Output without a reader, on a full disk, or closed: nothing that was trained is lost, and no traceback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from markupsafe import Markup
from safetensors.torch import load_file

from bptt.cli import main
from bptt.cli.folder import METRICS, WEIGHTS
from bptt.cli.streams import Streams

COMPARE = ["--hidden", "4", "--batch", "2", "--delay", "2", "--draws", "3", "--seeds", "1", "--strategies", "tbptt:2"]
PLAN = ["--hidden", "4", "--batch", "2", "--steps", "20", "--strategies", "full,tbptt:5"]
TRAIN = ["--hidden", "8", "--batch", "4", "--strategy", "tbptt:8", "--out", "run"]


def no_reader():
    """A pipe that can be written to until its reader leaves, which it has."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    return open("/dev/full", "w")


@pytest.fixture
def into(monkeypatch, text):
    """Run a command with streams of its own; the exit code."""
    monkeypatch.setattr(
        "bptt.analysis.race.report.page.svg", lambda panel: Markup("<svg></svg>")
    )  # plots have tests of their own

    def run(words, stdout, stderr=None):
        with monkeypatch.context() as patch, stdout, stderr or contextlib.nullcontext():
            patch.setattr(sys, "stdout", stdout)
            if stderr is not None:
                patch.setattr(sys, "stderr", stderr)
            code = main([str(word) for word in words])
            assert sys.stdout is stdout
            return code

    return run


def small(command, text):
    """Words of a command that takes a second or less."""
    return {
        "--help": ["--help"],
        "train --help": ["train", "--help"],
        "plan": ["plan", "--data", text, *PLAN],
        "explain": ["explain", "--steps", "3", "--out", "page.html"],
        "sample": ["sample", "old", "--length", "20000"],
        "doctor": ["doctor"],
        "diagnose": ["diagnose", "--cell", "rnn", "--hidden", "4", "--data", text, "--length", "20", "--out", "p.png"],
        "compare": ["compare", *COMPARE, "--budget", "40", "--sequence-length", "20", "--out", "out"],
        "train": ["train", "--data", text, *TRAIN, "--steps", "8"],
    }[command]


FILES = {"train": "run/report.md", "compare": "out/report.html", "diagnose": "p.png", "explain": "page.html"}
COMMANDS = ["--help", "train --help", "plan", "explain", "sample", "doctor", "diagnose", "compare", "train"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.thin
def test_a_reader_that_leaves_early(into, train, capsys, folder, text, command):
    train("--steps", "1", "--out", "old")
    capsys.readouterr()
    code = into(small(command, text), no_reader())
    assert code == (0 if command.split()[0] in ("train", "compare", "diagnose") else 141)
    assert capsys.readouterr().err == ""
    assert command not in FILES or (folder / FILES[command]).exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.thin
def test_output_on_a_full_disk(into, train, capsys, folder, text, command):
    train("--steps", "1", "--out", "old")
    capsys.readouterr()
    code = into(small(command, text), full_disk())
    assert code == 1
    who = "bptt" if command == "--help" else f"bptt {command.split()[0]}"
    rest = "; everything else was done" if command.split()[0] in ("train", "compare", "diagnose") else ""
    assert capsys.readouterr().err == f"{who}: standard output cannot be written (No space left on device){rest}\n"
    assert command not in FILES or (folder / FILES[command]).exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.thin
def test_no_streams_at_all(into, train, text, command):
    train("--steps", "1", "--out", "old")
    assert into(small(command, text), no_reader(), no_reader()) in (0, 141)


def test_errors_that_nobody_reads_keep_their_exit_code(into):
    assert into(["train", "--hidden", "0"], no_reader(), no_reader()) == 2
    assert into(["tarin"], full_disk(), full_disk()) == 2
    assert into(["sample", "missing"], full_disk(), no_reader()) == 2


def ctrl_c_at(monkeypatch, number):
    step, count = torch.optim.Adam.step, [0]

    def counted(self, *args):
        count[0] += 1
        if count[0] == number:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


@pytest.mark.parametrize("stderr", [None, no_reader])
def test_ctrl_c_after_tee_has_left(into, monkeypatch, capsys, folder, text, stderr):
    told = []
    monkeypatch.setattr("bptt.cli.tell_terminal", told.append)
    ctrl_c_at(monkeypatch, 3)
    code = into([*small("train", text), "--steps", "100"], no_reader(), stderr and stderr())
    assert code == 130
    assert load_file(folder / "run" / WEIGHTS)
    assert (folder / "run" / "report.md").exists()
    line = (
        "bptt train: Interrupted after 3 updates: not validated yet. Weights, report.md, plots and metrics are in run. "
        "Go on: bptt train --resume run"
    )
    assert capsys.readouterr().err == (f"{line}\n" if stderr is None else "")
    assert told == ([] if stderr is None else [line])


def test_streams_that_python_found_closed(monkeypatch, folder, text):
    """Python has None for them."""
    with monkeypatch.context() as patch:
        for name in ("stdin", "stdout", "stderr"):
            patch.setattr(sys, name, None)
        assert main([str(word) for word in small("train", text)]) == 0
        for name in ("stdin", "stdout", "stderr"):
            getattr(sys, name).close()
    assert load_file(folder / "run" / WEIGHTS)


def test_a_pipe_that_another_program_made_non_blocking(monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with ThreadPoolExecutor() as pool, open(reader) as read:
        found = pool.submit(read.read)
        with monkeypatch.context() as patch, open(writer, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            with Streams(go_on=False) as streams:
                print("x" * 10**6)
                assert streams.error() is None
        assert found.result() == "x" * 10**6 + "\n"


def wait_for(process, path, size):
    while process.poll() is None and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_in_a_terminal_with_everything_piped_to_tee(folder, text, environment):
    """The terminal sends SIGINT to both."""
    import pty

    words = "train --data text.txt --hidden 8 --batch 4 --strategy tbptt:8 --steps 1000000 --out run"
    command = f"{sys.executable} -c 'import sys; from bptt.cli import main; sys.exit(main())' {words}"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background hands on that it is ignored
        os.execvpe(
            "bash", ["bash", "-c", f"trap : INT; {command} 2>&1 | tee log; echo code ${{PIPESTATUS[0]}}"], environment
        )
    path = folder / "run" / METRICS
    while not (path.exists() and path.stat().st_size > 1000):
        time.sleep(0.05)
    os.write(terminal, b"\x03")
    shown = b""
    while b"code " not in shown:
        shown += os.read(terminal, 4096)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"code 130" in shown
    assert b"Weights, report.md, plots and metrics are in run. Go on: bptt train --resume run" in shown
    assert load_file(folder / "run" / WEIGHTS)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
@pytest.mark.deep
def test_ctrl_c_with_all_streams_closed_from_the_start(folder, text, environment):
    words = ["train", "--data", "text.txt", "--hidden", "8", "--batch", "4", "--steps", "1000000", "--out", "run"]
    code = f"import sys; from bptt.cli import main; sys.exit(main({words!r}))"
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    process = subprocess.Popen(["bash", "-c", command, sys.executable, code], env=environment)
    wait_for(process, folder / "run" / METRICS, 1000)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert load_file(folder / "run" / WEIGHTS)
    assert all(json.loads(line)["kind"] for line in (folder / "run" / METRICS).read_text().splitlines())
    assert not any(b"stopping after" in path.read_bytes() for path in (folder / "run").rglob("*.*") if path.is_file())
