"""The rank-free norms: identities, gates, weights, and clear errors."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normwise as nw
from normwise.layers import base
from normwise.layers.blend import box


@pytest.fixture(autouse=True)
def _nobody_was_warned() -> None:
    base._warn_two.cache_clear()


POOLS_THE_BATCH: list[Any] = [nw.BatchNorm, nw.BatchNorm1d, nw.BatchInstanceNorm, nw.SwitchableNorm]


@pytest.mark.parametrize("cls", POOLS_THE_BATCH)
def test_one_value_per_channel(cls: Any) -> None:
    norm, x = cls(3), torch.randn(1, 3)
    with pytest.raises(
        ValueError, match=r"at least 2 values per channel \(N\*H\*W\), got 1 .*shape \(1, 3\).*larger batch"
    ):
        norm(x)
    norm.eval()(x)


@pytest.mark.parametrize("cls", POOLS_THE_BATCH)
def test_two_values_per_channel_warn_once(cls: Any) -> None:
    norm = cls(3)
    with pytest.warns(UserWarning, match=r"with 2 values per channel every output is \+-1"):
        norm(torch.randn(2, 3))
    norm(torch.randn(2, 3))  # a second warning would be an error here


def test_a_mask_that_leaves_one_value() -> None:
    with pytest.raises(ValueError, match="got 1"):
        nw.BatchNorm(3)(torch.randn(2, 3, 2), torch.tensor([[True, False], [False, False]]))


def test_two_values_that_no_statistic_uses() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nw.BatchNorm(3).eval()(torch.randn(2, 3))
        nw.GroupNorm(1, 3)(torch.randn(2, 3))


def test_one_value_per_statistic() -> None:
    """PyTorch's group norm is silent here, and returns nothing but the bias."""
    message = r"at least 2 values .*, got 1 \(input shape \(4, 3, 1, 1\)\); place it before .* fewer groups"
    for norm in (nw.InstanceNorm(3), nw.GroupNorm(3, 3)):
        with pytest.raises(ValueError, match=message):
            norm(torch.randn(4, 3, 1, 1))
    tracked = nw.InstanceNorm(3, track_running_stats=True)
    tracked(torch.randn(4, 3, 2, 2))
    assert tracked.eval()(torch.randn(4, 3, 1, 1)).shape == (4, 3, 1, 1)
    assert tracked(torch.randn(4, 3)).shape == (4, 3)


def test_features_without_positions() -> None:
    """(N, C) is refused; PyTorch's 1d class takes it for one sequence (C, L), and so does ours."""
    with pytest.raises(ValueError, match=r"at least 2 values .*, got 1 \(input shape \(4, 3\)\)"):
        nw.InstanceNorm(3)(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"must have 3 channels on axis 1, got shape \(1, 4, 3\)"):
        nw.InstanceNorm1d(3, affine=True)(torch.randn(4, 3))
    x = torch.randn(3, 3)
    torch.testing.assert_close(nw.InstanceNorm1d(3)(x), nn.InstanceNorm1d(3)(x))


@pytest.mark.parametrize("cls", [nw.BatchNorm, nw.InstanceNorm, nw.ChannelAffine])
def test_num_features_must_be_positive(cls: Any) -> None:
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        cls(0)


def test_options_are_keywords_and_known() -> None:
    with pytest.raises(TypeError):
        nw.BatchInstanceNorm(3, 1e-3)  # pyright: ignore
    with pytest.raises(TypeError):
        nw.SwitchableNorm(3, momentun=0.1)  # pyright: ignore


def test_group_norm_input() -> None:
    with pytest.raises(ValueError, match=r"GroupNorm: x must have shape \(N, C, \*spatial\), got \(4,\)"):
        nw.GroupNorm(2, 4)(torch.randn(4))


@pytest.mark.parametrize(
    ("norm", "same"),
    [
        (nw.GroupNorm(4, 4), nw.InstanceNorm(4)),
        (nw.GroupNorm(1, 4), nn.LayerNorm([4, 5, 5], elementwise_affine=False)),
        (nw.InstanceNorm(4), nn.InstanceNorm2d(4)),
        (nw.BatchNorm(4), nn.BatchNorm2d(4)),
        (nw.BatchInstanceNorm(4), nn.BatchNorm2d(4)),
    ],
    ids=["group:C = instance", "group:1 = layer", "instance", "batch", "batch-instance starts at batch"],
)
def test_identities(norm: nn.Module, same: nn.Module) -> None:
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(norm(x), same(x))


def test_instance_norm_is_affine_by_default_and_tracks_nothing() -> None:
    assert list(nw.InstanceNorm(3).state_dict()) == ["weight", "bias"]


def test_channel_affine_holds_a_weight_and_a_bias() -> None:
    norm = nw.ChannelAffine(3)
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert list(nw.ChannelAffine(3, track_running_stats=True).buffers()) == []
    assert torch.equal(nw.ChannelAffine(3, affine=False)(torch.ones(2, 3)), torch.ones(2, 3))


def test_gate_at_zero_is_instance_norm() -> None:
    norm, x = nw.BatchInstanceNorm(3), torch.randn(4, 3, 5, 5)
    nn.init.zeros_(norm.gate)
    torch.testing.assert_close(norm(x), F.instance_norm(x), rtol=1e-4, atol=1e-5)


def test_gate_finds_back_from_outside() -> None:
    """A plain clamp has no gradient outside: a gate that once stepped over the border would stay there."""
    gate = torch.tensor([1.3, -0.2], requires_grad=True)
    optimizer = torch.optim.SGD([gate], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (box(gate) - 0.5).pow(2).sum().backward()
        optimizer.step()
    assert ((gate - 0.5).abs() < 0.2).all()


def test_gate_does_not_wander_off() -> None:
    gate = torch.tensor([0.9, 0.1], requires_grad=True)
    optimizer = torch.optim.SGD([gate], lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        (box(gate) * torch.tensor([-1.0, 1.0])).sum().backward()
        optimizer.step()
    assert box(gate).tolist() == [1, 0]
    assert gate.detach().sub(0.5).abs().max() < 0.75


def test_eval_blend_uses_gate() -> None:
    norm, x = nw.BatchInstanceNorm(3).eval(), torch.randn(4, 3, 5, 5)
    nn.init.constant_(norm.gate, 0.25)
    torch.testing.assert_close(norm(x), 0.25 * x / (1 + 1e-5) ** 0.5 + 0.75 * F.instance_norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", range(3))
def test_switchable_norm_can_choose_one_pool(chosen: int) -> None:
    norm, x = nw.SwitchableNorm(4), torch.randn(3, 4, 5, 5)
    for weight in (norm.mean_weight, norm.var_weight):
        weight.data[chosen] = 50
    wanted = [F.instance_norm(x), F.group_norm(x, 1), F.batch_norm(x, None, None, training=True)][chosen]
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-5)


def test_instance_norm_ignores_contrast() -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(nw.InstanceNorm(3)(7 * x - 3), nw.InstanceNorm(3)(x), rtol=1e-3, atol=1e-4)
