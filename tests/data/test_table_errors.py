"""Files that are no series: one line that names the file, the row and what to do."""

import datetime
import gzip
import os
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from bptt.data import delimited, load_series


def refused(path, match, error=ValueError, **keywords):
    """The line that says it, which begins with the path."""
    with pytest.raises(error, match=match) as raised:
        load_series(path, **keywords)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ") or error is not ValueError
    return line


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("a,b\n", "a header and no row of numbers"),
        ("a,b", "a header and no row of numbers"),
        ("a,b\n1,2\n", "holds 1 row of numbers: a series takes at least two"),
        ("a,b\n1,2\n3\n", "row 3 has 1 cells and the first row 2"),
        ("a,b\n1,2\n3,4,5\n", "row 3 has 3 cells and the first row 2"),
        ("a,b,a\n1,2,3\n", "has the column a twice"),
        ("a,b\n1,2\n3,4\n5,low\n", "column b isn't numbers: 'low' stands in row 4"),
        ("1,2\n3,low\n", "column 2 isn't numbers: 'low' stands in row 2"),
        ("a,b\n1,2\n3,0x10\n", "column b isn't numbers: '0x10'"),
        ("a,b\n1,2\n3,1_0\n", "column b isn't numbers: '1_0'"),
        ('a,b\n1,2\n3,"4,5"\n', "column b isn't numbers: '4,5'"),
        ("a,b\n1,2\n3,-inf\n", "row 3 of column b is infinite"),
        ("a,b\n1,2\n3,1e999\n", "row 3 of column b is infinite"),
        ("a,b\n1,true\n3,Infinity\n", "row 3 of column b is infinite"),
        ("a;b\n1,5;2\n3;1.234\n", "'1,5' and '1.234' are in one file"),
        ("a,b\n1,2\n3,\0\n", "byte 10 is zero"),
        ("a,b\n1,2\né,3\n".encode("latin-1"), "not a UTF-8 text .*Convert it to UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not a UTF-8 text"),
        ('"a' + "x" * 200_000 + "\n1\n", "cannot be read as CSV"),
        ("date\n2016-01-01\n2016-01-02\n", "no column beside the time"),
        ("date,time,x\n2016-01-01,00:00,1\n2016-01-02,00:00,1\n", "columns date and time hold times"),
    ],
)
def test_csv(text, match, tmp_path):
    (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path / "a.csv", match)


def test_rows_are_counted_through_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "HEAD", 64)
    for end, match in [
        ("x,1\n", "column a isn't numbers: 'x' stands in row 202"),
        ("inf,1\n", "row 202 of column a is infinite"),
        ("1\n", "row 202 has 1 cells"),
        ("\xff,1\n", "row 202 cannot be decoded"),
    ]:
        (tmp_path / "a.csv").write_bytes(b"a,b\n" + b"1,2\n" * 200 + end.encode("latin-1"))
        refused(tmp_path / "a.csv", match)


def test_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("date,x,kind\n2016-01-01,1,low\n2016-01-02,2,high\n")
    assert load_series(path, columns=["x"]).columns == ("x",)
    refused(path, "column kind isn't numbers: 'low' stands in row 2.*columns=")
    refused(path, "there is no column y: there are date, x, kind", columns=["x", "y"])
    refused(path, "columns= names the column x twice", columns=["x", "x"])
    refused(path, "columns= names no column", columns=[])
    refused(path, "column date isn't numbers: '2016-01-01'", columns=["date"])
    for columns in ("x", [1]):
        refused(path, "columns must be a list of names", TypeError, columns=columns)


def test_what_is_no_file_of_a_kind(tmp_path):
    refused(tmp_path / "no.csv", "no such file")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "this is not a file")
    for name in ("a.txt", "a", "a.npz", "a.npy.gz"):
        refused(tmp_path / name, "a series is read from .csv, .tsv, .parquet, .npy, .wav")
    (tmp_path / "a.csv.gz").write_bytes(b"a,b\n1,2\n")
    refused(tmp_path / "a.csv.gz", "cannot be read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a named pipe")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "this is not a file")


def test_gzip_cut_off(tmp_path):
    whole = gzip.compress(("x\n" + "\n".join(map(str, np.random.default_rng(0).normal(size=200)))).encode())
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "a.csv.gz", "cannot be read")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.array([1, None]), "isn't a complete array of plain numbers"),
        (np.zeros(3, complex), "array of complex128"),
        (np.zeros(3, bool), "array of bool"),
        (np.array(["a", "b"]), "array of <U1"),
        (np.zeros(3, [("a", float)]), "array of"),
        (np.array(3.0), r"shape \(\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.zeros(1), "holds 1 step"),
    ],
)
def test_npy(values, match, tmp_path):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    refused(tmp_path / "a.npy", match)


def test_npy_that_is_none_or_cut_off(tmp_path):
    for content in (b"", b"junk", b"\x93NUMPY"):
        (tmp_path / "a.npy").write_bytes(content)
        refused(tmp_path / "a.npy", "isn't a complete array")
    np.savez(tmp_path / "b", a=np.zeros(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    refused(tmp_path / "b.npy", "isn't a complete array")
    np.save(tmp_path / "c.npy", np.zeros(100))
    whole = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(whole[:-8])
    refused(tmp_path / "c.npy", "isn't a complete array")
    (tmp_path / "c.npy").write_bytes(whole)
    refused(tmp_path / "c.npy", "there is no column 2: there are 1", columns=["2"])


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"x": [1, 2], "s": ["a", "b"]}, "column s isn't numbers: 'a' stands in row 1"),
        ({"x": [1, 2], "s": [[1], [2]]}, "column s isn't numbers: list<.*> stands in row 1"),
        ({"x": pa.array([], "float64")}, "holds no rows"),
        ({"x": [1.0]}, "holds 1 row of numbers"),
        ({"x": [1.0, float("inf")]}, "row 2 of column x is infinite"),
        ({"t": [datetime.date(2016, 1, 2), datetime.date(2016, 1, 1)], "x": [1, 2]}, "row 2 of column t: 2016-01-01"),
    ],
)
def test_parquet(columns, match, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", match)


def test_parquet_that_is_none_or_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=5000)}), path)
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[:-100], whole[:200] + whole[300:], b"PAR1" + bytes(30_000) + whole[30_004:]):
        path.write_bytes(content)
        refused(path, "cannot be read")


def test_wav(tmp_path):
    path = tmp_path / "a.wav"
    for content in (b"", b"junk", b"RIFF" + bytes(40)):
        path.write_bytes(content)
        refused(path, "isn't a WAV file")
    soundfile.write(path, np.zeros((100, 1)), 8000, format="FLAC")
    refused(path, "holds sound as FLAC")
    soundfile.write(path, np.zeros((1000, 1)), 8000, subtype="IMA_ADPCM")
    refused(path, "holds sound as WAV .Microsoft., IMA ADPCM")
    soundfile.write(path, np.zeros((0, 1)), 8000)
    refused(path, "holds 0 steps")
    soundfile.write(path, np.zeros((100, 1)), 8000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused(path, "the file is cut off: it declares 244 bytes and has 204")
    path.write_bytes(whole[:4] + struct.pack("<I", 0xFFFFFFFF) + whole[8:])  # as a recorder writes that can't go back
    assert len(load_series(path).values) == 100


def test_a_wav_file_that_shrinks_while_it_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((10_000, 1)), 8000)
    values = load_series(tmp_path / "a.wav").values
    os.truncate(tmp_path / "a.wav", 1044)
    with pytest.raises(ValueError, match=r"a\.wav: ends at sample 500, of 10000 that it declares"):
        values[100:9000]
    with pytest.raises(ValueError, match="not in steps of 2"):
        values[::2]


@pytest.mark.parametrize(
    ("name", "module"), [("a.csv", "pyarrow"), ("a.parquet", "pyarrow.parquet"), ("a.wav", "soundfile")]
)
def test_without_the_extra(name, module, tmp_path, monkeypatch):
    (tmp_path / name).write_text("a,b\n1,2\n3,4\n")
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(tmp_path / name, "takes the package (pyarrow|soundfile)", ModuleNotFoundError)
    assert "pip install 'bptt[data]'" in line


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        close = staticmethod(lambda: None)

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("bptt.data.spool.tempfile.TemporaryFile", Full)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    refused(tmp_path / "a.csv", "No space left on device")
