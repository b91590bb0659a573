"""bptt.nn's recurrent layers beside torch.nn's: the same weights, one call, its outputs, states and gradients."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import bptt
from bptt.nn import fits, kernels
from support.oracle import leaves, tree_map

CELLS = ["RNN", "GRU", "LSTM"]
NATIVE = [native.name for native in kernels.natives]
KERNELS = [*NATIVE, "eager"]
F64 = torch.float64
RUNS = [*((name, torch.float32) for name in KERNELS), ("eager", F64)]
"""What computes, and in what: float64 is PyTorch's whichever kernels are chosen."""


@contextlib.contextmanager
def kernel(name: str) -> Iterator[None]:
    """The kernels of that name run float32 on the CPU, however short the sequence; "eager" stands for none."""
    before, pays = kernels.chosen, fits._pays
    kernels.chosen = next((native for native in kernels.natives if native.name == name), None)
    fits._pays = lambda *_: True
    assert kernels.chosen is not None or name == "eager"
    try:
        yield
    finally:
        kernels.chosen, fits._pays = before, pays


@contextlib.contextmanager
def torchs_own_operators() -> Iterator[None]:
    """Without oneDNN, whose LSTM can't be differentiated twice."""
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def pair(name: str, *args, **keywords):
    """(torch.nn's layer, ours) with the same weights."""
    theirs, ours = getattr(nn, name)(*args, **keywords), getattr(bptt.nn, name)(*args, **keywords)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def state_of(name: str, *shape: int, dtype=torch.float32):
    """A random state: a tensor, for an LSTM a pair."""
    h = torch.randn(shape, dtype=dtype)
    return (h, torch.randn(shape, dtype=dtype)) if name == "LSTM" else h


def cast(tree, dtype):
    """Copies of the floating leaves, without a graph, strides kept."""
    return tree_map(lambda t: t.detach().clone().to(dtype) if isinstance(t, torch.Tensor) else t, tree)


def tensors(result) -> list[torch.Tensor]:
    """Outputs and states of a call, a packed sequence's data among them."""
    y, last = result
    return [y.data if isinstance(y, PackedSequence) else y, *leaves(last)]


def weighted(values: list[torch.Tensor], seed: int = 5) -> torch.Tensor:
    """A sum that gives each entry a random cotangent, the same in every dtype."""
    g = torch.Generator().manual_seed(seed)
    return sum((torch.randn(v.shape, generator=g, dtype=F64).to(v.dtype) * v).sum() for v in values)


def gradients(layer, x, hx=None, wanted=None, **keywords) -> list[torch.Tensor]:
    """Outputs, states, and the gradients by inputs, states and weights, or by `wanted`."""
    x = x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x
    hx = tree_map(lambda s: s.detach().requires_grad_(), hx) if hx is not None else None
    values = tensors(layer(x, hx, **keywords))
    if wanted is None:
        wanted = [*([x] if isinstance(x, torch.Tensor) else [x.data]), *(leaves(hx) if hx is not None else [])]
        wanted = [t for t in wanted if t.requires_grad] + list(layer.parameters())
    found = torch.autograd.grad(weighted(values), wanted, allow_unused=True)
    return [*(v.detach() for v in values), *found]


def errors(got: list, exact: list, few: int = 0) -> list[float]:
    """Largest error over largest entry, tensor by tensor.

    few: a tensor of fewer numbers may be small by cancellation in all of them, which no rounding survives: its largest
    entry counts as the call's.
    """
    assert len(got) == len(exact)
    call = max((float(e.detach().abs().max()) for e in exact if e is not None and e.numel()), default=0.0)
    out = []
    for a, e in zip(got, exact, strict=True):
        assert (a is None) == (e is None)
        if e is not None and e.numel():
            assert a.shape == e.shape
            a, e = a.detach().double(), e.detach().double()
            gap = float((a - e).abs().max())
            assert gap == gap, "not a number"
            scale = max(float(e.abs().max()), call if e.numel() < few else 1e-30)
            out.append(gap / scale if gap else 0.0)
    return out


def assert_equal(got: list, expected: list, tolerance: float | None = None, few: int = 0) -> None:
    """Every tensor within `tolerance` of its largest entry: 2e-6 in float32, 1e-13 in float64. few: see `errors`."""
    if tolerance is None:
        tolerance = 1e-13 if got[0].dtype == F64 else 2e-6
    found = errors(got, expected, few)
    assert max(found) <= tolerance, f"{max(found):.1e} > {tolerance:.0e}: {found}"


class Gate(torch.autograd.Function):
    """The identity, whose vjp multiplies by w; w = 0 cuts, whatever comes."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.w = w
        return x.view_as(x)

    @staticmethod
    def backward(ctx, c):
        return torch.where(ctx.w == 0, torch.zeros_like(c), c * ctx.w), None


class StepByStep(nn.Module):
    """A torch.nn layer with both keywords, time first, by their definition."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, hx=None, is_start=None, cotangent_weight=None):
        T, rows, layer = len(x), x.shape[1:-1], self.layer
        if hx is None:
            hx = torch.zeros(layer.num_layers, *rows, layer.hidden_size, dtype=x.dtype)
            hx = (hx, hx.clone()) if isinstance(layer, nn.LSTM) else hx
        starts = torch.zeros(T, *rows, dtype=torch.bool) if is_start is None else is_start.reshape(T, *[-1] * len(rows))
        w = torch.ones(T, *rows) if cotangent_weight is None else cotangent_weight.reshape(T, *[-1] * len(rows))
        outputs = []
        for t in range(T):
            at = starts[t].expand(rows)[None, ..., None]
            hx = tree_map(lambda s, at=at: torch.where(at, torch.zeros_like(s), s), hx)
            y, hx = layer(x[t : t + 1], hx)
            by = w[t].to(x.dtype).expand(rows)[None, ..., None]
            hx = tree_map(lambda s, by=by: Gate.apply(s, by), hx)
            outputs.append(y)
        return torch.cat(outputs), hx


def draw_keywords(T, B, seed, with_rows=(True, True)):
    g = torch.Generator().manual_seed(seed)
    start = torch.rand((T, B) if with_rows[0] else (T,), generator=g) < 0.3
    weight = torch.randint(0, 4, (T, B) if with_rows[1] else (T,), generator=g) * 0.5
    return start, weight
