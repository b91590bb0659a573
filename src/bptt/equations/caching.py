"""What each of the two ways to the gradient computes, keeps and reads again, as data."""

from dataclasses import dataclass

from bptt.equations.network import Network

BYTES = 8
"""The bytes of a float64 number."""


@dataclass(frozen=True)
class Cached:
    """A value that is kept for the backward pass.

    symbol: its name in the equations. shape: that of the kept array. reads: how often the backward pass reads one
    step's value, counted over all steps and terms.
    """

    symbol: str
    shape: tuple[int, ...]
    reads: int

    @property
    def bytes(self) -> int:
        """In float64."""
        size = BYTES
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class Cost:
    """What one way to the gradient costs.

    method: the function's name. products: products of Wᵀ and a vector in the backward pass. outer_products: those of
    W's gradient. cached: the values kept, one `Cached` each.
    """

    method: str
    products: int
    outer_products: int
    cached: tuple[Cached, ...]

    @property
    def bytes(self) -> int:
        """The bytes of all cached values."""
        return sum(value.bytes for value in self.cached)


def costs(network: Network, steps: int) -> tuple[Cost, Cost]:
    """Compare the naive double sum with the recursion: T²/2 products against T, for one more cached vector.

        double sum:  Σ_t t = T(T-1)/2 products of Wᵀ, Σ_t (t+1) = T(T+1)/2 outer products    (1)
        recursion:   T-1 products of Wᵀ, T outer products                                  (2)

    Both keep values of the forward pass: x_t, h_{t-1}, f'(a_t), e_t. The double sum takes each e_t back to every step
    separately and reads the values of step k for each of the T - k losses from there on. The recursion adds the losses'
    cotangents where they meet, in c_{t+1}, the one value that passes from step to step, and reads every other value
    once (h_t twice: for V at its own step, for W at the next).

    network: gives the sizes I, H, O. steps: T, >= 1.
    Returns the costs of `gradient_by_double_sum` and `gradient_by_recursion`. Raises ValueError for T = 0.

    >>> import torch
    >>> network = Network(U=torch.ones(2, 1), W=torch.eye(2), V=torch.ones(1, 2))
    >>> [(cost.method, cost.products, cost.bytes) for cost in costs(network, steps=100)]
    [('gradient_by_double_sum', 4950, 4816), ('gradient_by_recursion', 99, 4832)]

    Source: Werbos 1990 for the recursion.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: a sequence needs at least one step, a whole number.")
    T, (H, I), O = steps, network.U.shape, len(network.V)  # noqa: E741
    pairs = T * (T + 1) // 2

    def kept(reads: int) -> tuple[Cached, ...]:
        return (
            Cached("x", (T, I), reads),
            Cached("h", (T + 1, H), reads + T),
            Cached("f'(a)", (T, H), reads),
            Cached("e", (T, O), T),
        )

    return (
        Cost("gradient_by_double_sum", T * (T - 1) // 2, pairs, kept(pairs)),
        Cost("gradient_by_recursion", T - 1, T, (*kept(T), Cached("c", (H,), T - 1))),
    )
