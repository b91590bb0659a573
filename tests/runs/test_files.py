"""One writer at a time, and files that are replaced whole."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from bptt.runs import InUseError, Lines, Lock, replace
from bptt.runs.lock import LOCK

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no flock")

HOLDER = """if True:
    import fcntl, sys
    file = open(".lock", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("bptt train (process 12 on another)")
    file.flush()
    print("locked", flush=True)
    sys.stdin.read()
"""


@POSIX
def test_a_lock_goes_with_a_killed_process(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InUseError, match=r"bptt train \(process 12 on another\) writes here now"):
            Lock(tmp_path, "bptt train")
        holder.kill()
    assert (tmp_path / LOCK).exists()
    with Lock(tmp_path, "bptt train"):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


@POSIX
def test_a_lock_whose_file_was_removed_on_the_way_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may have released and removed it."""
    import fcntl

    flock, calls = fcntl.flock, []

    def late(number, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(number)
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path, "bptt train"):
        assert len(calls) == 2
        with pytest.raises(InUseError, match="writes here now"):
            Lock(tmp_path, "bptt train")


@POSIX
def test_two_writers_of_one_file_take_turns(tmp_path):
    """Each finds the name of its temporary file free, and neither renames what the other is writing."""
    target = tmp_path / "page.html"

    def write(letter):
        for _ in range(50):
            replace(target, lambda path: path.write_text(letter * 4000))
            assert target.read_text() in ("a" * 4000, "b" * 4000)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "ab"))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "weights.pt"
    target.write_text("old")

    def write(path):
        path.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace(target, write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("weights.pt", "old")]


def test_a_line_that_fails_leaves_nothing_of_itself(tmp_path):
    lines = Lines(tmp_path / "metrics", "w")
    lines.add("one")
    file, lines._file = lines._file, Full(lines._file)
    with pytest.raises(OSError, match="No space"):
        lines.add("two")
    lines._file = file
    lines.add("three")
    lines.close()
    lines.close()
    assert (tmp_path / "metrics").read_text() == "one\nthree\n"


class Full:
    """A file that takes two bytes and then no more."""

    def __init__(self, file):
        self.file, self.room = file, 2

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count, self.room = self.room, 0
        return self.file.write(data[:count])

    def __getattr__(self, name):
        return getattr(self.file, name)
