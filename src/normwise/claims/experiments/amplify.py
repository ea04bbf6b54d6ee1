"""What a norm does to faint noise: in a channel that is flat in this image only, or in all; invariances."""

import math

import torch
from torch import Tensor

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.layers.spec import build

SIGMA = 0.01  # of the noise
IMAGES, CHANNELS, SIDE = 32, 8, 16
EPS = (1e-5, 1e-3, 1e-1)


def measure(run: Run) -> Measures:
    """`log_gain`: log10 of the noise's gain in the flat channel of the first image; `snr`: its signal-to-noise
    ratio after the norm over that before, in a channel that has both; `change`: how much the outputs change, at
    most, when contrast and brightness of every channel of the image are changed."""
    given = run.settings
    layer = build(given["norm"], CHANNELS, eps=float(given["eps"]))
    signal, noise = scene(given["flat"]), SIGMA * torch.randn(IMAGES, CHANNELS, SIDE, SIDE)
    with torch.no_grad():
        whole = layer(signal + noise)
        found = {"log_gain": math.log10(float(whole[0, 0].std() / noise[0, 0].std()))}
        scale, shift = 0.2 + 2 * torch.rand(1, CHANNELS, 1, 1), torch.randn(1, CHANNELS, 1, 1)
        changed = (signal + noise).clone()
        changed[:1] = scale * changed[:1] + shift
        textured = slice(1, None)  # the flat channel has next to no variance to divide by
        change = (layer(changed) - whole)[0, textured].abs().max() / whole[0, textured].std()
    return found | {"snr": _snr(whole[0, 1], signal[0, 1], noise[0, 1]), "change": float(change)}


def scene(flat: str) -> Tensor:
    """Smooth random texture of deviation 1 in every channel; the first one is flat `here` or `everywhere`."""
    coarse = torch.randn(IMAGES, CHANNELS, SIDE // 4, SIDE // 4)
    texture = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    texture = texture / texture.std((2, 3), keepdim=True)
    texture[slice(0, 1) if flat == "here" else slice(None), 0] = 0.5
    return texture


def _snr(after: Tensor, signal: Tensor, noise: Tensor) -> float:
    """The output is split by regression into the part of the signal and that of the noise."""
    design = torch.stack([signal.flatten(), noise.flatten(), torch.ones(signal.numel())], 1).double()
    a, b, _ = torch.linalg.lstsq(design, after.flatten().double()[:, None]).solution.flatten()
    return float((a / b).abs())


AMPLIFY = Experiment(
    "amplify",
    measure,
    tuple(
        cell(norm=norm, flat=flat, eps=eps)
        for norm in ("batch", "instance")
        for flat in ("here", "everywhere")
        for eps in EPS
    ),
    seconds=0.02,
    seeds=12,
    exact=True,
)
