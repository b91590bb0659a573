"""Models as graphs of ONNX's own recurrent operators, for any number of steps and rows a call.

torch's exporter unrolls a recurrent layer over the steps of its example; ONNX has the layers themselves.
"""

import importlib
from typing import Any

import numpy as np
import torch
from torch import nn

from bptt.export.parts import Parts, must_agree, parts_of
from bptt.models import Forecaster

OPSET, IR = 17, 8
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch has the gates that ONNX wants: i, o, f, c of i, f, c, o; z, r, h of r, z, n."""


class Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        try:
            self.onnx: Any = importlib.import_module("onnx")
        except ImportError:
            raise ImportError("to_onnx needs onnx, which isn't installed: pip install 'bptt[export]'.") from None
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        """A tensor of the graph's own."""
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; the name of its first output."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, list(outputs), **attributes))
        return outputs[0]

    def cast(self, name: str, dtype: str) -> str:
        """A value in a different dtype."""
        return self.add("Cast", [name], f"{name}_{dtype}", to=getattr(self.onnx.TensorProto, dtype.upper()))

    def value(self, name: str, dtype: torch.dtype, *shape: int | str) -> Any:
        """The type of an input or output; axes that are words may have any length."""
        kinds = {torch.float32: "FLOAT", torch.float64: "DOUBLE", torch.int64: "INT64"}
        kind = getattr(self.onnx.TensorProto, kinds[dtype])
        return self.onnx.helper.make_tensor_value_info(name, kind, list(shape))

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """The model, checked."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "bptt", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="bptt")
        model.ir_version = IR
        self.onnx.checker.check_model(model)
        return model


def to_onnx(model: nn.Module, dtype: torch.dtype | None = None) -> bytes:
    """A trained recurrence as the bytes of an ONNX file, for any number of steps and rows a call.

    Arguments:
        model: a `bptt.models.Forecaster`; or a module of an optional Embedding, one RNN, GRU or LSTM of torch.nn or
            bptt.nn, and an optional Linear, run one after the other, such as `bptt.models.CharModel` or your own. What
            was written is run once, and refused where it gives numbers different from the model's.
        dtype: of inputs that are numbers, float32 or float64, as the data have them; float32 if None.

    Returns: a file with inputs `inputs`, ids (steps, rows) int64 or numbers (steps, rows, columns), and the state: `h`,
        for an LSTM also `c`, (layers, rows, units); outputs `outputs`, and the state after them, `h_after`, `c_after`.
    Raises: ValueError for any other model; ImportError without the package onnx.
    Cost: writes one operator per layer; two short calls to compare.

    >>> import onnx
    >>> from bptt.models import CharModel
    >>> file = onnx.load_model_from_string(to_onnx(CharModel(30, "gru", hidden=8)))
    >>> [each.name for each in file.graph.input], [each.name for each in file.graph.output]
    (['inputs', 'h'], ['outputs', 'h_after'])
    """
    parts, graph = parts_of(model), Graph()
    layer, text = parts.layer, parts.embedding is not None
    given = torch.int64 if text else dtype or torch.float32
    shape: tuple[int, ...] = () if text else (layer.input_size,)
    if isinstance(model, Forecaster):
        x = _normal(graph, model, given)
    elif parts.embedding is not None:
        embedding: Any = model.get_submodule(parts.embedding)
        x = graph.add("Gather", [graph.constant("embedding", embedding.weight), "inputs"], "embedded")
    else:
        x = "inputs" if given == torch.float32 else graph.cast("inputs", "float")
    hidden = _recurrent(graph, parts, x)
    if isinstance(model, Forecaster):
        _forecast(graph, model, _readout(graph, model.decoder, hidden, "scores"))
        of, out = model.mean.dtype, model.shape
    elif parts.readout is not None:
        readout: Any = model.get_submodule(parts.readout)
        _readout(graph, readout, hidden, "outputs")
        of, out = torch.float32, (readout.out_features,)
    else:
        graph.add("Identity", [hidden], "outputs")
        of, out = torch.float32, (layer.hidden_size,)
    states = ["h", "c"] if parts.kind == "LSTM" else ["h"]
    sizes = layer.num_layers, "rows", layer.hidden_size
    inputs = [graph.value("inputs", given, "steps", "rows", *shape)]
    inputs += [graph.value(name, torch.float32, *sizes) for name in states]
    outputs = [graph.value("outputs", of, "steps", "rows", *out)]
    outputs += [graph.value(f"{name}_after", torch.float32, *sizes) for name in states]
    made = graph.model(inputs, outputs)
    session = importlib.import_module("onnx.reference").ReferenceEvaluator(made)

    def again(x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> Any:
        carried = {name: each.numpy() for name, each in zip(states, state, strict=True)}
        return session.run(None, {"inputs": x.numpy(), **carried})

    must_agree(f"to_onnx({type(model).__name__})", model, again, given)
    return made.SerializeToString()


def _normal(graph: Graph, model: Forecaster, given: torch.dtype) -> str:
    """Numbers as a `Forecaster` gives them to its layers."""
    own = model.mean.dtype
    x = "inputs" if given == own else graph.cast("inputs", {torch.float32: "float", torch.float64: "double"}[own])
    missing = graph.add("IsNaN", [x], "missing")
    known = graph.add("Where", [missing, graph.constant("mean", model.mean), x], "known")
    apart = graph.add("Sub", [known, "mean"], "apart")
    x = graph.add("Div", [apart, graph.constant("deviation", model.deviation)], "normal")
    return graph.cast(x, "float") if own == torch.float64 else x


def _readout(graph: Graph, readout: Any, hidden: str, name: str) -> str:
    graph.constant("decoder", readout.weight.t())
    if readout.bias is None:
        return graph.add("MatMul", [hidden, "decoder"], name)
    product = graph.add("MatMul", [hidden, "decoder"], "product")
    return graph.add("Add", [product, graph.constant("bias", readout.bias)], name)


def _forecast(graph: Graph, model: Forecaster, scores: str) -> None:
    """base + unit * scores, for each horizon and target."""
    scores = graph.add("Reshape", [scores, graph.constant("shape", np.array([0, 0, *model.shape]))], "change")
    scores = graph.cast(scores, "double") if model.mean.dtype == torch.float64 else scores
    change = graph.add("Mul", [scores, graph.constant("unit", model.unit)], "scaled")
    if model.places is None:
        base = graph.constant("target_mean", model.target_mean)
    else:
        now = graph.add("Gather", ["known", graph.constant("places", np.array(model.places))], "now", axis=2)
        base = graph.add("Unsqueeze", [now, graph.constant("horizon_axis", np.array([2]))], "base")
    graph.add("Add", [base, change], "outputs")


def _recurrent(graph: Graph, parts: Parts, x: str) -> str:
    """Layers on top of each other, each an operator of its own; the state in and out is cut up and put together."""
    kind, layer = parts.kind, parts.layer
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    ends: dict[str, list[str]] = {name: [] for name in states}
    for name in states:
        graph.add("Split", [name], *(f"{name}{i}" for i in range(layer.num_layers)), axis=0)
    for i in range(layer.num_layers):
        w, r = (
            graph.constant(f"{n}{i}", _gates(getattr(layer, f"weight_{part}_l{i}"), kind)[None])
            for n, part in (("W", "ih"), ("R", "hh"))
        )
        both = [_gates(getattr(layer, f"bias_{part}_l{i}"), kind) for part in ("ih", "hh")]
        b = graph.constant(f"B{i}", torch.cat(both)[None])
        after = [f"{name}{i}_after" for name in states]
        extra = {"linear_before_reset": 1} if kind == "GRU" else {}
        given = [x, w, r, b, "", *(f"{name}{i}" for name in states)]
        graph.add(kind, given, f"y{i}", *after, hidden_size=layer.hidden_size, **extra)
        axis = graph.constant(f"direction{i}", np.array([1]))
        x = graph.add("Squeeze", [f"y{i}", axis], f"hidden{i}")
        for name, end in zip(states, after, strict=True):
            ends[name].append(end)
    for name in states:
        graph.add("Concat", ends[name], f"{name}_after", axis=0)
    return x


def _gates(weight: torch.Tensor, kind: str) -> torch.Tensor:
    parts = weight.detach().chunk(len(GATES[kind]))
    return torch.cat([parts[i] for i in GATES[kind]])
