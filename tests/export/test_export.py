"""Exports of models, one's own among them: the numbers of another runtime, or a refusal."""

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

import bptt
from bptt.export import to_onnx, to_torch
from bptt.models import CharModel, Forecaster


class Net(nn.Module):
    """A model as people write it; what `change` makes of the outputs is more than its parts show."""

    def __init__(self, cell, change=None, bias=True):
        super().__init__()
        self.cell, self.out, self.change = cell, nn.Linear(cell.hidden_size, 2, bias=bias), change

    def forward(self, x, state=None):
        hidden, state = self.cell(x, state)
        outputs = self.out(hidden)
        return outputs if self.change is None else self.change(outputs), state


def by_onnxruntime(data, inputs, states):
    session = InferenceSession(data)
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, [each.numpy() for each in (inputs, *states)], strict=True)))


def by_plain_torch(source, model, inputs, states):
    space = {"__name__": "written"}
    exec(source, space)
    assert "bptt" not in source.split("class Model")[1]
    written = space["Model"]()
    written.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs, last = written(inputs, states if len(states) > 1 else states[0])
    return [outputs, *(last if isinstance(last, tuple) else (last,))]


MODELS = {
    "chars": lambda: CharModel(9, "lstm", 6, layers=2),
    "rnn": lambda: Net(nn.RNN(3, 5)),
    "gru": lambda: Net(bptt.nn.GRU(3, 5, num_layers=2), bias=False),
    "lstm": lambda: Net(nn.LSTM(3, 5, dropout=0.5, num_layers=3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_model_of_parts_gives_the_same_numbers_elsewhere(name, steps):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    layer = next(each for each in model.modules() if isinstance(each, nn.RNNBase))
    inputs = torch.randint(9, (steps, 4)) if name == "chars" else torch.randn(steps, 4, 3)
    states = tuple(
        torch.randn(layer.num_layers, 4, layer.hidden_size) for _ in range(2 if isinstance(layer, nn.LSTM) else 1)
    )
    with torch.no_grad():
        outputs, last = model(inputs, states if len(states) > 1 else states[0])
    wanted = [outputs, *(last if isinstance(last, tuple) else (last,))]
    for found in (
        by_onnxruntime(to_onnx(model), inputs, states),
        by_plain_torch(to_torch(model), model, inputs, states),
    ):
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)


def test_a_layer_alone_and_an_input_in_float64():
    torch.manual_seed(0)
    layer, inputs, state = nn.GRU(2, 3), torch.randn(5, 1, 2, dtype=torch.float64), torch.zeros(1, 1, 3)
    found = by_onnxruntime(to_onnx(layer, torch.float64), inputs, (state,))[0]
    np.testing.assert_allclose(layer(inputs.float())[0].detach(), found, atol=1e-6)
    with pytest.raises(ValueError, match="convert"):
        to_torch(layer)


def test_a_model_in_training_stays_so_and_draws_nothing():
    model = Net(nn.LSTM(3, 5, dropout=0.5, num_layers=2))
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    to_onnx(model)
    assert model.training
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("export", [to_onnx, to_torch])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Net(nn.GRU(3, 5), change=torch.tanh), "it does more with its parts than one after the other"),
        (lambda: Net(nn.GRU(3, 5, bidirectional=True)), "bidirectional=True"),
        (lambda: Net(nn.GRU(3, 5, batch_first=True)), "batch_first=True"),
        (lambda: Net(nn.RNN(3, 5, nonlinearity="relu")), "nonlinearity='relu'"),
        (lambda: Net(nn.LSTM(3, 5, bias=False)), "bias=False"),
        (lambda: Net(nn.GRU(3, 5).double()), "its layers are in torch.float64"),
        (lambda: nn.Sequential(nn.GRU(2, 3), nn.LayerNorm(3)), "1 is a LayerNorm"),
        (lambda: nn.Sequential(nn.GRU(2, 3), nn.GRU(3, 3)), "2 recurrent layers"),
        (lambda: nn.Sequential(nn.GRU(2, 3)), "can't be called as"),
        (lambda: nn.Linear(2, 3), "a parameter of its own"),
        (lambda: bptt.nn.CTRNN(2, 3, alpha=0.1), "a parameter of its own"),
    ],
)
def test_what_has_no_form_is_refused(export, model, message):
    with pytest.raises(ValueError, match=message):
        export(model())


def test_a_part_without_a_name_is_refused():
    class Numbered(nn.Sequential):
        def forward(self, inputs, state):
            return self[0](inputs, state)

    with pytest.raises(ValueError, match="its part '0' has a name that no attribute can have"):
        to_torch(Numbered(nn.GRU(2, 3)))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"to_onnx needs onnx, which isn't installed: pip install 'bptt\[export\]'"):
        to_onnx(Forecaster(1, None, 1, 1))
