"""RNN, GRU and LSTM: torch.nn's layers on fused kernels."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from bptt import _torch
from bptt.nn import direct, fits, layer, plain
from bptt.nn.kernels.sequence import Maybe, Plan
from bptt.nn.layer import on_kernels
from bptt.nn.rewriters import Rewritten, recorded
from bptt.nn.stepper import Stepper
from bptt.nn.uncompiled import uncompiled

State = Any
"""(layers, B, H), for an LSTM a pair of such tensors; (layers, H) unbatched; layers times two if bidirectional."""

_M = TypeVar("_M", bound=nn.Module)


class _Fused(Rewritten, nn.RNNBase):
    """What the three have in common: one autograd node for each layer and direction, or torch.nn's own forward."""

    @uncompiled
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Any,
        hx: State = None,
        is_start: Tensor | None = None,
        cotangent_weight: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> tuple[Any, State]:
        """Outputs and the last state, as torch.nn's layer returns them.

        is_start: bool (T, B) or (T,): rows whose state is set to zeros before that step.
        cotangent_weight: (T,) or (T, B): entry t, w_{t+1} of equation (1), multiplies the cotangent that reaches the
            state after step t from step t+1, for the last entry that of the returned state, but never that of the
            outputs.
        embedding: (V, I): `input` then holds the indices of its rows, integers (T, B), and each step's input is that
            row.
        """
        if isinstance(input, Proxy):
            more = {"is_start": is_start, "cotangent_weight": cotangent_weight, "embedding": embedding}
            return recorded(self, input, hx=hx, **more)
        asked = is_start is not None or cotangent_weight is not None
        if not asked and embedding is None:
            found = direct.call(self, input, hx)
            if found is not None:
                return found
        shown = input if embedding is None else layer.embedded(self, input, embedding)
        if asked:
            fits.keywords(self, shown, is_start=is_start, cotangent_weight=cotangent_weight)
            is_start, cotangent_weight = layer.sequence_keywords(self, shown, is_start, cotangent_weight)
        _torch.update_flat_weights(self)
        fused = fits.fused(self, shown, hx, asked)
        if embedding is not None and not (fused and fits.few(embedding, input)):
            input, embedding = _looked_up(input, embedding), None
        if not fused and not asked and self.mode != "RNN_IDENTITY":
            torchs: Any = super().forward
            return torchs(input, hx)
        return _run(self, input, hx, is_start, cotangent_weight, embedding, fused)

    def stepper(self, batch: int | None = None) -> Stepper:
        """The layer for live use: `stepper(inputs)` -> outputs, one step per call, no gradients, the state inside.

        batch: B for inputs (B, I) and outputs (B, H); None for (I,) and (H,).

        `stepper.state` is a copy of the state and may be assigned; None stands for the zeros that it starts from.
        Parameters are read at every step, so that any change to them is seen. The numbers are those of a call with the
        whole sequence, up to rounding.
        Raises ValueError for a bidirectional layer, and for inputs or states of another shape.
        Cost: a step of the kernels and some microseconds for B <= 8 in float32 on the CPU; otherwise, and for layers
        with hooks or parametrised weights, a call of the layer.

        >>> import bptt.nn, torch
        >>> layer = bptt.nn.GRU(3, 4)
        >>> inputs = torch.randn(9, 3)
        >>> step = layer.stepper()
        >>> outputs = torch.stack([step(x) for x in inputs])
        >>> torch.allclose(outputs, layer(inputs)[0], atol=1e-6)
        True
        """
        return Stepper(self, batch)


def _looked_up(input: Any, embedding: Tensor) -> Any:
    """The rows of `embedding` that the ids stand for."""
    if isinstance(input, PackedSequence):
        return input._replace(data=functional.embedding(input.data, embedding))
    return functional.embedding(input, embedding)


def _run(
    layer: _Fused, input: Any, hx: State, start: Maybe, weight: Maybe, embedding: Maybe, fused: bool
) -> tuple[Any, State]:
    packed = isinstance(input, PackedSequence)
    x, sizes, order, back = input if packed else (input, None, None, None)
    single = not packed and x.dim() == (2 if embedding is None else 1)
    swapped = layer.batch_first and not packed and not single
    x = x.unsqueeze(1) if single else x.transpose(0, 1) if swapped else x
    states: plain.State | None = None
    if hx is not None:
        states = tuple(hx) if layer.mode == "LSTM" else (hx,)
        states = tuple(s.unsqueeze(1) for s in states) if single else states
        if order is not None:
            states = tuple(s.index_select(1, order) for s in states)
    if not fused:
        states = fits.checked(layer, x, states, sizes)
    steps, rows = x.shape[:2] if sizes is None else (len(sizes), int(sizes[0]))
    plan = Plan(layer.mode, steps, rows, sizes=sizes, start=start, weight=weight)
    if fused and sizes is not None:
        plan.sizes, plan.offsets = sizes.contiguous(), sizes.cumsum(0) - sizes
    if embedding is not None:
        plan.ids, x = x.contiguous().long(), embedding
    y, last = _layers(layer, plan, x, states, fused)
    if back is not None:
        last = tuple(s.index_select(1, back) for s in last)
    last = tuple(s.squeeze(1) for s in last) if single else last
    if packed:
        y = PackedSequence(y, sizes, order, back)
    else:
        y = y.squeeze(1) if single else y.transpose(0, 1) if swapped else y
    return y, last if layer.mode == "LSTM" else last[0]


def _layers(
    layer: _Fused, plan: Plan, x: Tensor, states: plain.State | None, fused: bool
) -> tuple[Tensor, plain.State]:
    """All layers and directions on x, with the plan of the first one: outputs, and the last states (layers, B, H)."""
    directions = 2 if layer.bidirectional else 1
    flat = _torch.flat_weights(layer)
    count = layer.num_layers * directions
    each = len(flat) // count
    run: Any = _on_kernels if fused else plain.run
    if count == 1:
        return run(plan, x, states, flat)
    ends: list[plain.State] = []
    for i in range(layer.num_layers):
        outputs: list[Tensor] = []
        for d in range(directions):
            k = i * directions + d
            state = None if states is None else tuple(s[k : k + 1] for s in states)
            y, last = run(replace(plan, reverse=d == 1), x, state, flat[k * each : (k + 1) * each])
            outputs.append(y)
            ends.append(last)
        x, plan.ids = outputs[0] if directions == 1 else torch.cat(outputs, -1), None
        if layer.dropout and i < layer.num_layers - 1:
            x = functional.dropout(x, layer.dropout, layer.training)
    return x, tuple(torch.cat(column) for column in zip(*ends, strict=True))


def _on_kernels(plan: Plan, x: Tensor, state: plain.State | None, weights: list[Tensor]) -> tuple[Tensor, plain.State]:
    """`plain.run` on the kernels; a state of None is zeros, and x is an embedding if there are ids."""
    h0, c0 = (None, None) if state is None else state if plan.mode == "LSTM" else (state[0], None)
    return on_kernels(plan, (x, h0, c0, *(weights if len(weights) == 4 else (*weights, None, None))))


class RNN(_Fused, nn.RNN):
    """torch.nn.RNN on fused kernels: the same constructor, parameters, call and results, several times faster on a CPU.

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)                                    (1)

    Arguments of the constructor: torch.nn.RNN's. nonlinearity: "tanh", "relu", or also "identity".
    Call: `(inputs, state=None, is_start=None, cotangent_weight=None, embedding=None)`, the first two and the results as
        in torch.nn.
    is_start: bool (T, B) or (T,): rows whose state is set to zeros before that step; no cotangent crosses it.
    cotangent_weight: (T,) or (T, B): entry t multiplies the cotangent that reaches h_t from step t+1, for the last
        entry that of the returned state, but never that of the outputs; it is w_{t+1} of
        c_t = ∂l_t/∂h_t + w_{t+1} c_{t+1} ∂h_{t+1}/∂h_t.
    embedding: (V, I), a row for each of V ids; inputs are then ids, int64 or int32, (T, B), unbatched (T,) or packed,
        and the result is that of `layer(torch.nn.functional.embedding(inputs, embedding))`, gradients included. If
        V < T B, the multiplications by W_ih, forward and backward, are V I H instead of T B I H.

    The kernels serve float32 on the CPU, batched or not, packed sequences, all layers and directions. For a few steps
    of more than 8 rows, other devices, autocast, `torch.func`, or `proj_size`, torch.nn's own code runs. The backward
    pass can be differentiated again, and then runs in plain operators. `bptt doctor` says which kernels run. For
    programs that take only torch.nn's own types (torch.jit.script, quantisation), `bptt.nn.convert(model, back=True)`
    gives them back.
    Raises: what torch.nn.RNN raises; ValueError for keywords of another shape, the first two also with a PackedSequence
        or bidirectional; TypeError for ids of another dtype; IndexError for an id without a row.
    Cost: the multiplications of torch.nn, with the input's and those of the weight gradients taken over all steps at
    once. The inputs and 1 (RNN), 5 (GRU) or 6 (LSTM) numbers per unit, row and step are saved for the backward pass.

    >>> import bptt.nn, torch
    >>> layer = bptt.nn.RNN(3, 4)
    >>> torchs = torch.nn.RNN(3, 4)
    >>> torchs.load_state_dict(layer.state_dict())
    <All keys matched successfully>
    >>> inputs = torch.randn(9, 2, 3)
    >>> torch.allclose(layer(inputs)[0], torchs(inputs)[0], atol=1e-6)
    True
    >>> characters, embedding = torch.randint(5, (9, 2)), torch.nn.Embedding(5, 3)
    >>> looked_up = layer(embedding(characters))[0]
    >>> torch.allclose(layer(characters, embedding=embedding.weight)[0], looked_up, atol=1e-6)
    True

    Source: Appleyard, Kočiský & Blunsom 2016, "Optimizing Performance of Recurrent Neural Networks on GPUs",
    https://arxiv.org/abs/1604.01946, for weight gradients and the input's products taken over all steps at once.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        identity = "identity" in (args[3] if len(args) > 3 else None, keywords.get("nonlinearity"))
        if identity and len(args) > 3:
            args = (*args[:3], "tanh", *args[4:])
        elif identity:
            keywords["nonlinearity"] = "tanh"
        super().__init__(*args, **keywords)
        if identity:
            self.nonlinearity, self.mode = "identity", "RNN_IDENTITY"


class GRU(_Fused, nn.GRU):
    """torch.nn.GRU on fused kernels: the same constructor, parameters, call and results, several times faster on a CPU.

        r, z = σ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), each its rows                    (1)
        n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))                               (2)
        h_t = (1 - z) n + z h_{t-1}                                                       (3)

    Arguments, call with `is_start`, `cotangent_weight`, `embedding`, errors, cost: see `RNN`; torch.nn.GRU's arguments.

    >>> import bptt.nn, torch
    >>> outputs, state = bptt.nn.GRU(3, 4, num_layers=2)(torch.zeros(9, 2, 3))
    >>> outputs.shape, state.shape
    (torch.Size([9, 2, 4]), torch.Size([2, 2, 4]))

    Source: Cho et al. 2014, https://arxiv.org/abs/1406.1078, in torch.nn's form, where r multiplies the product.
    """


class LSTM(_Fused, nn.LSTM):
    """torch.nn.LSTM on fused kernels: the same constructor, parameters, call and results, and faster on a CPU.

        i, f, o = σ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), g = tanh(the same), each its rows   (1)
        c_t = f c_{t-1} + i g                                                             (2)
        h_t = o tanh(c_t)                                                                 (3)

    Arguments, call with `is_start`, `cotangent_weight`, `embedding`, errors, cost: see `RNN`; torch.nn.LSTM's
    constructor. The weight acts on the cotangents of both h_t and c_t.

    >>> import bptt.nn, torch
    >>> outputs, (h, c) = bptt.nn.LSTM(3, 4)(torch.zeros(9, 2, 3), is_start=torch.arange(9) % 3 == 0)
    >>> outputs.shape, c.shape
    (torch.Size([9, 2, 4]), torch.Size([1, 2, 4]))

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.
    """


def convert(model: _M, back: bool = False) -> _M:
    """Turn a model's torch.nn.RNN, GRU and LSTM layers, or itself, into fused ones: `bptt.nn.RNN`, `GRU`, `LSTM`.

    model: any module; subclasses of the layers stay as they are.
    back: True turns fused layers into torch.nn's instead: for programs that know only these, such as torch.jit.script
        and dynamic quantisation, or for comparison.

    Returns the same object. The layers are the same objects too, of another class: parameters, hooks, tied weights,
    buffers and modes are untouched, so optimisers made before stay valid.
    Raises: TypeError for anything but a module; with `back`, ValueError for an RNN whose nonlinearity is "identity",
        which torch.nn doesn't have: nothing is converted then.
    Cost: none.

    >>> import bptt.nn, torch
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.LSTM(3, 4)})
    >>> bptt.nn.convert(model)
    ModuleDict(
      (layer): LSTM(3, 4)
    )
    >>> type(model["layer"]) is bptt.nn.LSTM
    True
    >>> type(bptt.nn.convert(model, back=True)["layer"]) is torch.nn.LSTM
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert(model={model!r}): a torch.nn.Module is needed.")
    classes: dict[type, type] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
    if back:
        classes = {fused: torchs for torchs, fused in classes.items()}
        for name, module in model.named_modules():
            if type(module) is RNN and module.mode == "RNN_IDENTITY":
                at = f"its {name!r}" if name else "it"
                raise ValueError(f'convert(back=True): {at} has nonlinearity="identity", which torch.nn doesn\'t have.')
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return model
