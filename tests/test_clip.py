"""`clip_cotangent`: each row's incoming recurrent cotangent, over all floating leaves, at every step."""

import pytest
import torch

import bptt
from support import oracle
from support.cases import make, some_resets, square
from support.runs import check, gradient, unroll
from support.strategies_under_test import CUTTING

T = 9
NAMES = ["rnn2", "gru", "lstm2", "dict", "named", "complex"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", [1e-3, 0.02, 0.1])
def test_clip_equals_the_oracle(name, bound):
    case = make(name, T, B=3)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2, 5), bptt.TruncatedBPTT(3)):
        check(case, strategy, clip_cotangent=bound, problem={"clip": bound}, cuts=(4,))
    plain = gradient(case, bptt.FullBPTT())[0]
    with pytest.raises(AssertionError):
        oracle.assert_close(gradient(case, bptt.FullBPTT(), clip_cotangent=1e-3)[0], plain, 1e-6)


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 3)], ids=["stored", "replayed"])
@pytest.mark.parametrize("resets", [False, True], ids=["no resets", "resets"])
def test_clip_for_every_strategy(strategy, memory, resets):
    is_start = some_resets(T, 2) if resets else None
    check(
        make("lstm", T),
        strategy,
        clip_cotangent=0.05,
        problem={"clip": 0.05},
        memory=memory,
        is_start=is_start,
        cuts=(2, 7),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_never_met_changes_nothing(name):
    case = make(name, T)
    oracle.assert_close(
        gradient(case, bptt.TruncatedBPTT(2, 5), clip_cotangent=1e6)[0], gradient(case, bptt.TruncatedBPTT(2, 5))[0]
    )


def test_the_local_term_is_not_clipped():
    """s_t = a s_{t-1} + x_t with l_t = 100 s_t: what comes back from t + 1 is bounded, 100 is not."""
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    model = bptt.scan(lambda x, s: (a * s + x, a * s + x))
    x = torch.ones(3, 1, dtype=torch.float64)
    bptt.backward(
        model,
        lambda o, y: 100 * o,
        (x, None),
        torch.zeros(1, dtype=torch.float64),
        reduction="sum",
        clip_cotangent=1.0,
        state_batch_dim=0,
    )
    # states 0, 1, 1.5, 1.75; cotangents 101, 101, 100
    assert float(a.grad) == pytest.approx(101 * 0 + 101 * 1 + 100 * 1.5, rel=1e-14)


def test_rows_are_clipped_one_by_one():
    """A row with a huge loss is clipped as if the other were not there."""
    case, weight = make("gru", T), torch.tensor([1e4, 1.0], dtype=torch.float64)[:, None]

    def loss(outputs, targets):
        return square(outputs, targets) * weight

    check(case, bptt.FullBPTT(), loss=loss, clip_cotangent=0.3, problem={"clip": 0.3})


def test_a_cotangent_of_zero_stays_zero():
    """Steps without a loss send nothing back: no division of zero by zero."""
    case, mask = make("gru", T), torch.zeros(T, 2, dtype=torch.bool)
    mask[2, 0] = True
    grads, _ = gradient(case, bptt.FullBPTT(), clip_cotangent=0.1, mask=mask)
    assert all(torch.isfinite(g).all() for g in grads)
    check(case, bptt.FullBPTT(), clip_cotangent=0.1, mask=mask, problem={"clip": 0.1})


def test_the_norm_that_is_reported_is_the_clipped_one():
    case = make("gru", T, B=4)
    norms = [float(update.cotangent_norm) for update in unroll(case, bptt.TruncatedBPTT(3), clip_cotangent=1e-4)]
    assert norms == pytest.approx([2e-4] * 3, rel=1e-12)  # four rows of 1e-4


def test_the_docstring_says_it_is_biased():
    assert "biased" in bptt.unroll.__doc__


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), "small"])
def test_impossible_bounds(bound):
    case = make("gru", T)
    with pytest.raises((ValueError, TypeError), match="clip_cotangent") as info:
        bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=bptt.FullBPTT(), clip_cotangent=bound)
    assert "\n" not in str(info.value)
