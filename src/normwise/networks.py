"""Small networks to try a norm on: a plain CNN, a small ResNet, a perceptron; with PyTorch's batch norms."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from normwise.errors import UsageError
from normwise.loading import hint, parse_options


def cnn(in_channels: int, outputs: int, *, width: int = 8, depth: int = 3) -> nn.Module:
    """A plain CNN: `depth` times convolution, norm, ReLU, then global average pooling and a linear layer.

    Channels are `width`, 2 and 4 times `width`, and stay there; every second convolution halves the image.
    Input (N, in_channels, H, W), output (N, outputs).

    >>> sum(p.numel() for p in cnn(1, 10).parameters())
    6274
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, channels in enumerate(widths := _channels(width, depth)):
        before = widths[i - 1] if i else in_channels
        layers[f"conv{i + 1}"] = _conv(before, channels, stride=1 + i % 2)
        layers[f"norm{i + 1}"] = nn.BatchNorm2d(channels)
        layers[f"act{i + 1}"] = nn.ReLU()
    return nn.Sequential(layers | _head(widths[-1], outputs))


def resnet(in_channels: int, outputs: int, *, width: int = 8, depth: int = 3) -> nn.Module:
    """A small ResNet: a convolution, `depth` basic blocks and a linear layer.

    The second and third block halve the image. Channels are `width`, 2 and 4 times
    `width`, and stay there. Input (N, in_channels, H, W), output (N, outputs) (He et al., 2016).

    >>> len([m for m in resnet(1, 10).modules() if isinstance(m, nn.BatchNorm2d)])
    9
    """
    widths = _channels(width, depth)
    layers = OrderedDict[str, nn.Module](conv1=_conv(in_channels, width), norm1=nn.BatchNorm2d(width), act1=nn.ReLU())
    for i, channels in enumerate(widths):
        layers[f"block{i + 1}"] = Block(widths[i - 1] if i else width, channels, stride=2 if i in (1, 2) else 1)
    return nn.Sequential(layers | _head(widths[-1], outputs))


def mlp(in_features: int, outputs: int, *, width: int = 64, depth: int = 3) -> nn.Module:
    """A perceptron: `depth` times linear layer, norm, ReLU, then a linear layer.

    Input (N, ...) with `in_features` values a sample, output (N, outputs).

    >>> mlp(64, 10)(Tensor(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
    for i in range(depth):
        layers[f"linear{i + 1}"] = nn.Linear(width if i else in_features, width, bias=False)
        layers[f"norm{i + 1}"] = nn.BatchNorm1d(width)
        layers[f"act{i + 1}"] = nn.ReLU()
    layers["linear"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "resnet": resnet, "mlp": mlp}


def build(text: str, sample_shape: Sequence[int], outputs: int) -> nn.Module:
    """Makes a built-in network from its text for samples of a shape, e.g. `cnn:width=16,depth=5`.

    >>> build("mlp:width=32", (1, 8, 8), 10).norm1.num_features
    32
    """
    network, options = parse(text)
    shape = tuple(sample_shape)
    if network is mlp:
        return mlp(math.prod(shape), outputs, **options)
    if len(shape) == 2:
        return nn.Sequential(OrderedDict(image=nn.Unflatten(1, (1, shape[0])), net=network(1, outputs, **options)))
    if len(shape) != 3:
        raise UsageError(f"{text} needs images (channels, height, width), got samples of shape {shape}; mlp takes any")
    return network(shape[0], outputs, **options)


def parse(text: str) -> tuple[Callable[..., nn.Module], dict[str, int]]:
    """Reads the text of a built-in network: its function and its options.

    >>> parse("cnn:depth=5")[1]
    {'width': 8, 'depth': 5}
    """
    name, _, rest = text.partition(":")
    if name not in NETWORKS:
        known = ", ".join([*NETWORKS, "package.module:function", "file.py:function"])
        raise UsageError(f"unknown network {name!r}; known: {known}{hint(name, NETWORKS)}")
    network = NETWORKS[name]
    parameters = inspect.signature(network).parameters.values()
    return network, parse_options(rest, {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}, name)


class Block(nn.Module):
    """A basic residual block: two convolutions with norms, added to the input (or to its 1x1 projection)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU()
        self.conv2 = _conv(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=nn.BatchNorm2d(out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))


def _channels(width: int, depth: int) -> list[int]:
    return [width * 2 ** min(i, 2) for i in range(depth)]


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _head(channels: int, outputs: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), linear=nn.Linear(channels, outputs))
