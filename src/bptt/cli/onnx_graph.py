"""The models of `bptt train` as graphs of ONNX's own recurrent operators, for any number of steps and rows a call.

torch's exporter unrolls a recurrent layer over the steps of its example; ONNX has the layers themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bptt.cli.printing import UserError

OPSET, IR = 17, 8
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch has the gates that ONNX wants: i, o, f, c of i, f, c, o; z, r, h of r, z, n."""


class Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError:
            raise UserError("--to onnx takes the package onnx: pip install 'bptt[export]'") from None
        self.onnx: Any = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        """A tensor of the graph's own."""
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; the name of its first output."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, list(outputs), **attributes))
        return outputs[0]

    def cast(self, name: str, dtype: str) -> str:
        """A value in another dtype."""
        return self.add("Cast", [name], f"{name}_{dtype}", to=getattr(self.onnx.TensorProto, dtype.upper()))

    def value(self, name: str, dtype: torch.dtype, *shape: int | str) -> Any:
        """The type of an input or output; axes that are words may have any length."""
        kinds = {torch.float32: "FLOAT", torch.float64: "DOUBLE", torch.int64: "INT64"}
        kind = getattr(self.onnx.TensorProto, kinds[dtype])
        return self.onnx.helper.make_tensor_value_info(name, kind, list(shape))

    def bytes(self, inputs: list[Any], outputs: list[Any]) -> bytes:
        """The file."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "bptt", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="bptt")
        model.ir_version = IR
        self.onnx.checker.check_model(model)
        return model.SerializeToString()


def onnx_model(model: Any, dtype: torch.dtype = torch.int64) -> bytes:
    """A character model or a forecaster as ONNX.

    dtype: of the inputs, as the data have them.

    Inputs: `inputs`, ids (steps, rows) int64 or numbers (steps, rows, columns), and the state: `h`, for an LSTM also
    `c`, (layers, rows, units). Outputs: `outputs`, and the state after them, `h_after`, `c_after`.

    Raises: UserError without the package onnx.
    """
    graph, layer = Graph(), model.recurrent
    text = hasattr(model, "embedding")
    if text:
        shape: tuple[int, ...] = ()
        x = graph.add("Gather", [graph.constant("embedding", model.embedding.weight), "inputs"], "embedded")
    else:
        shape, own = (len(model.mean),), model.mean.dtype
        given = "inputs" if dtype == own else graph.cast("inputs", _named(own))
        missing = graph.add("IsNaN", [given], "missing")
        known = graph.add("Where", [missing, graph.constant("mean", model.mean), given], "known")
        apart = graph.add("Sub", [known, "mean"], "apart")
        x = graph.add("Div", [apart, graph.constant("deviation", model.deviation)], "normal")
        x = graph.cast(x, "float") if own == torch.float64 else x
    hidden = _recurrent(graph, layer, x)
    graph.constant("decoder", model.decoder.weight.t())
    scores = graph.add("MatMul", [hidden, "decoder"], "product")
    scores = graph.add("Add", [scores, graph.constant("bias", model.decoder.bias)], "outputs" if text else "scores")
    out = (len(model.decoder.bias),) if text else model.shape
    if not text:
        _forecast(graph, model, scores)
    rows = ("layers", "rows", layer.hidden_size)
    states = ["h", "c"] if isinstance(layer, nn.LSTM) else ["h"]
    float32 = torch.float32
    inputs = [graph.value("inputs", dtype, "steps", "rows", *shape)]
    inputs += [graph.value(name, float32, layer.num_layers, *rows[1:]) for name in states]
    outputs = [graph.value("outputs", float32 if text else model.mean.dtype, "steps", "rows", *out)]
    outputs += [graph.value(f"{name}_after", float32, layer.num_layers, *rows[1:]) for name in states]
    return graph.bytes(inputs, outputs)


def _named(dtype: torch.dtype) -> str:
    return {torch.float32: "float", torch.float64: "double"}[dtype]


def _forecast(graph: Graph, model: Any, scores: str) -> None:
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


def _recurrent(graph: Graph, layer: Any, x: str) -> str:
    """Layers on top of each other, each an operator of its own; the state in and out is cut up and put together."""
    kind = next(name for name in GATES if isinstance(layer, getattr(nn, name)))
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
