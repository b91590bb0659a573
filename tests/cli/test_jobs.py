"""`bptt compare --jobs`: the runs of one after the other, in processes that end with the first."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bptt.cli.contest.folder import ContestFolder
from cli.test_endings import ctrl_c

WORDS = ["compare", "--budget", "40", "--seeds", "2", "--hidden", "4", "--batch", "4", "--draws", "3"]
WORDS += ["--strategies", "tbptt:4,artbp:6"]


def parts(path):
    """What the comparison keeps of its runs, without what a clock says."""
    found = {}
    for part in sorted((path / "parts").glob("run_*")):
        found[part.name] = part.read_bytes()
        if part.suffix == ".json":
            found[part.name] = json.loads(found[part.name])
            for point in found[part.name]["points"]:
                point["seconds"] = None
            del found[part.name]["seconds"], found[part.name]["memory_bytes"]
    return found


def test_runs_side_by_side_are_those_of_one_after_the_other(bptt_, folder, monkeypatch):
    """Stopped at the third of four, which are kept; the last one is made by the command without --jobs."""
    assert bptt_(*WORDS, "--out", "whole").code == 0
    keep, kept = ContestFolder.save, []

    def counted(self, part, data):
        keep(self, part, data)
        kept.append(part)
        if len(kept) == 3:
            ctrl_c()

    with monkeypatch.context() as patch:
        patch.setattr(ContestFolder, "save", counted)
        result = bptt_(*WORDS, "--out", "parts", "--jobs", 2)
    assert result.code == 130
    assert "of 4 runs are kept. Go on: bptt compare" in result.err
    assert len(parts(folder / "parts")) >= 6
    result = bptt_(*WORDS, "--out", "parts")
    assert result.code == 0
    assert f"going on    {len(kept)} of 4 runs are finished and kept" in result.out
    assert parts(folder / "parts") == parts(folder / "whole")


def test_a_number_below_one(bptt_):
    assert bptt_(*WORDS, "--jobs", 0).error == "bptt compare: --jobs 0: must be at least 1"


@pytest.mark.deep
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes there")
def test_without_the_first_process_none_goes_on(folder, environment):
    words = [*WORDS, "--out", "run", "--jobs", "2", "--budget", "100000000"]
    program = f"from bptt.cli import main\nif __name__ == '__main__':\n    main({words!r})\n"
    (folder / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, "program.py"], env=environment, start_new_session=True)
    while len(members(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while members(process.pid):
        assert time.monotonic() < end
        time.sleep(0.1)


def members(session):
    """Processes of a session."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(name)
    return found
