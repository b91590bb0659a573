"""The gradients of the textbook's network in closed form, term by term: no autograd, float64.

Steps are t = 0 .. T-1, as in arrays and in the engine; h_{-1} is the state before the first. One sequence at a time:
x is (T, I), and the gradient of a batch is the mean over its rows. L = Σ_t l_t, each l_t summed over its components:

    trace = forward(network, x, y)
    gradient_by_double_sum(trace)       dL/dU, dL/dW, dL/dV as the sums over (t, k) that a textbook prints
    gradient_by_recursion(trace)        the same by back-propagation
    bptt.backward(model, squared_error, (x, y), reduction="sum")        the same by the engine

>>> import torch
>>> from bptt import equations
>>> network = equations.Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
>>> trace = equations.forward(network, x=torch.ones(4, 1), y=torch.zeros(4, 1))
>>> equations.gradient_by_recursion(trace).W.item() == equations.lag_terms(trace).W.sum().item()
True
"""

from bptt.equations.caching import Cached, Cost, costs
from bptt.equations.gradients import (
    Gradient,
    gradient_by_double_sum,
    gradient_by_recursion,
    lag_term,
    lag_terms,
    pair_term,
    pair_terms,
    state_cotangents,
)
from bptt.equations.network import ACTIVATIONS, LOSSES, Network, softmax_cross_entropy, squared_error
from bptt.equations.steps import Trace, forward, jacobian, step_jacobian
from bptt.equations.truncation import (
    ARTBPPattern,
    artbp_gradient,
    full_weights,
    pair_weights,
    subsequence_boundaries,
    subsequence_gradient,
    subsequence_weights,
    truncated_gradient,
    truncated_weights,
)

__all__ = [
    "ACTIVATIONS", "LOSSES", "ARTBPPattern", "Cached", "Cost", "Gradient", "Network", "Trace", "artbp_gradient",
    "costs", "forward", "full_weights", "gradient_by_double_sum", "gradient_by_recursion", "jacobian", "lag_term",
    "lag_terms", "pair_term", "pair_terms", "pair_weights", "softmax_cross_entropy", "squared_error",
    "state_cotangents", "step_jacobian", "subsequence_boundaries", "subsequence_gradient", "subsequence_weights",
    "truncated_gradient", "truncated_weights",
]  # fmt: skip
