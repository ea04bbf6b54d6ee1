"""The catalogue's identities: each member of the family at its corner is another member, or PyTorch's function."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw

modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def pair(a: Any, b: Any, training: bool = True) -> tuple[Any, Any]:
    """Both in double precision with the same random weight, bias and statistics wherever they have them."""
    a, b = a.double().train(training), b.double().train(training)
    theirs = {**dict(b.named_parameters()), **dict(b.named_buffers())}
    for name, t in {**dict(a.named_parameters()), **dict(a.named_buffers())}.items():
        if name in ("weight", "bias", "running_mean", "running_var"):
            t.data.uniform_(0.2, 0.8)
            if name in theirs:
                theirs[name].data.copy_(t.data)
    return a, b


def values(n: int = 5, channels: int = 6) -> Tensor:
    return (torch.randn(n, channels, 3, 4, dtype=torch.float64) * 3 + 1).requires_grad_()


def assert_same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    ours, theirs = a(x), b(x)
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, seed)[0] for y in (ours, theirs)))


@modes
def test_as_many_groups_as_channels_are_instance_norm(training: bool) -> None:
    assert_same(*pair(nw.GroupNorm(6, 6), nw.InstanceNorm(6), training), values())


@modes
@pytest.mark.parametrize(("gate", "parent"), [(1.0, nw.BatchNorm), (0.0, nw.InstanceNorm)])
def test_batch_instance_at_its_corners(gate: float, parent: Any, training: bool) -> None:
    norm, parent = pair(nw.BatchInstanceNorm(6), parent(6), training)
    norm.gate.data.fill_(gate)
    assert_same(norm, parent, values())


@modes
@pytest.mark.parametrize(("k", "parent"), list(enumerate([nw.InstanceNorm(6), nw.GroupNorm(1, 6), nw.BatchNorm(6)])))
def test_switchable_at_its_corners(k: int, parent: Any, training: bool) -> None:
    norm, parent = pair(nw.SwitchableNorm(6), parent, training)
    for weights in (norm.mean_weight, norm.var_weight):
        weights.data.fill_(-1e3)
        weights.data[k] = 1e3
    assert_same(norm, parent, values())


@modes
@pytest.mark.parametrize(("ratio", "half"), [(0.5, 3), (0.4, 2), (0.9, 5)])
def test_the_halves_of_ibn_equal_their_parents(ratio: float, half: int, training: bool) -> None:
    x = values()
    norm, batch = pair(nw.IBNorm(6, ratio=ratio), nw.BatchNorm(6), training)
    instance = pair(nw.IBNorm(6), nw.InstanceNorm(6))[1]
    instance.load_state_dict({name: norm.state_dict()[name] for name in ("weight", "bias")})
    y = norm(x)
    torch.testing.assert_close(y[:, :half], instance(x)[:, :half])
    torch.testing.assert_close(y[:, half:], batch(x)[:, half:])
    torch.testing.assert_close(norm.running_var, batch.running_var)


@modes
@pytest.mark.parametrize(("ratio", "parent"), [(0, nw.BatchNorm), (1, nw.InstanceNorm)])
def test_ibn_at_its_corners(ratio: float, parent: Any, training: bool) -> None:
    assert_same(*pair(nw.IBNorm(6, ratio=ratio), parent(6), training), values())


def test_channel_norms_are_pytorchs_after_a_permutation() -> None:
    x = values()
    layer, token = pair(nw.ChannelLayerNorm(6), nn.LayerNorm(6))
    torch.testing.assert_close(layer(x), token(x.movedim(1, -1)).movedim(-1, 1))
    rms, token = pair(nw.ChannelRMSNorm(6, bias=False), nn.RMSNorm(6, eps=1e-5))
    torch.testing.assert_close(rms(x), token(x.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("name", ["channel-layer", "channel-rms"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_channel_norms_in_channels_last_learn_from_halves_as_from_float64(name: str, autocast: bool) -> None:
    """PyTorch's layer norm sums rows in the half type on the CPU."""
    norm, x = nw.build(name, 6), torch.randn(8, 6, 48, 48).bfloat16().to(memory_format=torch.channels_last)
    exact, g = copy.deepcopy(norm).double(), (torch.randn_like(x.float()) + 0.25).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, autocast):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y, [*norm.parameters()], g)
    wanted = torch.autograd.grad(exact(x.double()), [*exact.parameters()], g.double())
    torch.testing.assert_close([t.double() for t in found], list(wanted), rtol=0.01, atol=0.01 * 18432**0.5)


@modes
@pytest.mark.parametrize(
    ("conditional", "parent"), [(nw.ConditionalBatchNorm, nw.BatchNorm), (nw.ConditionalInstanceNorm, nw.InstanceNorm)]
)
@pytest.mark.parametrize("options", [{}, {"embedding": 2}], ids=str)
def test_a_conditional_norm_starts_as_its_parent(
    conditional: Any, parent: Any, options: dict[str, int], training: bool
) -> None:
    norm, x = conditional(6, **options).double().train(training), values()
    condition = torch.randn(5, 2, dtype=torch.float64) if options else torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(norm(x, condition), parent(6).double().train(training)(x))


def test_filter_response_with_its_threshold_far_down_is_a_division() -> None:
    norm, x = nw.FilterResponseNorm(6).double(), values()
    norm.threshold.data.fill_(-100)
    torch.testing.assert_close(norm(x), x / (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt())
    norm.threshold.data.fill_(0)
    torch.testing.assert_close(norm(x), F.relu(x) / (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt())


@pytest.mark.parametrize("cls", [nw.DynamicTanh, nw.GlobalResponseNorm])
def test_either_axis(cls: Any) -> None:
    first, last = pair(cls(6), cls(6, axis=-1))
    x = values()
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), first(x))
    mask = torch.rand(5, 3, 4) > 0.5
    torch.testing.assert_close(last(x.movedim(1, -1), mask).movedim(-1, 1), first(x, mask))
    with pytest.raises(ValueError, match=r"axis must be 1 \(N, C, \*spatial\) or -1 \(..., F\), got 2"):
        cls(6, axis=2)


def test_global_response_norm_survives_dead_channels() -> None:
    norm = nw.GlobalResponseNorm(6).double()
    norm.weight.data.fill_(1)
    x = values().detach()
    x[:, 2] = 0
    x.requires_grad_()
    norm(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
