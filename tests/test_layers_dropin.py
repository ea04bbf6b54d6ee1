"""The ranked drop-ins: subclasses of PyTorch's layers with the same signature, keys and results."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normwise as nw

RANKED = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]
SHAPES = {"1d": [(4, 3, 7)], "2d": [(4, 3, 5, 6)], "3d": [(4, 3, 2, 4, 3)]}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"affine": True, "bias": False},
    {"affine": True, "track_running_stats": True, "momentum": 0.3, "eps": 1e-2},
    {"track_running_stats": False},
]


def pair(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    first = (2, 4) if name == "GroupNorm" else (3,)
    ours, theirs = getattr(nw, name)(*first, **options), getattr(nn, name)(*first, **options)
    for p in theirs.parameters():
        nn.init.uniform_(p)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Output, gradients and state. In float64: in float32 both are off by as much as they differ."""
    results = []
    for norm in (ours.double(), theirs.double()):
        given = x.double().requires_grad_()
        y = norm(given)
        results.append((y.detach(), *torch.autograd.grad(y.pow(3).sum(), [given, *norm.parameters()])))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", [*RANKED, "GroupNorm"])
def test_signature_and_type(name: str) -> None:
    ours, theirs = getattr(nw, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)


@pytest.mark.parametrize("name", [*RANKED, "GroupNorm"])
def test_the_input_may_be_named_as_pytorchs(name: str) -> None:
    ours, x = pair(name, {})[0].eval(), torch.randn(SHAPES.get(name[-2:], [(2, 4, 5)])[0])
    torch.testing.assert_close(ours(input=x), ours(x))


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_are_pytorchs(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, options)
    instance_counts = "Instance" in name and ours.track_running_stats
    for shape in SHAPES[name[-2:]]:
        for training in (True, False):
            for norm in (ours, theirs):
                norm.train(training)
            if instance_counts and training:
                theirs.num_batches_tracked += 1  # PyTorch's instance norm forgets to count
            assert_same(ours, theirs, torch.randn(shape) * 2 + 1)
            if instance_counts and training:
                assert ours.num_batches_tracked == 1


@pytest.mark.filterwarnings("ignore:GroupNorm. with 2 values per statistic")
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False, "eps": 1e-2}], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6), (2, 4, 3, 2, 3)], ids=len)
def test_group_norm_is_pytorchs(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert_same(*pair("GroupNorm", options), torch.randn(shape))


def test_batch_norm_1d_of_vectors() -> None:
    assert_same(*pair("BatchNorm1d", {}), torch.randn(6, 3))


@pytest.mark.parametrize("name", [name for name in RANKED if "Instance" in name])
def test_instance_norm_without_batch_axis(name: str) -> None:
    assert_same(*pair(name, {"affine": True}), torch.randn(SHAPES[name[-2:]][0][1:]))


def test_instance_norm_warns_of_channels_as_pytorch_does() -> None:
    with pytest.warns(UserWarning, match="num_features is 3, but the input has 5 channels"):
        y = nw.InstanceNorm2d(3)(torch.randn(2, 5, 4, 4))
    torch.testing.assert_close(y, nn.InstanceNorm2d(5)(torch.zeros(2, 5, 4, 4)) + y)
    with pytest.raises(ValueError, match="3 channels on axis 1"):
        nw.InstanceNorm2d(3, affine=True)(torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("name", RANKED)
def test_rank_is_checked_as_pytorch_does(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected \dD"):
        getattr(nw, name)(3)(torch.randn(1, 3, 1, 1, 1, 1))


@pytest.mark.parametrize("name", [*RANKED, "GroupNorm"])
def test_a_layer_of_pytorch_may_change_its_class(name: str) -> None:
    """`m.__class__ = nw.BatchNorm2d`: hooks, optimizer and names survive."""
    ours, theirs = pair(name, {})
    theirs.__class__ = type(ours)
    assert_same(ours, theirs, torch.randn(SHAPES.get(name[-2:], [(2, 4, 5)])[0]))


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_mask_in_a_drop_in(name: str) -> None:
    norm, x = getattr(nw, name)(3), torch.randn(2, 3, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:3, :2] = True
    inner = getattr(nw, name)(3)(x[:, :, :3, :2])
    y = norm(x, mask)
    torch.testing.assert_close(y[:, :, :3, :2], inner)
    assert float(y.masked_fill(mask, 0).abs().sum().detach()) == 0


def test_pytorch_converts_our_batch_norm_to_sync() -> None:
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nw.BatchNorm(3)), nn.SyncBatchNorm)
