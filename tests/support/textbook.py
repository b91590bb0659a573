"""Textbook networks with data, and their gradients by autograd in the plainest way, loss by loss and step by step."""

import itertools

import torch
from torch.nn import functional

from bptt import equations
from bptt.equations import Gradient, Network

F64 = torch.float64
NONLINEARITIES = ["identity", "tanh", "relu", "sigmoid"]
LOSSES = ["squared_error", "softmax_cross_entropy"]
EVERY_KIND = list(itertools.product(NONLINEARITIES, LOSSES, [False, True]))
FUNCTIONS = {"identity": lambda a: a, "tanh": functional.tanh, "relu": functional.relu, "sigmoid": functional.sigmoid}


def make(nonlinearity="tanh", loss="squared_error", bias=True, T=6, sizes=(2, 3, 4), seed=0):
    """(network, x, y, h0): W has the spectral radius 0.9, so that long lags matter and nothing explodes."""
    g = torch.Generator().manual_seed(seed)
    I, H, O = sizes  # noqa: E741
    U, V, W = (torch.randn(*shape, generator=g, dtype=F64) for shape in ((H, I), (O, H), (H, H)))
    W *= 0.9 / torch.linalg.eigvals(W).abs().max()
    b, c = (torch.randn(n, generator=g, dtype=F64) if bias else None for n in (H, O))
    x, h0 = torch.randn(T, I, generator=g, dtype=F64), torch.randn(H, generator=g, dtype=F64)
    y = torch.randn(T, O, generator=g, dtype=F64)
    if loss == "softmax_cross_entropy":
        y = torch.randint(O, (T,), generator=g)
    return Network(U, W, V, b, c, nonlinearity, loss), x, y, h0


def trace(*args, **keywords):
    return equations.forward(*make(*args, **keywords))


def losses_and_states(network: Network, p: dict, x, y, h0):
    """([l_t], [h_t]), with p["W"][k] the W of step k and so on: one parameter of its own for every step."""
    losses, states, h = [], [], h0
    for k in range(len(x)):
        b, c = (p[name][k] if p[name] is not None else None for name in ("b", "c"))
        h = FUNCTIONS[network.nonlinearity](functional.linear(x[k], p["U"][k], b) + p["W"][k] @ h)
        o = functional.linear(h, p["V"][k], c)
        if network.loss == "squared_error":
            losses.append(functional.mse_loss(o, y[k], reduction="sum") / 2)
        else:
            losses.append(functional.cross_entropy(o, y[k]))
        states.append(h)
    return losses, states


def parameters(network: Network, steps: int) -> dict:
    """A leaf (T, ...) a parameter: one value for every step."""

    def leaf(value):
        return None if value is None else value.expand(steps, *value.shape).clone().requires_grad_()

    return {name: leaf(getattr(network, name)) for name in Gradient._fields}


def autograd(network: Network, x, y, h0) -> Gradient:
    """dL/dθ, L the sum of the losses."""
    p = parameters(network, len(x))
    total = torch.stack(losses_and_states(network, p, x, y, h0)[0]).sum()
    given = {name: value for name, value in p.items() if value is not None}
    grads = dict(zip(given, torch.autograd.grad(total, list(given.values())), strict=True))
    return Gradient(**{name: grad.sum(0) for name, grad in grads.items()})


def autograd_by_pair(network: Network, x, y, h0) -> Gradient:
    """∂l_t/∂θ_k, (T, T, ...): the gradient of each loss with respect to the parameters of each step."""
    p = parameters(network, len(x))
    given = {name: value for name, value in p.items() if value is not None}
    rows = [
        torch.autograd.grad(loss, list(given.values()), retain_graph=True)
        for loss in losses_and_states(network, p, x, y, h0)[0]
    ]
    return Gradient(**{name: torch.stack(column) for name, column in zip(given, zip(*rows, strict=True), strict=True)})


def total(terms: Gradient, axes) -> Gradient:
    """Summed over leading axes."""
    return Gradient(*(None if term is None else term.sum(axes) for term in terms))
