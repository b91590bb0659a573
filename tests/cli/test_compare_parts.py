"""Finished parts of a comparison that are JSON of another shape: refused in one line that names the file."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

WORDS = ["compare", "--budget", "40", "--seeds", "1", "--hidden", "4", "--batch", "4", "--draws", "3"]
WORDS += ["--strategies", "tbptt:4,artbp:6", "--out", "run"]
RUN, GRADIENT = "run_tbptt-4_0", "gradient_end_artbp-6"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison that lacks its report alone."""
    from bptt.cli import main

    folder, before = tmp_path_factory.mktemp("base"), os.getcwd()
    os.chdir(folder)
    try:
        assert main(WORDS) == 0
    finally:
        os.chdir(before)
    return folder / "run"


@pytest.fixture
def parts(finished, folder):
    shutil.copytree(finished, folder / "run")
    (folder / "run" / "report.html").unlink()
    return folder / "run" / "parts"


def changed(**values):
    return lambda kept: {**kept, **values}


def without(name):
    return lambda kept: {key: value for key, value in kept.items() if key != name}


POINT = {"updates": 0, "steps": 0, "seconds": 0.0, "loss": 1.0, "training": None, "parameter": None}


def entry(change):
    """A change of what was measured of the strategy."""
    return lambda kept: {**kept, "entries": [change(each) for each in kept["entries"]]}


CHANGES = [
    *[(part, lambda kept, other=other: other) for part in (RUN, GRADIENT) for other in ([], None, 3, "a", {"a": 1})],
    *[(RUN, without(name)) for name in ("points", "windows", "seed", "updates")],
    (RUN, lambda kept: {}),
    *[
        (RUN, changed(points=value))
        for value in ([], {}, None, [1], [[1, 2]], [{"a": 1}], [{**POINT, "loss": "a"}], [{**POINT, "loss": None}])
    ],
    *[(RUN, changed(windows=value)) for value in ([], None, {"a": 1}, {"4": "a"}, {"4": -1}, {"4": 1.5})],
    *[(RUN, changed(decisions=value)) for value in ({}, None, [1], [[1]], [["a", 1]])],
    *[(RUN, changed(**{name: value})) for name in ("updates", "seconds", "memory_bytes") for value in ("1", None, [])],
    (RUN, changed(updates=True)),
    (RUN, changed(steps=10**30)),
    (RUN, changed(diverged=3)),
    (RUN, changed(strategy="tbptt:5")),
    (RUN, changed(seed=1)),
    (RUN, changed(more=1)),
    (GRADIENT, without("norm")),
    (GRADIENT, changed(entries=[])),
    *[(GRADIENT, entry(without(name))) for name in ("bias", "parameters", "draws", "strategy")],
    *[(GRADIENT, entry(changed(bias=value))) for value in (None, 1, [], [1, 2], [1, 2, "a"], {"0": 1})],
    *[(GRADIENT, entry(changed(parameters=value))) for value in (None, [], {"a": 1}, {"a": {}})],
    *[(GRADIENT, entry(changed(draws=value))) for value in (None, "3", 3.5)],
]


@pytest.mark.parametrize(("part", "change"), CHANGES)
def test_another_shape(bptt_, parts, part, change):
    path = parts / f"{part}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    result = bptt_(*WORDS)
    assert result.code == 2
    assert f"run/parts/{part}.json: damaged, or of another version. Delete it" in result.error


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", "\xff", '{"a": ' + "9" * 5000 + "}"])
def test_no_json(bptt_, parts, text):
    (parts / f"{RUN}.json").write_bytes(text.encode("latin-1"))
    assert f"{RUN}.json: damaged" in bptt_(*WORDS).error


def test_no_file(bptt_, parts):
    path = parts / f"{RUN}.json"
    path.unlink()
    path.mkdir()
    assert f"{RUN}.json: damaged" in bptt_(*WORDS).error
    path.rmdir()
    os.mkfifo(path)
    assert f"{RUN}.json: damaged" in bptt_(*WORDS).error


def test_weights_that_are_not_finite(bptt_, parts):
    for path in parts.glob("run_*.safetensors"):
        weights = {name: value.fill_(float("nan")) for name, value in load_file(path).items()}
        save_file(weights, path)
    for path in parts.glob("gradient_end_*"):
        path.unlink()
    result = bptt_(*WORDS)
    assert result.code == 2
    assert ".safetensors: missing or damaged" in result.error


@pytest.mark.parametrize("text", ["lr: !!float x\n", "a: 1\na: 2\n", "\0", "[1]\n", ""])
def test_settings_that_cannot_be(bptt_, parts, text):
    (parts.parent / "config.yaml").write_text(text)
    assert "run holds another comparison (" in bptt_(*WORDS).error


def test_as_it_was_and_a_part_less(bptt_, parts, real_plots):
    """What isn't damaged is taken, a gradient that could not be measured too; what is missing is made again."""
    (parts / f"{GRADIENT}.json").write_text("{}")
    (parts / f"{RUN}.json").unlink()
    result = bptt_(*WORDS)
    assert result.code == 0
    assert "1 of 2 runs are finished and kept" in result.out
    assert (parts.parent / "report.html").exists()
