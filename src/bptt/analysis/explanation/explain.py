"""The gradients of a small network worked through, with every number shown."""

import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import bptt
from bptt.analysis.explanation.example import check_sizes
from bptt.analysis.explanation.result import Explanation
from bptt.analysis.explanation.work import engine
from bptt.equations import Network, forward


def explain(
    network: Network,
    x: Tensor,
    y: Tensor,
    sources: tuple[str, str] = ("as given, to six digits", "as given, to six digits"),
    characters: str = "",
    *,
    tau: int | None = None,
    law: Callable[[int], float] | None = None,
    term: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Explanation:
    """Work through back-propagation through time on a small network, with every number shown.

        dL/dθ = Σ_t Σ_{k<=t} term (t, k)                                                  (1)

    Forward values, Jacobians, each term of the gradients, their agreement with autograd and `unroll`, and what
    truncation and ARTBP make of them.

    network: a `bptt.equations.Network` of at most 8 units, 16 inputs and 16 outputs; `Network.of` makes one of a
        `bptt.nn.SimpleRNN`, and `bptt.analysis.example` draws one with a sequence.
    x: (T, I), floating, one sequence of at most 12 steps. y: (T, O) floating for the squared error, (T,) int64 classes
        for the cross-entropy. The state before the first step is zero.
    sources: where parameters and sequence come from, as the sentences "Parameters are ..." and "The sequence is ..." go
        on. characters: one for each component of x_t and o_t, where x_t is one-hot and y_t a class.
    tau: terms of each sum that truncation keeps, and the length of subsequences, 1 .. T; None is 2, or T if less.
    law: the hazard of ARTBP's cuts; None is `PolynomialLaw(mean_length=2)`.
    term: the (t, k) to write out, 0 <= k <= t < T; None is lag 2 of the last loss. generator: draws ARTBP's cuts; None
        is one of seed 0.

    Returns an `Explanation`. Raises ValueError or TypeError for bad arguments; NonFiniteError.
    Cost: some passes over the sequence; 2^(T-1) patterns of cuts, seconds for T = 12.

    >>> import bptt, torch
    >>> network = bptt.equations.Network(torch.ones(1, 1), torch.full((1, 1), 0.5), torch.ones(1, 1))
    >>> found = bptt.explain(network, torch.ones(3, 1), torch.zeros(3, 1), tau=1)
    >>> found.verdict().splitlines()[1]
    'TruncatedBPTT(1, 1): drops 3 of the 6 terms, off by 0.2190 |dL/dθ|'
    >>> found.terms.W.flatten().tolist()  # entry [t, k], k <= t, of a network with one weight
    [0.0, 0.0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.875, 2.625]

    Source: Werbos 1990; Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063; Tallec & Ollivier 2017.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network={type(network).__name__}: must be a bptt.equations.Network; Network.of(model) makes one of a "
            f"SimpleRNN."
        )
    on_cpu = {name: getattr(network, name) for name in ("U", "W", "V", "b", "c")}
    network = replace(network, **{name: each if each is None else each.cpu() for name, each in on_cpu.items()})
    trace = forward(network, x, y)
    steps = trace.steps
    check_sizes(network, steps)
    tau, term = _checked_tau(tau, steps), _checked_term(term, steps)
    if characters:
        _check_characters(characters, network, trace.x)
    law = bptt.PolynomialLaw(mean_length=2.0) if law is None else law
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn, cuts = engine(network, trace.x, trace.y, bptt.ARTBP(law=law), generator)
    return Explanation(network, trace.x, trace.y, sources, characters, tau, term, law, cuts, drawn)


def _check_characters(characters: str, network: Network, x: Tensor) -> None:
    if not len(characters) == network.U.shape[1] == len(network.V):
        raise ValueError(f"characters={characters!r}: must have one for each component of x_t and of o_t, or be empty.")
    one_hot = bool(((x == 0) | (x == 1)).all()) and bool((x.sum(1) == 1).all())
    if not one_hot or network.loss != "softmax_cross_entropy":
        raise ValueError(f"characters={characters!r}: x_t must be one-hot and y_t a class to stand for characters.")


def _checked_tau(tau: int | None, steps: int) -> int:
    if tau is None:
        return min(2, steps)
    if isinstance(tau, bool) or not isinstance(tau, int) or not 1 <= tau <= steps:
        raise ValueError(f"tau {tau}: must be 1 to {steps}: a sum over {steps} steps has no more terms")
    return tau


def _checked_term(term: tuple[int, int] | None, steps: int) -> tuple[int, int]:
    if term is None:
        return steps - 1, max(steps - 3, min(1, steps - 1))
    try:
        t, k = map(operator.index, term)
    except (TypeError, ValueError):
        raise ValueError(f"term {term}: must be two steps, (t, k), such as (3, 1)") from None
    if not 0 <= t < steps:
        raise ValueError(f"term {t},{k}: there is no loss of step {t}; the steps are 0 to {steps - 1}")
    if not 0 <= k <= t:
        raise ValueError(f"term {t},{k}: the loss of step {t} has terms for the steps 0 to {t} only, none of step {k}")
    return t, k
