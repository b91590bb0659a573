"""What an exported model is made of: its parts, found by their types and checked by their sizes."""

from typing import Any, NamedTuple

import torch
from torch import nn

from bptt.models import Forecaster

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
TAKEN = (
    "an export takes a Forecaster, or a model of an optional Embedding, one RNN, GRU or LSTM, and an optional Linear"
)


class Parts(NamedTuple):
    """Names of a model's parts, None for one that it doesn't have, and the layers with their kind and size."""

    embedding: str | None
    layers: str
    readout: str | None
    kind: str
    layer: Any


def parts_of(model: nn.Module) -> Parts:
    """The parts of a model that are run one after the other: embedding, layers, readout.

    Raises: ValueError for a model that has others, and for layers that the exports have no form for.
    """
    called = f"export({type(model).__name__})"
    found = {name: each for name, each in model.named_children() if any(True for _ in each.state_dict())}
    if isinstance(model, nn.RNNBase):
        found = {"": model}
    loose = {name for name in model.state_dict() if not any(name.startswith(f"{part}.") for part in found)}
    if loose - {*dict(model.named_buffers())} and not isinstance(model, nn.RNNBase | Forecaster):
        raise ValueError(f"{called}: it has a parameter of its own, {min(loose)}; {TAKEN}.")
    named: dict[Any, list[str]] = {nn.Embedding: [], nn.RNNBase: [], nn.Linear: []}
    for name, each in found.items():
        kind = next((kind for kind in named if isinstance(each, kind)), None)
        if kind is None:
            raise ValueError(f"{called}: {name} is a {type(each).__name__}; {TAKEN}.")
        named[kind].append(name)
    if len(named[nn.RNNBase]) != 1 or any(len(names) > 1 for names in named.values()):
        count = len(named[nn.RNNBase])
        raise ValueError(f"{called}: it has {count} recurrent layers, or two parts of a kind; {TAKEN}.")
    (layers,), (embedding, *_), (readout, *_) = (
        named[nn.RNNBase],
        [*named[nn.Embedding], None],
        [*named[nn.Linear], None],
    )
    layer: Any = found[layers]
    kind = next(name for name, each in KINDS.items() if isinstance(layer, each))
    _check(called, layer)
    return Parts(embedding, layers, readout, kind, layer)


def _check(called: str, layer: Any) -> None:
    odd = {
        "bidirectional=True": layer.bidirectional,
        "batch_first=True": layer.batch_first,
        f"proj_size={layer.proj_size}": layer.proj_size,
        f"nonlinearity={getattr(layer, 'nonlinearity', 'tanh')!r}": getattr(layer, "nonlinearity", "tanh") != "tanh",
        "bias=False": not layer.bias,
    }
    for what, is_so in odd.items():
        if is_so:
            raise ValueError(f"{called}: its {type(layer).__name__} has {what}, which the exports have no form for.")
    if layer.weight_hh_l0.dtype != torch.float32:
        raise ValueError(f"{called}: its layers are in {layer.weight_hh_l0.dtype}; convert them with model.float().")


def must_agree(called: str, model: nn.Module, again: Any, dtype: torch.dtype) -> None:
    """Raise ValueError where what was written gives different numbers: the model does more than its parts show.

    again: (inputs, state as a tuple) -> (outputs, states).
    """
    parts, generator = parts_of(model), torch.Generator().manual_seed(0)
    layer = parts.layer
    if parts.embedding is not None:
        embedding: Any = model.get_submodule(parts.embedding)
        inputs = torch.randint(embedding.num_embeddings, (5, 2), generator=generator)
    else:
        inputs = torch.randn(5, 2, layer.input_size, generator=generator).to(dtype)
    states = tuple(
        torch.randn(layer.num_layers, 2, layer.hidden_size, generator=generator)
        for _ in range(2 if parts.kind == "LSTM" else 1)
    )
    training = model.training
    try:
        with torch.no_grad():
            device = layer.weight_hh_l0.device
            given = [each.to(device) for each in states]
            x = inputs.to(device) if isinstance(model, Forecaster) or parts.embedding is not None else inputs.float()
            outputs, last = model.eval()(x.to(device), tuple(given) if len(given) > 1 else given[0])
    except Exception as error:
        raise ValueError(f"{called}: it can't be called as (inputs, state): {error}") from error
    finally:
        model.train(training)
    wanted = [outputs, *(last if isinstance(last, tuple) else (last,))]
    for one, other in zip(wanted, again(inputs, states), strict=True):
        other = torch.as_tensor(other)
        size = one.abs().max().clamp(min=1.0)
        if one.shape != other.shape or not (one.cpu() - other).abs().max() <= 1e-4 * size.cpu():
            raise ValueError(f"{called}: it does more with its parts than one after the other; {TAKEN}.")
