"""Time stamps: which spacings are equal, which rows are missing, and which are refused."""

import datetime
import tempfile
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bptt.data import load_series, spool


def table(folder, stamps, name="t", **keywords):
    """Rows 0, 1, 2, ... under these stamps."""
    rows = "".join(f"{stamp},{i}\n" for i, stamp in enumerate(stamps))
    (Path(folder) / "a.csv").write_text(f"{name},x\n{rows}")
    return load_series(Path(folder) / "a.csv", **keywords)


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        (["2016-01-01", "2016-01-02", "2016-01-03"], ("2016-01-01", "2016-01-03", "daily")),
        (["2016-01-01 12:00", "2016-01-02 12:00"], ("2016-01-01 12:00", "2016-01-02 12:00", "daily")),
        (["2016-01-01", "2016-01-08"], ("2016-01-01", "2016-01-08", "weekly")),
        (["2016-02-28T23", "2016-02-29T00", "2016-02-29T01"], ("2016-02-28 23:00", "2016-02-29 01:00", "hourly")),
        (["2016-01-01 00:00", "2016-01-01 00:01"], ("2016-01-01 00:00", "2016-01-01 00:01", "every minute")),
        (["2016-01-01 00:10", "2016-01-01 00:20"], ("2016-01-01 00:10", "2016-01-01 00:20", "every 10 minutes")),
        (
            ["2016-01-01 00:00:00.25", "2016-01-01 00:00:00.50"],
            ("2016-01-01 00:00:00.250000", "2016-01-01 00:00:00.500000", "every 0.25 seconds"),
        ),
        (
            ["2016-01-01 00:00Z", "2016-01-01 02:00+01:00", "2016-01-01T02:00:00Z"],
            ("2016-01-01 00:00", "2016-01-01 02:00", "hourly"),
        ),
        (["2016-01", "2016-02", "2016-03", "2016-04"], ("2016-01-01", "2016-04-01", "monthly")),
        (["2015-12-31", "2016-01-31", "2016-02-29", "2016-03-31"], ("2015-12-31", "2016-03-31", "monthly")),
        (["2015-11-15", "2016-02-15", "2016-05-15", "2016-08-15"], ("2015-11-15", "2016-08-15", "every 3 months")),
        (["2015-01-01", "2016-01-01", "2017-01-01"], ("2015-01-01", "2017-01-01", "yearly")),
        (["0001-01-01", "0002-01-01", "0003-01-01"], ("0001-01-01", "0003-01-01", "yearly")),
    ],
)
def test_equal_spacings(stamps, times, tmp_path):
    found = table(tmp_path, stamps)
    assert found.times == times
    assert found.values[:, 0].tolist() == list(range(len(stamps)))
    assert found.notes == (f"column t is the time: {times[2]}, {times[0]} to {times[1]}",)


@pytest.mark.parametrize("name", ["time", "Timestamp", "datetime", "DATE", ""])
def test_a_time_of_numbers(name, tmp_path):
    found = table(tmp_path, [0, 0.1, 0.2, 0.30000001, 0.5], name)
    assert found.columns == ("x",)
    assert found.times == ("0", "0.5", "every 0.1")
    np.testing.assert_array_equal(found.values[:, 0], [0, 1, 2, 3, np.nan, 4])
    if name:
        assert table(tmp_path, [5, 1, 1], name, columns=[name]).values[:, 0].tolist() == [5, 1, 1]
    assert table(tmp_path, [5, 1, 1], "level").times is None


@given(
    start=st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)),
    step=st.timedeltas(datetime.timedelta(microseconds=1), datetime.timedelta(days=20)),
    kept=st.lists(st.integers(0, 7).map(lambda n: n != 0), min_size=3, max_size=60),
    parquet=st.booleans(),
    few=st.booleans(),
)
def test_missing_rows_stand_where_they_belong(start, step, kept, parquet, few):
    """NaN for each; refused if more are missing than there, or most rows don't follow on the one before."""
    kept = [True, True, True, True, *kept, True]
    rows = [i for i, there in enumerate(kept) if there]
    stamps = [start + i * step for i in rows]
    missing, single = len(kept) - len(rows), sum(b - a == 1 for a, b in pairwise(rows))
    refused = missing > len(rows) or 2 * single < len(rows) - 1
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(spool, "ROWS", 5 if few else spool.ROWS)
        patch.setattr("bptt.data.table.ROWS", 5 if few else spool.ROWS)
        with pytest.raises(ValueError, match="and the usual spacing is") if refused else nullcontext():
            if parquet:
                pq.write_table(pa.table({"x": range(len(rows)), "t": stamps}), Path(folder) / "a.parquet")
                found = load_series(Path(folder) / "a.parquet")
            else:
                found = table(folder, stamps)
    if refused:
        return
    expected = np.full(len(kept), np.nan, np.float32)
    expected[rows] = range(len(rows))
    np.testing.assert_array_equal(found.values[:, 0], expected)
    assert [note for note in found.notes if f"{missing} missing step" in note] == list(found.notes[1:])


def test_an_index_as_pandas_writes_it_is_the_time(tmp_path):
    columns = {"x": [1.5, 2.5, 4.0], "__index_level_0__": [10, 11, 13]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = load_series(tmp_path / "a.parquet")
    assert (found.columns, found.times) == (("x",), ("10", "13", "every 1"))
    np.testing.assert_array_equal(found.values[:, 0], [1.5, 2.5, np.nan, 4])


def test_gaps_of_months(tmp_path):
    found = table(tmp_path, ["2015-11-30", "2015-12-31", "2016-02-29", "2016-03-31", "2016-07-31", "2016-08-31"])
    expected = [0, 1, np.nan, 2, 3, np.nan, np.nan, np.nan, 4, 5]
    np.testing.assert_array_equal(found.values[:, 0], expected)
    assert found.notes[1] == "4 missing steps (2 gaps, the longest of 3) stand as NaN"


DAYS = [f"2016-01-{day:02}" for day in range(1, 11)]


@pytest.mark.parametrize(
    ("stamps", "match"),
    [
        (["2016-01-02", "2016-01-01"], "row 3 of column t: 2016-01-01 00:00 comes before that of the row above"),
        (["2016-01-02", "2016-01-02"], "row 3 of column t: 2016-01-02 00:00 repeats the stamp of the row above"),
        ([*DAYS, "2016-01-11 01:00"], "row 12 .*: 2016-01-11 01:00 comes 25 hours after 2016-01-10 00:00.* is 1 day"),
        (
            ["2016-01-01", "2016-02-01", "2016-03-02"],
            "row 3 .*comes 31 days after 2016-01-01 00:00, and the usual spacing is 30",
        ),
        ([*DAYS, "2916-01-11"], "row 12 .*comes 328719 days after 2016-01-10"),
        (["2016-01-01", "2016-01-02", "2016-01-05", "2016-01-09"], "the usual spacing is 1 day"),
        (["2016-01-01", "", "2016-01-03"], "row 3 of column t is empty: the time takes"),
        (["2016-01-01", "2016-02-30"], "row 3 of column t is '2016-02-30'"),
        (["2016-01-01", "NA"], "row 3 of column t is empty"),
        (["2016-01-01", "tomorrow"], "row 3 of column t is 'tomorrow'"),
        (["2016-01-01T00:00Z", "2016-01-01T01:00"], "row 3 of column t is '2016-01-01T01:00'.*all with an offset"),
        (["2016-01-01T00:00", "2016-01-01T01:00Z"], "row 3 of column t is '2016-01-01T01:00Z'"),
    ],
)
def test_stamps_that_are_refused(stamps, match, tmp_path):
    with pytest.raises(ValueError, match=match) as raised:
        table(tmp_path, stamps)
    assert str(raised.value).startswith(f"{tmp_path / 'a.csv'}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stamps", "match"),
    [
        ([0, 1, 2, 2.5], "row 5 of column time: 2.5 comes 0.5 after 2, and the usual spacing is 1. Write the rows"),
        ([0, 1, 1], "row 4 of column time: 1 repeats the stamp"),
        ([0, "", 2], "row 3 of column time is empty"),
        (["01/02/2016", "02/02/2016"], "row 2 of column time is '01/02/2016': .*as 2016-02-15"),
    ],
)
def test_numbers_and_other_dates_that_are_refused(stamps, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        table(tmp_path, stamps, "time")


def test_the_order_is_seen_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("bptt.data.delimited.HEAD", 64)
    days = [str(datetime.date(2016, 1, 1) + datetime.timedelta(i)) for i in range(200)]
    assert len(table(tmp_path, days).values) == 200
    for at in range(20, 60):
        with pytest.raises(ValueError, match=f"row {at + 2} of column t: .*repeats"):
            table(tmp_path, [*days[:at], days[at - 1], *days[at:]])
