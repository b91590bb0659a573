"""Several processes: the gradient of one process with all rows, windows that agree, and errors on all ranks."""

import numpy
import pytest
import torch

import bptt
from support import ranks
from support.pages import ROOT
from support.processes import Processes


@pytest.fixture(scope="module")
def three():
    group = Processes(3)
    yield group
    group.stop()


ADAPTIVE = bptt.AdaptiveTruncatedBPTT(0.6, k_min=1, k_max=8, probe_every=2, window=4)
STRATEGIES = {
    "full": bptt.FullBPTT(),
    "tbptt-5": bptt.TruncatedBPTT(5),
    "tbptt-3-7": bptt.TruncatedBPTT(3, 7),
    "burn-in": bptt.TruncatedBPTT(4, 6, burn_in=2),
    "artbp": bptt.ARTBP(bptt.ConstantLaw(mean_length=5)),
    "adaptive": ADAPTIVE,
}
OPTIONS = {
    "plain": {},
    "mask": {"masked": True},
    "valid": {"masked": True, "reduction": "valid"},
    "slots": {"memory": bptt.Checkpoints(slots=2, segment=3)},
    "bytes": {"memory": "80KiB"},
    "window": {"loss": bptt.per_window(ranks.of_window)},
    "window-slots": {"loss": bptt.per_window(ranks.of_window), "memory": bptt.Checkpoints(slots=2, segment=3)},
}
CASES = [(s, o) for o in OPTIONS for s in STRATEGIES if "window" not in o or s in ("full", "tbptt-5", "tbptt-3-7")]


KINDS = ["ddp", "fsdp", "average"]
SLOTS = {"memory": bptt.Checkpoints(slots=2, segment=3)}


def close(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        numpy.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.thin
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_two_ranks_are_one_with_all_rows(pair, kind, strategy, options):
    """Weights after a run of SGD, and where its windows lie."""
    strategy, options = STRATEGIES[strategy], OPTIONS[options]
    want, steps = ranks.alone(strategy, options)
    for got, same in pair(ranks.train, kind, strategy, options):
        assert same == steps
        close(got, want)


def test_ranks_alone_would_adapt_to_other_lengths():
    """Else the case above would show nothing."""
    alone = [ranks.run(ranks.Model(), "none", ADAPTIVE, rows)[1][0] for rows in (slice(16), slice(16, 32), slice(32))]
    assert len(set(alone)) == 3


@pytest.mark.parametrize("kind", ["ddp", "average"])
@pytest.mark.parametrize("strategy", ["full", "tbptt-3-7", "adaptive"])
def test_backward(pair, kind, strategy):
    model, (xs, ys, mask) = ranks.Model(), ranks.data()
    bptt.backward(model, ranks.per_row, (xs, ys, None, mask), strategy=STRATEGIES[strategy], reduction="valid")
    for got in pair(ranks.merged, kind, STRATEGIES[strategy]):
        close(got, [p.grad.numpy() for p in model.parameters()])


@pytest.mark.thin
@pytest.mark.parametrize("kind", ["scan", "closure", "nested"])
@pytest.mark.parametrize("strategy", ["tbptt-3-7", "adaptive"])
@pytest.mark.parametrize("options", [{}, SLOTS], ids=["stored", "replayed"])
def test_wrappers_that_are_not_the_model_itself(pair, kind, strategy, options):
    strategy = STRATEGIES[strategy]
    want, steps = ranks.alone(strategy, options) if kind == "nested" else ranks.hidden("one", strategy, options)
    for got, same in pair(ranks.hidden, kind, strategy, options):
        assert same == steps
        close(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SLOTS], ids=["stored", "replayed"])
def test_gradients_are_averaged_once_an_update(pair, kind, options):
    strategy = bptt.TruncatedBPTT(6, 12)
    for updates, reductions in pair(ranks.averagings, kind, strategy, options):
        assert updates == 4
        assert reductions == updates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SLOTS], ids=["stored", "replayed"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(pair, kind, options):
    nan = float("nan")
    for told in pair(ranks.refused, kind, bptt.TruncatedBPTT(5, 7), options, None, (1, 17, nan)):
        text = "rank 1: the loss at step 17 is nan: no update was made from it."
        assert told == ("NonFiniteLossError", text, 17, True)


@pytest.mark.thin
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SLOTS], ids=["stored", "replayed"])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(pair, kind, options):
    """Shards don't say whose it was, nor at which step."""
    strategy, (rank, step) = bptt.TruncatedBPTT(5, 7), ("", 13) if kind == "fsdp" else ("rank 1: ", 17)
    for name, text, at, untouched in pair(ranks.refused, kind, strategy, options, None, (1, 17, 99.0), ranks.steep):
        assert (name, at, untouched) == ("NonFiniteGradientError", step, True)
        assert text.startswith(f"{rank}the gradient of steps 13 to 19 isn't finite")


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_rank_meets_stops_all(pair, kind):
    first, second = pair(ranks.refused, kind, bptt.TruncatedBPTT(5), {}, None, (1, 17, ValueError("no more data.")))
    assert first[:2] == ("RuntimeError", "rank 1 can't go on: ValueError: no more data.")
    assert second[:2] == ("ValueError", "no more data.")


@pytest.mark.parametrize("kind", KINDS)
def test_different_seeds_are_refused_at_the_first_window_that_differs(pair, kind):
    told = pair(ranks.refused, kind, bptt.ARTBP(bptt.ConstantLaw(mean_length=5)), {"seeds": (0, 1)})
    assert told[0] == told[1]
    assert told[0][1].startswith(
        "the ranks' windows differ: rank 0 has the window of steps 0 to 6 and rank 1 has the window of steps 0 to 0."
    )


@pytest.mark.parametrize(
    ("kind", "strategy", "options", "wrapper", "words"),
    [
        ("ddp", bptt.TruncatedBPTT(5), {"params": True}, {}, "params= can't go with DistributedDataParallel"),
        ("fsdp", bptt.TruncatedBPTT(5), {"params": True}, {}, "params= can't go with FSDPModel"),
        ("ddp", bptt.TruncatedBPTT(5), SLOTS, {"static_graph": True}, "static_graph=True"),
        ("average", bptt.FullBPTT(), {"lengths": {1: 20}}, {}, "steps 0 to 22 and rank 1 has the window of steps 0 to"),
        ("average", ADAPTIVE, {"lengths": {1: 12}}, {}, "windows differ"),
    ],
)
def test_what_cannot_be_right_is_refused(pair, kind, strategy, options, wrapper, words):
    for told in pair(ranks.refused, kind, strategy, options, wrapper):
        assert told[0] == "ValueError"
        assert words in told[1]
        assert "\n" not in told[1]


def test_join_is_refused(pair):
    assert all("join() is active: leave it out" in told for told in pair(ranks.joined, bptt.TruncatedBPTT(5)))


@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(5), ADAPTIVE], ids=["tbptt", "adaptive"])
def test_a_static_graph(pair, strategy):
    """Probes don't go through the wrapper, so that it sees one backward pass an update."""
    want, _ = ranks.alone(strategy, {})
    for got, _ in pair(ranks.train, "ddp", strategy, {}, {"static_graph": True}):
        close(got, want)


RESETS = [(4, 1), (9, 20), (10, 20), (13, 3)]


@pytest.mark.thin
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["tbptt-3-7", "adaptive"])
def test_rows_that_reset_at_other_steps_on_each_rank(pair, kind, strategy):
    """Which cuts the calls of the model at other steps."""
    options = {"resets": RESETS, "memory": bptt.Checkpoints(slots=2, segment=3)}
    want, steps = ranks.alone(STRATEGIES[strategy], options)
    for got, same in pair(ranks.train, kind, STRATEGIES[strategy], options):
        assert same == steps
        close(got, want)


def test_calls_that_broadcast_must_agree(pair):
    strategy = bptt.TruncatedBPTT(3, 7)
    for told in pair(ranks.buffers, strategy, RESETS, True):
        assert "each call communicates buffers. Give DistributedDataParallel broadcast_buffers=False" in told
    want, _ = ranks.alone(strategy, {"resets": RESETS})
    for got, _ in pair(ranks.buffers, strategy, RESETS, False):
        close(got, want)


@pytest.mark.thin
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("strategy", "options"), [("tbptt-5", {}), ("tbptt-3-7", {"reduction": "valid"}), ("artbp", {}), ("tbptt-5", SLOTS)]
)
def test_streams_of_different_lengths_end_together(three, kind, strategy, options):
    """As in one process where the rows of a stream that has ended are masked."""
    strategy, lengths = STRATEGIES[strategy], (23, 16, 9)
    want = ranks.alone_uneven(strategy, lengths, options)
    counts = set()
    for got, steps in three(ranks.uneven, kind, strategy, lengths, options):
        counts.add(len(steps))
        close(got, want)
    assert len(counts) == 1


@pytest.mark.parametrize("strategy", ["tbptt-3-7", "artbp", "adaptive"])
def test_each_rank_goes_on_from_a_state_of_its_own(pair, strategy):
    want, _ = ranks.alone(STRATEGIES[strategy], {})
    for got in pair(ranks.resumed, STRATEGIES[strategy]):
        close(got, want)


@pytest.mark.thin
@pytest.mark.parametrize("strategy", ["tbptt-3-7", "artbp", "adaptive"])
@pytest.mark.parametrize("options", [{}, {"memory": "80KiB"}], ids=["stored", "bytes"])
def test_a_state_goes_on_with_another_number_of_ranks(pair, strategy, options):
    """Two, then one, then two."""
    how = (STRATEGIES[strategy], options, 16)
    want, _ = ranks.alone(STRATEGIES[strategy], options)
    first = pair(ranks.relayed, "two", *how, 2)[0]
    assert first[1]["carried"].shape == (1, 32, 4)
    second = ranks.relayed("one", *how, 1, first)
    for got, _ in pair(ranks.relayed, "two", *how, None, second):
        close(got, want)


def test_states_that_cannot_be_gathered_or_narrowed(pair):
    told = pair(ranks.apart)
    assert all("rank 1 stands at step 10, rank 0 at step 5: call it on all ranks" in each for each in told)
    _, state = ranks.relayed("one", bptt.TruncatedBPTT(5), {}, 16, 1)
    for rows in (slice(8, 40), slice(4, 4), slice(0, 8, 2)):
        with pytest.raises(ValueError, match="of a run of 32 rows: pass a slice within these"):
            bptt.distributed.narrow_state(state, rows)
    with pytest.raises(ValueError, match="list isn't a state of a run"):
        bptt.distributed.gather_state([])


def test_evaluate_counts_the_rows_of_all_ranks(pair):
    """However many each has; without group= the rank's own."""
    all_of_it = bptt.evaluate(ranks.Model(), ranks.per_row, ranks.chunks(slice(None), masked=True))
    for split in (16, 20):
        for found in pair(ranks.evaluated, split, True):
            assert found == pytest.approx((all_of_it.loss.item(), all_of_it.mean_loss.item()), rel=1e-12)
    own = bptt.evaluate(ranks.Model(), ranks.per_row, ranks.chunks(slice(16), masked=True))
    assert pair(ranks.evaluated, 16, False)[0] == pytest.approx((own.loss.item(), own.mean_loss.item()), rel=1e-12)


def test_average_gradients(pair):
    for grads, same, told in pair(ranks.averaged):
        assert grads[0] == [1.5, 3.0]
        assert grads[1] == [2.0, 4.0]
        assert grads[2] == pytest.approx([1e38, 1e38])
        assert grads[3] == [0.5 + 1j, 0]
        assert grads[4] is None
        assert same
        assert [next(w for w in ("sparse", "sharded", "float") if w in text) for text in told] == [
            "sparse",
            "sharded",
            "float",
        ]


def test_in_one_process_nothing_is_done():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    bptt.distributed.average_gradients([p])
    assert p.grad.tolist() == [1.0, 1.0]
    assert torch.distributed.group.WORLD is None
    for name in ("unroll", "backward", "evaluate"):
        more = {} if name == "evaluate" else {"strategy": bptt.FullBPTT()}
        with pytest.raises(TypeError, match="group='gloo': pass a process group such as"):
            getattr(bptt, name)(ranks.Model(), ranks.per_row, (torch.ones(2, 1, 3), None), group="gloo", **more)


def test_the_page_on_two_ranks(pair):
    """Its blocks run in one process among those of the other pages; here as under torchrun."""
    (size, first), (_, second) = pair(ranks.page, ROOT / "docs" / "guide" / "several_processes.md")
    assert size == 2
    for a, b in zip(first, second, strict=True):
        numpy.testing.assert_array_equal(a, b)


def test_what_is_private_of_the_wrappers(pair):
    for seen in pair(ranks.private):
        assert seen == [False, True, True, False, True, True, True]
