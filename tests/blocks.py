"""Small networks for the tests of accelerate, and a look at what was done in one pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import lively
from torch import Tensor, nn
from torch.nn import functional as F

from normwise.surgery.tape import Join


class Block(nn.Module):
    """torchvision's BasicBlock: one ReLU used twice, the residual added in place."""

    def __init__(self, channels: int, out: int, stride: int = 1, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = norm(out)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8, 8, norm=norm), Block(8, 8, norm=norm))
        self.layer2 = nn.Sequential(Block(8, 16, 2, norm), Block(16, 16, norm=norm))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Line(nn.Module):
    """A convolution, a norm, and what a test adds."""

    def __init__(self, after: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.after = after
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.norm(self.conv(x)), x)


class Gain(nn.Identity):
    gain = 2.0

    def after(self, x: Tensor) -> Tensor:
        return x * self.gain


class Pooled(nn.Module):
    """It calls a function that pickle does not find by its qualified name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(x)), 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(4, c),
}


def parts() -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]


def watch_joins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was done in one pass, as it is done."""
    seen: list[str] = []
    whole = Join.run

    def run(self: Join, block: nn.Module, slots: list[Any]) -> None:
        whole(self, block, slots)
        y = slots[self.steps[-1].out]
        if not torch.is_grad_enabled() or type(y.grad_fn).__name__ in (
            "_NormBackward",
            "_NormalizeBackward",
            "_MixtureBackward",
        ):
            seen.append(str(self))

    monkeypatch.setattr(Join, "run", run)
    return seen


def resnet(norm: str = "batch") -> Any:
    return lively(ResNet(NORMS[norm]))


def image(size: int = 12) -> Tensor:
    return torch.randn(4, 3, size, size)
