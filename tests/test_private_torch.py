"""Each private name of torch that `_torch.py` has, held to what anyone can observe."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from bptt import _torch


def test_a_change_in_place_raises_the_version_of_all_that_share_the_memory():
    x = torch.zeros(4)
    row, twin, other = x[:2], x.detach(), x.clone()
    before = [_torch.version(t) for t in (x, row, twin, other)]
    row.add_(1)
    assert [_torch.version(t) - v for t, v in zip((x, row, twin, other), before, strict=True)] == [1, 1, 1, 0]
    with torch.no_grad():
        x.mul_(2)
    assert _torch.version(twin) == before[2] + 2


def test_the_base_of_a_view_is_what_it_was_cut_from():
    weight = nn.Parameter(torch.zeros(3, 2))
    assert _torch.base(weight.t()) is weight
    assert _torch.base(weight.t()[0]) is weight
    assert _torch.base(weight) is weight
    own = weight * 2
    assert _torch.base(own) is own


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_storage_is_known_by_its_identity(device):
    x = torch.zeros(4, device=device)
    others = [torch.zeros(size, device=device) for size in (4, 0, 0)]
    assert _torch.identity(x[1:].untyped_storage()) == _torch.identity(x.detach().untyped_storage())
    assert len({_torch.identity(t.untyped_storage()) for t in (x, *others)}) == 4


@pytest.mark.filterwarnings("ignore:Sparse")
def test_the_parts_of_a_sparse_tensor_are_its_own():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert _torch.dense_parts(dense) == [dense]
    sparse = dense.to_sparse_coo()
    indices, values = _torch.dense_parts(sparse)
    assert torch.equal(dense[tuple(indices)], values)
    values.mul_(2)
    assert torch.equal(sparse.to_dense(), 2 * dense)
    for layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        blocks = {"blocksize": (1, 1)} if layout in (torch.sparse_bsr, torch.sparse_bsc) else {}
        parts = _torch.dense_parts(dense.to_sparse(layout=layout, **blocks))
        assert [len(part) for part in parts] == [3, 2, 2]
        assert sorted(parts[2].flatten().tolist()) == [2.0, 3.0]


def test_the_hooks_on_saved_tensors_are_those_set_last():
    assert _torch.saved_tensors_hooks() is None
    mine, theirs = (lambda t: t, lambda t: t), (lambda t: t, lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*theirs), torch.autograd.graph.saved_tensors_hooks(*mine):
        assert _torch.saved_tensors_hooks() == mine
    assert _torch.saved_tensors_hooks() is None


def test_what_is_skipped_runs_as_it_is_in_a_compiled_model():
    seen = []

    def look(tensor):
        seen.append((torch.compiler.is_compiling(), _torch.frame_callback() not in (None, False)))
        return _torch.version(tensor), _torch.identity(_torch.base(tensor).untyped_storage())

    counters.clear()
    x = torch.zeros(1)
    _torch.skip_compiling(look)
    assert torch.compile(look, backend="eager")(x) == look(x) == torch.compiler.disable(look)(x)
    assert seen == [(False, True), (False, False), (False, False)]  # the callback is there while others are compiled
    assert not counters["frames"]


def test_nothing_is_imported_for_the_sake_of_torch_compile():
    program = "import sys; from bptt import _torch; _torch.skip_compiling(print); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_hooks_that_wait_for_a_gradient_are_exchanged():
    p, ready = nn.Parameter(torch.ones(1)), []
    assert not _torch.gradient_hooks(p)
    p.register_post_accumulate_grad_hook(lambda p: ready.append("theirs"))
    own = _torch.gradient_hooks(p)
    assert len(own) == 1
    for hooks, expected in (({}, []), ({0: lambda p: ready.append("ours")}, ["ours"]), (own, ["ours", "theirs"])):
        _torch.set_gradient_hooks(p, hooks)
        p.sum().backward()
        assert ready == expected


def test_a_module_uses_the_buffers_and_parameters_that_its_mappings_hold():
    layer = nn.BatchNorm1d(1)
    assert _torch.buffers(layer) == dict(layer.named_buffers())
    assert _torch.parameters(layer) == dict(layer.named_parameters())
    _torch.buffers(layer)["running_mean"] = torch.full((1,), 5.0)
    _torch.parameters(layer)["bias"] = nn.Parameter(torch.full((1,), 7.0))
    torch.testing.assert_close(layer.eval()(torch.full((1, 1), 5.0)), torch.full((1, 1), 7.0))
    layer.register_buffer("none", None)
    assert _torch.buffers(layer)["none"] is None


def test_the_hooks_of_a_call_are_all_that_were_registered():
    layer = nn.Linear(1, 1)
    before, after = (lambda *_: None), (lambda *_: None)
    layer.register_forward_hook(after)
    layer.register_forward_pre_hook(before)
    assert _torch.call_hooks(layer) == [before, after]
    hook = next(iter(_torch.call_hooks(spectral_norm(nn.Linear(1, 1)))))
    assert type(hook) is sys.modules["torch.nn.utils.spectral_norm"].SpectralNorm


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_flat_weights_are_those_of_the_attributes_in_order(kind):
    layer = kind(2, 3, num_layers=2, bidirectional=True)
    expected = [weight for each in layer.all_weights for weight in each]
    assert all(a is b for a, b in zip(_torch.flat_weights(layer), expected, strict=True))
    tied = layer.weight_hh_l0 = nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
    _torch.update_flat_weights(layer)
    assert _torch.flat_weights(layer)[1] is tied


def test_a_compiled_model_is_known_and_unwrapped():
    inner = nn.Linear(1, 1)
    wrapped = torch.compile(inner, backend="eager")
    assert _torch.unwrapped(wrapped) is inner
    assert _torch.unwrapped(inner) is inner
    assert all(name.startswith(_torch.WRAPPED + ".") for name, _ in wrapped.named_parameters())
    assert not _torch.is_compiled(inner)
    assert _torch.is_compiled(wrapped)
    assert _torch.is_compiled(nn.Sequential(wrapped))
    inner.compile(backend="eager")
    assert _torch.is_compiled(inner)
    assert _torch.is_compiled(torch.compile(lambda x: x, backend="eager"))
    assert not _torch.is_compiled(lambda x: x)


def test_norms_with_running_statistics_and_power_iterations_are_known_by_their_types():
    for layer in (nn.BatchNorm1d(1), nn.SyncBatchNorm(1), nn.InstanceNorm2d(1)):
        assert isinstance(layer, _torch.NormBase)
    assert not isinstance(nn.LayerNorm(1), _torch.NormBase)
    (iteration,) = parametrizations.spectral_norm(nn.Linear(2, 2)).parametrizations.weight
    assert isinstance(iteration, _torch.PowerIteration)


def test_parametrizations_are_known_to_be_cached():
    assert not _torch.caches_parametrizations()
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    assert layer.weight is not layer.weight
    with parametrize.cached():
        assert _torch.caches_parametrizations()
        assert layer.weight is layer.weight
    assert not _torch.caches_parametrizations()


def test_what_watches_operations_is_noticed():
    assert not _torch.is_watched()
    with TorchDispatchMode():
        assert _torch.is_watched()
    with forward_ad.dual_level():
        assert _torch.is_watched()
    assert torch.func.grad(lambda x: x * _torch.is_watched())(torch.ones(())) == 1
    assert torch.func.vmap(lambda x: x * _torch.is_watched())(torch.ones(2)).tolist() == [1, 1]
    assert not _torch.is_watched()


def test_tensors_that_stand_for_many_are_known():
    found = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, d):
            found.append((_torch.is_batched(d), _torch.is_wrapped(d)))
            return d

    def look(x):
        found.append((_torch.is_batched(x), _torch.is_wrapped(x)))
        return x.sum()

    x = torch.ones(2, requires_grad=True)
    look(x)
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.grad(look)(torch.ones(2))
    torch.autograd.grad(Identity.apply(x), x, torch.eye(2), is_grads_batched=True)
    assert found == [(False, False), (True, True), (False, True), (False, True)]
    assert not _torch.is_wrapped(None)
