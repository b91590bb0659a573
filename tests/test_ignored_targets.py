"""Targets that a criterion ignores: `mean_loss` is the mean over what counts, and the gradient is torch's own."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bptt
from support import oracle

F64 = torch.float64
G = torch.Generator().manual_seed(0)
X, IDS = torch.randn(12, 2, 3, dtype=F64, generator=G), torch.randint(5, (12, 2), generator=G)
COUNTED = torch.rand(12, 2, generator=G) < 0.7
COUNTED[4:6] = False


class Focal(nn.Module):
    """A criterion of one's own with torch's arguments."""

    def __init__(self):
        super().__init__()
        self.reduction, self.ignore_index = "mean", 7

    def forward(self, outputs, targets):
        losses = F.cross_entropy(outputs, targets, ignore_index=self.ignore_index, reduction="none")
        losses = losses * (1 - torch.exp(-losses))
        return losses if self.reduction == "none" else losses.sum() / (targets != self.ignore_index).sum()


class LogProbabilities(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(3, 5, dtype=F64)

    def forward(self, inputs, state):
        h, state = self.layer(inputs, state)
        return h.log_softmax(-1), state


CRITERIA = {
    "cross entropy": (nn.CrossEntropyLoss(), -100),
    "an index of one's own": (nn.CrossEntropyLoss(ignore_index=3, reduction="sum"), 3),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), -100),
    "nll": (nn.NLLLoss(ignore_index=-1), -1),
    "function": (F.cross_entropy, -100),
    "nll function": (F.nll_loss, -100),
    "partial": (functools.partial(F.cross_entropy, ignore_index=9), 9),
    "partial of partial": (functools.partial(functools.partial(F.nll_loss, ignore_index=8), weight=None), 8),
    "own": (Focal(), 7),
}
RUNS = {
    "backward": {},
    "budget": {"memory": bptt.Checkpoints(2, 5)},
    "truncated": {"strategy": bptt.TruncatedBPTT(2, 5)},
    "artbp": {"strategy": bptt.ARTBP(bptt.ConstantLaw(3))},
}


@pytest.mark.parametrize(("criterion", "index"), CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("time_dim", [0, 1])
def test_the_mean_over_what_counts(criterion, index, options, masked, time_dim):
    model, loss = LogProbabilities(), bptt.per_step(criterion)
    counted = COUNTED & (index != IDS)
    ids = torch.where(counted, IDS, index)
    mask = (torch.arange(24).reshape(12, 2) % 5 > 0) if masked else torch.ones(12, 2, dtype=torch.bool)
    outputs = model(X, torch.zeros(1, 2, 5, dtype=F64))[0]
    keep = counted & mask
    losses = loss(outputs, ids)
    true = losses[keep].sum() / keep.sum()
    if not masked and getattr(criterion, "reduction", "mean") == "mean":
        oracle.assert_close(true, criterion(outputs.flatten(0, 1), ids.flatten()))
    turned = [part.transpose(0, 1) if time_dim else part for part in (X, ids, mask)]
    chunk = bptt.Chunk(turned[0], turned[1], None, turned[2] if masked else None)
    if time_dim:
        model.layer.batch_first = True
    state = torch.zeros(1, 2, 5, dtype=F64)
    update = bptt.backward(model, loss, chunk, state, reduction="sum", time_dim=time_dim, **options)
    oracle.assert_close(update.mean_loss, true.detach())
    oracle.assert_close(update.loss, (losses * mask).mean(1).sum().detach())
    found = bptt.evaluate(model, loss, [chunk], state, time_dim=time_dim)
    oracle.assert_close(found.mean_loss, true.detach())
    if options == {}:
        got = oracle.gradients(model.parameters())
        (losses * mask).mean(1).sum().backward()
        oracle.assert_close(got, oracle.gradients(model.parameters()))


def test_each_update_and_windows_without_a_counted_step():
    model, loss = LogProbabilities(), bptt.per_step(nn.CrossEntropyLoss())
    ids = torch.where(COUNTED, IDS, -100)
    losses = loss(model(X, torch.zeros(1, 2, 5, dtype=F64))[0], ids).detach()
    stream = [(X[:5], ids[:5]), (X[5:], ids[5:])]
    for update in bptt.unroll(model, loss, stream, torch.zeros(1, 2, 5, dtype=F64), strategy=bptt.TruncatedBPTT(2)):
        at = slice(update.t0, update.t1)
        count = COUNTED[at].sum()
        oracle.assert_close(update.mean_loss, losses[at].sum() / count if count else torch.zeros((), dtype=F64))


def test_class_probabilities_and_images():
    """Targets that are floating count all; those of more axes count entry by entry."""
    model, loss = LogProbabilities(), bptt.per_step(nn.CrossEntropyLoss())
    state, probable = torch.zeros(1, 2, 5, dtype=F64), torch.rand(12, 2, 5, dtype=F64).softmax(-1)
    update = bptt.backward(model, loss, (X, probable), state)
    outputs = model(X, state)[0].detach()
    oracle.assert_close(update.mean_loss, F.cross_entropy(outputs.flatten(0, 1), probable.flatten(0, 1)))
    wide = bptt.scan(lambda x, s: (model(x[None], s)[0][0].unsqueeze(-1).expand(-1, -1, 3), s))
    ids = torch.where(torch.rand(12, 2, 3) < 0.5, torch.randint(5, (12, 2, 3)), -100)
    update = bptt.evaluate(wide, loss, [(X, ids)], state)
    spread = wide(X, state)[0].detach()
    oracle.assert_close(update.mean_loss, F.cross_entropy(spread.flatten(0, 1), ids.flatten(0, 1)))
