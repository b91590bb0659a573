"""What a run measured, read back out of its lines."""

import json
import math

import matplotlib
import pytest

from bptt.analysis import History

matplotlib.use("Agg")


def lines(count, key="read"):
    for i in range(1, count + 1):
        yield {"kind": "train", "step": i, key: 10 * i, "loss": 1 / i, "grad_norm": float(i), "clipped": i > 2}
    yield {"kind": "valid", "step": count, key: 10 * count, "loss": 0.5, "elapsed": 3.0}


def test_lines_come_back_as_a_table_records_and_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines(4)))
    found = History.read_from(tmp_path, clip=2.0)
    assert found.records()[3] == {"step": 4, "read": 40, "loss": 0.25, "grad_norm": 4.0}
    assert str(found.table()).split() == ["update", "steps", "loss", "time", "4", "40", "0.5", "3.0", "s"]
    assert found.verdict().splitlines()[1:] == [
        "training: loss 0.5208, mean of the last 4 updates",
        "updates: 4, on 40 steps",
        "clipped: 50% of the updates",
    ]
    assert History.from_dict(found.to_dict()) == found
    assert [line.get_label() for line in found.plot().lines] == [
        "training, each update", "training, running mean", "validation, last 0.5",
    ]  # fmt: skip
    norms = found.plot_norms()
    assert list(norms.lines[0].get_ydata()) == [1, 2, 3, 4]
    assert norms.lines[2].get_label() == "clipped above 2: 50% of updates"


def test_a_text_is_in_bits_and_a_number_that_json_lacks_is_nan(tmp_path):
    each = [*lines(2, "chars")]
    each[0]["loss"] = None
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in each))
    found = History.read_from(path)
    assert math.isnan(found.losses[0])
    assert found.table().columns[2] == "bits per character"
    assert found.table().rows[0][2] == f"{0.5 / math.log(2):.3f}"
    path.write_text('{"kind": "train"}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl holds no metrics of a run"):
        History.read_from(path)
