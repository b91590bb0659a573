"""A layer called step by step: the numbers of the whole sequence, whatever changes in between."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import bptt.nn
from bptt.nn import direct, kernels

LAYERS = [bptt.nn.RNN, bptt.nn.GRU, bptt.nn.LSTM]


def pair(state: Any) -> list[torch.Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def whole(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Outputs and state of torch.nn's own layer in double precision, rounded."""
    torchs = bptt.nn.convert(copy.deepcopy(layer).double(), back=True)
    with torch.no_grad():
        y, state = torchs(x.double())
    return y.float(), tuple(s.float() for s in state) if isinstance(state, tuple) else state.float()


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bias": False}, {"num_layers": 2, "batch_first": True}])
@pytest.mark.parametrize("batch", [None, 1, 3, 9])
def test_steps_are_the_whole_sequence(cls: Any, options: Any, batch: int | None) -> None:
    torch.manual_seed(0)
    layer = cls(5, 21, **options)
    x = torch.randn(7, 5) if batch is None else torch.randn(7, batch, 5)
    y, state = whole(layer, x.transpose(0, 1) if batch and layer.batch_first else x)
    step = layer.stepper(batch)
    found = torch.stack([step(each) for each in x])
    close(found, y.transpose(0, 1) if batch and layer.batch_first else y)
    close(pair(step.state), pair(state))
    assert not any(t.requires_grad for t in [found, *pair(step.state)])


@pytest.mark.parametrize("cls", LAYERS)
def test_a_changed_parameter_is_seen_however_it_changes(cls: Any) -> None:
    torch.manual_seed(0)
    layer, x = cls(4, 6), torch.randn(2, 4)
    step = layer.stepper(2)

    def in_place() -> None:
        with torch.no_grad():
            layer.weight_hh_l0.mul_(0.5)

    def by_data() -> None:
        layer.weight_ih_l0.data *= 2

    def other_data() -> None:
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.clone() + 0.1

    def other_strides() -> None:
        layer.weight_ih_l0.data = layer.weight_ih_l0.data.t().contiguous().t() - 0.1

    def other_parameter() -> None:
        layer.bias_hh_l0 = nn.Parameter(torch.randn_like(layer.bias_hh_l0))

    def parametrised() -> None:
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        with torch.no_grad():
            layer.parametrizations.weight_hh_l0.original0.mul_(3)

    def of_double() -> None:
        nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
        layer.double()

    seen = []
    for change in (in_place, by_data, other_data, other_strides, other_parameter, parametrised, of_double):
        change()
        like = layer.weight_ih_l0.dtype
        step.state = None
        step(x.to(like))
        found = step(x.to(like))
        with torch.no_grad():
            wanted = bptt.nn.convert(copy.deepcopy(layer), back=True)(torch.stack([x, x]).to(like))[0][1]
        close(found, wanted)
        seen.append(found.float())
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("cls", LAYERS)
def test_outputs_and_states_are_the_callers_own(cls: Any) -> None:
    layer, x = cls(4, 6), torch.randn(2, 4)
    step, other = layer.stepper(2), layer.stepper(2)
    first, again = step(x), other(x)
    first.zero_()
    for s in pair(step.state):
        s.zero_()
    torch.testing.assert_close(step(x), other(x), rtol=0, atol=0)
    assert again.any()
    given = other.state
    step.state = given
    for s in pair(given):
        s.zero_()
    torch.testing.assert_close(step(x), other(x), rtol=0, atol=0)
    copied = copy.deepcopy(other)
    torch.testing.assert_close(copied(x), other(x), rtol=0, atol=0)
    assert copied.layer is not layer


def test_hooks_and_dropout_count(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = bptt.nn.GRU(4, 6), []
    step = layer.stepper()
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    step(torch.zeros(4))
    handle.remove()
    step(torch.zeros(4))
    assert len(seen) == 1
    dropped = bptt.nn.GRU(4, 60, num_layers=2, dropout=0.5).stepper(1)
    torch.manual_seed(1)
    one = dropped(torch.ones(1, 4))
    dropped.state = None
    assert not torch.equal(dropped(torch.ones(1, 4)), one)


def test_wrong_use_is_one_line() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        bptt.nn.RNN(2, 3, bidirectional=True).stepper()
    for batch in (0, -1, True, 1.0):
        with pytest.raises(ValueError, match="at least 1"):
            bptt.nn.RNN(2, 3).stepper(batch)  # pyright: ignore[reportArgumentType]
    step = bptt.nn.LSTM(2, 3).stepper(4)
    for wrong in (torch.zeros(2), torch.zeros(1, 4, 2), torch.zeros(4, 3), [1.0]):
        with pytest.raises(ValueError, match=r"not \(4, 2\)"):
            step(wrong)  # pyright: ignore[reportArgumentType]
    for state in (torch.zeros(1, 4, 3), (torch.zeros(1, 4, 3), torch.zeros(4, 3)), 5):
        with pytest.raises(ValueError, match="layers, rows, units"):
            step.state = state


@pytest.mark.skipif(kernels.chosen is None, reason="no kernels on this machine")
@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("T", [1, 2, 8])
@pytest.mark.parametrize("B", [1, 3, 8])
@pytest.mark.parametrize("H", [1, 17, 64])
def test_a_few_steps_without_a_graph_go_the_short_way(
    cls: Any, T: int, B: int, H: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    found, ways = [], []
    short = direct.call
    monkeypatch.setattr(direct, "call", lambda *given: ways.append(short(*given)) or ways[-1])
    layer, x = cls(19, H), torch.randn(T, B, 19)
    state = tuple(torch.randn(1, B, H) for _ in range(2)) if cls is bptt.nn.LSTM else torch.randn(1, B, H)
    torchs = bptt.nn.convert(copy.deepcopy(layer), back=True)
    with torch.no_grad():
        for given in (None, state):
            before = [s.clone() for s in pair(state)]
            y, last = layer(x, given)
            found.append(y)
            y_, last_ = torchs(x, given)
            close(y, y_)
            close(pair(last), pair(last_))
            assert all(torch.equal(a, b) for a, b in zip(before, pair(state), strict=True))
            assert not {t.data_ptr() for t in pair(last)} & {y.data_ptr(), *(s.data_ptr() for s in pair(state))}
    assert [way is not None for way in ways] == [True, True]
