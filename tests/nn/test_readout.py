"""The readout with its loss against linear and cross_entropy in double precision."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import bptt
from bptt.nn import kernels, readout

CLASSES = [1, 2, 7, 96, 1024, 1025, 2500]


def reference(loss: Any, x: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
    """What torch makes of the same weights, all scores at once."""
    scores = functional.linear(x, loss.linear.weight, loss.linear.bias)
    ignored = -100 if loss.ignore_index is None else loss.ignore_index
    found = functional.cross_entropy(
        scores.flatten(0, -2), targets.flatten(), reduction=loss.reduction, ignore_index=ignored, **options
    )
    return found.reshape(targets.shape) if loss.reduction == "none" else found


def gradients(value: torch.Tensor, x: torch.Tensor, loss: Any, cotangent: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [x, *loss.parameters()], cotangent))


def double(loss: Any, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    return copy.deepcopy(loss).double(), x.detach().double().requires_grad_()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """2e-6 of the largest entry."""
    wanted = wanted.detach().to(found.dtype)
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=2e-6 * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("V", CLASSES)
def test_losses_and_gradients_are_torchs(V: int, bias: bool, reduction: str) -> None:
    torch.manual_seed(V)
    loss = bptt.nn.LinearCrossEntropyLoss(37, V, bias=bias, reduction=reduction)
    x, targets = torch.randn(41, 7, 37, requires_grad=True), torch.randint(V, (41, 7))
    targets[torch.rand(41, 7) < 0.2] = -100
    value, wide, x64 = loss(x, targets), *double(loss, x)
    wanted = reference(wide, x64, targets)
    close(value, wanted)
    for cotangent in (torch.ones_like(value), torch.full_like(value, -0.3), torch.randn_like(value)):
        grads = gradients(loss(x, targets), x, loss, cotangent)
        expected = gradients(reference(wide, x64, targets), x64, wide, cotangent.double())
        assert len(grads) == len(expected)
        for found, other in zip(grads, expected, strict=True):
            close(found, other)


@pytest.mark.parametrize(("N", "inputs", "V"), [(9, 5, 5), (193, 37, 33), (410, 96, 64)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.thin
def test_scores_cotangents_that_are_kept(N: int, inputs: int, V: int, reduction: str, threads: int) -> None:
    """No more classes than inputs, and several blocks of rows; each gradient alone, and all of them twice."""
    torch.manual_seed(N)
    loss = bptt.nn.LinearCrossEntropyLoss(inputs, V, bias=True, reduction=reduction)
    x, targets = torch.randn(N, inputs, requires_grad=True), torch.randint(V, (N,))
    targets[torch.rand(N) < 0.2] = -100
    wide, x64 = double(loss, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        value = loss(x, targets)
        d = torch.randn_like(value)
        wanted = gradients(reference(wide, x64, targets), x64, wide, d.double())
        close(value, reference(wide, x64, targets))
        for _ in range(2):
            found = torch.autograd.grad(value, [x, *loss.parameters()], d, retain_graph=True)
            assert len(found) == len(wanted) == 3
            for one, other in zip(found, wanted, strict=True):
                close(one, other)
        for leaf, other in zip([x, *loss.parameters()], wanted, strict=True):
            for given in (x, *loss.parameters()):
                given.requires_grad_(given is leaf)
            close(torch.autograd.grad(loss(x, targets), leaf, d)[0], other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("N", [1, 2, 5, 8, 9, 300])
@pytest.mark.parametrize("inputs", [1, 17, 64])
@pytest.mark.thin
def test_any_number_of_rows_and_inputs(N: int, inputs: int) -> None:
    torch.manual_seed(0)
    for V in (5, 1030):
        loss = bptt.nn.LinearCrossEntropyLoss(inputs, V, bias=True, reduction="none")
        x, targets, d = torch.randn(N, inputs, requires_grad=True), torch.randint(V, (N,)), torch.randn(N)
        wide, x64 = double(loss, x)
        found = gradients(loss(x, targets), x, loss, d)
        for one, other in zip(found, gradients(reference(wide, x64, targets), x64, wide, d.double()), strict=True):
            close(one, other)


def test_of_one_row_without_axes() -> None:
    loss = bptt.nn.LinearCrossEntropyLoss(3, 4)
    x, target = torch.randn(3), torch.tensor(2)
    torch.testing.assert_close(loss(x, target), functional.cross_entropy(loss.linear(x), target))


def test_what_needs_no_gradient_gets_none() -> None:
    torch.manual_seed(0)
    for V in (5, 1030):
        loss = bptt.nn.LinearCrossEntropyLoss(3, V, bias=True, reduction="none").requires_grad_(False)
        x, targets, d = torch.randn(6, 3, requires_grad=True), torch.randint(V, (6,)), torch.randn(6)
        (found,) = torch.autograd.grad(loss(x, targets), x, d)
        (wanted,) = torch.autograd.grad(reference(loss, x, targets), x, d)
        close(found, wanted)
        loss.linear.bias.requires_grad_()
        (found,) = torch.autograd.grad(loss(x.detach(), targets), loss.linear.bias, d)
        (wanted,) = torch.autograd.grad(reference(loss, x.detach(), targets), loss.linear.bias, d)
        close(found, wanted)
        with torch.no_grad():
            assert not loss(x, targets).requires_grad


@pytest.mark.parametrize("V", [4, 1030])
def test_gradcheck_through_the_fallback(V: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(readout, "ELEMENTS", 3 * V)  # three rows at a time
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((V, 2), (V,)))
    targets = torch.tensor([0, -100, 3, 1, 2])
    if V < 100:
        of = lambda *given: readout.Readout.apply(*given, targets, -100, "none", True)  # noqa: E731
        assert torch.autograd.gradcheck(of, (x, w, b))
        assert torch.autograd.gradgradcheck(of, (x, w, b))
    d = torch.randn(5, dtype=torch.float64)
    found = torch.autograd.grad(readout.Readout.apply(x, w, b, targets, -100, "none", True), [x, w, b], d)
    scores = functional.cross_entropy(functional.linear(x, w, b), targets, reduction="none")
    for one, other in zip(found, torch.autograd.grad(scores, [x, w, b], d), strict=True):
        torch.testing.assert_close(one, other)


def test_backward_twice_and_created_graphs() -> None:
    torch.manual_seed(0)
    loss = bptt.nn.LinearCrossEntropyLoss(3, 5, bias=True)
    x, targets = torch.randn(6, 3, requires_grad=True), torch.randint(5, (6,))
    value = loss(x, targets)
    first = torch.autograd.grad(value, [x, *loss.parameters()], retain_graph=True)
    for grad in first:
        grad.zero_()
    (again,) = torch.autograd.grad(value, x, create_graph=True)
    assert again.any()
    wanted = torch.autograd.grad(reference(loss, x, targets), x, create_graph=True)[0]
    close(again, wanted)
    close(torch.autograd.grad(again.square().sum(), x)[0], torch.autograd.grad(wanted.square().sum(), x)[0])
    with torch.no_grad():
        value = loss(x.requires_grad_(), targets)
    value = loss(x, targets)
    with torch.no_grad():
        loss.linear.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize(("V", "inputs"), [(6, 1), (6, 6), (1030, 1)])
def test_extremes_are_torchs(V: int, inputs: int) -> None:
    """Scores of any size, and what isn't a number shows."""
    loss = bptt.nn.LinearCrossEntropyLoss(inputs, V, reduction="none")
    with torch.no_grad():
        loss.linear.weight.copy_(torch.linspace(-1, 1, V)[:, None].expand(V, inputs) / inputs)
    x = torch.tensor([0.0, 1e-30, 88.0, -200.0, 1e4, 1e30, float("inf"), float("nan"), 1.0])
    x = x[:, None].repeat(1, inputs).requires_grad_()
    targets = torch.tensor([0, 1, 0, 3, V - 1, V - 1, 2, 2, 1])
    value, wanted = loss(x, targets), reference(loss, x, targets)
    torch.testing.assert_close(value, wanted, equal_nan=True, rtol=2e-6, atol=1e-6)
    found, other = (torch.autograd.grad(v.sum(), x)[0] for v in (value, wanted))
    torch.testing.assert_close(found, other, equal_nan=True, rtol=1e-5, atol=2e-6)


def test_what_is_left_to_torch() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(6, 2, 3, requires_grad=True), torch.randint(5, (6, 2))
    weight = torch.rand(5)
    for options in ({"weight": weight}, {"label_smoothing": 0.2}):
        loss = bptt.nn.LinearCrossEntropyLoss(3, 5, **options)
        torch.testing.assert_close(loss(x, targets), reference(loss, x, targets, **options))
    loss, likely = bptt.nn.LinearCrossEntropyLoss(3, 5, reduction="none"), torch.rand(6, 2, 5)
    wanted = functional.cross_entropy(loss.linear(x).movedim(-1, 1), likely.movedim(-1, 1), reduction="none")
    torch.testing.assert_close(loss(x, likely), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(loss(x, targets)).all()
    grad = torch.func.grad(lambda w: torch.func.functional_call(loss, {"linear.weight": w}, (x, targets)).sum())
    wanted = torch.autograd.grad(loss(x, targets).sum(), loss.linear.weight)[0]
    torch.testing.assert_close(grad(loss.linear.weight.detach()), wanted, rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="torch has none before 2.13")
def test_parameters_and_numbers_are_torchs_of_that_name() -> None:
    torch.manual_seed(0)
    torchs = nn.LinearCrossEntropyLoss(3, 5, bias=True, ignore_index=2)
    loss = bptt.nn.LinearCrossEntropyLoss(3, 5, bias=True, ignore_index=2)
    loss.load_state_dict(torchs.state_dict())
    x, targets = torch.randn(6, 3), torch.randint(5, (6,))
    torch.testing.assert_close(loss(x, targets), torchs(x, targets))


@pytest.mark.parametrize("V", [5, 1030])
def test_as_a_loss_of_unroll(V: int) -> None:
    """By step, with a mask; a linear layer shared with the model gets its gradient."""
    torch.manual_seed(0)
    layer, loss = bptt.nn.RNN(3, 4), bptt.nn.LinearCrossEntropyLoss(4, V, bias=True, reduction="none")
    inputs, targets, mask = torch.randn(12, 2, 3), torch.randint(V, (12, 2)), torch.rand(12, 2) < 0.7
    params = [*layer.parameters(), *loss.parameters()]
    plain = bptt.per_step(nn.CrossEntropyLoss())
    for given in (None, mask):
        stream = [bptt.Chunk(inputs, targets, mask=given)]
        grads = []
        for other in (loss, lambda y, t: plain(loss.linear(y), t)):
            for p in params:
                p.grad = None
            for _ in bptt.unroll(layer, other, stream, strategy=bptt.TruncatedBPTT(5, 5)):
                pass
            grads.append([p.grad.clone() for p in params if p.grad is not None])
        assert len(grads[0]) == len(grads[1]) == len(params)
        for one, two in zip(*grads, strict=True):
            close(one, two)


def test_wrong_use_is_one_line() -> None:
    cls: Any = bptt.nn.LinearCrossEntropyLoss
    for given, name in (((0, 5), "in_features"), ((3, True), "num_classes"), ((3, 2.0), "num_classes")):
        with pytest.raises(ValueError, match=f"{name}=.*at least 1"):
            cls(*given)
    for options in ({"reduction": "batchmean"}, {"label_smoothing": 2}, {"weight": torch.ones(4)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            cls(3, 5, **options)
    loss, x = cls(3, 5), torch.zeros(6, 3)
    with pytest.raises(ValueError, match=r"inputs are \(6, 4\), not \(\.\.\., 3\)"):
        loss(torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))
    for targets in (torch.zeros(5, dtype=torch.int64), torch.zeros(6), torch.zeros(6, dtype=torch.int32), 3):
        with pytest.raises(ValueError, match="targets are"):
            loss(x, targets)
    for dtype in (torch.float32, torch.float64):
        for wrong in (5, -1, -101):
            with pytest.raises(IndexError, match="neither a class from 0 to 4"):
                loss.to(dtype)(x.to(dtype), torch.tensor([0, 1, 2, wrong, 4, 0]))


@pytest.mark.skipif(kernels.chosen is None, reason="no kernels on this machine")
def test_the_kernels_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, native = [], type(kernels.chosen).readout
    monkeypatch.setattr(type(kernels.chosen), "readout", lambda *given: calls.append(given[4]) or native(*given))
    for V in (5, 1030):
        loss, x = bptt.nn.LinearCrossEntropyLoss(3, V), torch.randn(4, 3, requires_grad=True)
        loss(x, torch.zeros(4, dtype=torch.int64)).backward()
    assert [losses is not None for losses in calls] == [True, True, False]


def test_without_gradient_nothing_is_computed_for_one(monkeypatch: pytest.MonkeyPatch):
    given: list[object] = []
    compute = readout._compute
    monkeypatch.setattr(readout, "_compute", lambda *args: (given.append(args[-2:]), compute(*args)))
    loss = bptt.nn.LinearCrossEntropyLoss(3, 5)
    with torch.no_grad():
        loss(torch.randn(4, 3), torch.randint(5, (4,)))
    assert given == [((None, None, None), None)]
