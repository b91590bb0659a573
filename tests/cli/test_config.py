"""Where a value comes from: flags before the file before the defaults."""

import pytest
import yaml

from bptt.cli.printing import UserError
from bptt.cli.train_config import BATCH, TrainConfig, parse_train


def config(folder, text, *words):
    (folder / "c.yaml").write_text(text)
    return parse_train(["--config", "c.yaml", *words])


def test_flags_before_file_before_defaults(folder):
    got = config(folder, "hidden: 7\nlr: 1e-2\nout: there\noverwrite: true\nclip: null\n", "--hidden", "9")
    assert got.hidden == 9
    assert got.lr == 0.01
    assert str(got.out) == "there"
    assert got.overwrite is True
    assert got.clip == TrainConfig.clip
    assert got.batch == BATCH
    assert config(folder, "overwrite: false").overwrite is False


def test_an_empty_file_changes_nothing(folder):
    assert config(folder, "# nothing\n") == parse_train(["--config", "c.yaml"])


def test_a_flag_sets_aside_what_it_makes_pointless(folder):
    got = config(folder, "steps: 5\n", "--minutes", "2")
    assert (got.steps, got.minutes) == (None, 2)
    got = config(folder, "strategy: artbp:50\nlaw: constant\nevery: 3\n", "--strategy=tbptt:9")
    assert (got.strategy, got.law, got.every) == ("tbptt:9", None, None)
    got = config(folder, "strategy: artbp:50\nalpha: 5\n", "--law", "constant")
    assert (got.law, got.alpha) == ("constant", None)
    got = config(folder, "strategy: artbp:50\nalpha: 5\n", "--every", "2")
    assert (got.strategy, got.alpha, got.every) == ("artbp:50", 5, 2)


def test_what_is_not_said_is_recorded_too():
    assert parse_train([]).steps == 1500
    assert parse_train(["--epochs", "3"]).steps is None
    got = parse_train(["--strategy", "artbp:50"])
    assert (got.law, got.alpha, got.every) == ("polynomial", 3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden: 3", r"--config c.yaml: unknown key 'hiden'; the keys are model, data, read_as, .*overwrite$"),
        ("config: other.yaml", "unknown key 'config'"),
        ("3: 4", "unknown key .3"),
        ("hidden: big", "c.yaml: Error parsing --hidden"),
        ("hidden: true", "c.yaml: Error parsing --hidden"),
        ("cell: foo", "c.yaml: invalid choice 'foo'"),
        ("steps: 5\nepochs: 2", "c.yaml: Arguments --steps and --epochs"),
        ("data: [a, b]", "data must be one value, not a list"),
        ("[1, 2]", "must hold lines like `hidden: 256`"),
        ("a: [1", "not a YAML file"),
        ("hidden: !!python/object/apply:os.getcwd []", "hidden must be one value, not a list"),
        ("lr: -1", "--lr -1.0"),
    ],
)
def test_bad_files(folder, text, message):
    with pytest.raises(UserError, match=message):
        config(folder, text)


def test_a_run_s_own_config_runs_it_again(train, bptt_, folder):
    train("--steps", 4, "--out", "a", "--strategy", "artbp:6")
    assert bptt_("train", "--config", "a/config.yaml", "--out", "b").code == 0
    assert yaml.safe_load((folder / "a/config.yaml").read_text()) == yaml.safe_load(
        (folder / "b/config.yaml").read_text()
    )
    assert (folder / "a/weights.safetensors").read_bytes() == (folder / "b/weights.safetensors").read_bytes()
