"""The likeliest first mistakes: each is one line that names the argument, or it simply works."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import bptt
from support import oracle
from support.cases import make, square
from support.refusals import refused

F64 = torch.float64
X, Y, IDS = torch.randn(12, 2, 3), torch.randn(12, 2, 4), torch.randint(4, (12, 2))
MSE = bptt.per_step(nn.MSELoss())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(3, 4)

    def forward(self, inputs, state):
        return self.layer(inputs, state)


def step(x, h):
    h = torch.tanh(x @ torch.ones(3, 4) + h)
    return h, h


MODELS = {"gru": (nn.GRU(3, 4), None), "net": (Net(), torch.zeros(1, 2, 4)), "scan": (bptt.scan(step), Y[0] * 0)}
ENTRIES = {
    "backward": lambda model, loss, chunk, state: bptt.backward(model, loss, chunk, state),
    "budget": lambda model, loss, chunk, state: bptt.backward(model, loss, chunk, state, memory=bptt.Checkpoints(2, 4)),
    "unroll": lambda model, loss, chunk, state: list(
        bptt.unroll(model, loss, [chunk], state, strategy=bptt.TruncatedBPTT(5, 7))
    ),
    "evaluate": lambda model, loss, chunk, state: bptt.evaluate(model, loss, [chunk], state),
    "compare": lambda model, loss, chunk, state: bptt.compare(
        model, loss, chunk, state, strategies=[bptt.TruncatedBPTT(5)], params=[torch.zeros(1, requires_grad=True)]
    ),
    "diagnose": lambda model, loss, chunk, state: bptt.diagnose(model, loss, chunk, state),
    "plan": lambda model, loss, chunk, state: bptt.plan(model, loss, chunk, state),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_criterion_of_torch_as_loss(entry):
    for loss in (
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="none"),
        nn.NLLLoss(),
        nn.MSELoss(),
        nn.KLDivLoss(reduction="batchmean"),
        nn.CTCLoss(),
        nn.CrossEntropyLoss,
        F.cross_entropy,
        functools.partial(F.nll_loss, reduction="none"),
        functools.partial(F.mse_loss, reduction="sum"),
        nn.TripletMarginLoss(),
    ):
        refused(lambda loss=loss: entry(nn.GRU(3, 4), loss, (X, IDS), None), "per_step")


def test_a_criterion_that_is_a_loss_by_step():
    for loss in (nn.MSELoss(reduction="none"), functools.partial(F.mse_loss, reduction="none")):
        bptt.backward(nn.GRU(3, 4), loss, (X, Y))


def test_a_criterion_of_three_arguments():
    refused(lambda: bptt.per_step(nn.GaussianNLLLoss()), "per_step", "GaussianNLLLoss")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", [MSE, square], ids=["per_step", "own"])
def test_targets_that_do_not_fit(entry, name, loss):
    model, state = MODELS[name]
    for targets in (torch.randn(12, 3, 4), None, Y[:7], torch.randn(12, 2, 5), {"y": Y}):
        if isinstance(targets, dict) and loss is square:
            continue  # an error of the user's own: a note
        refused(lambda y=targets: entry(model, loss, (X, y), state), "targets")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("name", MODELS)
def test_inputs_that_do_not_fit(entry, name):
    model, state = MODELS[name]
    bad = {
        "unbatched": X[:, 0],
        "features": torch.randn(12, 2, 5),
        "rows": torch.randn(12, 3, 3),
        "dtype": X.double(),
        "meta": X.to("meta"),
        "sparse": X.to_sparse(),
    }
    for what, inputs in bad.items():
        if (what, name) == ("unbatched", "scan") or (what == "sparse" and name == "scan"):
            continue  # spread over the state's rows: a model of its own right; slices of sparse tensors are fine too
        with pytest.raises((ValueError, TypeError)) as info:
            entry(model, MSE, (inputs, Y), state)
        assert "\n" not in str(info.value)
        assert any(word in str(info.value) for word in ("inputs", "targets", "state")), str(info.value)


def test_targets_spread_over_the_rows():
    """(T, B, 1) against (T, B): each output would be compared with every target."""
    model = nn.GRU(3, 1)
    with pytest.warns(UserWarning, match="target size"):
        refused(lambda: bptt.backward(model, MSE, (X, Y[..., 0])), "targets")


def test_chunks_of_other_rows():
    stream = [(X[:5], Y[:5]), (X[5:, :1], Y[5:, :1])]
    for model, state in MODELS.values():
        for strategy in (bptt.TruncatedBPTT(5), bptt.TruncatedBPTT(8)):
            refused(lambda m=model, s=state, k=strategy: list(bptt.unroll(m, MSE, stream, s, strategy=k)), "chunk")
        refused(lambda m=model, s=state: bptt.evaluate(m, MSE, stream, s), "chunk")


def test_chunks_that_one_window_cannot_read_together():
    for other in (torch.randn(7, 2, 5), X[5:].to("meta")):
        stream = [(X[:5], Y[:5]), (other, Y[5:])]
        refused(lambda s=stream: list(bptt.unroll(nn.GRU(3, 4), MSE, s, strategy=bptt.FullBPTT())), "chunks")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_no_rows_and_no_steps(entry):
    for model, state in MODELS.values():
        for chunk in ((X[:, :0], Y[:, :0]), (X[:0], Y[:0])):
            refused(lambda m=model, s=state, c=chunk: entry(m, MSE, c, s if s is None else s[..., :0, :]))
    refused(lambda: bptt.scan(step)(X[:0], Y[0]), "scan")
    refused(lambda: bptt.nn.GRU(3, 4)(X[:0], is_start=torch.zeros(0, 2, dtype=torch.bool)), "no steps")


def test_models_that_are_no_recurrence():
    for model in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4)), lambda x: (x, x), nn.GRU):
        refused(lambda m=model: bptt.backward(m, MSE, (X, Y), torch.zeros(2, 4)), "model")
    refused(lambda: bptt.backward(nn.GRUCell(3, 4), MSE, (X, Y), torch.zeros(2, 4)), "scan")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_cell_of_torch_is_a_step(kind):
    cell, layer = getattr(nn, f"{kind}Cell")(3, 4, dtype=F64), getattr(nn, kind)(3, 4, dtype=F64)
    layer.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    case, zero = make("gru", 8), torch.zeros(2, 4, dtype=F64)
    for options in ({}, {"memory": bptt.Checkpoints(2, 2)}, {"strategy": bptt.TruncatedBPTT(2, 5)}):
        given = (zero, zero) if kind == "LSTM" else zero
        bptt.backward(bptt.scan(cell), square, (case.xs, case.ys), given, **options)
        got = oracle.gradients(cell.parameters())
        bptt.backward(layer, square, (case.xs, case.ys), **options)
        oracle.assert_close(got, oracle.gradients(layer.parameters()))


def test_a_step_that_returns_its_state_alone():
    cell, gru = nn.LSTMCell(3, 4), nn.GRUCell(3, 4)
    zero = torch.zeros(2, 4)
    refused(lambda: bptt.backward(bptt.scan(lambda x, s: cell(x, s)), MSE, (X, Y), (zero, zero)), "(output, state)")
    refused(lambda: bptt.backward(bptt.scan(lambda x, s: gru(x, s)), MSE, (X, Y), zero), "(outputs, state)")


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


@pytest.mark.parametrize("options", [{}, {"memory": bptt.Checkpoints(2, 2)}, {"strategy": bptt.TruncatedBPTT(2, 5)}])
def test_a_plain_tuple_for_a_named_one(options):
    """The state is handed on as it was given: named, though the layer returns a plain tuple."""
    case = make("lstm", 8)

    def named(inputs, state):
        return case.model(inputs, (state.h, state.c))

    bptt.backward(case.model, square, (case.xs, case.ys), **options)
    want = oracle.gradients(case.parameters())
    update = bptt.backward(named, square, (case.xs, case.ys), Pair(*case.zeros()), **options)
    oracle.assert_close(oracle.gradients(case.parameters()), want)
    assert isinstance(update.state, Pair)
    nested = bptt.scan(lambda x, s: (s["p"].h + x, {"p": (s["p"].h + x, s["p"].c)}))
    bptt.evaluate(nested, square, [(case.ys, case.ys)], {"p": Pair(case.ys[0], case.ys[0])})


def test_options_that_cannot_be():
    model, chunk = nn.GRU(3, 4), (X, Y)
    bptt.backward(model, MSE, chunk, memory=math.inf)
    bptt.backward(model, MSE, chunk, memory=10**400)
    for memory in (math.nan, -math.inf, "inf", "9e9GB"):
        refused(lambda m=memory: bptt.backward(model, MSE, chunk, memory=m), "memory", str(memory))
    for scale in (1e308, 10**400, math.nan, -1.0, torch.tensor(math.inf), torch.tensor(0.0), "big"):
        refused(lambda s=scale: bptt.backward(model, MSE, chunk, scale=s), "scale")
    for axis in ("gru", 1.0, True, {"h": "x"}, 7):
        refused(lambda a=axis: bptt.backward(model, MSE, chunk, Y[:1], state_batch_dim=a), "state_batch_dim")
    refused(lambda: bptt.backward(model, MSE, chunk, state_batch_dim="gru"), "state_batch_dim")
    for strategy in (bptt.ARTBP(), bptt.FullBPTT()):
        bad = lambda k=strategy: bptt.backward(nn.LSTM(3, 4), MSE, chunk, strategy=k, state_batch_dim={"h": 0})  # noqa: E731
        refused(bad, "state_batch_dim")
    huber = bptt.per_step(nn.HuberLoss())
    refused(lambda: bptt.backward(nn.GRU(3, 4, dtype=F64), huber, (X.double(), Y)), "targets")
    refused(lambda: bptt.backward(model, MSE, chunk, clip_cotangent=10**400), "clip_cotangent")


def test_states_and_data_made_under_inference_mode():
    model, loss = nn.GRU(3, 4, dtype=F64), square
    case = make("gru", 9)
    chunk = bptt.Chunk(case.xs, case.ys, torch.eye(9, 2, dtype=torch.bool), torch.ones(9, 2, dtype=torch.bool))
    with torch.inference_mode():
        frozen = bptt.Chunk(*(leaf.clone() for leaf in chunk))
        state, initial = case.random_state().clone(), case.random_state(5).clone()
    for options in ({}, {"memory": bptt.Checkpoints(2, 2)}, {"strategy": bptt.TruncatedBPTT(2, 5)}):
        bptt.backward(model, loss, chunk, case.random_state(), initial_state=case.random_state(5), **options)
        want = oracle.gradients(model.parameters())
        bptt.backward(model, loss, frozen, state, initial_state=initial, **options)
        oracle.assert_close(oracle.gradients(model.parameters()), want)
    bptt.diagnose(model, loss, frozen, state)


class Sized(dict):
    """A dict of tensors that knows the leading size that they share, as TensorDict does."""

    @property
    def size(self):
        return tuple(next(iter(self.values())).shape[:2])


pytree.register_pytree_node(
    Sized,
    lambda d: (list(d.values()), {"keys": list(d), "batch_size": torch.Size(d.size), "rows": d.size[1]}),
    lambda values, context: Sized(zip(context["keys"], values, strict=True)),
)  # without names for its parts: these are not needed


def test_inputs_in_a_container_that_knows_its_size():
    case = make("gru", 9)

    def model(inputs, state):
        return case.model(inputs["a"] + inputs["b"], state)

    for kind in (dict, Sized):
        for options in ({}, {"memory": bptt.Checkpoints(2, 2)}, {"strategy": bptt.TruncatedBPTT(2, 5)}):
            xs, ys = kind(a=case.xs, b=case.xs), kind(y=case.ys)
            loss = lambda o, t: square(o, t["y"])  # noqa: E731
            bptt.backward(model, loss, (xs, ys), case.zeros(), **options)
            got = oracle.gradients(case.parameters())
            bptt.backward(model, square, ({"a": case.xs, "b": case.xs}, case.ys), case.zeros(), **options)
            oracle.assert_close(got, oracle.gradients(case.parameters()))
    cut = [(Sized(a=case.xs[a:b], b=case.xs[a:b]), case.ys[a:b]) for a, b in ((0, 4), (4, 9))]
    list(bptt.unroll(model, square, cut, case.zeros(), strategy=bptt.TruncatedBPTT(3)))
    late = [cut[0], (Sized(b=case.xs[:2], a=case.xs[:2]), case.ys[:2])]
    refused(lambda: list(bptt.unroll(model, square, late, case.zeros(), strategy=bptt.TruncatedBPTT(3))), "inputs")


class Placed(dict):
    """A dict of tensors that notes a place, as TensorDict does a device, and gives no names to its parts."""

    place = None


def _no_names(_):
    raise NotImplementedError


def _placed(values, context):
    made = Placed(zip(context["keys"], values, strict=True))
    made.place = context["place"]
    return made


pytree.register_pytree_node(
    Placed, lambda d: (list(d.values()), {"keys": list(d), "place": d.place}), _placed, flatten_with_keys_fn=_no_names
)


def test_what_a_container_notes_of_itself_is_told_where_it_differs():
    x, y, state = torch.zeros(5, 2, 3), torch.zeros(5, 2, 3), Placed(h=torch.zeros(2, 3))

    def step(inputs, state):
        after = Placed(h=state["h"] + inputs)
        after.place = "here"
        return after["h"], after

    with pytest.raises(ValueError, match=r"In Placed, place is here against None"):
        bptt.backward(bptt.scan(step), MSE, (x, y), state)
    with pytest.raises(ValueError, match=r"12 steps"):
        bptt.backward(bptt.scan(step), MSE, (Placed(x=x), torch.zeros(12, 2, 3)), state)
    with pytest.raises(TypeError, match=r"model\(inputs, state\)"):
        bptt.backward(nn.Linear(3, 3), MSE, (x, y), state)


def test_the_error_of_torch_is_the_cause_and_stays_a_runtime_error():
    with pytest.raises(RuntimeError, match="inputs") as info:
        bptt.backward(nn.GRU(3, 4), MSE, (X[..., :2], Y))
    assert isinstance(info.value.__cause__, RuntimeError)

    def own(inputs, state):
        raise KeyError("mine")

    with pytest.raises(KeyError) as info:
        bptt.backward(own, MSE, (X, Y), Y[0])
    assert "inputs (12, 2, 3)" in info.value.__notes__[0]
