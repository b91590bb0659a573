"""Models as a file of Python that needs torch alone."""

from typing import Any

import torch
from torch import nn

from bptt.export.parts import must_agree, parts_of
from bptt.models import Forecaster

HEAD = '''"""A model that was trained by {by}, in plain torch; its weights are in {name}.pt.

{about}

    model = load()
    outputs, state = model(inputs, model.initial_state(rows))  # any number of steps; then go on from `state`
"""

from pathlib import Path

import torch
from torch import nn


class Model(nn.Module):
    """{what}."""

    def __init__(self):
        super().__init__()
{parts}
    def initial_state(self, rows):
        """Zeros."""
        h = torch.zeros({layers}, rows, {hidden})
        return {state}

    def forward(self, inputs, state):
        """(inputs, state) -> (outputs, state)."""
{forward}

def load():
    """The model with its weights, for evaluation."""
    model = Model()
    model.load_state_dict(torch.load(Path(__file__).with_name("{name}.pt"), weights_only=True))
    return model.eval()
'''

PLAIN = """        hidden, state = self.{layers}({inputs}, state)
        return {outputs}, state

"""

NUMBERS = """        inputs = inputs.to(self.mean.dtype)
        known = torch.where(torch.isnan(inputs), self.mean, inputs)
        hidden, state = self.recurrent(((known - self.mean) / self.deviation).float(), state)
        change = self.decoder(hidden).unflatten(-1, {shape})
        return {base} + self.unit * change, state

"""


def to_torch(model: nn.Module, name: str = "model") -> str:
    """A trained recurrence as the source of a module in plain torch, `load()` of which gives it with its weights.

    Arguments:
        model: as `to_onnx` takes it, but for a layer alone. What was written is run once, and refused where it gives
            numbers different from the model's.
        name: of the file of weights, without its `.pt`: `torch.save(model.state_dict(), f"{name}.pt")` beside it.

    Raises: ValueError for any other model.

    >>> from bptt.models import CharModel
    >>> source = to_torch(CharModel(30, "gru", hidden=8))
    >>> [line.strip() for line in source.splitlines() if "= nn." in line]
    ['self.embedding = nn.Embedding(30, 64)', 'self.recurrent = nn.GRU(64, 8, 1)', 'self.decoder = nn.Linear(8, 30)']
    """
    parts, called = parts_of(model), f"to_torch({type(model).__name__})"
    if not parts.layers:
        raise ValueError(f"{called}: a layer is in plain torch after bptt.nn.convert(layer, back=True).")
    layer, made = parts.layer, []
    inputs = "inputs"
    if parts.embedding is not None:
        embedding: Any = model.get_submodule(parts.embedding)
        made.append(f"self.{parts.embedding} = nn.Embedding({embedding.num_embeddings}, {embedding.embedding_dim})")
        inputs = f"self.{parts.embedding}(inputs)"
    for buffer, value in model.named_buffers(recurse=False):
        made.append(f'self.register_buffer("{buffer}", torch.zeros({tuple(value.shape)}, dtype={value.dtype}))')
    made.append(f"self.{parts.layers} = nn.{parts.kind}({layer.input_size}, {layer.hidden_size}, {layer.num_layers})")
    outputs = "hidden"
    if parts.readout is not None:
        readout: Any = model.get_submodule(parts.readout)
        bias = "" if readout.bias is not None else ", bias=False"
        made.append(f"self.{parts.readout} = nn.Linear({readout.in_features}, {readout.out_features}{bias})")
        outputs = f"self.{parts.readout}(hidden)"
    if isinstance(model, Forecaster):
        what = "Normalised columns, recurrent layers and forecasts"
        about = "Inputs are numbers (T, B, columns) as measured; outputs forecasts (T, B, horizons, targets)."
        base = "self.target_mean" if model.places is None else f"known[..., {model.places}].unsqueeze(-2)"
        forward = NUMBERS.format(shape=model.shape, base=base)
    else:
        about, what = _told(parts.embedding, parts.readout)
        forward = PLAIN.format(layers=parts.layers, inputs=inputs, outputs=outputs)
    source = HEAD.format(
        name=name,
        by="`bptt train`" if type(model).__module__.startswith("bptt.") else "bptt",
        about=about,
        what=what,
        parts="".join(f"        {part}\n" for part in made),
        layers=layer.num_layers,
        hidden=layer.hidden_size,
        state="(h, h.clone())" if parts.kind == "LSTM" else "h",
        forward=forward,
    )
    must_agree(called, model, _running(called, source, model), getattr(model, "mean", layer.weight_hh_l0).dtype)
    return source


def _told(embedding: str | None, readout: str | None) -> tuple[str, str]:
    """What is said of inputs and outputs, and of the model."""
    if embedding is not None and readout is not None:
        about = "Inputs are ids (T, B), the places of characters in vocabulary.json; outputs scores (T, B, characters)."
        return about, "Embedding, recurrent layers and scores"
    given = "ids (T, B)" if embedding is not None else "numbers (T, B, columns)"
    what = "Embedding, recurrent layers" if embedding is not None else "Recurrent layers"
    return f"Inputs are {given}; outputs (T, B, units).", what + (" and a linear readout" if readout else "")


def _running(called: str, source: str, model: nn.Module) -> Any:
    """The written module with the model's weights, as a function of inputs and state."""

    @torch.no_grad()
    def again(x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> Any:
        for part, _ in model.named_children():
            if not part.isidentifier():
                raise ValueError(f"{called}: its part {part!r} has a name that no attribute can have; give it another.")
        space: dict[str, Any] = {"__name__": "written"}
        exec(source, space)
        written = space["Model"]()
        written.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
        (one, *others) = state
        outputs, last = written.eval()(x, state if others else one)
        return outputs, *(last if isinstance(last, tuple) else (last,))

    return again
