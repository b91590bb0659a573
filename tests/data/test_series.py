"""Arrays of any kind as lanes, and in one line what else was passed."""

import array
import subprocess
import sys

import numpy as np
import pytest
import torch

from bptt.data import lanes

EXPECTED = np.arange(60.0).reshape(3, 10, 2).swapaxes(0, 1)  # NumPy's own word for three lanes of ten steps


def memmap(folder, values, order="C", name="series.npy"):
    np.save(folder / name, np.asarray(values, order=order))
    return np.load(folder / name, mmap_mode="r")


KINDS = {
    "tensor": lambda folder, values: torch.from_numpy(values.copy()),
    "strided tensor": lambda folder, values: torch.from_numpy(values.copy()).t().contiguous().t(),
    "array": lambda folder, values: values,
    "backward array": lambda folder, values: values[::-1].copy()[::-1],
    "memmap": memmap,
    "memmap by column": lambda folder, values: memmap(folder, values, "F"),
    "slice of a memmap": lambda folder, values: memmap(folder, np.concatenate([values[:7], values]))[7:],
    "big end first": lambda folder, values: memmap(folder, values.astype(">f8")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_of_every_kind_of_array(kind, tmp_path):
    values = np.arange(62.0).reshape(31, 2)  # one step more than three lanes hold
    table = lanes(KINDS[kind](tmp_path, values), batch=3)
    assert table.is_contiguous()
    assert table.dtype == torch.float64
    np.testing.assert_array_equal(table.numpy(), EXPECTED)
    line = lanes(KINDS[kind](tmp_path, values)[:, 0], batch=3)
    np.testing.assert_array_equal(line.numpy(), EXPECTED[..., 0])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "bool", "complex64"])
def test_dtypes_stay(dtype):
    assert lanes(np.zeros(8, dtype), 2).dtype == getattr(torch, dtype)


def test_the_lanes_of_an_array_are_a_copy():
    values = np.zeros(6)
    table = lanes(values, 2)
    table += 1
    assert not values.any()


@pytest.mark.parametrize(
    ("series", "error", "message"),
    [
        ("some text", TypeError, r"series is a str: .*Vocabulary"),
        ([1, 2, 3, 4], TypeError, r"series\[0\] is a int: pass a tensor or an array \(N,\)"),
        (array.array("d", [1.0, 2.0]), TypeError, r"series is a array: .*torch\.tensor\(series\)"),
        (torch.tensor(3.0), ValueError, r"series of shape \(\) has no time axis"),
        (np.float64(3.0), ValueError, r"series of shape \(\) has no time axis"),
        (np.array(["a", "b"]), TypeError, "pass numbers that torch has a dtype for"),
        (np.array([None, 1]), TypeError, "array of object: pass numbers"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), TypeError, "masked array.*NaN"),
        (torch.eye(4).to_sparse(), TypeError, "to_dense"),
        (np.zeros((3, 2)), ValueError, "a series of 3 steps is too short for a batch of 2"),
    ],
)
def test_what_is_no_series_is_one_line(series, error, message):
    with pytest.raises(error, match=message) as raised:
        lanes(series, 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["data", "models"])
def test_packages_that_need_no_import_of_their_own(name):
    code = f"import sys, bptt; assert 'bptt.{name}' not in sys.modules; bptt.{name}.__all__; bptt.{name}_"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"module 'bptt' has no attribute '{name}_'" in result.stderr
