"""What every test of an error asks for: the right kind, one line, and the words that help."""

import pytest

import bptt


def refused(call, *words: str, kind=(ValueError, TypeError)) -> str:
    """The message of the error that `call` raises: one line, with every word in it."""
    with pytest.raises(kind) as info:
        call()
    message = str(info.value)
    assert message
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message


def first(*args, **keywords):
    """A call that runs up to the first update."""
    keywords.setdefault("strategy", bptt.TruncatedBPTT(2))
    return lambda: next(bptt.unroll(*args, **keywords))


def call(*args, **keywords):
    """The call alone: nothing is iterated."""
    keywords.setdefault("strategy", bptt.TruncatedBPTT(2))
    return lambda: bptt.unroll(*args, **keywords)
