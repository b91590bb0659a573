"""`unroll`: when it reads, yields and accumulates, and what it leaves behind."""

import dataclasses
import gc
import itertools
import weakref

import pytest
import torch

import bptt
from support import oracle
from support.cases import chunks, make, some_resets, square
from support.runs import gradient, seed, unroll
from support.strategies_under_test import ALL, CUTTING, STRATEGIES


@pytest.mark.parametrize(
    ("strategy", "length", "ends"),
    [
        (bptt.TruncatedBPTT(4), 12, [4, 8, 12]),
        (bptt.TruncatedBPTT(4), 10, [4, 8, 10]),
        (bptt.TruncatedBPTT(1, 3), 4, [1, 2, 3, 4]),
        (bptt.TruncatedBPTT(5, 7), 4, [4]),
        (bptt.FullBPTT(), 7, [7]),
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [(), (1, 2), tuple(range(12))])
def test_yield_positions(strategy, length, ends, cuts):
    case = make("gru", length)
    updates = list(unroll(case, strategy, cuts=[c for c in cuts if c < length]))
    assert [u.t1 for u in updates] == ends
    assert [u.t0 for u in updates] == [0, *ends[:-1]]


@pytest.mark.parametrize("name", [name for name in ALL if name != "adaptive"])  # whose probes look ahead
@pytest.mark.parametrize("cuts", [(4, 8), (3, 6, 9), (5,), tuple(range(12)), ()])
def test_an_update_comes_before_the_next_chunk_is_read(name, cuts):
    case, strategy = make("rnn", 12), ALL[name]
    pieces, events = chunks(case.xs, case.ys, cuts=cuts), []
    edges = [0, *[c for c in cuts if c], 12]

    def stream():
        for i, piece in enumerate(pieces):
            events.append(("read", i))
            yield piece

    for update in bptt.unroll(case.model, square, stream(), strategy=strategy, generator=seed(1), reduction="sum"):
        events.append(("update", update.t1))
        if update.t1 < 12:
            reads = sum(kind == "read" for kind, _ in events)
            assert edges[reads] >= update.t1 > edges[reads - 1], f"{reads} chunks read at t1 = {update.t1}"
    assert events[0] == ("read", 0)
    assert [e for e in events if e[0] == "read"] == [("read", i) for i in range(len(pieces))]
    assert events[-1] == ("update", 12)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_nothing_is_read_before_the_first_update_is_asked_for(strategy):
    """Of ten chunks of two steps: none at the call; then what the first update spans, or its probe looks at."""
    case, read = make("rnn", 20), []
    stream = (read.append(chunk) or chunk for chunk in chunks(case.xs, case.ys, cuts=range(2, 20, 2)))
    run = bptt.unroll(case.model, square, stream, strategy=strategy, reduction="sum", generator=seed())
    assert read == []
    first = next(run)
    needed = strategy.window + 8 if isinstance(strategy, bptt.AdaptiveTruncatedBPTT) else first.t1
    assert len(read) == -(-needed // 2)


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
def test_no_graph_survives_a_yield(strategy, small_heap):
    """Nothing that autograd saved is alive between updates, and parameters may change in place there."""

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # an output itself would hold its own graph

    case, alive = make("lstm", 12), weakref.WeakSet()

    def pack(tensor):
        alive.add(saved := Saved(tensor))
        return saved

    def model(inputs, state):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            return case.model(inputs, state)

    packed = 0
    state = case.zeros()
    for memory in (None, bptt.Checkpoints(2, 2), "1MiB"):
        for update in unroll(case, strategy, model=model, state=state, memory=memory, cuts=(5,)):
            packed += 1
            gc.collect()
            assert not alive
            assert all(leaf.grad_fn is None for leaf in oracle.leaves(update.state))
            with torch.no_grad():
                for p in case.parameters():
                    p.mul_(0.9)
    assert packed


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_gradients_accumulate_as_with_loss_backward(strategy):
    """`+=` on what is there; the engine neither zeroes nor steps; the same tensor stays the `.grad`."""
    case = make("gru", 7)
    want, _ = gradient(case, strategy)
    before = [torch.randn_like(p) for p in case.parameters()]
    values = [p.detach().clone() for p in case.parameters()]
    for p, b in zip(case.parameters(), before, strict=True):
        p.grad = b.clone()
    same = [p.grad for p in case.parameters()]
    for _ in unroll(case, strategy, memory=bptt.Checkpoints(2, 1)):
        pass
    oracle.assert_close([p.grad for p in case.parameters()], [b + w for b, w in zip(before, want, strict=True)])
    assert all(torch.equal(p, v) for p, v in zip(case.parameters(), values, strict=True))
    assert all(p.grad is g for p, g in zip(case.parameters(), same, strict=True))


def test_parameters_out_of_reach_keep_no_gradient():
    case = make("gru", 5)
    case.model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    frozen = case.model.bias_hh_l0.requires_grad_(False)
    with pytest.warns(UserWarning, match="unused"):
        for _ in unroll(case, bptt.TruncatedBPTT(2, 3)):
            pass
    assert case.model.unused.grad is None
    assert frozen.grad is None
    assert case.model.weight_hh_l0.grad is not None


def test_hooks_of_parameters_see_the_gradient():
    """Without a budget a parameter's hook fires once a window, as in `loss.backward()`."""
    case, fired, ready = make("gru", 6), [], []
    p = case.model.weight_hh_l0
    p.register_hook(lambda g: fired.append(1) or 2 * g)
    p.register_post_accumulate_grad_hook(lambda p: ready.append(1))
    for _ in unroll(case, bptt.TruncatedBPTT(3)):
        pass
    assert len(fired) == len(ready) == 2
    doubled = p.grad / 2
    case = make("gru", 6)
    want = gradient(case, bptt.TruncatedBPTT(3), [case.model.weight_hh_l0])[0]
    oracle.assert_close([doubled], want)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_grad_modes_are_the_callers_across_a_yield(strategy):
    case = make("gru", 8)
    run = unroll(case, strategy, memory=bptt.Checkpoints(2, 2))
    for _ in run:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    want = oracle.gradients(case.parameters())
    with torch.no_grad():  # the caller's own choice, which is no reason to have no gradient
        for _ in unroll(case, strategy, memory=bptt.Checkpoints(2, 2)):
            assert not torch.is_grad_enabled()
    oracle.assert_close(oracle.gradients(case.parameters()), want, 0.0)
    with torch.no_grad():
        bptt.evaluate(case.model, square, [(case.xs, case.ys)])
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("strategy", list(STRATEGIES.values())[:6], ids=list(STRATEGIES)[:6])
def test_a_loop_under_no_grad_between_updates(strategy):
    """The caller's own grad mode, switched around `next`, is neither relied on nor changed."""
    case = make("gru", 8)
    want, _ = gradient(case, strategy)
    run = unroll(case, strategy)
    while True:
        update = next(run, None)
        if update is None:
            break
        with torch.no_grad():
            sum(leaf.sum() for leaf in oracle.leaves(update.state))
        assert torch.is_grad_enabled()
    oracle.assert_close(oracle.gradients(case.parameters()), want)


def test_a_stream_without_end():
    case = make("gru", 4)
    stream = itertools.cycle([(case.xs, case.ys)])
    run = bptt.unroll(case.model, square, stream, strategy=bptt.TruncatedBPTT(3, 5))
    updates = list(itertools.islice(run, 50))
    assert updates[-1].t1 == 150
    run = bptt.unroll(case.model, square, stream, strategy=bptt.ARTBP(law=bptt.ConstantLaw(5)), generator=seed())
    assert len(list(itertools.islice(run, 20))) == 20


@pytest.mark.parametrize("name", ["tbptt-1-1", "tbptt-3-3", "tbptt-2-5", "artbp-constant", "artbp-polynomial-3"])
def test_old_chunks_are_let_go(name, small_heap):
    """Memory does not grow with the stream: of 200 chunks only the few that a window spans are alive."""
    case, alive, most = make("gru", 2), weakref.WeakSet(), 0

    class Piece(torch.Tensor):
        pass

    def stream():
        for _ in range(200):
            x = case.xs.clone()
            alive.add(x)
            yield x, case.ys.clone()

    for update in bptt.unroll(
        case.model, square, stream(), strategy=STRATEGIES[name], generator=seed(), reduction="sum"
    ):
        gc.collect() if update.t1 % 50 == 0 else None
        span = (update.t1 - update.start) // 2 + 4
        assert len(alive) <= span + 2, f"{len(alive)} chunks alive at {update.t1}"
        most = max(most, len(alive))
    assert update.t1 == 400
    assert most < 60


def test_generator_none_draws_from_the_default_generator():
    case, strategy = make("gru", 60), STRATEGIES["artbp-constant"]
    runs = []
    for number in (1, 1, 2):
        torch.manual_seed(number)
        runs.append([u.t1 for u in unroll(case, strategy, generator=None)])
    assert runs[0] == runs[1] != runs[2]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(unroll(case, strategy, generator=seed(3)))
    list(unroll(case, bptt.TruncatedBPTT(3, 5), generator=None))
    assert torch.equal(torch.get_rng_state(), before)  # a generator given is the only one used


def test_chunks_without_steps_are_passed_over():
    case = make("gru", 7)
    want, _ = gradient(case, bptt.TruncatedBPTT(2, 3))
    empty = (case.xs[:0], case.ys[:0])
    stream = [empty, (case.xs[:3], case.ys[:3]), empty, empty, (case.xs[3:], case.ys[3:]), empty]
    run = bptt.unroll(case.model, square, stream, strategy=bptt.TruncatedBPTT(2, 3), reduction="sum")
    assert [u.t1 for u in run] == [2, 4, 6, 7]
    oracle.assert_close(oracle.gradients(case.parameters()), want)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_a_strategy_is_a_frozen_value(strategy):
    """It may be shared by runs: no running value is kept in it."""
    fields = [field.name for field in dataclasses.fields(strategy)]
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, name, 1)
    before = dataclasses.replace(strategy)
    runs = [unroll(make("gru", 9), strategy, generator=seed(4)) for _ in range(2)]
    ends = [[u.t1 for u in pair] for pair in zip(*runs, strict=True)]
    assert all(a == b for a, b in ends)
    assert ends[-1] == [9, 9]
    assert strategy == before
    assert repr(strategy).startswith(type(strategy).__name__ + "(")


@pytest.mark.deep
@pytest.mark.parametrize("name", ["tbptt-3-3", "tbptt-1-4", "tbptt-2-5", "artbp-constant", "artbp-polynomial-3"])
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2), "1MiB"], ids=["stored", "replayed", "bytes"])
def test_nothing_piles_up(name, memory, small_heap):
    """As many tensors are alive after a hundred chunks as after ten."""
    case, alive = make("gru", 4), []
    is_start = some_resets(4, 2, rate=0.1)
    stream = ((case.xs.clone(), case.ys.clone(), is_start) for _ in range(100))
    run = bptt.unroll(
        case.model, square, stream, strategy=STRATEGIES[name], memory=memory, reduction="sum", generator=seed()
    )
    for update in run:
        if update.t1 < 100 or update.t1 > 300:
            alive.append((update.t1, sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())))
        del update
    early, late = ([n for t, n in alive if t < 100], [n for t, n in alive if t > 300])
    assert len(early) > 5 < len(late)
    assert max(late) <= max(early) + 12
