"""bptt.nn.CTRNN against a loop over torch's operators that is handed the same noise."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import bptt
from bptt.nn import noise
from support.layers import F64, KERNELS, NATIVE, assert_equal, kernel
from support.refusals import refused

F = {
    "identity": lambda a: a, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
}  # fmt: skip
FORMS = ["rate", "voltage"]
T, B, WIDE, H = 9, 5, 3, 37


def loop(layer, x, h, xi, start=None, weight=None):
    """Equations (1) and (2) of the docstring, step by step: outputs and the last h, (B, H)."""
    f, a = F[layer.nonlinearity], layer.alpha
    initial = x.new_zeros(H) if layer.initial is None else layer.initial
    h = initial.expand(x.shape[1], -1) if h is None else h
    driven = functional.linear(x, layer.weight_ih, layer.bias)
    outputs = []
    for t in range(len(x)):
        if start is not None:
            h = torch.where(start[t][:, None], initial, h)
        rate = layer.form == "rate"
        new = f(h @ layer.weight_hh.T + driven[t]) if rate else f(h) @ layer.weight_hh.T + driven[t]
        new = new if xi is None else new + (2 / a).sqrt() * layer.sigma * xi[t]
        h = (1 - a) * h + a * new
        outputs.append(h)
        if weight is not None:
            h = bptt.scale_gradient(h, weight[t], 0)
    return torch.stack(outputs), h


def pulled(y, h, wanted):
    """Outputs, h, and the gradients of a sum that gives each entry a cotangent of its own."""
    g = torch.Generator().manual_seed(3)
    cotangents = [torch.randn(v.shape, generator=g, dtype=F64).to(v.dtype) for v in (y, h)]
    found = torch.autograd.grad([y, h], wanted, cotangents, materialize_grads=True)
    return [y.detach(), h.detach(), *found]


def case(form, f, sigma, learned, keywords):
    torch.manual_seed(1)
    layer = bptt.nn.CTRNN(
        WIDE, H, alpha=torch.rand(H) * 0.8 + 0.1, sigma=sigma, nonlinearity=f, form=form, learn_alpha=learned,
        learn_initial=learned, dtype=F64,
    )  # fmt: skip
    if learned:
        nn.init.normal_(layer.initial, std=0.5)
    x, h = torch.randn(T, B, WIDE, dtype=F64), torch.randn(1, B, H, dtype=F64)
    start, weight = torch.rand(T, B) < 0.25, torch.randint(0, 3, (T, B)) * 0.75
    return layer, x, h, (start, weight) if keywords else (None, None)


@pytest.mark.parametrize("keywords", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("f", F)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in KERNELS), ("eager", F64)])
@pytest.mark.thin
def test_a_loop_with_the_same_noise(form, f, sigma, learned, keywords, name, dtype):
    layer, x, h, (start, weight) = case(form, f, sigma, learned, keywords)
    key, clock = torch.tensor(12345678901), torch.tensor(3)
    xi = noise.normals(int(key), 3, T, B, H, x) if sigma else None
    exact = [x.requires_grad_(), h.requires_grad_(), *layer.parameters()]
    want = pulled(*loop(layer, x, h[0], xi, start, weight), exact)
    ours = copy.deepcopy(layer).to(dtype)
    x, h = (v.detach().to(dtype).requires_grad_() for v in (x, h))
    with kernel(name):
        y, state = ours(x, (h, clock, key) if sigma else h, is_start=start, cotangent_weight=weight)
        last = state[0] if sigma else state
        got = pulled(y, last[0], [x, h, *ours.parameters()])
    assert_equal(got, want, 1e-6 if dtype == torch.float32 else 1e-13)
    if sigma:
        assert (int(state[1]), int(state[2])) == (3 + T, int(key))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("f", F)
@pytest.mark.thin
def test_gradcheck(form, f):
    """The fallback, and what it is differentiated again by; the noise stands still, as the key is given."""
    torch.manual_seed(0)
    layer = bptt.nn.CTRNN(
        2, 3, alpha=0.4, sigma=0.3, nonlinearity=f, form=form, learn_alpha=True, learn_initial=True, dtype=F64
    )
    nn.init.normal_(layer.initial)  # not at a relu's kink
    names, weights = zip(*((n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()), strict=True)
    x, h = torch.randn(3, 2, 2, dtype=F64, requires_grad=True), torch.randn(1, 2, 3, dtype=F64, requires_grad=True)
    start = torch.tensor([[0, 0], [0, 1], [0, 0]], dtype=torch.bool)

    def call(x, h, *values):
        state = (h, torch.tensor(0), torch.tensor(7))
        y, state = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, state, start))
        return y, state[0]

    assert torch.autograd.gradcheck(call, (x, h, *weights))
    assert torch.autograd.gradgradcheck(call, (x, h, *weights))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("f", ["tanh", "relu"])
def test_without_leak_and_noise_it_is_an_rnn(f, name):
    torchs = nn.RNN(WIDE, H, nonlinearity=f)
    layer = bptt.nn.CTRNN(WIDE, H, alpha=1.0, nonlinearity=f)
    with torch.no_grad():
        layer.weight_ih.copy_(torchs.weight_ih_l0)
        layer.weight_hh.copy_(torchs.weight_hh_l0)
        layer.bias.copy_(torchs.bias_ih_l0 + torchs.bias_hh_l0)
    x, h = torch.randn(T, B, WIDE, requires_grad=True), torch.randn(1, B, H, requires_grad=True)
    weights = [torchs.weight_ih_l0, torchs.weight_hh_l0, torchs.bias_ih_l0]
    y, last = torchs(x, h)
    want = pulled(y, last[0], [x, h, *weights])
    with kernel(name):
        y, last = layer(x, h)
        assert_equal(pulled(y, last[0], [x, h, layer.weight_ih, layer.weight_hh, layer.bias]), want, 1e-6)


def test_threefry_gives_the_published_words():
    """The known answers of Random123, for its 20 rounds."""
    known = [
        ((0, 0, 0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 4, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]
    for given, words in known:
        assert tuple(map(int, noise.threefry(*map(torch.tensor, given)))) == words


def drawn(steps, rows, units, key=5, clock=0):
    """What a layer draws whose h is the noise, sqrt(2) σ = 1."""
    layer = bptt.nn.CTRNN(1, units, alpha=1.0, sigma=0.5**0.5, nonlinearity="identity", bias=False)
    nn.init.zeros_(layer.weight_hh)
    state = (torch.zeros(1, rows, units), torch.tensor(clock), torch.tensor(key))
    with torch.no_grad():
        return layer(torch.zeros(steps, rows, 1), state)[0]


@pytest.mark.parametrize("name", NATIVE)
def test_the_noise_is_the_same_to_the_bit_in_torch(name):
    for key, clock in ((5, 0), (2**62 + 12345678912345, 2**33 + 5)):
        with kernel(name):
            ours = drawn(20, 13, 101, key, clock)
        with kernel("eager"):
            assert torch.equal(ours, drawn(20, 13, 101, key, clock))


def test_the_noise_is_standard_normal_and_independent():
    """Mean, variance, third and fourth moment, and correlations by step, row, unit and key: within 4.5 deviations."""
    xi = drawn(100, 50, 200).double()
    n = xi.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((xi**power).mean()) - mean) < 4.5 * (variance / n) ** 0.5
    others = [
        xi.roll(shift, axis) for axis in range(3) for shift in (1, 2, 3, 16)
    ] + [drawn(100, 50, 200, key=6).double(), drawn(100, 50, 200, key=5, clock=100).double()]  # fmt: skip
    for other in others:
        assert abs(float((xi * other).mean())) < 4.5 * n**-0.5
        assert abs(float(((xi**2 - 1) * (other**2 - 1)).mean())) < 4.5 * 2 * n**-0.5
    quantiles = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=F64)
    found = torch.stack([(xi < q).double().mean() for q in torch.distributions.Normal(0.0, 1.0).icdf(quantiles)])
    assert ((found - quantiles).abs() < 4.5 * (quantiles * (1 - quantiles) / n).sqrt()).all()


def test_a_key_is_drawn_where_there_is_no_state():
    layer, x = bptt.nn.CTRNN(WIDE, H, alpha=0.2, sigma=0.1), torch.randn(T, B, WIDE)
    torch.manual_seed(3)
    (one, first), (two, second) = layer(x), layer(x)
    assert int(first[2]) != int(second[2])
    assert not torch.equal(one, two)
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], one)
    layer.sigma = 0
    assert isinstance(layer(x)[1], torch.Tensor)


STARTS = torch.zeros(24, B, dtype=torch.bool)
STARTS[7, 2] = STARTS[13] = True
LAYERS = {
    "rate": {"nonlinearity": "tanh"},
    "voltage": {"nonlinearity": "softplus", "form": "voltage", "learn_initial": True, "learn_alpha": True},
}


@pytest.mark.parametrize("how", ["whole", "chunks", "memory", "unroll"])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_chunks_budgets_and_resets(options, how):
    """One gradient, whatever is cut, replayed or reset, of the loop with the noise of the same key."""
    torch.manual_seed(2)
    layer = bptt.nn.CTRNN(WIDE, H, alpha=0.3, sigma=0.2, dtype=F64, **options)
    x, targets = torch.randn(24, B, WIDE, dtype=F64), torch.randn(24, B, H, dtype=F64)
    parameters = list(layer.parameters())
    torch.manual_seed(4)
    key = int(torch.randint(2**63 - 1, ()))
    y, _ = loop(layer, x, None, noise.normals(key, 0, 24, B, H, x), STARTS)
    want = torch.autograd.grad((y - targets).square().mean((1, 2)).sum(), parameters)
    edges = [0, 5, 6, 17, 24] if how == "chunks" else [0, 24]
    chunks = [bptt.Chunk(x[a:b], targets[a:b], STARTS[a:b]) for a, b in pairwise(edges)]
    more = {"memory": bptt.Checkpoints(3, 4)} if how == "memory" else {}
    loss = bptt.per_step(nn.MSELoss())
    torch.manual_seed(4)
    if how in ("chunks", "unroll"):
        (update,) = bptt.unroll(layer, loss, chunks, strategy=bptt.FullBPTT(), reduction="sum")
    else:
        update = bptt.backward(layer, loss, bptt.Chunk(x, targets, STARTS), reduction="sum", **more)
    assert (int(update.state[1]), int(update.state[2])) == (24, key)
    assert_equal([p.grad for p in parameters], list(want), 1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_a_start_at_the_first_step_reaches_the_initial_state(name):
    """Also where the state that is passed in wants no gradient, which has no part in it."""
    layer, x, start = bptt.nn.CTRNN(WIDE, H, alpha=0.2, learn_initial=True), torch.randn(T, B, WIDE), torch.zeros(T, B)
    start[0] = 1
    with kernel(name):
        want = torch.autograd.grad(layer(x)[0].square().sum(), layer.initial)
        passed = layer(x, torch.randn(1, B, H), is_start=start)[0]
        assert_equal(list(torch.autograd.grad(passed.square().sum(), layer.initial)), list(want))


def test_embedding_and_unbatched():
    layer, table = bptt.nn.CTRNN(WIDE, H, alpha=0.2), torch.randn(4, WIDE)
    ids = torch.randint(4, (T, B))
    assert_equal([layer(ids, embedding=table)[0]], [layer(table[ids])[0]], 1e-6)
    y, h = layer(table[ids[:, 0]])
    assert (y.shape, h.shape) == ((T, H), (1, H))
    assert_equal([y], [layer(table[ids])[0][:, 0]], 1e-6)


def test_dale_and_masks():
    """Weights of the right sign, and the exact gradient: that of the weights, where they may move."""
    layer = bptt.nn.CTRNN(WIDE, H, alpha=0.2, nonlinearity="relu", form="voltage", dtype=F64)
    plain, before = copy.deepcopy(layer), layer.weight_hh.detach().abs()
    signs, mask = torch.tensor([1.0] * 30 + [-1.0] * 7), (torch.rand(H, H) < 0.7) & ~torch.eye(H, dtype=torch.bool)
    parametrize.register_parametrization(layer, "weight_hh", bptt.nn.Dale(signs))
    parametrize.register_parametrization(layer, "weight_hh", bptt.nn.Masked(mask))
    raw = layer.parametrizations.weight_hh.original
    with torch.no_grad():
        raw[0] -= 0.1  # some of them off
        plain.weight_hh.copy_((raw.clamp(min=0) * signs) * mask)
    assert_equal([layer.weight_hh], [plain.weight_hh])
    assert torch.equal(raw[1:], before[1:])
    x = torch.randn(T, B, WIDE, dtype=F64)
    layer(x)[0].square().sum().backward()
    plain(x)[0].square().sum().backward()
    assert_equal([raw.grad], [plain.weight_hh.grad * signs * mask * (raw > 0)])
    assert_equal([layer.weight_ih.grad], [plain.weight_ih.grad])


def test_under_autocast():
    """Products in bfloat16, of inputs in it too; state and outputs stay in float32."""
    layer, x = bptt.nn.CTRNN(WIDE, H, alpha=0.2, sigma=0.1), torch.randn(T, B, WIDE)
    want, (h, clock, key) = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x.bfloat16(), (torch.zeros_like(h), clock - T, key))
    assert (y.dtype, state[0].dtype) == (torch.float32, torch.float32)
    assert_equal([y], [want], 0.02)


def test_copies_and_files():
    layer, x = bptt.nn.CTRNN(WIDE, H, alpha=torch.rand(H) * 0.5 + 0.2, sigma=0.1), torch.randn(T, B, WIDE)
    _, state = layer(x)
    other = bptt.nn.CTRNN(WIDE, H, alpha=0.9, sigma=0.1)
    other.load_state_dict(layer.state_dict())
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(same(x, state)[0], layer(x, state)[0])
    assert "alpha=0.9, sigma=0.1" in repr(bptt.nn.CTRNN(WIDE, H, alpha=0.9, sigma=0.1))


def test_errors():
    layer, x, h = bptt.nn.CTRNN(WIDE, H, alpha=0.2, sigma=0.1), torch.randn(T, B, WIDE), torch.zeros(1, B, H)
    clock, key = torch.tensor(0), torch.tensor(1)
    refused(lambda: bptt.nn.CTRNN(0, H, alpha=0.2), "input_size=0")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=0.0), "alpha=0.0", "(0, 1]")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=1.5), "alpha=1.5", "time constant")
    refused(lambda: bptt.nn.CTRNN(WIDE, 2, alpha=torch.tensor([0.5, 2.0])), "from 0.5 to 2", "(0, 1]")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha="0.2"), "alpha='0.2'", kind=TypeError)
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=torch.ones(H + 1)), "alpha is (38,)")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=1.0, learn_alpha=True), "learned α lies below 1")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=0.2, sigma=-1.0), "sigma=-1.0")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=0.2, nonlinearity="gelu"), "nonlinearity='gelu'")
    refused(lambda: bptt.nn.CTRNN(WIDE, H, alpha=0.2, form="r"), "form='r'")
    refused(lambda: layer(x, h), "1 leaves", "(h, clock, key)")
    refused(lambda: layer(x, (h[:, :2], clock, key)), "the state's h is (1, 2, 37)")
    refused(lambda: layer(x, (h, clock.float(), key)), "clock", "int64")
    refused(lambda: layer(x[..., :2]), "inputs are (9, 5, 2)")
    refused(lambda: layer(x.double()), "float64")
    refused(lambda: layer(x, is_start=torch.zeros(3, dtype=torch.bool)), "is_start is (3,)")
    packed = nn.utils.rnn.pack_sequence([x[:, 0]])
    refused(lambda: layer(packed), "PackedSequence", kind=TypeError)
    refused(lambda: bptt.nn.Dale(torch.tensor([1.0, 0.5])), "1 and -1")
    refused(lambda: bptt.nn.Masked(torch.tensor([float("nan")])), "NaN")
    refused(lambda: parametrize.register_parametrization(layer, "weight_hh", bptt.nn.Dale(torch.ones(3))), "3 signs")
