"""Several processes: the gradient of one process with all rows, windows that agree, and errors on all ranks."""

import numpy
import pytest

import bptt
from support import ranks
from support.processes import Processes


@pytest.fixture(scope="module")
def pair():
    group = Processes(2)
    yield group
    group.stop()


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


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "average"])
@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_two_ranks_are_one_with_all_rows(pair, kind, strategy, options):
    strategy, options = STRATEGIES[strategy], OPTIONS[options]
    want, steps = ranks.alone(strategy, options)
    for got, same in pair(ranks.train, kind, strategy, options):
        assert same == steps
        for a, b in zip(got, want, strict=True):
            numpy.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
