"""`verify`: models made wrong in one way each, and the same made right; nothing of the user's changes."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import bptt
from bptt.analysis import answers
from support.cases import square
from support.faulty import (
    HIDDEN,
    IN,
    Added,
    B,
    Beside,
    Dropping,
    Flat,
    Future,
    InPlace,
    Inside,
    Normed,
    Numbered,
    Outside,
    Rooted,
    Step,
    Turned,
)

T = 9
QUESTIONS = [answers.DEVICE, *answers.REST]


def data():
    torch.manual_seed(1)
    return torch.randn(T, B, IN), torch.randn(T, B, HIDDEN)


def over_steps(outputs, targets):
    return square(outputs / outputs.abs().amax(0, keepdim=True), targets)


def over_rows(outputs, targets):
    return square(outputs / outputs.abs().amax(1, keepdim=True), targets)


def over_features(outputs, targets):
    return square(outputs / outputs.abs().amax(-1, keepdim=True), targets)


def one():
    return torch.zeros(B, HIDDEN)


class Case(NamedTuple):
    """A recurrence, wrong and right; the questions that say no, or have a note, where it is wrong."""

    wrong: Callable[[], Any]
    right: Callable[[], Any]
    no: tuple[str, ...] = ()
    note: tuple[str, ...] = ()
    state: Callable[[], Any] = one
    right_state: Callable[[], Any] | None = None
    loss: Any = square
    right_loss: Any = square


def scanned(cls, *args):
    return lambda: bptt.scan(cls(*args))


def shifted():
    return torch.zeros(1, B, HIDDEN), torch.zeros(1, B, IN)


CASES = {
    "state inside": Case(
        scanned(Inside), scanned(Outside), (answers.FUNCTION, answers.REPLAYS), right_state=lambda: (one(), one())
    ),
    "loss mixes steps": Case(
        scanned(Step), scanned(Step), (answers.LOSS_STEPS,), loss=over_steps, right_loss=over_features
    ),
    "loss mixes rows": Case(
        scanned(Step), scanned(Step), (answers.LOSS_ROWS,), loss=over_rows, right_loss=over_features
    ),
    "future": Case(lambda: Future(1), lambda: Future(-1), (answers.TIME,), state=shifted),
    "dropout": Case(scanned(Dropping, 0.5), scanned(Dropping, 0.0), note=(answers.REPLAYS,)),
    "batch norm by step": Case(
        lambda: bptt.scan(Normed(nn.BatchNorm1d(HIDDEN))),
        lambda: bptt.scan(Normed(nn.LayerNorm(HIDDEN))),
        note=(answers.ROWS,),
    ),
    "batch norm over steps": Case(
        lambda: Flat(nn.BatchNorm1d(HIDDEN)),
        lambda: Flat(nn.BatchNorm1d(HIDDEN)).eval(),
        (answers.TIME,),
        (answers.ROWS,),
        state=lambda: one()[None],
    ),
    "in place": Case(scanned(InPlace), scanned(Added), (answers.IN_PLACE,)),
    "frozen": Case(lambda: bptt.scan(Step().requires_grad_(False)), lambda: bptt.scan(Step()), (answers.TRAINED,)),
    "unused": Case(scanned(Beside, False), scanned(Beside, True), (answers.REACHED,)),
    "NaN": Case(scanned(Rooted, 0.0), scanned(Rooted, 0.1), (answers.FINITE,)),
    "batch first": Case(lambda: Turned(True), lambda: Turned(False), (answers.AXES,), state=lambda: None),
    "device": Case(lambda: Turned(False).to("meta"), lambda: Turned(False), (answers.DEVICE,), state=lambda: None),
    "rows mixed": Case(
        lambda: bptt.scan(lambda x, h: (x + h.mean(0), (x + h).tanh())),
        lambda: bptt.scan(lambda x, h: (x + h.mean(1, keepdim=True), (x + h).tanh())),
        (answers.ROWS,),
        state=lambda: torch.zeros(B, IN, requires_grad=True),
        loss=lambda y, _: y.square(),
        right_loss=lambda y, _: y.square(),
    ),
}


def said(found, ok):
    return tuple(a.question for a in found.answers if a.ok is ok)


def notes(found):
    return tuple(a.question for a in found.answers if a.ok and a.detail)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_made_wrong_in_one_way_exactly_the_right_question_says_no(case):
    found = bptt.verify(case.wrong(), case.loss, data(), case.state())
    assert said(found, False) == case.no, str(found)
    assert notes(found) == case.note, str(found)
    assert found.ok == (not case.no)
    assert all(a.detail and a.advice for a in found.answers if a.ok is False)
    assert all(a.detail for a in found.answers if a.ok is None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_made_right_every_question_says_ok(case):
    found = bptt.verify(case.right(), case.right_loss, data(), (case.right_state or case.state)())
    assert found.ok, str(found)
    assert notes(found) == (), str(found)
    assert said(found, True) == tuple(QUESTIONS), str(found)


def test_a_line_an_answer():
    found = bptt.verify(bptt.scan(Inside()), square, data(), one())
    lines = str(found).splitlines()
    assert len(lines) == len(found.answers) == 12
    assert [a.question for a in found.answers] == QUESTIONS
    (line,) = (line for line in lines if answers.FUNCTION in line)
    assert line.startswith("no ")
    assert "attribute step.mem" in line
    assert "bptt.explicit_state(module)" in line
    assert str(bptt.verify(bptt.scan(Dropping(0.5)), square, data(), one())).count("ok, but note") == 1


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("rows mixed", "device")])
def test_nothing_changes(name):
    case = CASES[name]
    model, state, (xs, ys) = case.wrong(), case.state(), data()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    before = copy.deepcopy([model.state_dict(), [p.grad for p in model.parameters()], xs, ys, state])
    modes = [m.training for m in model.modules()]
    held = {id(m): {k: v for k, v in vars(m).items() if isinstance(v, torch.Tensor)} for m in model.modules()}
    noise = torch.get_rng_state()
    bptt.verify(model, case.loss, (xs, ys), state)
    after = [model.state_dict(), [p.grad for p in model.parameters()], xs, ys, state]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(noise, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    for m in model.modules():
        assert all(vars(m)[key] is value for key, value in held[id(m)].items())


def told(case, question):
    found = bptt.verify(case.wrong(), case.loss, data(), case.state())
    return next(str(a) for a in found.answers if a.question == question)


def test_answers_name_the_cause():
    assert "batch norm in training takes its means over the steps" in told(CASES["batch norm over steps"], answers.TIME)
    assert "future" in told(CASES["future"], answers.TIME)
    assert "step.drop: Dropout" in told(CASES["dropout"], answers.REPLAYS)
    assert "step.head.weight, step.head.bias" in told(CASES["unused"], answers.REACHED)
    assert "the model on meta" in told(CASES["device"], answers.DEVICE)
    assert "writes to state" in told(CASES["in place"], answers.IN_PLACE)
    assert "time_dim=1" in told(CASES["batch first"], answers.AXES)


def test_where_a_call_begins():
    state = one()[None], torch.tensor(0)
    found = bptt.verify(Numbered(False), square, data(), state)
    assert said(found, False) == (answers.TIME,)
    assert "where a call begins" in str(found)
    assert bptt.verify(Numbered(True), square, data(), state).ok


def test_layers_of_torch_with_all_that_a_chunk_can_hold():
    xs, ys = data()
    starts, mask = torch.zeros(T, B, dtype=torch.bool), torch.ones(T, B, dtype=torch.bool)
    starts[4, 1], mask[5, 0], ys[5, 0] = True, False, torch.nan
    assert bptt.verify(nn.LSTM(IN, HIDDEN, 2), square, (xs, ys, starts, mask)).ok
    flipped = (xs.transpose(0, 1), ys.transpose(0, 1).nan_to_num())
    assert bptt.verify(nn.LSTM(IN, HIDDEN, batch_first=True), square, flipped, time_dim=1).ok
    dropping = bptt.verify(nn.GRU(IN, HIDDEN, 2, dropout=0.4), square, (xs, ys.nan_to_num()))
    assert dropping.ok
    assert notes(dropping) == (answers.REPLAYS,)


def test_one_step_one_row_and_no_numbers():
    xs, ys = data()
    found = bptt.verify(nn.GRU(IN, HIDDEN), square, (xs[:1], ys[:1]))
    assert said(found, None) == (answers.TIME, answers.LOSS_STEPS)
    found = bptt.verify(nn.GRU(IN, HIDDEN), square, (xs[:, :1], ys[:, :1]))
    assert said(found, None) == (answers.ROWS, answers.LOSS_ROWS)
    found = bptt.verify(nn.GRU(IN, HIDDEN, device="meta"), square, (xs.to("meta"), ys.to("meta")))
    assert found.ok
    assert said(found, None) == tuple(answers.REST)


def test_a_learned_initial_state_is_left_alone():
    h0, gru = nn.Parameter(torch.zeros(1, 1, HIDDEN)), nn.GRU(IN, HIDDEN)
    assert bptt.verify(gru, square, data(), initial_state=lambda: h0.expand(1, B, HIDDEN)).ok
    assert h0.grad is None


def test_without_rows_features_are_not_taken_for_them():
    xs = torch.randn(T, HIDDEN)
    loss = lambda y, t: (y.softmax(-1) - t).square()  # noqa: E731
    found = bptt.verify(nn.GRU(HIDDEN, HIDDEN), loss, (xs, xs))
    assert said(found, False) == ()
    assert said(found, None) == (answers.ROWS, answers.LOSS_ROWS)
    mixing = bptt.scan(lambda x, h: (x + h.mean(), x + h))
    start = torch.zeros(HIDDEN, requires_grad=True)
    found = bptt.verify(mixing, lambda y, t: y, (xs, None), start, initial_state=lambda: start)
    assert said(found, False) == ()
    found = bptt.verify(mixing, lambda y, t: y, (xs, None), start, state_batch_dim=0, initial_state=lambda: start)
    assert said(found, False) == (answers.ROWS,)


def test_parts_that_are_frozen_or_chosen():
    step = Beside(False)
    step.head.requires_grad_(False)
    found = bptt.verify(bptt.scan(step), square, data(), one())
    assert found.ok
    assert notes(found) == (answers.TRAINED,)
    step.head.requires_grad_(True)
    assert bptt.verify(bptt.scan(step), square, data(), one(), params=step.inner.parameters()).ok
    found = bptt.verify(bptt.scan(step), square, data(), one(), params=step.head.parameters())
    assert said(found, False) == (answers.REACHED,)


def test_the_remedy_that_it_names():
    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.mem = nn.Linear(IN, HIDDEN), None

        def forward(self, x):
            self.mem = self.inner(x) if self.mem is None else 0.5 * self.mem + self.inner(x)
            return self.mem

    found = bptt.verify(bptt.scan(bptt.explicit_state(Spiking())), square, data())
    assert found.ok, str(found)
    assert said(found, None) == ()


def test_bad_arguments():
    xs, ys = data()
    lazy = bptt.scan(Normed(nn.LazyBatchNorm1d()))
    for call, told in (
        (lambda: bptt.verify(nn.GRU(IN, HIDDEN), square, (xs[:0], ys[:0])), "no step"),
        (lambda: bptt.verify(nn.GRU(IN + 1, HIDDEN), square, (xs, ys)), "inputs"),
        (lambda: bptt.verify(bptt.scan(Step()), square, (xs, ys)), "state=None"),
        (lambda: bptt.verify(lazy, square, (xs, ys), one()), "first call"),
        (lambda: bptt.verify(nn.GRU(IN, HIDDEN), lambda y, t: y.sum(), (xs, ys)), "reduced over time"),
    ):
        with pytest.raises((ValueError, TypeError), match=told) as caught:
            call()
        assert "\n" not in str(caught.value)
