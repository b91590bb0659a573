"""Lanes and chunks: every character once, in order, and jumps marked or found."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bptt import Chunk
from bptt.data import chunks, continuous, lanes


@given(
    batch=st.integers(1, 5),
    steps=st.integers(2, 12),
    rest=st.integers(0, 4),
    length=st.integers(1, 14),
    epochs=st.integers(1, 3),
)
def test_every_character_of_a_lane_is_a_target_once_an_epoch(batch, steps, rest, length, epochs):
    ids = torch.arange(batch * steps + min(rest, batch - 1))  # all different, so a character is its own place
    table = lanes(ids, batch)
    assert table.shape == (steps, batch)
    stream = list(continuous(chunks(table, length, epochs)))
    per_epoch = len(stream) // epochs
    sizes = [len(chunk.targets) for chunk in stream[:per_epoch]]
    assert sizes == [length] * ((steps - 1) // length) + [(steps - 1) % length] * ((steps - 1) % length > 0)
    for epoch in (stream[i : i + per_epoch] for i in range(0, len(stream), per_epoch)):
        targets = torch.cat([chunk.targets for chunk in epoch])
        inputs = torch.cat([chunk.inputs for chunk in epoch])
        for row in range(batch):
            lane = torch.arange(row * steps, (row + 1) * steps)
            assert torch.equal(targets[:, row], lane[1:])
            assert torch.equal(inputs[:, row], lane[:-1])
        starts = [chunk.is_start for chunk in epoch]
        assert starts[0].tolist() == [True] + [False] * (len(epoch[0].inputs) - 1)
        assert starts[1:] == [None] * (per_epoch - 1)


def test_no_number_of_epochs_goes_on_for_ever():
    stream = chunks(lanes(torch.arange(5), 1), 4, epochs=None)
    assert [len(chunk.inputs) for chunk in itertools.islice(stream, 100)] == [4] * 100


@pytest.mark.parametrize(
    ("table", "length", "epochs", "message"),
    [
        (torch.zeros(1, 3), 1, 1, r"T >= 2, but this is \(1, 3\)"),
        (torch.zeros(6), 1, 1, r"\(T, B, ...\)"),
        (torch.zeros(6, 2), 0, 1, "length=0"),
        (torch.zeros(6, 2), 1, 0, "epochs=0"),
    ],
)
def test_chunks_refuses_at_the_call(table, length, epochs, message):
    with pytest.raises(ValueError, match=message):
        chunks(table, length, epochs)


def pair(table, start, stop, is_start=None):
    return Chunk(table[start:stop], table[start + 1 : stop + 1], is_start)


def test_a_shuffled_stream_is_found():
    table = lanes(torch.arange(40), 2)
    stream = list(chunks(table, 5))
    assert len(list(continuous(stream))) == 4
    stream[1], stream[2] = stream[2], stream[1]
    with pytest.raises(ValueError, match="chunk 1, row 0: starts with 10, but chunk 0 ended with target 5"):
        list(continuous(stream))


def test_lanes_cut_as_rows_are_found():
    # The common mistake: consecutive sequences as the rows of one batch, so that row 0 goes on in row 1.
    table = torch.arange(40)
    rows = [table[i : i + 10].view(2, 5).t() for i in range(0, 40, 10)]
    with pytest.raises(ValueError, match="chunk 1, row 0"):
        list(continuous(Chunk(row, row + 1) for row in rows))


def test_a_jump_marked_in_is_start_is_no_error_and_only_in_its_rows():
    table = lanes(torch.arange(40), 2)
    marked = torch.zeros(5, 2, dtype=torch.bool)
    marked[0] = True
    assert len(list(continuous([pair(table, 0, 5), pair(table, 9, 14, marked)]))) == 2
    marked[0, 1] = False
    with pytest.raises(ValueError, match="chunk 1, row 1"):
        list(continuous([pair(table, 0, 5), pair(table, 9, 14, marked)]))


def test_a_change_of_batch_size_is_found():
    table = lanes(torch.arange(40), 4)
    with pytest.raises(ValueError, match="has 3 rows, but chunk 0 had 4"):
        list(continuous([pair(table, 0, 5), pair(table[:, :3], 5, 8)]))


def test_continuous_reads_no_chunk_ahead():
    read = []
    table = lanes(torch.arange(40), 2)

    def stream():
        for i, chunk in enumerate(chunks(table, 5)):
            read.append(i)
            yield chunk

    next(continuous(stream()))
    assert read == [0]


def test_continuous_takes_features_and_missing_values():
    table = lanes(torch.arange(80.0).reshape(40, 2), 2)
    table[5, 0, 1] = float("nan")  # ends one chunk and begins the next
    assert len(list(continuous(chunks(table, 5)))) == 4
    with pytest.raises(ValueError, match=r"chunk 1, row 0: starts with \[12.0, 13.0\]"):
        list(continuous([pair(table, 0, 5), pair(table, 6, 9)]))
