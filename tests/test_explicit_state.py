"""`explicit_state`: a module with a state of its own against the same net with its state written out."""

import copy
import pickle
from collections import deque

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import square
from support.runs import seed
from support.spiking import HIDDEN, IN, LIF, OUT, Buffered, InPlace, Spiking, Written

F64 = torch.float64
T, B = 13, 3


def data():
    torch.manual_seed(0)
    return torch.randn(T, B, IN, dtype=F64), torch.randn(T, B, OUT, dtype=F64)


def zeros():
    return tuple(torch.zeros(B, HIDDEN, dtype=F64) for _ in range(2))


def rows():
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[3, 0] = starts[7, 1:] = starts[8] = True
    return starts


def whole():
    starts = torch.zeros(T, dtype=torch.bool)
    starts[5] = starts[9] = True
    return starts


STRATEGIES = {
    "full": bptt.FullBPTT(),
    "k1 = k2": bptt.TruncatedBPTT(4),
    "k1 < k2": bptt.TruncatedBPTT(3, 7),
    "ARTBP": bptt.ARTBP(bptt.ConstantLaw(4)),
    "ARTBP by row": bptt.ARTBP(bptt.ConstantLaw(4), per_row=True),
}
BUDGETS = {"stored": None, "checkpoints": bptt.Checkpoints(2, 3), "bytes": "4KiB"}
RESETS = {"none": lambda: None, "rows": rows, "all rows": whole}


def run(model, net, state=None, **options):
    """Gradients of the net's parameters, and the updates."""
    xs, ys = data()
    starts = options.pop("starts", None)
    chunk = (xs, ys) if starts is None else (xs, ys, starts)
    oracle.gradients(net.parameters())
    options = {"reduction": "sum", "generator": seed(), "state_batch_dim": 0, **options}
    updates = list(bptt.unroll(model, square, [chunk], state, **options))
    return oracle.gradients(net.parameters()), updates


@pytest.mark.parametrize("starts", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_gradient_is_that_of_the_state_written_out(strategy, memory, starts):
    net = Spiking()
    options = {"strategy": strategy, "memory": memory, "starts": starts()}
    want, _ = run(bptt.scan(Written(net)), net, initial_state=zeros(), **options)
    got, updates = run(bptt.scan(bptt.explicit_state(net)), net, **options)
    oracle.assert_close(got, want, 1e-12)
    assert all(g.abs().max() > 0 for g in want)
    assert list(updates[-1].state) == ["lif1.mem", "lif2.mem"]


@pytest.mark.parametrize("neuron", [LIF, Buffered, InPlace])
def test_attributes_buffers_and_buffers_written_to(neuron):
    """Against plain autograd: the loop that calls the net itself."""
    net = Spiking(neuron)
    xs, ys = data()
    plain = copy.deepcopy(net)
    outputs = torch.stack([plain(x) for x in xs])
    square(outputs, ys).flatten(1).mean(1).sum().backward()
    model = bptt.scan(bptt.explicit_state(net))
    for memory in BUDGETS.values():
        got, updates = run(model, net, strategy=bptt.FullBPTT(), memory=memory)
        oracle.assert_close(got, [p.grad for p in plain.parameters()], 1e-12)
        oracle.assert_close(updates[-1].state["lif2.mem"], plain.lif2.mem.detach(), 1e-12)


@pytest.mark.parametrize("neuron", [LIF, Buffered, InPlace])
def test_the_module_stays_as_it_was(neuron):
    net = Spiking(neuron)
    held = [lif.mem for lif in (net.lif1, net.lif2)]
    step, (xs, _) = bptt.explicit_state(net), data()
    noise = torch.get_rng_state()
    _, state = step(xs[0])
    step(xs[1], state)
    assert [a is b for a, b in zip(held, (net.lif1.mem, net.lif2.mem), strict=True)] == [True, True]
    assert torch.equal(noise, torch.get_rng_state())
    assert all(value.grad_fn is not None for value in state.values())
    with pytest.raises(RuntimeError, match="shapes"):
        step(torch.zeros(B, IN + 1, dtype=F64))
    assert net.lif1.mem is held[0]


def test_it_starts_from_what_the_module_held_at_first():
    net = Spiking(Buffered)
    net(data()[0][0])
    want = net.lif1.mem.clone()
    step = bptt.explicit_state(net)
    following = copy.deepcopy([net.lif1.mem.detach(), net.lif2.mem.detach()])
    net(data()[0][1])  # of which the recurrence knows nothing
    out, state = step(data()[0][2])
    expected, after = Written(net)(data()[0][2], following)
    oracle.assert_close(out, expected)
    oracle.assert_close(state["lif1.mem"], after[0])
    assert not torch.equal(net.lif1.mem, want)


@pytest.mark.parametrize("neuron", [Buffered, InPlace])
def test_the_first_state_is_a_copy_that_moves_with_the_module(neuron):
    net, (xs, _) = Spiking(neuron), data()
    net(xs[0])
    step = bptt.explicit_state(net)
    first = [step(xs[1])[1]["lif1.mem"].clone() for _ in range(2)]
    oracle.assert_close(first[0], first[1], 0.0)
    want = first[0].detach().clone()
    net.lif1.mem = torch.zeros(0, dtype=F64)  # the module's own, of which the recurrence has a copy
    oracle.assert_close(step(xs[1])[1]["lif1.mem"], want, 0.0)
    after = step.float()(xs[1].float())[1]["lif1.mem"]
    assert after.dtype == torch.float32
    oracle.assert_close(after.double(), want, 1e-5)


def test_noise_is_that_of_a_loop():
    """To find out what changes draws no number that the first call would have drawn."""
    net, (xs, _) = nn.Sequential(LIF(), nn.Dropout(0.5)), data()
    model = bptt.scan(bptt.explicit_state(copy.deepcopy(net)))
    torch.manual_seed(5)
    outputs, _ = model(xs, None)
    torch.manual_seed(5)
    oracle.assert_close(outputs, torch.stack([net(x) for x in xs]), 0.0)
    assert (outputs == 2).any()


def test_a_run_goes_on_from_the_state_of_another():
    """Two runs, the second from the first one's last state, against one run over all steps."""
    net, (xs, ys) = Spiking(), data()
    model, options = bptt.scan(bptt.explicit_state(net)), {"strategy": bptt.TruncatedBPTT(4), "reduction": "sum"}
    want, updates = run(model, net, **options)
    first = list(bptt.unroll(model, square, [(xs[:8], ys[:8])], **options))
    second = list(bptt.unroll(model, square, [(xs[8:], ys[8:])], first[-1].state, **options))
    oracle.assert_close(oracle.gradients(net.parameters()), want, 1e-12)
    oracle.assert_close(second[-1].state, updates[-1].state, 0.0)


class Remembering(nn.Module):
    """An LSTM layer over a sequence (T, B, IN) that goes on from where the last call ended; lists and numbers too."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(IN, OUT, dtype=F64)
        self.hidden, self.recent, self.calls, self.fresh = None, [None, 0.0], 0, True
        self.box = {"mean": deque([0.5], maxlen=1), "name": "box"}

    def forward(self, xs):
        outputs, self.hidden = self.lstm(xs, self.hidden)
        scale = 1.0 if self.fresh else 0.5 + 0.1 * self.calls
        self.calls, self.fresh = self.calls + len(xs), False
        outputs = scale * outputs + self.box["mean"][0]
        self.box["mean"].append(outputs.mean((0, 2), keepdim=True)[0].expand(-1, OUT))
        self.recent[0], self.recent[1] = outputs[-1], float(len(xs))
        return outputs


def test_tuples_lists_and_numbers_over_a_sequence():
    net, (xs, _) = Remembering(), data()
    model = bptt.explicit_state(net)
    parts, state, outputs = xs.split([4, 1, 8]), None, []
    for part in parts:
        y, state = model(part, state)
        outputs.append(y)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "hidden[0]": (1, B, OUT),
        "hidden[1]": (1, B, OUT),
        "recent[0]": (B, OUT),
        "recent[1]": (),
        "calls": (),
        "fresh": (),
        "box['mean'][0]": (B, OUT),
    }
    assert (state["calls"].item(), state["fresh"].item(), state["recent[1]"].item()) == (T, False, 8.0)
    assert (net.hidden, net.recent, net.calls, net.fresh, list(net.box["mean"])) == (None, [None, 0.0], 0, True, [0.5])
    plain = copy.deepcopy(net)
    want = torch.cat([plain(part) for part in parts])
    oracle.assert_close(torch.cat(outputs), want, 0.0)
    oracle.assert_close(
        torch.autograd.grad(torch.cat(outputs).square().sum(), list(net.parameters())),
        torch.autograd.grad(want.square().sum(), list(plain.parameters())),
        1e-12,
    )


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.norm, self.lif = nn.Linear(IN, OUT, dtype=F64), nn.BatchNorm1d(OUT, dtype=F64), LIF()
        self.old = old_weight_norm(nn.Linear(OUT, OUT, dtype=F64))

    def forward(self, x):
        return self.old(self.lif(self.norm(self.into(x))))


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def test_batch_norm_beside_it_still_updates_its_buffers():
    net, (xs, ys) = Normed(), data()
    plain = Normed()
    plain.load_state_dict(net.state_dict())
    square(torch.stack([plain(x) for x in xs]), ys).flatten(1).mean(1).sum().backward()
    got, updates = run(bptt.scan(bptt.explicit_state(net)), net, strategy=bptt.FullBPTT())
    oracle.assert_close(got, [p.grad for p in plain.parameters()], 1e-12)
    oracle.assert_close(dict(net.named_buffers()), dict(plain.named_buffers()), 1e-12)
    assert net.norm.num_batches_tracked.item() == T
    assert list(updates[-1].state) == ["lif.mem"]


def test_a_module_without_a_state_has_an_empty_one():
    net = nn.Sequential(nn.Linear(IN, OUT, dtype=F64), nn.Dropout(0.0))
    xs, ys = data()
    step = bptt.explicit_state(net)
    assert step(xs[0])[1] == {}
    want = torch.autograd.grad(square(net(xs), ys).flatten(1).mean(1).sum(), list(net.parameters()))
    for memory in BUDGETS.values():
        got, _ = run(bptt.scan(step), net, strategy=bptt.FullBPTT(), memory=memory)
        oracle.assert_close(got, want, 1e-12)


def test_it_is_copied_pickled_moved_and_loaded_as_any_module():
    step = bptt.explicit_state(Spiking(Buffered))
    x = data()[0][0]
    out, state = step(x)
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        oracle.assert_close(other(x)[0], out, 0.0)
        with torch.no_grad():
            other.module.into.weight += 1
        assert not torch.equal(other(x, state)[0], step(x, state)[0])
        assert other.module.lif1.mem.numel() == step.module.lif1.mem.numel() == 0
        assert other.module.lif1.mem is not step.module.lif1.mem
    fresh = bptt.explicit_state(Spiking(Buffered))
    assert list(fresh.state_dict()) == [f"module.{name}" for name in step.module.state_dict()]
    fresh.load_state_dict(step.state_dict())
    oracle.assert_close(fresh(x)[0], out, 0.0)
    assert {value.dtype for value in fresh.float()(x.float())[1].values()} == {torch.float32}
