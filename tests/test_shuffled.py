"""A loader that shuffles hands over strangers: refused where a state would be carried from one batch into the next."""

import pytest
import torch
from torch.utils import data

import bptt
from bptt.data import Prefetch

NUMBERS = range(20)
DISTRIBUTED = {"num_replicas": 2, "rank": 0}


def summed(inputs, state):
    total = torch.cat([state.unsqueeze(0), inputs]).cumsum(0)
    return total[1:], total[-1]


LOSS = bptt.per_step(torch.nn.functional.mse_loss)


def batches(marked=False, **keywords):
    """A loader of chunks of 4 steps and one row, whole or from single numbers."""

    def chunk(numbers):
        inputs = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1)
        start = torch.arange(len(inputs)) == 0
        return (inputs, inputs, start) if marked else (inputs, inputs)

    size = {} if "batch_sampler" in keywords else {"batch_size": 4}
    return data.DataLoader(NUMBERS, collate_fn=chunk, **size | keywords)


SHUFFLING = {
    "shuffle": lambda: {"shuffle": True},
    "one by one": lambda: {"shuffle": True, "batch_size": None},
    "a subset": lambda: {"sampler": data.SubsetRandomSampler(NUMBERS)},
    "weighted": lambda: {"sampler": data.WeightedRandomSampler([1.0] * 20, 20)},
    "distributed": lambda: {"sampler": data.DistributedSampler(NUMBERS, **DISTRIBUTED)},
    "batches": lambda: {"batch_sampler": data.BatchSampler(data.RandomSampler(NUMBERS), 4, False)},
}
IN_ORDER = {
    "plain": dict,
    "one by one": lambda: {"batch_size": None},
    "distributed": lambda: {"sampler": data.DistributedSampler(NUMBERS, **DISTRIBUTED, shuffle=False)},
    "batches": lambda: {"batch_sampler": data.BatchSampler(data.SequentialSampler(NUMBERS), 4, False)},
}


def steps(stream):
    evaluation = bptt.evaluate(summed, LOSS, stream, initial_state=torch.zeros(1))
    return evaluation.steps


@pytest.mark.parametrize("kind", SHUFFLING)
@pytest.mark.parametrize("ahead", [False, True])
def test_a_loader_that_shuffles_is_refused_at_its_second_batch(kind, ahead):
    loader = batches(**SHUFFLING[kind]())
    assert torch.cat([chunk[0].flatten() for chunk in loader]).diff().min() < 0  # it does
    stream = Prefetch(loader) if ahead else loader
    with pytest.raises(ValueError, match=r"stream shuffles \(\w+\).*shuffle=False") as raised:
        steps(stream)
    assert "\n" not in str(raised.value)


def test_unroll_has_made_no_update_of_a_second_batch():
    scale = torch.ones(1, requires_grad=True)

    def scaled(inputs, state):
        return summed(inputs * scale, state)

    words = {"strategy": bptt.TruncatedBPTT(4), "initial_state": torch.zeros(1), "params": [scale]}
    updates = bptt.unroll(scaled, LOSS, batches(shuffle=True), **words)
    assert next(updates).t1 == 4
    with pytest.raises(ValueError, match="stream shuffles"):
        next(updates)


@pytest.mark.parametrize("kind", SHUFFLING)
def test_whole_sequences_in_random_order_pass(kind):
    assert steps(batches(marked=True, **SHUFFLING[kind]())) in (10, 20)


@pytest.mark.parametrize("kind", IN_ORDER)
def test_a_loader_in_order_passes(kind):
    assert steps(batches(**IN_ORDER[kind]())) in (10, 20)
