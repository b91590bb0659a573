"""Snapshots: what is saved comes back to the bit, or is called damaged; a kill at any moment leaves whole ones."""

import errno
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from bptt.runs import DamagedError, Snapshots, random_state, set_random_state, snapshots


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.deep)])
def test_a_mutated_checkpoint_loads_equal_or_fails_in_a_line(tmp_path, count):
    """Flipped, cut, stretched, swapped, and JSON that was made to fit its hash again."""
    state = {"model": {"w": torch.randn(3, 4), "n": torch.tensor(7)}, "run": (1, [2.5, float("inf"), None], "x")}
    Snapshots(tmp_path).save(4, state)
    whole, draw = contents(tmp_path), random.Random(0)
    failed = 0
    for _ in range(count):
        name = draw.choice(sorted(whole))
        data = bytearray(whole[name])
        for _ in range(draw.choice([1, 1, 3])):
            at = draw.randrange(len(data))
            kind = draw.choice(["flip", "cut", "add", "swap"])
            if kind == "flip":
                data[at] ^= 1 << draw.randrange(8)
            elif kind == "cut":
                del data[at : at + draw.randrange(1, 9)]
            elif kind == "add":
                data[at:at] = draw.randbytes(3)
            else:
                data[at:] = data[at:][::-1]
            data = data or bytearray(b" ")
        (tmp_path / name).write_bytes(data)
        if draw.random() < 0.5:  # whoever changed it made the hashes fit
            rehash(tmp_path / os.path.dirname(name))
        found = loaded(tmp_path)
        assert found is not None
        if isinstance(found, str):
            failed += 1
            assert "\n" not in found
            assert "that of step 4 is damaged (" in found
        for each, kept in whole.items():
            (tmp_path / each).write_bytes(kept)
    assert failed > count / 3


def loaded(path):
    """The state of a checkpoint, or what is said of it."""
    try:
        return Snapshots(path).newest().state
    except DamagedError as error:
        return str(error)


def rehash(folder):
    names = ("state.json", "tensors.safetensors")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "hashes.json").write_text(json.dumps(hashes))


def test_everything_that_a_state_holds_comes_back(tmp_path):
    state = {
        1: (torch.tensor([1, 2]), [None, True, "ü"], {"nan": math.nan, "inf": -math.inf}),
        "bits": torch.tensor([0.1, math.nan], dtype=torch.float64),
        "half": torch.tensor(2.5, dtype=torch.bfloat16),
        "slice": torch.arange(6).reshape(2, 3)[:, 1],
    }
    Snapshots(tmp_path).save(0, state)
    found = Snapshots(tmp_path).newest().state
    assert str(found) == str(state)
    assert all(found[name].dtype == state[name].dtype for name in ("bits", "half", "slice"))


def test_the_last_ones_stay_and_the_one_before_a_damaged_one_is_found(tmp_path):
    kept = Snapshots(tmp_path / "deep" / "er", kept=3)
    assert kept.newest() is None
    for step in (1, 5, 2, 9):
        kept.save(step, {"step": step})
    assert kept.steps() == [2, 5, 9]
    (kept.folder / "0000000009" / "state.json").write_text("{}")
    step, state, damaged = kept.newest()
    assert (step, state, damaged) == (5, {"step": 5}, {9: "state.json isn't what was saved"})
    kept.save(9, {"step": "again"})  # the run goes on from 5, and comes there again
    assert kept.newest() == (9, {"step": "again"}, {})
    for each in kept.folder.iterdir():
        shutil.rmtree(each)
        each.mkdir()
    with pytest.raises(DamagedError, match=r"er holds no whole snapshot: that of step 9 is damaged \(hashes.json: No"):
        kept.newest()


@pytest.mark.parametrize(
    ("state", "told"),
    [({"a": {1, 2}}, "can't hold a set: it takes dictionaries"), ({(1, 2): 3}, "a tuple as key: give it text")],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_lost(tmp_path, state, told):
    kept = Snapshots(tmp_path)
    kept.save(1, {"x": 1})
    before = contents(tmp_path)
    with pytest.raises(TypeError, match=told):
        kept.save(2, state)
    with pytest.raises(ValueError, match=r"save\(step=-1\)"):
        kept.save(-1, {})
    assert contents(tmp_path) == before


def test_arguments_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="kept=0"):
        Snapshots(tmp_path, kept=0)
    with pytest.raises(TypeError, match="kept=True"):
        Snapshots(tmp_path, kept=True)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        ImportError, match="Snapshots needs safetensors, which isn't installed: pip install safetensors"
    ):
        Snapshots(tmp_path)


def test_a_full_disk_at_any_moment_leaves_the_snapshots_that_were_there(tmp_path, monkeypatch):
    """Each of the calls that bring something to the disk fails once."""
    kept = Snapshots(tmp_path)
    kept.save(1, {"x": torch.zeros(3)})
    before, to_disk = contents(tmp_path), snapshots.to_disk
    for fails in range(3):
        calls = []

        def full(path, calls=calls, fails=fails):
            calls.append(path)
            if len(calls) > fails:
                raise OSError(errno.ENOSPC, "No space left on device")
            to_disk(path)

        monkeypatch.setattr(snapshots, "to_disk", full)
        with pytest.raises(OSError, match="No space"):
            kept.save(2, {"x": torch.ones(3)})
        assert contents(tmp_path) == before


LOOP = """
import sys, torch, bptt
from torch import nn
from bptt.runs import Snapshots, random_state, set_random_state

def run(folder, stop):
    torch.manual_seed(0)
    model = nn.GRU(3, 4, num_layers=2, dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x = torch.randn(80, 2, 3)
    updates = bptt.unroll(model, bptt.per_step(nn.MSELoss()), [(x, torch.zeros(80, 2, 4))],
                          strategy=bptt.ARTBP(bptt.ConstantLaw(5)), generator=torch.Generator().manual_seed(1))
    snapshots, step = Snapshots(folder), 0
    if (found := snapshots.newest()) is not None:
        step, state, _ = found
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        updates.load_state_dict(state["run"])
        set_random_state(state["random"])
    for update in updates:
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": updates.state_dict()}
        snapshots.save(step, state | {"random": random_state()})
        if step == stop:
            import os
            os._exit(9)  # no handler, no flush
    return model

if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
"""


def test_a_loop_that_was_killed_goes_on_to_the_bit(tmp_path):
    """With dropout and random windows; the process ends without a word in the middle of it."""
    (tmp_path / "loop.py").write_text(LOOP)
    ended = subprocess.run([sys.executable, tmp_path / "loop.py", tmp_path / "killed", "4"], check=False)
    assert ended.returncode == 9
    space: dict = {"__name__": "loop"}
    exec(LOOP, space)
    state = torch.get_rng_state()
    whole = space["run"](tmp_path / "whole", None)
    again = space["run"](tmp_path / "killed", None)
    torch.set_rng_state(state)
    assert Snapshots(tmp_path / "killed").steps()[-1] > 6
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_random_numbers_of_torch_and_python_come_back(tmp_path):
    before = random_state()
    Snapshots(tmp_path).save(1, before)
    drawn = torch.rand(2), random.random()
    set_random_state(Snapshots(tmp_path).newest().state)
    assert torch.equal(torch.rand(2), drawn[0])
    assert random.random() == drawn[1]
    set_random_state(before)
