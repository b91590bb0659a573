"""One folder, several processes, and kills: what it held stays whole until something whole takes its place."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from bptt.cli import exchange
from bptt.cli.contest.folder import ContestFolder
from bptt.cli.folder import FILES, METRICS, RunFolder, dated, load, replace
from bptt.cli.lock import LOCK, Lock
from bptt.cli.printing import UserError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no flock, and no fork")


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def watched(folder, monkeypatch):
    """Copies of a folder as it was before and after each change of a name in it: what a kill there would leave."""

    def watch(path, action):
        copies = []

        def watching(function):
            def called(*args, **kwargs):
                copies.append(shutil.copytree(path, folder / f"killed{len(copies)}"))
                return function(*args, **kwargs)

            return called

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "rmdir"):
                patch.setattr(os, name, watching(getattr(os, name)))
            action()
        return [*copies, path]

    return watch


def test_overwriting_killed_anywhere(train, bptt_, folder, watched):
    train("--steps", 4, "--out", "run")
    train("--steps", 4, "--out", "new", "--cell", "gru")
    old, new = (bptt_("sample", name, "--length", 30, "--temperature", 0).out for name in ("run", "new"))
    words = ["--steps", 4, "--cell", "gru", "--overwrite", "--out"]
    copies = watched(folder / "run", lambda: train(*words, "run"))
    found = []
    for path in copies:
        result = bptt_("sample", path, "--length", 30, "--temperature", 0)
        cell = yaml.safe_load((path / "config.yaml").read_text())["cell"]
        found.append(cell)
        if cell == "lstm":
            assert result.out == old
            assert {name for name in FILES if (path / name).exists()} == set(FILES)
        else:
            assert result.code == 0, result.err
            assert path != folder / "run" or result.out == new
            report = path / "report.md"
            assert not report.exists() or "gru of 12 units" in report.read_text()
        lines = (path / METRICS).read_text().splitlines()
        assert all(json.loads(line)["step"] for line in lines)
    assert found == sorted(found, reverse=True)
    assert found.count("lstm") >= 5
    assert found.count("gru") >= 5


def test_what_a_kill_leaves_is_cleaned_by_the_next_run(train, folder, watched):
    train("--steps", 2, "--out", "run")
    words = ["--steps", 2, "--cell", "gru", "--overwrite", "--out"]
    copies = watched(folder / "run", lambda: train(*words, "run"))
    strays = [{*os.listdir(path)} - {*FILES} for path in copies]
    wanted = [
        {LOCK, exchange.NEW, "metrics.jsonl.part"},
        {LOCK, exchange.READY},
        {LOCK, ".weights.safetensors.part.safetensors"},
    ]
    for stray in wanted:
        path = next(path for path, found in zip(copies, strays, strict=True) if stray <= found)
        assert train(*words, path).code == 0
        assert sorted(os.listdir(path)) == sorted(FILES)
        assert load(path)


def test_an_exchange_that_fails_changes_nothing(train, folder, monkeypatch):
    """A disk that has no room for a second file of weights."""
    train("--steps", 4, "--out", "run")
    before = contents(folder / "run")
    write_bytes = Path.write_bytes

    def full(self, data):
        write_bytes(self, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = train("--steps", 4, "--out", "run", "--cell", "gru", "--overwrite")
    assert result.code == 1
    assert result.error == (
        "bptt train: run: writing failed (No space left on device). It still holds the run before it"
    )
    (folder / "run" / "metrics.jsonl.part").unlink()
    assert contents(folder / "run") == before


def test_a_full_disk_leaves_whole_lines(train, folder, monkeypatch):
    """The run's own disk: half a line is taken back, and the error is one line, though closing fails too."""
    from bptt.cli.folder import io

    class Filling(io.FileIO):
        def write(self, data):
            if self.tell() > 1000:
                super().write(bytes(data)[:10])
                raise OSError(28, "No space left on device")
            return super().write(data)

        def close(self):
            super().close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("bptt.cli.folder.io.FileIO", Filling)
    result = train("--steps", 40, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"
    lines = (folder / "run" / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"train"' in line] == list(range(1, len(lines) + 1))


def test_a_full_disk_before_the_first_update_leaves_nothing(train, folder, monkeypatch):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "publish", full)
    result = train("--steps", 4, "--out", "run")
    assert result.code == 1
    assert result.error == "bptt train: run: writing failed (No space left on device)"
    assert not (folder / "run").exists()


@POSIX
def test_a_second_process_is_refused(train, bptt_, folder):
    train("--steps", 2, "--out", "run")
    before = contents(folder / "run")
    with Lock(folder / "run", "bptt train"):
        during = contents(folder / "run")
        for words in (["train", "--overwrite"], ["train"], ["compare"], ["compare", "--overwrite"]):
            result = bptt_(words[0], "--out", "run", *words[1:], *(["--data", "text.txt"] if "train" in words else []))
            assert result.code == 2
            assert f"run: bptt train (process {os.getpid()} on " in result.error
            assert result.error.endswith(") writes here now. Choose another --out, or wait until it ends")
        assert contents(folder / "run") == during
        assert bptt_("sample", "run", "--length", 3).code == 0  # who reads needs no lock
    assert contents(folder / "run") == before
    assert train("--steps", 2, "--out", "run", "--overwrite").code == 0


@POSIX
def test_a_lock_goes_with_a_killed_process(folder):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock = Lock(folder, "bptt train")
        os.write(writer, b"locked")
        signal.pause()
        lock.release()
    os.read(reader, 6)
    with pytest.raises(UserError, match=rf"bptt train \(process {child} on .*\) writes here now"):
        Lock(folder, "bptt train")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / LOCK).exists()
    with Lock(folder, "bptt train"):
        assert f"process {os.getpid()} " in (folder / LOCK).read_text()
    assert not (folder / LOCK).exists()
    os.close(reader)
    os.close(writer)


@POSIX
def test_a_lock_whose_file_was_removed_on_the_way_is_taken_anew(folder, monkeypatch):
    """Between opening the file and locking it, its holder may have released and removed it."""
    import fcntl

    flock, calls = fcntl.flock, []

    def late(number, how):
        if not calls:
            (folder / LOCK).unlink()
        calls.append(number)
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(folder, "bptt train"):
        assert len(calls) == 2
        with pytest.raises(UserError, match="writes here now"):
            Lock(folder, "bptt train")


@POSIX
def test_a_file_system_without_locks_can_be_written_to(train, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert train("--steps", 2, "--out", "run").code == 0


@POSIX
def test_two_writers_of_one_file_take_turns(folder):
    """Each finds the name of its temporary file free, and neither renames what the other is writing."""
    target = folder / "page.html"
    children = []
    for text in ("a" * 4000, "b" * 4000):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(50):
                    replace(target, lambda path, text=text: path.write_text(text))
                    if len(set(target.read_text())) != 1 or len(target.read_text()) != 4000:
                        os._exit(3)
            except BaseException:
                os._exit(4)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert [path.name for path in folder.iterdir()] == ["page.html"]


def test_dated_folders_of_one_second_differ(folder):
    paths = [dated() for _ in range(3)]
    assert len({*paths}) == 3
    assert all(path.is_dir() for path in paths)


def test_two_runs_without_out_get_a_folder_each(folder):
    runs = [RunFolder(None, overwrite=False) for _ in range(2)]
    assert len({run.path for run in runs}) == 2
    for run in reversed(runs):
        run.discard()
    assert list(folder.iterdir()) == []


SMALL = ["--hidden", "4", "--batch", "2", "--delay", "2", "--draws", "3", "--seeds", "1", "--sequence-length", "10"]


@pytest.fixture
def compare(bptt_, monkeypatch):
    from markupsafe import Markup

    monkeypatch.setattr("bptt.cli.contest.page.svg", lambda panel: Markup("<svg></svg>"))

    def run(*words):
        return bptt_("compare", *SMALL, "--strategies", "tbptt:2,tbptt:4", "--out", "out", *words)

    return run


def test_another_comparison_stays_until_the_new_one_is_finished(compare, folder, watched):
    compare("--budget", 20)
    old = contents(folder / "out")
    copies = watched(folder / "out", lambda: compare("--budget", 40, "--overwrite"))
    finished = [path for path in copies if yaml.safe_load((path / "config.yaml").read_text())["budget"] == "40"]
    assert 3 <= len(finished) < len(copies) - 10
    for path in copies:
        if path not in finished and not (path / exchange.READY).exists():
            held = contents(path)
            assert {name: held[name] for name in old} == old
    new = contents(folder / "out")
    assert new.keys() == old.keys()
    decided = next(path for path in copies if (path / exchange.READY).exists())
    for path in (decided, finished[0], finished[-2]):
        assert compare("--budget", 40, "--out", path).code == 0
        assert contents(path).keys() == new.keys()
        assert contents(path)["results.json"] == new["results.json"]


def test_a_stopped_comparison_over_another_goes_on(compare, folder, monkeypatch):
    compare("--budget", 20)
    old = contents(folder / "out")
    keep = ContestFolder.keep_gradient
    monkeypatch.setattr(ContestFolder, "keep_gradient", lambda *_: signal.raise_signal(signal.SIGINT))
    stopped = compare("--budget", 40, "--overwrite")
    assert stopped.code == 130
    assert "stopped; 2 of 2 runs are kept. Go on: bptt compare" in stopped.err
    assert {name: contents(folder / "out")[name] for name in old} == old
    assert compare("--budget", 20).code == 0  # the old one is still to be had
    monkeypatch.setattr(ContestFolder, "keep_gradient", keep)
    again = compare("--budget", 40, "--overwrite")
    assert again.code == 0
    assert "2 of 2 runs are finished and kept" in again.out
    assert yaml.safe_load((folder / "out" / "config.yaml").read_text())["budget"] == "40"
    assert not (folder / "out" / exchange.NEW).exists()


def test_parts_that_no_comparison_made_are_left_alone(compare, folder):
    (folder / "out" / "parts").mkdir(parents=True)
    (folder / "out" / "parts" / "mine").touch()
    result = compare("--budget", 20, "--overwrite")
    assert result.code == 2
    assert "out holds something else" in result.error
    assert (folder / "out" / "parts" / "mine").exists()
