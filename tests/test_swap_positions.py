"""swap among per-position norms, in transformers and in networks like ConvNeXt, and what stands in for nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw
from normwise.layers.spec import read


class LayerNorm2d(nn.LayerNorm):
    """Channels on axis 1: the same forward as torchvision's and timm's class of this name."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt's block, whose norm has the features on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


@pytest.fixture(params=["torchvision.models.convnext", "timm.layers.norm"])
def convnext(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    monkeypatch.setattr(LayerNorm2d, "__module__", request.param)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6), Block(8), nn.Conv2d(8, 4, 2, 2))
    for p in model.parameters():
        p.data.uniform_(-0.5, 0.8)
    return model


def transformer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0))


def specs(model: nn.Module) -> list[str]:
    return [str(state.spec) for m in model.modules() if (state := read(m)) is not None]


def test_a_layer_norm_for_nchw_is_read(convnext: nn.Sequential) -> None:
    assert specs(convnext) == ["channel-layer", "layer-token"]


@pytest.mark.parametrize(
    ("name", "base", "arguments", "text"),
    [
        ("LayerNorm", nn.LayerNorm, (8,), "layer-token"),
        ("GroupNorm", nn.GroupNorm, (4, 8), "group:4"),
        ("GroupNorm1", nn.GroupNorm, (1, 8), "layer"),
    ],
)
def test_timms_own_forwards_are_known(name: str, base: Any, arguments: tuple[int, ...], text: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return base.forward(self, x)

    again = type(name, (base,), {"forward": forward, "__module__": "timm.layers.norm"})
    stranger = type(name, (base,), {"forward": forward})
    assert specs(again(*arguments)) == [text]
    assert specs(stranger(*arguments)) == []


def test_channel_layer_takes_its_place_exactly(convnext: nn.Sequential) -> None:
    x = torch.randn(2, 3, 16, 16)
    before, weight = convnext(x), convnext[1].weight
    plan = nw.swap(convnext, "channel-layer", example=x)
    assert [change.path for change in plan.changes] == []  # it computes the same already
    nw.swap(convnext, {"1": "channel-rms"}, example=x)
    nw.swap(convnext, {"1": "channel-layer"}, example=x)
    assert isinstance(convnext[1], nw.ChannelLayerNorm)
    assert convnext[1].weight is weight
    assert convnext[1].eps == 1e-6
    torch.testing.assert_close(convnext(x), before)


@pytest.mark.parametrize("name", ["dyt", "grn"])
def test_what_fits_either_axis_takes_the_layers(convnext: nn.Sequential, name: str) -> None:
    plan = nw.swap(convnext, name, example=torch.randn(2, 3, 16, 16))
    assert [change.path for change in plan.changes] == ["1", "2.norm"]
    assert [convnext[1].axis, convnext[2].norm.axis] == [1, -1]  # pyright: ignore[reportAttributeAccessIssue]
    nw.swap(convnext, {"1": "channel-layer", "*": "layer-token"}, example=torch.randn(2, 3, 16, 16))
    assert specs(convnext) == ["channel-layer", "layer-token"]


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("rms-token", "1", "its channels are on axis 1, and rms-token works on the last axis"),
        ("channel-rms", "2.norm", "its features are on the last axis, and channel-rms works on axis 1"),
        ("batch", "1", "only a per-position norm can replace it"),
        ("batch", "2.norm", "only a per-position norm can replace it"),
        ("dyt:axis=1", "2.norm", "its features are on axis -1, and dyt:axis=1 takes them on axis 1"),
    ],
)
def test_what_is_left_and_why(convnext: nn.Sequential, spec: str, path: str, reason: str) -> None:
    plan = nw.swap(convnext, spec)
    assert reason in next(left.note for left in plan.left if left.path == path)


@pytest.mark.parametrize(("axis", "path"), [(1, "1"), (-1, "2.norm")])
@pytest.mark.parametrize("name", ["dyt", "grn"])
def test_the_layers_own_axis_may_be_said(convnext: nn.Sequential, name: str, axis: int, path: str) -> None:
    plan = nw.swap(convnext, f"{name}:axis={axis}", path, example=torch.randn(2, 3, 16, 16))
    assert [change.path for change in plan.changes] == [path]
    assert convnext.get_submodule(path).axis == axis


@pytest.mark.parametrize("spec", ["rms-token", "dyt", "grn"])
def test_a_transformer_learns_with_each(spec: str) -> None:
    model, x = transformer(), torch.randn(4, 6, 5)
    plan = nw.swap(model, spec, example=x)
    assert len(plan.changes) == 2
    y = model(x)
    y.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    plan.undo()
    assert specs(model) == ["layer-token", "layer-token"]


def test_batch_norm_becomes_channel_layer_with_its_weight() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    weight = model[1].weight
    nw.swap(model, "channel-layer", example=torch.randn(2, 3, 8, 8))
    assert model[1].weight is weight


def test_global_response_norm_takes_no_weight_over() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nw.swap(model, "grn")
    assert not model[1].weight.any()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("adain", "adain takes a second input, the style, so it stands in for no norm"),
        ("conditional-batch:3", "conditional-batch:3 takes a second input, the condition"),
        ("mixstyle", "mixstyle does not normalize, so it stands in for no norm"),
    ],
)
def test_what_stands_in_for_nothing(spec: str, why: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert why in nw.swap(model, spec).left[0].note
    held = nn.Sequential(nn.Conv2d(3, 8, 3), nw.build(spec, 8))
    assert "put it in by hand" in nw.swap(held, "batch").left[0].note


def test_ibn_b_is_a_mapping() -> None:
    """Pan et al., 2018: instance norm after the early stages, batch norm elsewhere."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    nw.swap(model, {"1": "instance", "*": "keep"}, example=torch.randn(2, 3, 8, 8))
    assert specs(model) == ["instance", "batch"]
