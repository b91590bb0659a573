"""One folder, several processes, and kills: what it held stays whole until something whole takes its place."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from bptt.cli.contest.folder import ContestFolder
from bptt.cli.folder import FILES, METRICS, RunFolder, dated
from bptt.models import CharModel
from bptt.runs import Lock, exchange
from bptt.runs.lock import LOCK

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no flock")


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
        assert [line for line in map(json.loads, lines) if "step" not in line] == []
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
        CharModel.load(path)


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
def test_a_file_system_without_locks_can_be_written_to(train, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert train("--steps", 2, "--out", "run").code == 0


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

    monkeypatch.setattr("bptt.analysis.race.report.page.svg", lambda panel: Markup("<svg></svg>"))

    def run(*words):
        return bptt_("compare", *SMALL, "--strategies", "tbptt:2,tbptt:4", "--out", "out", *words)

    return run


@pytest.mark.deep
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


@pytest.mark.deep
def test_a_stopped_comparison_over_another_goes_on(compare, folder, monkeypatch):
    compare("--budget", 20)
    old = contents(folder / "out")
    keep = ContestFolder.save

    def stopping(self, part, data):
        return signal.raise_signal(signal.SIGINT) if part.startswith("gradient") else keep(self, part, data)

    monkeypatch.setattr(ContestFolder, "save", stopping)
    stopped = compare("--budget", 40, "--overwrite")
    assert stopped.code == 130
    assert "stopped; 2 of 2 runs are kept. Go on: bptt compare" in stopped.err
    assert {name: contents(folder / "out")[name] for name in old} == old
    assert compare("--budget", 20).code == 0  # the old one is still to be had
    monkeypatch.setattr(ContestFolder, "save", keep)
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
