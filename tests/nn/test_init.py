"""The initialisers: what each promises of the matrix, and that torch's generator decides."""

import math

import pytest
import torch

from bptt.nn import init
from support.refusals import refused

F64 = torch.float64
RANDOM = {
    "orthogonal": init.orthogonal_,
    "spectral_radius": lambda tensor, **k: init.spectral_radius_(tensor, 0.9, **k),
    "glorot": init.glorot_,
}
ALL = RANDOM | {"identity": init.identity_}


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3), (1, 1)])
def test_orthogonal(shape):
    W = init.orthogonal_(torch.empty(shape, dtype=F64), gain=2.0)
    small = W @ W.T if shape[0] <= shape[1] else W.T @ W
    assert torch.allclose(small, 4 * torch.eye(min(shape), dtype=F64), atol=1e-12)


def test_identity():
    assert torch.equal(init.identity_(torch.empty(3, 3)), torch.eye(3))
    assert torch.equal(init.identity_(torch.empty(2, 3), gain=0.01), 0.01 * torch.eye(2, 3))


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_spectral_radius(radius, n):
    W = init.spectral_radius_(torch.empty(n, n, dtype=F64), radius)
    assert torch.linalg.eigvals(W).abs().max().item() == pytest.approx(radius, rel=1e-10)
    if n > 1 and radius > 0:
        assert torch.linalg.matrix_norm(W, 2) > radius * 1.001, "it should not be normal"


def test_glorot():
    U = init.glorot_(torch.empty(200, 400, dtype=F64), gain=3.0)
    bound = 3 * math.sqrt(6 / 600)
    assert 0.999 * bound < U.abs().max() <= bound
    assert U.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("name", RANDOM)
def test_the_generator_decides(name):
    fill = RANDOM[name]

    def draw(seed):
        return fill(torch.empty(4, 4), generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)
    fill(torch.empty(4, 4))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_in_place_on_a_parameter_of_any_floating_dtype(name, dtype):
    parameter = torch.nn.Parameter(torch.full((4, 4), math.nan, dtype=dtype))
    assert ALL[name](parameter) is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.dtype == dtype
    assert parameter.isfinite().all()
    assert parameter.any()


@pytest.mark.parametrize("name", ALL)
def test_refusals(name):
    fill = ALL[name]
    refused(lambda: fill(torch.empty(4)), f"{name}_", "(4,)", kind=ValueError)
    refused(lambda: fill(torch.empty(2, 3, 4)), "(2, 3, 4)", kind=ValueError)
    refused(lambda: fill(torch.empty(0, 0)), "(0, 0)", kind=ValueError)
    refused(lambda: fill(torch.zeros(2, 2, dtype=torch.int64)), "int64", kind=TypeError)
    refused(lambda: fill([[1.0]]), "list", kind=TypeError)


def test_numbers_are_refused():
    refused(lambda: init.spectral_radius_(torch.empty(2, 3), 1.0), "(2, 3)", "square", kind=ValueError)
    for bad in (-0.1, math.nan, math.inf, "1"):
        refused(lambda bad=bad: init.spectral_radius_(torch.empty(2, 2), bad), f"radius={bad!r}", kind=ValueError)
    for fill in (init.orthogonal_, init.identity_, init.glorot_):
        refused(lambda fill=fill: fill(torch.empty(2, 2), math.nan), "gain=nan", kind=ValueError)
