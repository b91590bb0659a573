"""Texts, vocabularies and the split."""

import sys

import pytest
import torch

from bptt.data import Vocabulary, lanes, load_text, split


def test_python_docs_are_the_same_every_time_and_long_enough_to_learn_from():
    text = load_text("python-docs")
    assert text == load_text("python-docs")
    assert 300_000 < len(text) < 1_000_000
    assert "while" in text


def test_python_docs_missing_from_a_stripped_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="comes without its documentation"):
        load_text("python-docs")


def test_file_with_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xc3\xa9")
    assert load_text(path) == load_text(str(path)) == "one\ntwo é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"a", "only one character .'a'."),
        (b"aaaa", "only one character"),
        (b"abc\xff", "not a UTF-8 text .byte 3 "),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_text(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_directory(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        load_text(tmp_path)


def test_unreadable_file(tmp_path):
    # A name longer than any file system allows fails for every user, where permissions don't stop root.
    with pytest.raises(ValueError, match="cannot be read"):
        load_text(tmp_path / ("x" * 300))


def test_vocabulary_encodes_and_decodes():
    text = "naïve → text\n"
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == torch.int64
    assert vocabulary.decode(ids) == vocabulary.decode(ids.tolist()) == text
    assert list(vocabulary.characters) == sorted(set(text))
    assert vocabulary.encode("").shape == (0,)


def test_vocabulary_names_unknown_characters():
    with pytest.raises(ValueError, match=r"vocabulary of 2 characters: 'c', 'd'\."):
        Vocabulary.of("ab").encode("abcd")
    with pytest.raises(ValueError, match=r"'g', \.\.\.\.$"):
        Vocabulary.of("ab").encode("cdefgh")


@pytest.mark.parametrize("characters", ["", "aa"])
def test_vocabulary_refuses_none_and_twice(characters):
    with pytest.raises(ValueError, match="none twice"):
        Vocabulary(characters)


@pytest.mark.parametrize(("length", "last"), [(100, 10), (109, 10), (4, 2), (25, 2)])
def test_split_keeps_the_last_tenth(length, last):
    ids = torch.arange(length)
    train, validation = split(ids)
    assert len(validation) == last
    assert torch.equal(torch.cat([train, validation]), ids)


def test_split_and_lanes_say_what_is_too_short():
    with pytest.raises(ValueError, match="3 characters is too short"):
        split(torch.arange(3))
    with pytest.raises(ValueError, match="part=1"):
        split(torch.arange(30), part=1)
    with pytest.raises(ValueError, match=r"batch of 4: .*8 in all. .*at most 3\."):
        lanes(torch.arange(7), 4)
    with pytest.raises(ValueError, match="batch=0"):
        lanes(torch.arange(7), 0)
