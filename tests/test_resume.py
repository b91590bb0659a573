"""A run that is saved between two updates and goes on in a new one, to the bit; and states that don't fit."""

import copy
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bptt

T, B = 26, 3
X, Y = torch.randn(2, T, B, 4, generator=torch.Generator().manual_seed(0))
STARTS = torch.zeros(T, B, dtype=torch.bool)
STARTS[5, 0] = STARTS[16, 1] = True
STARTS[9] = True
MASK = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) > 0.2
LOSS = bptt.per_step(nn.MSELoss())
LAW = bptt.PolynomialLaw(3, 5)
STRATEGIES = [
    bptt.FullBPTT(),
    bptt.TruncatedBPTT(4),
    bptt.TruncatedBPTT(2, 5),
    bptt.TruncatedBPTT(3, 5, burn_in=4),
    bptt.ARTBP(LAW),
    bptt.ARTBP(LAW, every=3),
    bptt.ARTBP(LAW, per_row=True),
    bptt.AdaptiveTruncatedBPTT(0.5, k_max=5, probe_every=2, window=6),
    bptt.RTRL(3),
    bptt.UORO(3),
    bptt.SnAp(1),
]
BUDGETS = [None, bptt.Checkpoints(2, 2), "64KiB"]
KINDS = {  # model, steps of a chunk, resets and mask, whether the stream tells its place, a generator of our own
    "gru": (lambda: nn.GRU(4, 4), 7, False, False, True),
    "lstm": (lambda: nn.LSTM(4, 4), 5, True, True, False),
    "scan": (lambda: bptt.scan(nn.GRUCell(4, 4)), 9, True, False, True),
    "dropout": (lambda: nn.GRU(4, 4, num_layers=2, dropout=0.5), 4, False, True, True),
    "itself": (lambda: Itself(), 11, True, True, False),
}


class Itself(nn.Module):
    """Starts from None; a clock without rows in its state."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x, state=None):
        h, clock = (x.new_zeros(x.shape[1], 4), torch.tensor(0)) if state is None else (state["h"], state["clock"])
        outputs = []
        for x_t in x:
            h, clock = self.cell(x_t, h), clock + 1
            outputs.append(h / clock)
        return torch.stack(outputs), {"h": h, "clock": clock}


class Stream:
    """Chunks with a place of their own, as a StatefulDataLoader."""

    def __init__(self, chunks):
        self.chunks, self.at = chunks, 0

    def __iter__(self):
        while self.at < len(self.chunks):
            self.at += 1
            yield self.chunks[self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def chunks(steps, rows):
    cut = [slice(a, a + steps) for a in range(0, T, steps)]
    return [bptt.Chunk(X[s], Y[s], STARTS[s] if rows else None, MASK[s] if rows else None) for s in cut]


def start(kind, strategy, memory, steps=None):
    """A run of its own: (model, optimizer, updates)."""
    make, length, rows, tells, own = KINDS[kind]
    torch.manual_seed(3)
    model = make()
    generator = torch.Generator().manual_seed(5) if own else None
    data = chunks(steps or length, rows)
    options = {"state_batch_dim": {"h": 0, "clock": None} if kind == "itself" else 0} if kind in "scan itself" else {}
    updates = bptt.unroll(
        model, LOSS, Stream(data) if tells else data, strategy=strategy, memory=memory, generator=generator, **options
    )
    return model, torch.optim.Adam(model.parameters(), 0.01), updates


def saved(model, optimizer, updates):
    """All of a run as bytes, and back without a pickle of anything but tensors and plain data."""
    parts = [updates.state_dict(), model.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
    file = io.BytesIO()
    torch.save(copy.deepcopy(parts), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restore(parts, model, optimizer, updates):
    state, weights, moments, noise = parts
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    torch.set_rng_state(noise)
    updates.load_state_dict(state)


def go_on(model, optimizer, updates, keep=None):
    """The losses of the rest of a run; `keep` gets a save after each update."""
    losses = []
    for update in updates:
        losses.append(update.loss.clone())
        optimizer.step()
        optimizer.zero_grad()
        if keep is not None:
            keep.append(saved(model, optimizer, updates))
    return losses


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def compare(kind, strategy, memory, each=1):
    torch.manual_seed(9)
    run = start(kind, strategy, memory)
    saves = [saved(*run)]
    losses = go_on(*run, saves)
    assert len(saves) == len(losses) + 1
    for i, parts in enumerate(saves):
        if i % each and i not in (1, len(losses)):
            continue
        other = start(kind, strategy, memory)
        torch.manual_seed(77)
        restore(parts, *other)
        again: list = []
        found = go_on(*other, again)
        assert len(found) == len(losses[i:])
        assert all(torch.equal(a, b) for a, b in zip(found, losses[i:], strict=True)), f"after update {i}"
        assert torch.equal(weights(other[0]), weights(run[0]))
        if again and i <= 1:  # twice in a row
            third = start(kind, strategy, memory)
            restore(again[0], *third)
            assert all(torch.equal(a, b) for a, b in zip(go_on(*third), losses[i + 1 :], strict=True))


@pytest.mark.parametrize("index", range(len(STRATEGIES) * len(BUDGETS)))
@pytest.mark.thin
def test_the_rest_of_a_run_is_equal_to_the_bit(index):
    """Saved before the first, after the first, every sixth and the last; models and streams take turns."""
    strategy, memory = STRATEGIES[index % len(STRATEGIES)], BUDGETS[index // len(STRATEGIES)]
    compare(list(KINDS)[(index + index // len(STRATEGIES)) % len(KINDS)], strategy, memory, each=6)


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", BUDGETS, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_every_model_and_stream_after_every_update(strategy, memory, kind):
    compare(kind, strategy, memory)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_another_chunking_of_the_same_data(strategy):
    """The place is a step, so chunks may be cut otherwise; calls then differ, and with them the rounding."""
    run = start("gru", strategy, None)
    saves: list = []
    losses = go_on(*run, saves)
    for i, parts in enumerate(saves[:-1:3]):
        other = start("gru", strategy, None, steps=5)
        restore(parts, *other)
        torch.testing.assert_close(go_on(*other), losses[3 * i + 1 :], rtol=1e-5, atol=1e-6)


def test_the_state_is_plain_data():
    run = start("lstm", bptt.AdaptiveTruncatedBPTT(0.5, k_max=5, probe_every=2, window=6), "64KiB")
    next(run[2])
    state = run[2].state_dict()
    tensors: list = []

    def plain(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return None
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    assert json.loads(json.dumps(plain(state)))["format"] == 1
    assert sum(t.nbytes for t in tensors) < 10_000
    assert not any(t.requires_grad for t in tensors)


def test_a_saved_state_is_a_copy():
    model, optimizer, updates = start("gru", bptt.TruncatedBPTT(4), None)
    next(updates)
    state = updates.state_dict()
    before = copy.deepcopy(state)
    go_on(model, optimizer, updates)
    assert torch.equal(state["carried"], before["carried"])
    other = start("gru", bptt.TruncatedBPTT(4), None)
    other[2].load_state_dict(state)
    go_on(*other)
    assert torch.equal(state["carried"], before["carried"])
    assert state["step"] == before["step"] == 4


def test_nothing_is_left_after_the_last_update():
    run = start("lstm", bptt.TruncatedBPTT(4), None)
    go_on(*run)
    other = start("lstm", bptt.TruncatedBPTT(4), None)
    other[2].load_state_dict(run[2].state_dict())
    assert list(other[2]) == []


def test_after_a_loss_that_is_not_finite_the_last_good_place_is_there():
    model = nn.GRU(4, 4)
    y = Y.clone()
    y[9] = torch.nan
    updates = bptt.unroll(model, LOSS, [(X, y)], strategy=bptt.TruncatedBPTT(4))
    next(updates), next(updates)
    with pytest.raises(bptt.NonFiniteLossError):
        next(updates)
    state = updates.state_dict()
    assert state["step"] == 8
    mended = bptt.unroll(model, LOSS, [(X, Y)], strategy=bptt.TruncatedBPTT(4))
    mended.load_state_dict(state)
    assert [update.t0 for update in mended] == [8, 12, 16, 20, 24]


@pytest.mark.parametrize("own", [True, False])
def test_after_a_stream_that_broke_off_the_window_that_was_begun_is_drawn_again(own):
    """ARTBP draws a window's length while it reads; an error of the stream leaves what it drew."""

    def run(broken=None):
        def stream():
            for i, chunk in enumerate(chunks(2, False)):
                if i == broken:
                    raise KeyError("network")
                yield chunk

        torch.manual_seed(3)
        model = nn.GRU(4, 4)
        generator = torch.Generator().manual_seed(5) if own else None
        return (
            model,
            torch.optim.Adam(model.parameters(), 0.01),
            bptt.unroll(model, LOSS, stream(), strategy=bptt.ARTBP(bptt.ConstantLaw(6)), generator=generator),
        )

    whole = run()
    go_on(*whole)
    for broken in range(1, 13):
        parts = run(broken)
        with pytest.raises(KeyError):
            go_on(*parts)
        # torch's own generator is set by the run's state alone here
        again = run()
        restore([*saved(*parts)[:3], torch.get_rng_state()], *again)
        go_on(*again)
        assert all(torch.equal(a, b) for a, b in zip(weights(whole[0]), weights(again[0]), strict=True)), broken


@pytest.mark.deep
def test_in_another_process(tmp_path):
    """Three runs of three strategies, saved here and continued by one new process."""
    script, wanted = [], []
    for i, index in enumerate((1, 4, 7)):
        run = start("lstm", STRATEGIES[index], "64KiB")
        next(run[2])
        run[1].step(), run[1].zero_grad()
        torch.save(saved(*run), tmp_path / f"{i}.pt")
        wanted.append([loss.item() for loss in go_on(*run)])
        script.append(f"run = start('lstm', STRATEGIES[{index}], '64KiB')")
        script.append(f"restore(torch.load({str(tmp_path / f'{i}.pt')!r}, weights_only=True), *run)")
        script.append("print(json.dumps([loss.item() for loss in go_on(*run)]))")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_resume import *\n" + "\n".join(
        script
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {}, r"dict isn't a state of a run in format 1"),
        (lambda s: [s], r"list isn't a state of a run in format 1: pass what state_dict\(\) gave"),
        (lambda s: s | {"format": 2}, r"format 2 isn't a state of a run in format 1"),
        (lambda s: {k: v for k, v in s.items() if k != "stream"}, r"isn't a state of a run"),
        (lambda s: s | {"step": -3}, r"step=-3 isn't a step: the state is damaged"),
        (
            lambda s: s | {"run": s["run"] | {"strategy": "TruncatedBPTT(k1=7, k2=None)"}},
            r"has strategy=.*k1=7.*this one",
        ),
        (
            lambda s: s | {"run": s["run"] | {"reduction": "sum"}},
            r"the saved run has reduction=sum, this one has reduction=mean",
        ),
        (lambda s: s | {"run": s["run"] | {"rows": 5}}, r"the saved run has 5 batch rows, this stream has 3"),
        (lambda s: s | {"step": 1000}, r"the stream ends at step 26, but the saved run continues from step 1000"),
        (
            lambda s: s | {"carried": (s["carried"],) * 2},
            r"load_state_dict: the state has a different structure from the model's",
        ),
        (
            lambda s: s | {"carried": s["carried"][:, :2]},
            r"state has shape \(1, 2, 4\), but these inputs need \(1, 3, 4\)",
        ),
        (
            lambda s: s | {"stream": s["stream"] | {"stream": {"at": 1}}},
            r"the saved stream had a state, and a list has no",
        ),
    ],
)
def test_states_that_do_not_fit(change, told):
    run = start("gru", bptt.TruncatedBPTT(4), None)
    next(run[2])
    state = run[2].state_dict()
    other = start("gru", bptt.TruncatedBPTT(4), None)

    def load_and_go_on():
        other[2].load_state_dict(change(state))
        next(other[2])

    with pytest.raises((ValueError, TypeError), match=told):
        load_and_go_on()


def test_what_has_begun_or_cannot_go_on_says_so():
    updates = start("gru", bptt.TruncatedBPTT(4), None)[2]
    next(updates)
    with pytest.raises(ValueError, match=r"this run has begun already"):
        updates.load_state_dict(updates.state_dict())

    class Silent:
        def windows(self, upto, draw):
            a = 0
            while (b := upto(a + 5)) > a:
                yield bptt.Window(a, a, b, b)
                a = b

    updates = bptt.unroll(nn.GRU(4, 4), LOSS, [(X, Y)], strategy=Silent(), reduction="sum")
    assert updates.state_dict()["step"] == 0
    next(updates)
    with pytest.raises(
        ValueError, match=r"gives no progress with its windows, so the run can't continue after this one"
    ):
        updates.state_dict()
