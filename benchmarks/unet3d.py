"""Times a training step of a 3-d U-Net with instance norm and leaky ReLU, channels-last, with and without normwise.

    python benchmarks/unet3d.py [--threads 2] [--rounds 5]

One volume of 64x64x64, four levels of 16 to 128 channels, two convolutions each, as in medical segmentation
(nnU-Net). Both sides run in processes of their own, in turns; the only difference is `nw.accelerate(model)`.
"""

from itertools import pairwise

import torch
from steps import Made, main
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128)
CLASSES, SIDE = 4, 64


class Block(nn.Sequential):
    """Two convolutions, each with its norm and its activation."""

    def __init__(self, incoming: int, channels: int, stride: int = 1) -> None:
        layers = []
        for features, step in ((incoming, stride), (channels, 1)):
            layers.append(nn.Conv3d(features, channels, 3, stride=step, padding=1, bias=False))
            layers.append(nn.InstanceNorm3d(channels, affine=True))
            layers.append(nn.LeakyReLU(0.01, inplace=True))
        super().__init__(*layers)


class UNet3d(nn.Module):
    """Down by strides, up by transposed convolutions, with a connection at each level."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(CHANNELS))
        self.first = Block(1, CHANNELS[0])
        self.down = nn.ModuleList(Block(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(Block(2 * a, a) for a, _ in reversed(pairs))
        self.last = nn.Conv3d(CHANNELS[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([up(y), levels.pop()], 1))
        return self.last(y)


def unet() -> Made:
    """The model in channels-last, a random volume and random labels."""
    model = UNet3d().to(memory_format=torch.channels_last_3d)
    x = torch.randn(1, 1, SIDE, SIDE, SIDE).to(memory_format=torch.channels_last_3d)
    return model, x, torch.randint(CLASSES, (1, SIDE, SIDE, SIDE))


if __name__ == "__main__":
    main(__doc__, {"unet3d": unet})
