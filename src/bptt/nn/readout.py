"""The readout with its loss: cross entropy of a linear layer's scores, never more of them at once than inputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bptt import _torch
from bptt.nn import fits, kernels
from bptt.nn.kernels.buffers import empty, empty_like
from bptt.nn.kernels.native import WHOLE
from bptt.nn.uncompiled import uncompiled

Maybe = Tensor | None
ELEMENTS = 2**21
"""How many scores are computed at a time without the kernels."""


class LinearCrossEntropyLoss(nn.Module):
    """torch.nn.LinearCrossEntropyLoss, a linear layer with cross entropy, in little memory, and on some CPUs faster.

        z = W x + b,  loss = -log softmax(z)[target]                                      (1)
        ∂loss/∂z = softmax(z) - onehot(target)                                            (2)

    in_features, num_classes: I and V. bias: whether there is b. device, dtype: of the parameters.
    reduction: "mean" over the targets that aren't ignored, "sum", or "none", which `unroll` needs.
    weight: (V,), a weight for each class, or None. ignore_index: the target of rows without a loss; None is -100.
    label_smoothing: in [0, 1].

    Parameters: linear.weight W (V, I) and linear.bias b (V,), as in torch.nn; its `out_features` and `options` aren't
    available. `linear` may be replaced by another torch.nn.Linear, to share its weights.
    Call: `(inputs, targets)`: inputs (..., I), targets int64 (...), or probabilities (..., V) -> (...) or a number.

    Scores are computed in blocks, of 1,024 classes at most, and again for the gradient where there are more classes
    than that. Where V <= I and V I <= 262,144 the kernels keep the cotangents of all scores for the backward pass: one
    array (N, V), no larger than the inputs. Else, up to 1,024 classes, the gradients are computed along with the loss,
    and again where the losses' cotangents differ. Class weights, label smoothing, probabilities, autocast and
    `torch.func` are left to torch, which holds all scores; other dtypes and devices are computed in torch's operators,
    in blocks of rows. The backward pass can be differentiated again, with all scores in memory.
    Raises ValueError for sizes and options that aren't valid, and inputs and targets that don't fit; IndexError for a
    target that isn't a class.
    Cost: of N rows 3 N I V multiplications and additions up to 1,024 classes, else 4 N I V. Beside the gradients memory
    for a block of scores, 2 MiB or 4 N min(V, 1024) bytes if that is less; where cotangents are kept 4 N V bytes.

    >>> import bptt, torch
    >>> loss = bptt.nn.LinearCrossEntropyLoss(8, 50, reduction="none")
    >>> hidden, targets = torch.randn(5, 2, 8), torch.randint(50, (5, 2))
    >>> losses = loss(hidden, targets)
    >>> scores = loss.linear(hidden).movedim(-1, 1)
    >>> torch.allclose(losses, torch.nn.functional.cross_entropy(scores, targets, reduction="none"), atol=1e-6)
    True

    Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models",
    https://arxiv.org/abs/2411.09009, for scores recomputed block by block.
    """

    weight: Maybe

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        name = "LinearCrossEntropyLoss"
        for size, value in (("in_features", in_features), ("num_classes", num_classes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}({size}={value!r}): must be a whole number of at least 1.")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'{name}(reduction={reduction!r}) is unknown: use "mean", "sum" or "none".')
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"{name}(label_smoothing={label_smoothing!r}): must lie in [0, 1].")
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise ValueError(f"{name}: weight is {tuple(weight.shape)}, not ({num_classes},), one for each class.")
        self.num_classes, self.reduction = num_classes, reduction
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.register_buffer("weight", weight)
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    @uncompiled
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The losses, reduced as the constructor says."""
        w, b = self.linear.weight, self.linear.bias
        self._check(input, target)
        ignored = -100 if self.ignore_index is None else self.ignore_index
        plain = self.weight is None and not self.label_smoothing and target.dtype == torch.int64
        if not plain or not _served(input, w, b):
            return self._by_torch(functional.linear(input, w, b), target, ignored)
        learns = torch.is_grad_enabled()  # a node's forward pass can't tell
        losses: Any = Readout.apply(input, w, b, target, ignored, self.reduction, learns)
        return losses

    def _by_torch(self, scores: Tensor, target: Tensor, ignored: int) -> Tensor:
        return _cross_entropy(
            scores, target, weight=self.weight, ignore_index=ignored, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def _check(self, input: Tensor, target: Tensor) -> None:
        """Raise ValueError unless inputs and targets fit."""
        wide, V = self.linear.in_features, self.linear.out_features
        if not isinstance(input, Tensor) or input.dim() < 1 or input.shape[-1] != wide:
            got = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"LinearCrossEntropyLoss: inputs are {got}, not (..., {wide}).")
        rows = tuple(input.shape[:-1])
        likely = isinstance(target, Tensor) and target.is_floating_point() and tuple(target.shape) == (*rows, V)
        if not likely and (
            not isinstance(target, Tensor) or target.dtype != torch.int64 or tuple(target.shape) != rows
        ):
            got = f"{tuple(target.shape)}, {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(
                f"LinearCrossEntropyLoss: targets are {got}; inputs {tuple(input.shape)} need classes {rows}, int64, "
                f"or probabilities {(*rows, V)}."
            )

    def extra_repr(self) -> str:
        """What the module's repr shows beside its linear layer."""
        more = f", ignore_index={self.ignore_index}" if self.ignore_index is not None else ""
        more += f", label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return f"reduction={self.reduction!r}{more}"


def _served(x: Tensor, w: Tensor, b: Maybe) -> bool:
    """Whether the autograd node below serves such a call; else torch computes it."""
    given = [t for t in (x, w, b) if t is not None]
    return (
        all(type(t) in fits.PLAIN and t.dtype == x.dtype and t.device == x.device for t in given)
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.compiler.is_exporting()
        and not _torch.is_watched()
    )


def _cross_entropy(scores: Tensor, target: Tensor, *, reduction: str, **options: Any) -> Tensor:
    """torch's, for classes or probabilities of any leading axes."""
    V, likely = scores.shape[-1], target.shape == scores.shape
    losses = functional.cross_entropy(
        scores.reshape(-1, V), target.reshape(-1, V) if likely else target.reshape(-1), reduction=reduction, **options
    )
    return losses.reshape(scores.shape[:-1]) if reduction == "none" else losses


class Readout(torch.autograd.Function):
    """(..., I), (V, I), (V,) or None, targets (...), the ignored target, how to reduce -> losses (...) or a number."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, w: Tensor, b: Maybe, targets: Tensor, ignored: int, reduction: str, learns: bool
    ) -> Tensor:
        given, rows, how = _given(x, w, b, targets), targets.numel(), (ignored, reduction)
        native = _native(x) if learns and any(ctx.needs_input_grad) else None
        keeps = native is not None and native.keeps(*w.shape)
        kept, norms = (empty((rows, len(w)), x), None) if keeps else (None, x.new_empty(rows))
        losses = x.new_empty(targets.shape if reduction == "none" else ())
        at_once = native is not None and not keeps and len(w) <= WHOLE
        grads = _like(given, ctx.needs_input_grad) if at_once else NONE
        _compute(given, how, None, losses, norms, grads, kept)
        ctx.how, ctx.at_once = how, at_once
        ctx.save_for_backward(x, w, b, targets, norms, kept, *grads)
        return losses

    @staticmethod
    @uncompiled
    def backward(ctx: Any, d: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Equation (2), pulled back; already found in the forward pass if all losses count alike."""
        x, w, b, targets, norms, kept, *grads = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or _torch.is_wrapped(d):
            return *_differentiable((x, w, b), targets, ctx.how, d, needed), *REST
        if ctx.at_once:
            first = d.reshape(-1)[0]
            if d.dim() == 0 or bool((d == first).all()):
                return *[None if g is None else torch.mul(g, first, out=empty_like(g)) for g in grads], *REST
        given = _given(x, w, b, targets)
        wanted = _like(given, needed)
        _compute(given, ctx.how, d.contiguous(), None, norms, wanted, kept)
        return *wanted, *REST


Given = tuple[Tensor, Tensor, Maybe, Tensor]
Grads = tuple[Maybe, Maybe, Maybe]
How = tuple[int, str]
"""The ignored target, and how to reduce."""
NONE: Grads = (None, None, None)
REST = (None,) * 4
"""The gradients of what isn't x, w or b."""


def _native(x: Tensor) -> kernels.Native | None:
    return kernels.chosen if kernels.chosen is not None and kernels.chosen.serves(x) else None


def _given(x: Tensor, w: Tensor, b: Maybe, targets: Tensor) -> Given:
    return x.contiguous(), w.contiguous(), None if b is None else b.contiguous(), targets.contiguous()


def _like(given: Given, needed: Any) -> Grads:
    """Tensors for those gradients of x, w and b that are needed."""
    x, w, b = (empty_like(t) if need and t is not None else None for t, need in zip(given[:3], needed, strict=False))
    return x, w, b


def _compute(given: Given, how: How, d: Maybe, losses: Maybe, norms: Maybe, grads: Grads, kept: Maybe) -> None:
    """Fill losses and norms (log Σ exp of each row's scores), or use known norms; fill the gradients, for d or 1.

    kept: the scores' cotangents, filled with the losses, used for the gradients, in place of norms; or None.
    """
    native, V = _native(given[0]), len(given[1])
    right = (
        native.readout(given, how, d, losses, norms, grads, kept)
        if native
        else _in_torch(given, how, d, losses, norms, grads)
    )
    if not right:
        raise IndexError(
            f"LinearCrossEntropyLoss: a target is neither a class from 0 to {V - 1} nor the ignored one, {how[0]}."
        )


def _in_torch(given: Given, how: How, d: Maybe, losses: Maybe, norms: Any, grads: Grads) -> bool:
    """`Native.readout` in torch's operators, some rows at a time; False if a target isn't a class."""
    x, w, b, targets = given
    x, targets = x.view(-1, x.shape[-1]), targets.view(-1)
    d_x, d_w, d_b = grads
    d_x = None if d_x is None else d_x.view(x.shape)
    known = targets != how[0]
    divisor = known.sum() if how[1] == "mean" else 1
    d = None if d is None else (d / divisor).expand(known.shape) if how[1] != "none" else d.view(-1)
    each = None if losses is None else x.new_empty(len(x))
    if each is not None and bool((known & ((targets < 0) | (targets >= len(w)))).any()):
        return False
    at = torch.where(known, targets, 0)[:, None]
    for total in (d_w, d_b):
        if total is not None:
            total.zero_()
    step = max(1, ELEMENTS // len(w))
    for rows in (slice(a, a + step) for a in range(0, len(x), step)):
        z = functional.linear(x[rows], w, b)
        if each is not None:
            most = z.amax(1, keepdim=True)
            norms[rows] = (
                most[:, 0] + (z - most).exp_().sum(1).log_()
            )  # NaN where a score is infinite, as in the kernels
            each[rows] = (norms[rows] - z.gather(1, at[rows])[:, 0]).masked_fill_(~known[rows], 0)
        if d_x is None and d_w is None and d_b is None:
            continue
        z.sub_(norms[rows, None]).exp_().scatter_add_(1, at[rows], z.new_full((len(z), 1), -1.0))
        z = z if d is None else z.mul_(d[rows, None])
        z.masked_fill_(~known[rows, None], 0)
        if d_x is not None:
            torch.mm(z, w, out=d_x[rows])
        if d_w is not None:
            d_w.addmm_(z.t(), x[rows])
        if d_b is not None:
            d_b.add_(z.sum(0))
    if losses is not None and each is not None:
        losses.copy_(each.view(losses.shape) if how[1] == "none" else each.sum() / divisor)
    return True


def _differentiable(given: tuple[Any, ...], targets: Tensor, how: How, d: Tensor, needed: Any) -> list[Maybe]:
    """The same gradients by torch, with a graph if one is asked for; this holds all scores."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x, w, b = (None if t is None else t.view_as(t) for t in given)
        losses = _cross_entropy(functional.linear(x, w, b), targets, ignore_index=how[0], reduction=how[1])  # pyright: ignore[reportArgumentType]
    wanted: Any = [t for t, need in zip((x, w, b), needed, strict=True) if need]
    found = iter(torch.autograd.grad(losses, wanted, d, create_graph=again))
    return [next(found) if need else None for need in needed]
