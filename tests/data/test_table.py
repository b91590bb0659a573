"""Numbers written to files by others, read back to the bit; and lanes over them as over the plain array."""

import csv
import gzip
import io
import mmap
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.data import WEATHER, Lanes, Prefetch, Table, delimited, load_series, series, spool

CELLS = st.floats(width=32, allow_infinity=False) | st.integers(-(2**24), 2**24)
NAMES = ["level", "flow, m³/s", 'a "quoted" one', "2", "x;y"]


def written(path, rows, header=None, delimiter=",", comma=False, quote=False):
    """A file as Python's own csv module writes it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
    if header is not None:
        writer.writerow(header)
    for row in rows:
        cells = ["" if cell != cell else repr(cell) for cell in row]
        writer.writerow([cell.replace(".", ",") if comma else cell for cell in cells])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=2, max_size=40)),
    header=st.booleans(),
    delimiter=st.sampled_from([",", ";", "\t"]),
    quote=st.booleans(),
    block=st.sampled_from([512, 1 << 20]),
)
def test_what_python_writes_is_read_back(tmp_path_factory, rows, header, delimiter, quote, block):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    comma = delimiter != "," and not header and len(rows[0]) > 1
    names = NAMES[: len(rows[0])] if header else None
    written(path, rows, names, delimiter, comma, quote or not header)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "HEAD", block)
        patch.setattr(spool, "ROWS", 7)
        table = load_series(path)
    expected = np.array(rows, dtype=np.float64)
    if table.values.dtype == np.float32:
        expected = expected.astype(np.float32)
    np.testing.assert_array_equal(table.values, expected)
    assert table.columns == tuple(names or map(str, range(1, len(rows[0]) + 1)))
    assert table.times is None


@pytest.mark.parametrize(
    ("text", "columns", "values"),
    [
        ("\ufeffa,b\n1,2\n3,4", ("a", "b"), [[1, 2], [3, 4]]),
        ("a,b\r\n1,2\r\n3,4\r\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("a,b\r1,2\r3,4\r", ("a", "b"), [[1, 2], [3, 4]]),
        ("a,b\n1,2\n\n3,4\n\n\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("a\n1\n\n3\n", ("a",), [[1], [np.nan], [3]]),
        ('"a\nb",c\n"1","2"\n3,4\n', ("a b", "c"), [[1, 2], [3, 4]]),
        (" a , b \n +1 , .5 \n 3. ,-4e-1\n", ("a", "b"), [[1, 0.5], [3, -0.4]]),
        ("a,b\nNA,1\nn/a,NaN\nnull,3\n", ("a", "b"), [[np.nan, 1], [np.nan] * 2, [np.nan, 3]]),
        ("a;b\n1,5;2\n3;-,5\n", ("a", "b"), [[1.5, 2], [3, -0.5]]),
        ("a;b\n1.5;2\n3;.5\n", ("a", "b"), [[1.5, 2], [3, 0.5]]),
        ("a\tb\n1,5\t2\n3\t4\n", ("a", "b"), [[1.5, 2], [3, 4]]),
        ("a,b\n1,true\n2,False\n", ("a", "b"), [[1, 1], [2, 0]]),
        ("level\n1\n2\n", ("level",), [[1], [2]]),
        ("a,,c\n1,2,3\n4,5,6\n", ("a", "2", "c"), [[1, 2, 3], [4, 5, 6]]),
        (",\n3,\n", ("1", "2"), [[np.nan, np.nan], [3, np.nan]]),
        ("1,2\n3,\n", ("1", "2"), [[1, 2], [3, np.nan]]),
    ],
)
def test_how_csv_files_differ(text, columns, values, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    table = load_series(path)
    assert table.columns == columns
    np.testing.assert_array_equal(table.values, np.array(values, dtype=np.float32))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert load_series(tmp_path / "b.csv.gz").sha256 == table.sha256


def test_each_treatment_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("1;true\n2,5;\n;\n")
    assert load_series(tmp_path / "a.csv").notes == (
        "there is no header: columns are named by their place",
        "commas are decimal, as in 2,5",
        "1 empty cell of column 1 stands as NaN, the first in row 3",
        "2 empty cells of column 2 stand as NaN, the first in row 2",
        "true and false of column 2 are 1 and 0",
    )


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [(["1013.25", "1003.5"], "float32"), (["1600000000", "1600000001"], "float64"), (["1e39", "1"], "float64")],
)
def test_float64_where_float32_would_round_the_column_away(cells, dtype, tmp_path):
    (tmp_path / "a.csv").write_text("x\n" + "\n".join(cells))
    table = load_series(tmp_path / "a.csv")
    assert table.values[:, 0].tolist() == list(map(float, cells))
    assert (table.values.dtype, len(table.notes)) == (dtype, int(dtype == "float64"))


@pytest.mark.parametrize("columns", [None, ["c", "a"]])
def test_parquet(columns, tmp_path, monkeypatch):
    monkeypatch.setattr("bptt.data.table.ROWS", 7)
    rng = np.random.default_rng(0)
    whole = {
        "a": rng.normal(size=50).astype(np.float32),
        "b": rng.integers(-5, 5, 50),
        "c": rng.random(50) < 0.5,
        "d": np.where(np.arange(50) == 9, np.nan, rng.normal(size=50).astype(np.float32)),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(whole | {"d": pa.array(whole["d"], from_pandas=True)}), path, row_group_size=20)
    table = load_series(path, columns=columns)
    assert list(table.columns) == (columns or ["a", "b", "c", "d"])
    expected = np.stack([whole[name] for name in table.columns], 1).astype(np.float32)
    np.testing.assert_array_equal(table.values, expected)
    notes = ["1 empty cell of column d stands as NaN, the first in row 10"] if columns is None else []
    assert table.notes == (*notes, "true and false of column c are 1 and 0")


def test_numpys_own_files_are_mapped_as_they_are(tmp_path):
    for dtype in ("float32", "float64", "int16", "uint8"):
        values = np.arange(24).reshape(8, 3).astype(dtype)
        np.save(tmp_path / "a.npy", values)
        np.save(tmp_path / "b.npy", values[:, 1])
        table = load_series(tmp_path / "a.npy")
        np.testing.assert_array_equal(table.values, values)
        assert (table.values.mode, table.values.dtype, table.columns) == ("r", dtype, ("1", "2", "3"))
        picked = load_series(tmp_path / "a.npy", columns=["3", "1"])
        np.testing.assert_array_equal(picked.values[2:7], values[2:7, [2, 0]])
        np.testing.assert_array_equal(load_series(tmp_path / "b.npy").values, values[:, 1:2])


def sound(path, samples, rate=8000):
    """16-bit samples as Python's own wave module writes them."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_a_wav_file_is_read_where_it_is_sliced(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (500, 2))
    table = load_series(sound(tmp_path / "a.wav", samples))
    expected = (samples / 2**15).astype(np.float32)
    for start, stop in [(0, 500), (490, 600), (3, 3), (7, 20), (0, 1)]:
        np.testing.assert_array_equal(table.values[start:stop], expected[start:stop])
    assert (table.columns, table.times) == (("1", "2"), ("0 s", "0.062375 s", "1/8000 s"))
    assert table.notes == ("2 channels of 500 samples at 8,000 Hz, as float32",)
    right = load_series(tmp_path / "a.wav", columns=["2"])
    np.testing.assert_array_equal(right.values[:], expected[:, 1:])


ARRAY = (np.random.default_rng(0).integers(-(2**15), 2**15, (300, 2)) / 2**15).astype(np.float32)


def as_csv(folder):
    return written(folder / "a.csv", ARRAY.tolist(), ["a", "b"])


def as_parquet(folder):
    pq.write_table(pa.table({"a": ARRAY[:, 0], "b": ARRAY[:, 1]}), folder / "a.parquet")
    return folder / "a.parquet"


def as_npy(folder):
    np.save(folder / "a.npy", ARRAY)
    return folder / "a.npy"


def as_wav(folder):
    return sound(folder / "a.wav", ARRAY * 2**15)


FILES = {write.__name__[3:]: write for write in (as_csv, as_parquet, as_npy, as_wav)}


@pytest.mark.parametrize("kind", FILES)
def test_lanes_over_a_file_are_those_over_the_array(kind, tmp_path):
    table = load_series(FILES[kind](tmp_path))
    pairs = zip(Lanes(table.values, 4, 9, horizon=2), Lanes(ARRAY, 4, 9, horizon=2), strict=True)
    for one, other in pairs:
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    picked = load_series(FILES[kind](tmp_path), columns=[table.columns[1]])
    chunk = next(Lanes([picked.values, picked.values], 2, 9, targets=[table.values, table.values]))
    np.testing.assert_array_equal(chunk.inputs[:, 1], ARRAY[:9, 1:])
    np.testing.assert_array_equal(chunk.targets[:, 1], ARRAY[:9])


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy"])
@pytest.mark.parametrize("place", [None, 1])
def test_tables_lie_on_disk_and_their_pages_are_handed_back(kind, place, tmp_path, monkeypatch):
    handed, maps = [], series._maps
    monkeypatch.setattr("bptt.data.stream.HELD_CHUNKS", 1)
    monkeypatch.setattr(series, "_maps", lambda part: handed.extend(maps(part)) or [])
    table = load_series(FILES[kind](tmp_path))
    table = table if place is None else load_series(FILES[kind](tmp_path), columns=[table.columns[place]])
    list(Lanes(table.values, 2, 50))
    assert table.values.mode == "r"
    assert len(handed) == 6  # inputs and targets of three chunks
    assert {type(part) for part in handed} == {mmap.mmap}


@pytest.mark.parametrize("ahead", [None, 2])
@pytest.mark.parametrize("kind", FILES)
def test_a_run_over_a_file_goes_on_to_the_bit(kind, ahead, tmp_path):
    path = FILES[kind](tmp_path)

    def start():
        torch.manual_seed(0)
        model, stream = nn.RNN(2, 2), Lanes(load_series(path).values, 3, 17, epochs=2)
        stream = stream if ahead is None else Prefetch(stream, ahead)
        return model, bptt.unroll(model, bptt.per_step(nn.MSELoss()), stream, strategy=bptt.TruncatedBPTT(10, 15))

    def go_on(model, updates):
        for update in updates:
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            yield update.loss, updates.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}

    states = list(go_on(*start()))
    assert len(states) == 20
    for number in (3, 11):
        model, updates = start()
        model.load_state_dict(states[number][2])
        updates.load_state_dict(states[number][1])
        rest = torch.stack([loss for loss, _, _ in go_on(model, updates)])
        assert torch.equal(rest, torch.stack([loss for loss, _, _ in states[number + 1 :]]))


def test_a_digest_is_of_what_the_table_holds(tmp_path, monkeypatch):
    digests = {load_series(FILES[kind](tmp_path), columns=["a", "b"]).sha256 for kind in ("csv", "parquet")}
    monkeypatch.setattr(spool, "ROWS", 7)
    assert digests == {load_series(as_csv(tmp_path)).sha256} == {Table(ARRAY.copy(), ("a", "b")).sha256}
    changed = ARRAY.copy()
    changed[299, 1] = np.nextafter(changed[299, 1], np.float32(9))
    others = [
        Table(changed, ("a", "b")),
        Table(ARRAY, ("a", "c")),
        Table(ARRAY[:, :1], ("a",)),
        Table(ARRAY[1:], ("a", "b")),
    ]
    assert len({table.sha256 for table in others} | digests) == 5


def test_the_series_that_comes_along():
    table = load_series(WEATHER)
    assert table.values.shape == (8730, 3)
    assert table.columns == ("temperature", "dew_point", "wind_speed")
    assert table.times == ("2013-01-01 06:00", "2013-12-30 23:00", "hourly")
    assert np.isnan(table.values).sum(0).tolist() == [24, 24, 27]
    assert np.isnan(table.values).all(1).sum() == 24
    assert (table.values[0].tolist(), len(table.notes)) == (np.float32([39.02, 26.06, 12.66]).tolist(), 3)
