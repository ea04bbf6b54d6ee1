"""Images as a worse camera would give them: less contrast, more light, noise, blur."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.errors import UsageError

SEVERITIES = (1, 2, 3)


def contrast(x: Tensor, severity: int) -> Tensor:
    """Keeps a part of the contrast around the image's own mean: 0.6, 0.4 or 0.2.

    >>> contrast(torch.tensor([[[[0.0, 2.0]]]]), 3)
    tensor([[[[0.8000, 1.2000]]]])
    """
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (0.6, 0.4, 0.2)[severity - 1] * (x - mean)


def brightness(x: Tensor, severity: int) -> Tensor:
    """Adds light: 0.5, 1 or 1.5 standard deviations of the data set."""
    return x + 0.5 * severity


def noise(x: Tensor, severity: int) -> Tensor:
    """Adds Gaussian noise of 0.3, 0.6 or 0.9 standard deviations, the same each time it is called."""
    generator = torch.Generator().manual_seed(severity)
    return x + 0.3 * severity * torch.randn(x.shape, generator=generator)


def blur(x: Tensor, severity: int) -> Tensor:
    """Averages over 3 x 3 pixels, once, twice or three times."""
    for _ in range(severity):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "contrast": contrast,
    "brightness": brightness,
    "noise": noise,
    "blur": blur,
}


def corrupt(x: Tensor, kind: str, severity: int) -> Tensor:
    """Standardized images (N, C, H, W) under one of the corruptions, at severity 1, 2 or 3.

    >>> corrupt(torch.zeros(1, 1, 4, 4), "brightness", 2).mean()
    tensor(1.)
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise UsageError(
            f"a corruption must be one of {', '.join(CORRUPTIONS)} at severity 1, 2 or 3, got {kind} at {severity}"
        )
    return CORRUPTIONS[kind](x, severity)
