"""The rival in JAX: the three cells by `lax.scan` under jit, with torch's equations and in several versions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from torch import Tensor, nn

try:
    import jax
    import jax.numpy as jnp
    from jax import lax
except ImportError:
    jax = jnp = lax = None

MISSING = "JAX is not installed, so its column is left out: pip install -c constraints.txt -e '.[compare]'"
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Writing:
    """One way to write the same layer; the fastest of them is the rival.

    hoisted: the input projection as one product before the scan, instead of one per step inside it.
    unroll: of `lax.scan`.
    """

    hoisted: bool
    unroll: int

    def __str__(self) -> str:
        return f"{'hoisted' if self.hoisted else 'inside'}, unroll={self.unroll}"


WRITINGS = (Writing(True, 1), Writing(False, 1), Writing(True, 4))


def version() -> str | None:
    return None if jax is None else jax.__version__


def threads() -> str:
    return f"XLA's own pool, by its default one a core; devices {[str(d) for d in jax.devices()]}"


def _step(cell: str, weights: Any, state: Any, projected: Any) -> Any:
    """The next state from the input's part of the gates. State: h, or (h, c)."""
    if cell == "rnn":
        return jnp.tanh(projected + state @ weights["hh"] + weights["b_hh"])
    h = state[0] if cell == "lstm" else state
    recurrent = h @ weights["hh"] + weights["b_hh"]
    if cell == "gru":
        (xr, xz, xn), (hr, hz, hn) = (jnp.split(part, 3, -1) for part in (projected, recurrent))
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)  # torch's convention: r is applied to W_hn h + b_hn
        return (1 - z) * n + z * h
    i, f, g, o = jnp.split(projected + recurrent, 4, -1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _layer(cell: str, writing: Writing, weights: Any, x: Any) -> Any:
    """Outputs (T, B, H) of x (T, B, I), from a state of zeros."""
    h = jnp.zeros((x.shape[1], weights["hh"].shape[0]), x.dtype)

    def project(x: Any) -> Any:
        return x @ weights["ih"] + weights["b_ih"]

    def step(state: Any, given: Any) -> Any:
        state = _step(cell, weights, state, given if writing.hoisted else project(given))
        return state, state[0] if cell == "lstm" else state

    first = (h, h) if cell == "lstm" else h
    return lax.scan(step, first, project(x) if writing.hoisted else x, unroll=writing.unroll)[1]


def contestants(
    cell: str, writing: Writing, layer: nn.RNNBase, x: Tensor, cotangent: Tensor
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Compiled runs on the weights of `layer`: outputs alone; and outputs, gradients of x and of the four weights.

    The gradients come in the order and the shapes of torch.nn: x, weight_ih, weight_hh, bias_ih, bias_hh.
    """
    w_ih, w_hh, b_ih, b_hh = (jnp.asarray(p.detach().numpy()) for p in layer.parameters())
    weights = {"ih": w_ih.T.copy(), "hh": w_hh.T.copy(), "b_ih": b_ih, "b_hh": b_hh}
    inputs, dy = jnp.asarray(x.detach().numpy()), jnp.asarray(cotangent.numpy())

    @jax.jit
    def forward(weights: Any, x: Any) -> Any:
        return _layer(cell, writing, weights, x)

    @jax.jit
    def both(weights: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda weights, x: _layer(cell, writing, weights, x), weights, x)
        return y, *pull(dy)

    return (
        lambda: jax.block_until_ready(forward(weights, inputs)),
        lambda: jax.block_until_ready(both(weights, inputs, dy)),
    )


def as_torch(result: Any) -> list[Any]:
    """The result of a run with gradients as arrays in torch's order and shapes, outputs first."""
    y, weights, x = result
    return [y, x, weights["ih"].T, weights["hh"].T, weights["b_ih"], weights["b_hh"]]


def to_numpy(array: Any) -> Any:
    """A copy that torch may wrap: JAX's own arrays are read-only."""
    return numpy.array(array)
