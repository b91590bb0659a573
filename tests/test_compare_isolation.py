"""What `compare` leaves alone, what it takes for noise, which tensors it asks for, and what it refuses."""

import pytest
import torch
from torch import nn

import bptt
from support.cases import F64, DictStep, make, square
from support.refusals import refused
from support.runs import seed

CUT = bptt.TruncatedBPTT(2)
RANDOM = bptt.ARTBP(law=bptt.ConstantLaw(mean_length=3))


class Noisy(nn.Module):
    """A step that draws random numbers and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = DictStep(3, 4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=F64))

    def forward(self, x, state):
        self.calls += 1
        return self.inner(self.drop(x), state)


class Head(nn.Module):
    """A loss with parameters, and batch norm's buffers."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(4, 4, dtype=F64), nn.BatchNorm1d(4, dtype=F64)

    def forward(self, outputs, targets):
        return square(self.norm(self.head(outputs).flatten(0, 1)).view_as(outputs), targets)


@pytest.fixture
def case():
    return make("gru", 6)


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2)], ids=["stored", "replayed"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(memory, fails):
    case, model, loss = make("dict", T=6), bptt.scan(Noisy()), Head()
    loss.head.eval()
    closure, fired = torch.ones((), dtype=F64, requires_grad=True), []
    theta = [*model.parameters(), *loss.parameters()]
    hooks = [p.register_post_accumulate_grad_hook(fired.append) for p in theta[::2]]
    for p in theta[:-1]:
        p.grad = torch.ones_like(p)
    grads = [p.grad for p in theta]
    encoder = torch.ones((), dtype=F64, requires_grad=True)
    xs, state = case.xs * encoder, {**case.zeros(), "h": torch.ones(2, 4, dtype=F64) * encoder}
    before = {k: v.clone() for part in (model, loss) for k, v in part.state_dict().items()}
    noise, generator = torch.get_rng_state(), seed(4)
    drawn = generator.get_state()

    def criterion(outputs, targets):
        values = loss(outputs, targets) * closure
        return values * float("nan") if fails and len(outputs) < 6 else values

    criterion = _Wrapped(loss, criterion)
    with torch.no_grad():
        results = []
        for _ in range(2):
            call = lambda: bptt.compare(  # noqa: E731
                model,
                criterion,
                (xs, case.ys),
                state,
                strategies=[CUT, RANDOM],
                draws=3,
                memory=memory,
                generator=generator,
            )
            if fails:
                with pytest.raises(bptt.NonFiniteLossError):
                    call()
            else:
                results.append([entry.bias for entry in call().entries])
        assert not torch.is_grad_enabled()
    assert not results or results[0] == results[1]
    assert torch.equal(noise, torch.get_rng_state())
    assert torch.equal(drawn, generator.get_state())
    assert model.training
    assert loss.norm.training
    assert not loss.head.training
    after = {k: v for part in (model, loss) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert all(p.grad is grad for p, grad in zip(theta, grads, strict=True))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in theta[:-1])
    assert closure.grad is None
    assert encoder.grad is None
    assert not fired
    (xs.sum() + state["h"].sum()).backward()  # the user's graph is still there
    sum(p.sum().real for p in theta).backward()
    assert len(fired) == len(hooks)  # and so are the hooks
    for hook in hooks:
        hook.remove()


class _Wrapped(nn.Module):
    """A module that holds another and calls a function."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, outputs, targets):
        return self.function(outputs, targets)


def test_the_models_noise_is_not_the_strategys():
    """A step's dropout comes in the order of time for every strategy: nothing but the cuts differs."""
    case, model = make("dict", T=6), bptt.scan(Noisy())
    never = bptt.ARTBP(law=lambda k: 0.0)
    found = bptt.compare(model, square, (case.xs, case.ys), case.zeros(), strategies=[never, RANDOM], draws=4)
    assert [entry.draws for entry in found.entries] == [4, 4]
    assert found.entries[0].bias == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.entries[0].variance == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.entries[1].variance.value > 1e-3
    model.eval()
    calm = bptt.compare(model, square, (case.xs, case.ys), case.zeros(), strategies=[never], draws=4)
    assert calm.norm != pytest.approx(found.norm)


def test_without_a_generator_torchs_seed_decides(case):
    def found(number):
        torch.manual_seed(number)
        return bptt.compare(case.model, square, (case.xs, case.ys), strategies=[RANDOM], draws=3).entries[0].bias

    with torch.random.fork_rng():
        assert found(1) == found(1) != found(2)


def test_a_strategy_that_needs_no_draw_is_run_as_one_that_draws_nothing(case):
    strategies = [bptt.ARTBP(law=bptt.ConstantLaw(2), every=7), RANDOM, CUT]
    found = bptt.compare(case.model, square, (case.xs, case.ys), strategies=strategies, draws=3)
    assert [entry.draws for entry in found.entries] == [1, 3, 1]
    assert found.entries[0].bias.value < 1e-12


def test_names_of_what_gets_a_gradient(case):
    closure = torch.ones((), dtype=F64, requires_grad=True)
    unused = torch.ones(2, dtype=F64, requires_grad=True)
    head = nn.Linear(4, 4, dtype=F64)
    case.model.bias_ih_l0.requires_grad_(False)
    loss = _Wrapped(head, lambda outputs, targets: square(head(outputs) * closure, targets))
    own = ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"]

    def found(**more):
        return bptt.compare(case.model, loss, (case.xs, case.ys), strategies=[CUT, RANDOM], draws=3, **more)

    assert list(found().norms) == [*own, "loss.inner.weight", "loss.inner.bias"]
    some = found(params=[closure, case.model.weight_hh_l0, closure, unused])
    assert list(some.norms) == ["params[0]", "weight_hh_l0", "params[3]"]
    assert list(some.entries[0].parameters) == list(some.norms)
    assert some.norms["weight_hh_l0"] == pytest.approx(found().norms["weight_hh_l0"], rel=1e-12)
    assert some.norms["params[0]"] > 0
    assert some.norms["params[3]"] == 0
    for entry in some.entries:  # of a gradient of zeros nothing can be said relative to it
        nothing = entry.parameters["params[3]"]
        assert all(x != x for x in (nothing.bias.value, nothing.signed_bias.value, nothing.cosine.value))
        assert entry.bias.value == entry.bias.value


def test_learned_initial_states(case):
    h0 = torch.full((1, 2, 4), 0.1, dtype=F64, requires_grad=True)
    chunk = (case.xs, case.ys)
    by_state = bptt.compare(case.model, square, chunk, h0, strategies=[CUT], params=[h0])
    called = bptt.compare(case.model, square, chunk, strategies=[CUT], params=[h0], initial_state=lambda: h0 * 1)
    bptt.backward(case.model, square, chunk, h0, reduction="sum")
    assert by_state.norm == pytest.approx(h0.grad.norm().item(), rel=1e-12)
    assert called.norm == pytest.approx(by_state.norm, rel=1e-12)
    assert called.entries[0].bias == pytest.approx(by_state.entries[0].bias, rel=1e-9)


def test_bad_arguments(case):
    chunk = (case.xs, case.ys)

    def call(*args, **keywords):
        keywords.setdefault("strategies", [CUT])
        args = args or (case.model, square, chunk)
        return lambda: bptt.compare(*args, **keywords)

    refused(call(strategies=[CUT, "tbptt:2"]), "'tbptt:2'", "isn't a strategy", kind=TypeError)
    refused(call(strategies=[bptt.TruncatedBPTT]), "TruncatedBPTT(...)", kind=TypeError)
    refused(call(strategies=CUT), "TruncatedBPTT(k1=2, k2=None)", "into a list", kind=TypeError)
    refused(call(strategies="tbptt:2"), "tbptt:2", "list", kind=TypeError)
    refused(call(strategies=None), "None", "list", kind=TypeError)
    refused(call(strategies=[]), "empty", kind=ValueError)
    for draws in (0, 1, 2, -3, True, 2.5, "3"):
        refused(call(draws=draws), f"draws={draws!r}", "at least 3", kind=ValueError)
    refused(call(memory="much"), "memory='much'", kind=ValueError)
    refused(call(generator=3), "generator=3", kind=TypeError)
    refused(call(params=[case.model.weight_hh_l0 * 2]), "entry 0", "leaves", kind=ValueError)
    refused(call(params=[]), "params=", kind=ValueError)
    refused(call(lambda x, s: (x, s), square, chunk, case.zeros()), "params=", kind=ValueError)
    refused(call(case.model, square, [chunk]), "chunk", kind=TypeError)
    refused(call(case.model, square, (case.xs[:0], case.ys[:0])), "no step", kind=ValueError)
    refused(call(case.model, square, chunk, {"h": 3}), "state", kind=TypeError)
    refused(call(case.model, 3, chunk), "loss", kind=TypeError)
    refused(call(bptt.scan(DictStep(3, 4)), square, chunk), "initial_state=", kind=ValueError)
    with torch.inference_mode():
        refused(call(), "inference_mode", kind=ValueError)
    assert all(p.grad is None for p in case.model.parameters())
