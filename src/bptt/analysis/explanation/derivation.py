"""The derivation up to its single terms: what is said about the numbers, and the tables that show them."""

from functools import partial

import torch

from bptt.analysis.explanation.tables import Section, Term, Titled, by_step, given, labels, matrix, number, triangle
from bptt.analysis.explanation.work import Work

SLOPES = {
    "identity": ("f(a) = a", "f'(a) = 1"),
    "tanh": ("f(a) = tanh(a)", "f'(a) = 1 - tanh(a)²"),
    "relu": ("f(a) = max(0, a)", "f'(a) = 1 for a > 0, else 0"),
    "sigmoid": ("f(a) = 1 / (1 + exp(-a))", "f'(a) = f(a) (1 - f(a))"),
}
LOSSES = {
    "squared_error": ("l_t = ½ Σ_i (o_ti - y_ti)²", "e_t = ∂l_t/∂o_t = o_t - y_t"),
    "softmax_cross_entropy": ("l_t = -log softmax(o_t)[y_t]", "e_t = ∂l_t/∂o_t = softmax(o_t) - onehot(y_t)"),
}


def term(work: Work, t: int, k: int) -> Term:
    """The factors of one term as numbers, and their product for W and U."""
    trace = work.trace
    vectors = {
        "Vᵀ e_t": trace.network.V.T @ trace.e[t],
        "∂l_t/∂h_k": work.cotangents[t, k],
        "f'(a_k)": trace.slopes[k],
        "δ_tk": trace.slopes[k] * work.cotangents[t, k],
        "h_{k-1}": trace.h_before[k],
    }
    walk = "".join(f" → Wᵀ → {state(j)}" for j in range(t - 1, k - 1, -1))
    return Term(
        t,
        k,
        f"l_{t} → o_{t} → Vᵀ → {state(t)}{walk}; there W is used, on {state(k - 1)}, and U, on x_{k}",
        (
            matrix("factors that are vectors", torch.stack(list(vectors.values()), 1), columns=tuple(vectors)),
            matrix(f"∂h_{t}/∂h_{k}", work.jacobians[t, k]),
            matrix("of dL/dW: δ_tk h_{k-1}ᵀ", work.terms.W[t, k]),
            matrix("of dL/dU: δ_tk x_kᵀ", work.terms.U[t, k], columns=labels(work.characters)),
        ),
    )


def state(t: int) -> str:
    """h_t, the state before the first step included."""
    return f"h_{t}" if t >= 0 else "h_{-1}"


def network(work: Work) -> Section:
    """The equations, the parameters and the sequence."""
    network = work.network
    (hidden, inputs), outputs, steps = network.U.shape, len(network.V), work.trace.steps
    b, c = ("" if bias is None else f" + {name}" for name, bias in (("b", network.b), ("c", network.c)))
    letters = labels(work.characters)
    tables = [
        matrix("U", network.U, columns=letters, show=given),
        matrix("W", network.W, show=partial(given, decimals=3)),
        matrix("V", network.V, rows=letters, show=given),
    ]
    for name, bias, rows in (("b", network.b, ()), ("c", network.c, letters)):
        if bias is not None:
            tables.append(matrix(name, bias[:, None], rows, columns=(" ",), show=given))
    radius = torch.linalg.eigvals(network.W).abs().max().item()
    one_hot = " x_t is a character as a one-hot vector, y_t the next character." if letters else ""
    return Section(
        "network",
        "The network and its sequence",
        (
            f"a_t = U x_t + W h_{{t-1}}{b}",
            f"h_t = f(a_t), {', '.join(SLOPES[network.nonlinearity])}",
            f"o_t = V h_t{c}",
            f"{LOSSES[network.loss][0]}, L = Σ_t l_t",
        ),
        (
            f"T = {steps} steps, t = 0 .. {steps - 1}. x_t has {_things(inputs, 'component')}, h_t {hidden}, "
            f"o_t {outputs}. h_{{-1}} = 0, the state before the first step.{one_hot}",
            f"Parameters are {work.sources[0]}. The spectral radius of W is {number(radius)}. "
            f"The same U, W and V serve at every step: that is why their gradients are sums over steps.",
        ),
        (*tables, _sequence(work)),
        f"The sequence is {work.sources[1]}.",
    )


def _things(count: int, name: str) -> str:
    return f"{count} {name}" + ("s" if count != 1 else "")


def _indexed(name: str, size: int, labels: tuple[str, ...] = ()) -> list[str]:
    """Names of components, "h[0]", or the name alone where there is one."""
    return [name] if size == 1 else [f"{name}[{label}]" for label in labels or range(size)]


def _sequence(work: Work) -> Titled:
    letters = labels(work.characters)
    if letters:
        x = [[letters[i] for i in work.x.argmax(1).tolist()]]
        y = [[letters[i] for i in work.y.tolist()]]
    else:
        x = [[given(v) for v in column] for column in work.x.T.tolist()]
        classes = work.y.dim() == 1
        y = [[str(v) if classes else given(v) for v in row] for row in work.y.view(len(work.y), -1).T.tolist()]
    rows = [*_indexed("x", len(x)), *_indexed("y", len(y))]
    return by_step("x_t and y_t", rows, [*x, *y])


def _rows(values: dict[str, torch.Tensor], labels: tuple[str, ...] = ()) -> tuple[list[str], list[list[str]]]:
    """Row names and texts of arrays (T, n); labels are those of o and e."""
    names, cells = [], []
    for name, array in values.items():
        columns = array.view(len(array), -1).T.tolist()
        names += _indexed(name, len(columns), labels if name in ("o", "e") else ())
        cells += [[number(v) for v in column] for column in columns]
    return names, cells


def forward(work: Work) -> Section:
    """All values of the forward pass."""
    trace = work.trace
    names, cells = _rows(
        {"a": trace.a, "h": trace.h, "o": trace.o, "l": trace.l, "e": trace.e}, labels(work.characters)
    )
    return Section(
        "forward",
        "Forward",
        (LOSSES[trace.network.loss][1],),
        (
            f"The states are computed from left to right. L = {number(trace.loss.item())}. The last rows, e_t, are "
            f"where the way back begins.",
        ),
        (by_step("values of each step", names, cells),),
    )


def jacobians(work: Work) -> Section:
    """The Jacobians of each step, and the norms of their products."""
    norms = torch.linalg.matrix_norm(work.jacobians, 2)
    names, cells = _rows({"f'(a)": work.trace.slopes})
    return Section(
        "jacobians",
        "Jacobians",
        ("∂h_t/∂h_{t-1} = D_t W, D_t = diag f'(a_t)", "∂h_t/∂h_k = D_t W · D_{t-1} W · ... · D_{k+1} W"),
        (
            "How h_t depends on an earlier h_k: a product with one factor for each step between. Where the factors "
            "shrink vectors it vanishes with the lag t - k, where they stretch them it explodes. The norm is the "
            "largest stretch of a vector.",
        ),
        (
            by_step("f'(a_t), the diagonal of D_t", names, cells),
            triangle("|∂h_t/∂h_k|", norms),
            *(matrix(f"∂h_{t}/∂h_{t - 1} = D_{t} W", work.jacobians[t, t - 1]) for t in range(1, work.trace.steps)),
        ),
    )


def cotangents(work: Work) -> Section:
    """What losses owe to states."""
    names, cells = _rows({"c": work.cotangents.sum(0)})
    return Section(
        "cotangents",
        "State cotangents",
        ("∂l_t/∂h_k = (∂h_t/∂h_k)ᵀ Vᵀ e_t", "c_t = Vᵀ e_t + Wᵀ D_{t+1} c_{t+1}, c_{T-1} = Vᵀ e_{T-1}"),
        (
            "c_t = dL/dh_t adds up what all later losses owe to h_t. The recursion carries one vector from right to "
            "left and never forms a Jacobian: that is back-propagation through time.",
        ),
        (by_step("c_t", names, cells), triangle("|∂l_t/∂h_k|", work.cotangents.norm(dim=-1))),
    )


def terms(work: Work) -> Section:
    """The double sums over (t, k), as norms of their terms."""
    terms, steps = work.terms, work.trace.steps
    norms = {name: _norms(getattr(terms, name)) for name in ("W", "U", "V")}
    said = ["dL/db has the same sum with δ_tk alone"] * (terms.b is not None) + ["dL/dc = Σ_t e_t"] * (
        terms.c is not None
    )
    bias = f" {', '.join(said)}." if said else ""
    return Section(
        "terms",
        "Every term (t, k)",
        (
            "δ_tk = D_k (∂h_t/∂h_k)ᵀ Vᵀ e_t",
            "dL/dW = Σ_t Σ_{k≤t} δ_tk h_{k-1}ᵀ",
            "dL/dU = Σ_t Σ_{k≤t} δ_tk x_kᵀ",
            "dL/dV = Σ_t e_t h_tᵀ",
        ),
        (
            f"Term (t, k): what the loss of step t owes to the parameters' use at step k. {steps * (steps + 1) // 2} "
            f"terms each for W and U, norms below; those of W with k = 0 are zero, since h_{{-1}} = 0. V has one term "
            f"a step: no later loss sees o_t.{bias}",
        ),
        (
            triangle("|term of dL/dW|", norms["W"], chosen=True),
            triangle("|term of dL/dU|", norms["U"], chosen=True),
            by_step("|term of dL/dV|", ["e hᵀ"], [[number(v) for v in norms["V"].diagonal().tolist()]]),
        ),
    )


def _norms(terms: torch.Tensor) -> torch.Tensor:
    return terms.flatten(2).norm(dim=-1)
