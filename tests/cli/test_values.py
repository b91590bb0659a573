"""Values that can't be: in settings, run folders and options. One line, exit code 2, naming what it is about."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bptt.cli.files import read_settings
from bptt.cli.printing import UserError
from bptt.cli.train import device_of


@pytest.fixture
def run(train, folder):
    assert train("--steps", 2, "--out", "run").code == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("memory: 2020-13-45", "memory='2020-13-45'"),
        ("memory: 2020-12-24", "memory='2020-12-24'"),
        ("seed: !!int foo", "seed: 'foo' is not a whole number"),
        ("lr: !!float foo", "lr: 'foo' is not a number"),
        ("seed: !!timestamp foo", "seed: 'foo' has the tag"),
        ("data: !!binary aGk=", "data: 'aGk=' has the tag"),
        ("overwrite: !!bool foo", "overwrite: 'foo' is not true or false"),
        ("hidden: .inf", "--hidden: '.inf' is not a whole number"),
        ("lr: .nan", "--lr: '.nan' is not a number"),
        ("hidden: 99999999999999999999", "--hidden 99999999999999999999: must be at most 2**63 - 1"),
        (f"seed: {'9' * 5000}", "seed: '9999"),
        ("hidden: 0x1F", "--hidden: '0x1F' is not a whole number"),
        ("hidden: !!set {a, b}", "hidden must be one value, not a dict"),
        ("hidden: &a [*a]", "hidden must be one value, not a list"),
        ("<<: {hidden: 3}", "<< (a merge key) is not taken"),
        ("hidden: 3\nhidden: 4", "the key 'hidden' is there twice"),
        ("? [a]\n: b", "a key there is a list"),
        ("a: 1\n---\nb: 2", "not a YAML file"),
        ('out: "a\\0b"', "--out 'a\\x00b': holds a character"),
        ('out: "\\ud800x"', "holds a character"),
        (f"out: {'ä' * 200}", "too long for a file system)"),
    ],
)
def test_settings_that_cannot_be(train, folder, line, message):
    (folder / "c.yaml").write_text(f"steps: 1\n{line}\n")
    result = train("--config", "c.yaml")
    assert result.code == 2
    assert message in result.error
    assert len(result.error) < 1000


def test_numbers_and_dates_are_read_as_they_are_written(folder):
    (folder / "c.yaml").write_text("hidden: 010\ndata: 2020-12-24\nlr: &rate 1e-2\nalpha: *rate\nclip: null\n")
    written = {"hidden": "010", "data": "2020-12-24", "lr": "1e-2", "alpha": "1e-2", "clip": None}
    assert read_settings(folder / "c.yaml", as_written=True) == written


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "fifo", "large"])
def test_what_is_not_a_file_of_settings(train, folder, name):
    os.mkfifo(folder / "fifo")
    with open(folder / "large", "wb") as file:
        file.truncate(2**40)
    result = train("--config", name)
    assert result.code == 2
    assert f"--config {name}: cannot be read (" in result.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("hidden: 12", "hidden: .inf"), "hidden is inf"),
        (("hidden: 12", "hidden: -5"), "hidden is -5"),
        (("hidden: 12", "hidden: true"), "hidden is True"),
        (("hidden: 12", "hidden: 13"), "weights.safetensors doesn't fit"),
        (("hidden: 12", "hidden: 999999999999"), "weights.safetensors doesn't fit"),
        (("hidden: 12", "hidden: [12]"), "hidden must be one value"),
        (("layers: 1", "layers: 99999999999999999999"), "layers is 99999999999999999999"),
        (("layers: 1", ""), "no layers"),
        (("cell: lstm", "cell: !!timestamp foo"), "cell: 'foo' has the tag"),
        (("cell: lstm", "cell: tcn"), "cell is tcn"),
        (("cell: lstm", "cell: gru"), "weights.safetensors doesn't fit"),
    ],
)
@pytest.mark.thin
def test_a_run_with_other_settings(bptt_, run, change, message):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(*change))
    for command in ("sample", "diagnose"):
        result = bptt_(command, "run", "--length", 5)
        assert result.code == 2
        assert "run: damaged run folder (" in result.error
        assert message in result.error


@pytest.mark.parametrize(
    "vocabulary",
    [{"a": 0}, [1, 2], ["ab", "cd"], ["a", None], ["a", "a"], None, True, 3, "", "aa", "another", [["a"]]],
    ids=json.dumps,
)
@pytest.mark.thin
def test_a_run_with_another_vocabulary(bptt_, run, vocabulary):
    (run / "vocabulary.json").write_text(json.dumps(vocabulary))
    for words in ([], ["--prompt", "a"]):
        result = bptt_("sample", "run", "--length", 5, *words)
        assert result.code == 2
        assert "run: damaged run folder (" in result.error
        assert "vocabulary" in result.error.lower()


def test_characters_in_another_order_are_another_vocabulary(bptt_, run):
    characters = json.loads((run / "vocabulary.json").read_text())
    (run / "vocabulary.json").write_text(json.dumps(characters[::-1]))
    assert "doesn't fit" in bptt_("sample", "run").error
    (run / "vocabulary.json").write_text(json.dumps(list(characters)))
    assert bptt_("sample", "run", "--length", 5).code == 0


def test_deeply_nested_json_is_no_vocabulary(bptt_, run):
    (run / "vocabulary.json").write_text("[" * 100_000)
    assert "damaged run folder" in bptt_("sample", "run").error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bptt_, run, value):
    weights = load_file(run / "weights.safetensors")
    weights["decoder.bias"][3] = value
    save_file(weights, run / "weights.safetensors")
    for words in (["sample"], ["sample", "--temperature", 0], ["diagnose", "--length", 9]):
        result = bptt_(words[0], "run", *words[1:])
        assert result.code == 2
        assert "holds NaN or infinity, in decoder.bias" in result.error


def test_weights_of_another_shape_or_dtype(bptt_, run):
    path = run / "weights.safetensors"
    weights = load_file(path)
    whole = path.read_bytes()
    others = [
        {**weights, "decoder.bias": weights["decoder.bias"][1:].clone()},
        {**weights, "more": torch.zeros(1)},
        {k: v for k, v in weights.items() if k != "decoder.bias"},
        {k: v.double() for k, v in weights.items()},
        {k: v.to(torch.int32) for k, v in weights.items()},
        {},
    ]
    for other in others:
        save_file(other, path)
        assert "doesn't fit" in bptt_("sample", "run").error
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged run folder (SafetensorError" in bptt_("sample", "run").error


def test_weights_that_overflow_write_nothing(bptt_, run):
    weights = load_file(run / "weights.safetensors")
    weights["decoder.weight"].fill_(3e38)
    weights["decoder.bias"].fill_(3e38)
    save_file(weights, run / "weights.safetensors")
    result = bptt_("sample", "run", "--length", 50)
    assert result.code == 2
    assert "scores are not finite" in result.error


def test_weights_without_a_note_of_their_vocabulary_are_taken(bptt_, run):
    """As those of runs from before there was one."""
    save_file(load_file(run / "weights.safetensors"), run / "weights.safetensors")
    assert bptt_("sample", "run", "--length", 5).code == 0


@pytest.mark.parametrize("name", ["n" * 300, "ü" * 130, "/".join(["name"] * 1000)])
def test_long_names(bptt_, train, folder, name):
    before = sorted(folder.iterdir())
    for words in (
        ["sample", name],
        ["diagnose", name],
        ["diagnose", "--cell", "rnn", "--out", f"{name}.png"],
        ["explain", "--out", f"{name}.html"],
        ["explain", "--data", name],
        ["compare", "--out", name],
        ["train", "--config", name],
    ):
        result = bptt_(*words)
        assert result.code == 2
        assert "too long" in result.error
    for words in (["--data", name], ["--out", name]):
        result = train(*words)
        assert result.code == 2
        assert "too long" in result.error
    assert sorted(folder.iterdir()) == before


def test_a_name_that_only_its_temporary_file_makes_too_long(bptt_):
    for words in (["diagnose", "--cell", "rnn", "--out", f"{'n' * 248}.png"], ["explain", "--out", "n" * 252]):
        assert "the file name is too long" in bptt_(*words).error


@pytest.mark.parametrize(
    "name", ["hpu", "privateuseone", "mkldnn", "xla", "tpu", "meta", "", " ", "cuda:-1", "cuda:99", "cpu:7", "cpu\n"]
)
def test_devices_that_are_not_here(bptt_, train, text, name):
    with pytest.raises(UserError, match=r"(?s)--device .*: (torch cannot use it here|there is only one cpu)"):
        device_of(name)
    assert train("--device", name).code == 2
    assert "--device" in bptt_("plan", "--data", text, "--device", name).error
    assert "--device" in bptt_("diagnose", "--cell", "rnn", "--data", text, "--device", name).error


def test_a_device_torch_has_no_words_for_is_refused_in_plain_ones():
    with pytest.raises(UserError, match=r"--device hpu: .*this PyTorch was built without it"):
        device_of("hpu")
    with pytest.raises(UserError, match="there is no device of that name"):
        device_of("tpu")


def test_a_copy_of_a_run_is_a_run(bptt_, run, folder):
    shutil.copytree(run, folder / "copy")
    assert bptt_("sample", "copy", "--length", 5).code == 0


def test_a_sample_that_would_take_days(bptt_, run):
    assert "--length 1000000000000: must be at most" in bptt_("sample", "run", "--length", 10**12).error
