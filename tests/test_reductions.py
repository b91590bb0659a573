"""Methods that must coincide do: truncated far enough, chunked anyhow, stored or replayed, it is one gradient."""

import pytest
import torch

import bptt
from support import oracle
from support.cases import NAMES, STEPS, TORCH, make, some_resets, square
from support.runs import check, engine, expected, gradient
from support.strategies_under_test import CUTTING, STRATEGIES

T = 9
CUTS = {"whole": (), "halves": (4,), "uneven": (1, 2, 7), "single steps": range(T)}
BUDGETS = {
    "all stored": None,
    "1 slot": bptt.Checkpoints(1, 1),
    "2 slots": bptt.Checkpoints(2, 1),
    "3 slots of 2": bptt.Checkpoints(3, 2),
    "2 slots of 4": bptt.Checkpoints(2, 4),
    "one segment": bptt.Checkpoints(1, 100),
    "bytes": "1MiB",
}


def plain(case) -> list:
    """One call over all of time and one `backward`, as anybody would write it."""
    outputs, _ = case.model(case.xs, case.zeros())
    square(outputs, case.ys).mean(tuple(range(1, outputs.dim()))).sum().backward()
    return oracle.gradients(case.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.thin
def test_far_enough_truncation_is_full_backpropagation(name, cuts):
    case = make(name, T)
    want = plain(case)
    for strategy in [
        bptt.FullBPTT(),
        bptt.TruncatedBPTT(T, T),
        bptt.TruncatedBPTT(T + 5),
        *(bptt.TruncatedBPTT(k, T + k - 1) for k in range(1, T + 1)),
    ]:
        got, updates = gradient(case, strategy, cuts=cuts)
        oracle.assert_close(got, want)
        assert sum(u.steps for u in updates) == T


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.thin
def test_budget_does_not_change_the_full_gradient(name, memory):
    case = make(name, T)
    want = plain(case)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(T, T), bptt.TruncatedBPTT(2, T + 1)):
        oracle.assert_close(gradient(case, strategy, memory=memory, cuts=(5,))[0], want)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_backward_equals_unroll_and_loss_backward(name, memory):
    case = make(name, T)
    want = plain(case)
    for strategy in (None, bptt.FullBPTT(), bptt.TruncatedBPTT(3, T + 2)):
        keywords = {} if strategy is None else {"strategy": strategy}
        bptt.backward(case.model, square, (case.xs, case.ys), memory=memory, reduction="sum", **keywords)
        oracle.assert_close(oracle.gradients(case.parameters()), want)


@pytest.mark.deep
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("memory", list(BUDGETS.values())[1:], ids=list(BUDGETS)[1:])
def test_budget_does_not_change_any_strategys_gradient(strategy, memory):
    for name in ("lstm2", "dict"):
        case = make(name, 11)
        is_start = some_resets(11, 2)
        check(case, strategy, memory=memory, is_start=is_start, cuts=(3, 4))


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.thin
def test_chunks_do_not_change_any_strategys_gradient(strategy, cuts):
    for name in ("gru2", "named"):
        case = make(name, T)
        whole, cut = check(case, strategy), check(case, strategy, cuts=cuts)
        for a, b in zip(whole, cut, strict=True):
            assert (a.t0, a.t1, a.start) == (b.t0, b.t1, b.start)
            oracle.assert_close([b.loss, b.cotangent_norm, b.state], [a.loss, a.cotangent_norm, a.state])


@pytest.mark.parametrize("strategy", [bptt.SnAp(1, 3), bptt.SnAp(2), bptt.UORO(3), bptt.UORO()], ids=str)
@pytest.mark.parametrize("name", ["gru", "gru2", "lstm", "named", "dict"])
@pytest.mark.deep
def test_chunks_and_budgets_do_not_change_an_approximation(strategy, name):
    case, is_start = make(name, T), some_resets(T, 2)
    want, whole = gradient(case, strategy, is_start=is_start)
    for cuts, memory in (((3, 4), None), ((), bptt.Checkpoints(2, 2)), (range(1, T), "1MiB")):
        got, cut = gradient(case, strategy, is_start=is_start, cuts=cuts, memory=memory)
        oracle.assert_close(got, want)
        oracle.assert_close([u.state for u in cut], [u.state for u in whole])


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_equals_the_definition(strategy, name):
    check(make(name, 10, B=3), strategy, cuts=(3,))


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("length", [1, 2])
def test_very_short_streams(strategy, length):
    check(make("lstm", length), strategy)
    check(make("dict", length), strategy, memory=bptt.Checkpoints(1, 1))


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("name", ["gru", "dict"])
def test_time_axis(strategy, name):
    """time_dim=1 on transposed data is time_dim=0."""
    case = make(name, T)
    is_start, mask = some_resets(T, 2), ~some_resets(T, 2, seed=9)
    rows = {"is_start": is_start, "mask": mask}
    by_time = gradient(case, strategy, **rows)[1]
    want = expected(case, strategy, by_time, **rows)
    inner = engine(case)

    def model(inputs, state):
        outputs, state = inner(inputs.transpose(0, 1), state)
        return outputs.transpose(0, 1), state

    def loss(outputs, targets):
        assert outputs.shape[0] == 2
        return square(outputs, targets)

    pieces = [tuple(v[a:b].transpose(0, 1) for v in (case.xs, case.ys, is_start, mask)) for a, b in ((0, 4), (4, T))]
    keywords = {"initial_state": case.zeros, "state_batch_dim": case.batch_dim}
    for memory in (None, bptt.Checkpoints(2, 2)):
        run = bptt.unroll(
            model,
            loss,
            pieces,
            strategy=strategy,
            reduction="sum",
            time_dim=1,
            memory=memory,
            generator=torch.Generator().manual_seed(0),
            **keywords,
        )
        assert [(u.start, u.t0, u.t1) for u in run] == [(u.start, u.t0, u.t1) for u in by_time]
        oracle.assert_close(oracle.gradients(case.parameters()), want)


@pytest.mark.parametrize("cell", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
def test_batch_first_layers(cell):
    case = make({torch.nn.RNN: "rnn", torch.nn.GRU: "gru", torch.nn.LSTM: "lstm"}[cell], T)
    model = cell(3, 4, batch_first=True, dtype=torch.float64)
    model.load_state_dict(case.model.state_dict())
    stream = [(case.xs[a:b].transpose(0, 1), case.ys[a:b].transpose(0, 1)) for a, b in ((0, 5), (5, T))]
    for _ in bptt.unroll(model, square, stream, strategy=bptt.TruncatedBPTT(2, 5), reduction="sum", time_dim=1):
        pass
    got = oracle.gradients(model.parameters())
    oracle.assert_close(got, expected(case, bptt.TruncatedBPTT(2, 5)))


@pytest.mark.parametrize("name", ["rnn2", "lstm", *STEPS])
def test_from_a_given_state(name):
    case = make(name, T)
    state = case.random_state()
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2, 4)):
        for memory in (None, bptt.Checkpoints(1, 2)):
            check(case, strategy, state=state, memory=memory, cuts=(4,))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_other_kinds_of_layers(nonlinearity):
    torch.manual_seed(0)
    model = torch.nn.RNN(3, 4, nonlinearity=nonlinearity, bias=False, dtype=torch.float64)
    case = make("rnn", T)
    case.model = model
    check(case, bptt.TruncatedBPTT(2, 5), cuts=(4,))


def test_projected_lstm():
    """proj_size: hidden and cell states of different sizes, default zeros included."""
    torch.manual_seed(0)
    case = make("lstm", T, hidden=2)
    case.model = torch.nn.LSTM(3, 4, proj_size=2, dtype=torch.float64)
    case.zeros = lambda: (torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64))
    check(case, bptt.TruncatedBPTT(2, 5), cuts=(4,), is_start=some_resets(T, 2))
