"""The models of `bptt train` as a file of Python that needs torch alone."""

from __future__ import annotations

from typing import Any

from torch import nn

HEAD = '''"""A model that was trained by `bptt train`, in plain torch; its weights are in {name}.pt.

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

TEXT = """        hidden, state = self.recurrent(self.embedding(inputs), state)
        return self.decoder(hidden), state

"""

NUMBERS = """        inputs = inputs.to(self.mean.dtype)
        known = torch.where(torch.isnan(inputs), self.mean, inputs)
        hidden, state = self.recurrent(((known - self.mean) / self.deviation).float(), state)
        change = self.decoder(hidden).unflatten(-1, {shape})
        return {base} + self.unit * change, state

"""


def plain_source(model: Any, name: str) -> str:
    """The file. name: of the file of weights, without its ending."""
    layer = model.recurrent
    kind = next(k for k in ("LSTM", "GRU", "RNN") if isinstance(layer, getattr(nn, k)))
    text = hasattr(model, "embedding")
    size, outputs = layer.input_size, len(model.decoder.bias)
    parts = []
    if text:
        parts.append(f"self.embedding = nn.Embedding({model.embedding.num_embeddings}, {size})")
    else:
        for buffer in ("mean", "target_mean", "deviation", "unit"):
            value = getattr(model, buffer)
            parts.append(f'self.register_buffer("{buffer}", torch.zeros({tuple(value.shape)}, dtype={value.dtype}))')
    parts.append(f"self.recurrent = nn.{kind}({size}, {layer.hidden_size}, {layer.num_layers})")
    parts.append(f"self.decoder = nn.Linear({layer.hidden_size}, {outputs})")
    if text:
        about = "Inputs are ids (T, B), the places of characters in vocabulary.json; outputs scores (T, B, characters)."
        forward = TEXT
    else:
        about = "Inputs are numbers (T, B, columns) as measured; outputs forecasts (T, B, horizons, targets)."
        base = "self.target_mean" if model.places is None else f"known[..., {model.places}].unsqueeze(-2)"
        forward = NUMBERS.format(shape=model.shape, base=base)
    return HEAD.format(
        name=name,
        about=about,
        what="Embedding, recurrent layers and scores" if text else "Normalised columns, recurrent layers and forecasts",
        parts="".join(f"        {part}\n" for part in parts),
        layers=layer.num_layers,
        hidden=layer.hidden_size,
        state="(h, h.clone())" if kind == "LSTM" else "h",
        forward=forward,
    )
