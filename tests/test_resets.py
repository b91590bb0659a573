"""Rows that reset and steps that are masked: in `unroll`, `backward` and `evaluate`, for any recurrence."""

import pytest
import torch

import bptt
from support import oracle
from support.cases import NAMES, chunks, make, some_resets, square
from support.runs import check, engine, expected, gradient, seed, start, unroll
from support.strategies_under_test import ALL, STRATEGIES

T = 11
BUDGETS = {"stored": None, "1 slot": bptt.Checkpoints(1, 1), "3 slots of 4": bptt.Checkpoints(3, 4)}


def pattern(kind: str, B: int = 2) -> torch.Tensor:
    r = torch.zeros(T, B, dtype=torch.bool)
    if kind == "first step":
        r[0] = True
    elif kind == "last step":
        r[-1, 0] = True
    elif kind == "one row, adjacent steps":
        r[3:6, 1] = True
    elif kind == "all rows":
        r[4] = r[7] = True
    elif kind == "everywhere":
        r[:] = True
    elif kind == "random":
        r = some_resets(T, B, rate=0.3)
    return r


KINDS = ["nowhere", "first step", "last step", "one row, adjacent steps", "all rows", "everywhere", "random"]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.thin
def test_resets_for_every_strategy(strategy, kind):
    for memory in BUDGETS.values():
        check(make("lstm2", T, hidden=3), strategy, is_start=pattern(kind), cuts=(4, 7), memory=memory)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_resets_for_every_recurrence(name, kind):
    case = make(name, T, B=3)
    for strategy in (bptt.TruncatedBPTT(2, 5), bptt.FullBPTT()):
        check(case, strategy, is_start=pattern(kind, 3), state=case.random_state(), cuts=(3,))


@pytest.mark.parametrize("name", ["gru", "dict", "named"])
def test_reset_goes_to_the_initial_state_not_to_zero(name):
    case = make(name, T)
    initial = case.random_state(5)
    for keyword in (initial, lambda: initial):
        check(
            case,
            bptt.TruncatedBPTT(3, 4),
            is_start=pattern("random"),
            state=case.random_state(6),
            initial_state=keyword,
            problem={"initial": lambda: initial},
        )


def test_a_reset_row_is_as_if_it_began_there():
    """Row 0 resets at step 4: its later losses are those of a run of its own."""
    case, is_start = make("gru", T), pattern("nowhere")
    is_start[4, 0] = True
    seen = []

    def loss(outputs, targets):
        seen.append(outputs.detach())
        return square(outputs, targets)

    list(unroll(case, bptt.FullBPTT(), is_start=is_start, loss=loss))
    outputs = torch.cat(seen)[-T:]
    alone, _ = case.model(case.xs[4:, :1])
    assert torch.allclose(outputs[4:, :1], alone, rtol=1e-12, atol=0)
    whole, _ = case.model(case.xs)
    assert torch.allclose(outputs[:, 1:], whole[:, 1:], rtol=1e-12, atol=0)


def test_no_cotangent_crosses_a_reset():
    """Losses after a reset of every row leave the inputs before it without gradient, exactly."""
    case, is_start = make("lstm", T), pattern("nowhere")
    is_start[5] = True
    for memory in BUDGETS.values():
        xs = case.xs.clone().requires_grad_()
        mask = torch.ones(T, 2, dtype=torch.bool)
        mask[:5] = False
        bptt.backward(case.model, square, (xs, case.ys, is_start, mask), memory=memory)
        assert torch.count_nonzero(xs.grad[:5]) == 0
        assert torch.count_nonzero(xs.grad[5:]) == xs.grad[5:].numel()


def test_integer_leaves_are_reset_too():
    case = make("dict", T)
    is_start = pattern("nowhere")
    is_start[4, 0] = is_start[9, 1] = True
    *_, last = unroll(case, bptt.TruncatedBPTT(2, 3), is_start=is_start)
    assert last.state["rest"][1].tolist() == [T - 4, T - 9]
    assert last.state["rest"][1].dtype == torch.int64
    assert last.state["odd"].dtype == torch.bool


@pytest.mark.parametrize("kind", ["whole steps", "rows"])
def test_is_start_and_mask_of_shape_t(kind):
    """(T,) marks every row of the step."""
    case, is_start, mask = make("gru", T), torch.zeros(T, dtype=torch.bool), torch.ones(T, dtype=torch.bool)
    is_start[[3, 8]], mask[[1, 2, 10]] = True, False
    if kind == "rows":
        is_start, mask = (v[:, None].expand(T, 2) for v in (is_start, mask))
    wide = {"is_start": is_start.reshape(T, -1).expand(T, 2), "mask": mask.reshape(T, -1).expand(T, 2)}
    got, updates = gradient(case, bptt.TruncatedBPTT(2, 5), is_start=is_start, mask=mask, cuts=(4,))
    oracle.assert_close(got, expected(case, bptt.TruncatedBPTT(2, 5), **wide))
    assert updates[0].t1 == 2


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_masks(strategy, memory):
    case, mask = make("lstm", T), ~some_resets(T, 2, rate=0.4)
    mask[4:7] = False  # whole steps without a loss
    updates = check(case, strategy, mask=mask, cuts=(4, 5), memory=memory, is_start=pattern("random"))
    whole = sum(float(u.loss) for u in updates)
    want = bptt.evaluate(case.model, square, chunks(case.xs, case.ys, pattern("random"), mask))
    assert whole == pytest.approx(float(want.loss), rel=1e-12)


def test_a_mask_broadcasts_over_trailing_axes():
    case, mask = make("gru", T), ~some_resets(T, 2)

    def rows(outputs, targets):
        return square(outputs, targets).mean(-1)

    wide = gradient(case, bptt.FullBPTT(), mask=mask)[0]
    oracle.assert_close(gradient(case, bptt.FullBPTT(), mask=mask, loss=rows)[0], wide)


def test_mean_loss_is_over_valid_steps():
    case, mask = make("gru", T), ~some_resets(T, 2, rate=0.5)

    def ones(outputs, targets):
        return 0 * outputs + 1

    means = [float(update.mean_loss) for update in unroll(case, bptt.TruncatedBPTT(4), mask=mask, loss=ones)]
    assert means == pytest.approx([1] * 3, rel=1e-13)
    result = bptt.evaluate(case.model, ones, chunks(case.xs, case.ys, None, mask, cuts=(3,)))
    assert float(result.mean_loss) == pytest.approx(1, rel=1e-13)
    assert result.steps == T


@pytest.mark.parametrize("name", ["gru2", "lstm", "dict", "named", "complex"])
@pytest.mark.parametrize("learned", [False, True], ids=["default", "given"])
def test_going_on_from_any_update_equals_the_uninterrupted_run(name, learned):
    """From `update.state`, with a reset later: the same losses, gradients and states as without a break."""
    case, is_start = make(name, 13), some_resets(13, 2)
    is_start[11, 0] = True
    more = {}
    if learned or case.step is not None:
        initial = case.random_state(5)
        more = {"initial_state": lambda: initial}
        case.zeros = lambda: initial
    strategy = bptt.TruncatedBPTT(3)
    tensors = case.parameters()
    run = unroll(case, strategy, is_start=is_start, cuts=(4, 5), **more)
    whole = [(update, oracle.gradients(tensors)) for update in run]
    assert [update.t1 for update, _ in whole] == [3, 6, 9, 12, 13]
    for i, (middle, _) in enumerate(whole[:-1]):
        t = middle.t1
        rest = chunks(case.xs[t:], case.ys[t:], is_start[t:], cuts=(2,))
        keywords = start(case) | {"reduction": "sum"} | more
        run = bptt.unroll(engine(case), square, rest, middle.state, strategy=strategy, **keywords)
        for again, (update, grads) in zip(run, whole[i + 1 :], strict=True):
            oracle.assert_close(oracle.gradients(tensors), grads)
            oracle.assert_close([again.loss], [update.loss])
            oracle.assert_close(again.state, update.state)
            assert again.t0 + t == update.t0


def test_going_on_works_for_every_strategy():
    """Losses and states (gradients of windows that reach back are another matter)."""
    case, is_start = make("gru", 13), some_resets(13, 2)
    initial = case.random_state(5)
    for strategy in ALL.values():
        whole = list(unroll(case, strategy, is_start=is_start, initial_state=initial))
        assert whole[-1].t1 == 13
        for middle in whole[:-1]:
            t = middle.t1
            stream = [(case.xs[t:], case.ys[t:], is_start[t:])]
            *_, last = bptt.unroll(
                case.model, square, stream, middle.state, strategy=strategy, initial_state=initial, generator=seed(9)
            )
            oracle.assert_close(last.state, whole[-1].state)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_backward_with_resets_and_masks(strategy):
    case, is_start, mask = make("lstm", T), pattern("random"), ~some_resets(T, 2, seed=8)
    want, updates = gradient(case, strategy, is_start=is_start, mask=mask)
    for memory in BUDGETS.values():
        update = bptt.backward(
            case.model,
            square,
            bptt.Chunk(case.xs, case.ys, is_start, mask),
            strategy=strategy,
            memory=memory,
            reduction="sum",
            generator=seed(),
        )
        oracle.assert_close(oracle.gradients(case.parameters()), want)
        oracle.assert_close([update.loss], [sum(u.loss for u in updates)])
        oracle.assert_close(update.state, updates[-1].state)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_aux_is_joined_over_the_updates_steps(strategy, memory):
    case, is_start = make("gru", T), pattern("random")

    def loss(outputs, targets):
        losses = square(outputs, targets)
        return losses, {"outputs": outputs, "hits": [(outputs > targets).sum(-1)], "per step": losses.mean((1, 2))}

    updates = list(unroll(case, strategy, loss=loss, is_start=is_start, cuts=(3, 4), memory=memory))
    for update in updates:
        assert update.aux["outputs"].shape == (update.steps, 2, 4)
        assert update.aux["hits"][0].shape == (update.steps, 2)
        assert not any(leaf.requires_grad for leaf in oracle.leaves(update.aux))
        assert float(update.aux["per step"].sum()) == pytest.approx(float(update.loss), rel=1e-12)
    whole = bptt.evaluate(case.model, loss, chunks(case.xs, case.ys, is_start, cuts=(5,))).aux
    joined = torch.cat([u.aux["outputs"] for u in updates])
    assert torch.allclose(joined, whole["outputs"], rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.cat([u.aux["hits"][0] for u in updates]), whole["hits"][0])
    merged = bptt.backward(case.model, loss, (case.xs, case.ys, is_start), strategy=strategy, memory=memory)
    assert torch.allclose(merged.aux["outputs"], whole["outputs"], rtol=1e-12, atol=1e-14)


def test_aux_is_none_without_one():
    case = make("gru", 4)
    assert [u.aux for u in unroll(case, bptt.TruncatedBPTT(2))] == [None, None]
    assert bptt.evaluate(case.model, square, [(case.xs, case.ys)]).aux is None


def test_chunks_with_and_without_resets_and_masks():
    """One chunk marks rows, the next whole steps, a third nothing: windows and segments span them all."""
    case, is_start, mask = make("lstm", T), pattern("nowhere"), torch.ones(T, 2, dtype=torch.bool)
    is_start[2, 1] = is_start[5] = True
    mask[1, 0] = mask[6] = False
    stream = [
        bptt.Chunk(case.xs[:4], case.ys[:4], is_start[:4], mask[:4]),
        bptt.Chunk(case.xs[4:7], case.ys[4:7], is_start[4:7].all(1), mask[4:7].all(1)),
        bptt.Chunk(case.xs[7:], case.ys[7:]),
    ]
    for strategy in (bptt.TruncatedBPTT(2, 6), bptt.FullBPTT(), bptt.TruncatedBPTT(5)):
        for memory in BUDGETS.values():
            list(bptt.unroll(case.model, square, stream, strategy=strategy, memory=memory, reduction="sum"))
            got = oracle.gradients(case.parameters())
            oracle.assert_close(got, expected(case, strategy, is_start=is_start, mask=mask))


def test_no_initial_state_is_needed_where_nothing_resets():
    case = make("dict", T)
    stream = [(case.xs, case.ys, torch.zeros(T, 2, dtype=torch.bool))]
    assert sum(u.steps for u in bptt.unroll(engine(case), square, stream, case.zeros(), strategy=bptt.FullBPTT())) == T
