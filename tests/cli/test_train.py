"""Runs that end well: every strategy learns, and the folder holds what it says."""

import itertools
import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

import bptt
from bptt.cli.folder import FILES
from bptt.models import CharModel

PNG = b"\x89PNG\r\n\x1a\n"


def records(path, kind=None):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


@pytest.mark.parametrize(
    "words",
    [
        ["--cell", "rnn"],
        ["--cell", "gru", "--strategy", "tbptt:4:12"],
        ["--layers", "2", "--strategy", "tbptt:1:3"],
        ["--strategy", "artbp:8"],
        ["--strategy", "artbp:8", "--law", "constant", "--every", "1"],
        ["--strategy", "artbp:8", "--alpha", "4", "--memory", "1MiB"],
        ["--strategy", "full", "--sequence-length", "25"],
        ["--strategy", "full", "--sequence-length", "100", "--memory", "100KiB"],
        ["--optimizer", "adamw"],
        ["--optimizer", "sgd", "--lr", "0.5"],
        ["--optimizer", "rmsprop", "--clip", "0"],
    ],
    ids=" ".join,
)
@pytest.mark.thin
def test_it_learns(train, folder, words):
    result = train("--steps", 80, "--out", "run", *words)
    assert (result.code, result.err) == (0, "")
    losses = [record["loss"] for record in records(folder / "run", "train")]
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_the_folder(train, folder, text, real_plots):
    result = train("--steps", 20, "--out", "run")
    run = folder / "run"
    assert sorted(path.name for path in run.iterdir()) == sorted(FILES)
    assert (run / "loss.png").read_bytes().startswith(PNG)
    assert (run / "gradient_norm.png").read_bytes().startswith(PNG)
    assert json.loads((run / "vocabulary.json").read_text()) == "".join(sorted(set(text.read_text())))

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["steps"] == 20
    assert config["data"] == str(text)
    assert not {"out", "overwrite", "config"} & set(config)

    report = (run / "report.md").read_text()
    last = records(run, "valid")[-1]
    assert f"**{last['bpc']:.3f} bits per character** after update 20" in report
    assert "Finished after 20 updates: validation " in report
    assert f"validation {last['bpc']:.3f} bits per character" in result.out
    assert str(last["step"]) == "20"
    assert "## Sample" in report
    assert "sample at temperature" in result.out


def test_the_metrics(train, folder, text):
    train("--steps", 16, "--out", "run", "--strategy", "tbptt:4:12", "--clip", "0.2")
    lines = records(folder / "run", "train")
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert [line["chars"] for line in lines] == [16 * step for step in range(1, 17)]
    assert [line["window"] for line in lines[:4]] == [4, 8, 12, 12]
    updates = by_hand(text, bptt.TruncatedBPTT(4, 12), length=4, clip=0.2)[1]
    for line, (update, norm) in zip(lines, itertools.islice(updates, 16), strict=True):
        assert line["bpc"] == pytest.approx(line["loss"] / math.log(2))
        assert line["clipped"] == (line["grad_norm"] > 0.2)
        assert (line["forward_steps"], line["memory_bytes"]) == (update.forward_steps, update.memory_bytes)
        found = (line["loss"], line["grad_norm"], line["cotangent_norm"])
        assert found == pytest.approx([float(x) for x in (update.mean_loss, norm, update.cotangent_norm)], rel=1e-6)
    assert any(line["clipped"] for line in lines)
    assert lines[0]["loss"] == pytest.approx(math.log(29), rel=0.1)  # at first every character is about as likely
    valid = records(folder / "run", "valid")
    assert [line["step"] for line in valid] == list(range(2, 17, 2))
    elapsed = [line["elapsed"] for line in records(folder / "run")]
    assert elapsed == sorted(elapsed)


def test_the_validation_figure_is_that_of_the_saved_weights_on_the_last_tenth(train, folder, text):
    train("--steps", 20, "--out", "run")
    model, vocabulary = CharModel.load(folder / "run")
    ids = vocabulary.encode(text.read_text())[-180:]
    with torch.no_grad():
        scores, _ = model(ids[:-1, None], None)
    loss = torch.nn.functional.cross_entropy(scores[:, 0], ids[1:])
    assert records(folder / "run", "valid")[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def by_hand(text, strategy, length, clip, seed=0):
    """(the model, its updates with the norms of the gradients): the README's loop, with the decoder in the loss."""
    from bptt.data import Vocabulary, chunks, lanes, split

    vocabulary = Vocabulary.of(text.read_text())
    stream = chunks(lanes(split(vocabulary.encode(text.read_text()))[0], 4), length)
    torch.manual_seed(seed)
    model = CharModel(len(vocabulary), "lstm", 12)

    def updates():
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        for update in bptt.unroll(*model.trained(), stream, strategy=strategy, initial_state=model.initial_state(4)):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            yield update, norm

    return model, updates()


def test_one_update_is_the_library_s(train, folder, text):
    """The weights after two updates are those of the loop that the README shows."""
    train("--steps", 2, "--out", "run", "--seed", "3", "--clip", "0.1")
    model, updates = by_hand(text, bptt.TruncatedBPTT(8), length=8, clip=0.1, seed=3)
    assert len(list(itertools.islice(updates, 2))) == 2
    saved = load_file(folder / "run" / "weights.safetensors")
    assert set(saved) == set(model.state_dict())
    for name, weight in saved.items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_seed_gives_one_run(train, folder):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("--steps", 12, "--out", out, "--seed", seed, "--strategy", "artbp:6")
    a, b, c = ([(r["loss"], r.get("window")) for r in records(folder / out)] for out in "abc")
    assert a == b
    assert [window for _, window in a] != [window for _, window in c]


def test_epochs_read_the_text_so_often_and_start_each_from_zeros(train, folder):
    # 1,620 training characters in 4 lanes of 405: 404 targets a lane and epoch, whatever the window.
    train("--epochs", 2, "--out", "run", "--strategy", "tbptt:100")
    lines = records(folder / "run", "train")
    assert lines[-1]["chars"] == 2 * 404 * 4
    assert sum(line["window"] for line in lines) == 2 * 404
    train("--epochs", 1, "--out", "full", "--strategy", "full", "--sequence-length", "150")
    lines = records(folder / "full", "train")
    assert [line["window"] for line in lines] == [150, 150, 104]
    assert all(line["cotangent_norm"] > 0 for line in lines)


def test_minutes_end_a_run(train, folder):
    assert train("--minutes", 0.005, "--out", "run").code == 0
    lines = records(folder / "run")
    assert lines[-1]["kind"] == "valid"
    assert lines[-1]["elapsed"] >= 0.3


def test_the_default_folder_is_new_each_time(train, folder):
    assert train("--steps", 1).code == train("--steps", 1).code == 0
    runs = sorted((folder / "runs").iterdir())
    assert len(runs) == 2
    assert all((run / "weights.safetensors").exists() for run in runs)


def test_output_that_is_no_terminal_gets_lines_without_escapes(train):
    out = train("--steps", 16).out
    assert "\x1b" not in out
    assert "\r" not in out
    assert sum(line.startswith("update") for line in out.splitlines()) == 8


def test_a_terminal_shows_a_bar_and_its_numbers(train, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    out = train("--steps", 16).out
    assert "char/s" in out
    assert "clipped" in out


def test_text_with_few_lines_and_no_newline_in_it(bptt_, folder):
    (folder / "short").write_text("abracadabra")
    result = bptt_("train", "--data", "short", "--hidden", 4, "--batch", 2, "--steps", 3, "--strategy", "tbptt:2")
    assert result.code == 0
