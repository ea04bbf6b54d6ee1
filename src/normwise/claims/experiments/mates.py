"""What the other images of a batch do to one image: to its outputs, its gradient, its activations."""

import torch
from torch import Tensor, nn

from normwise import networks
from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.images import SIZE, split
from normwise.layers.spec import build
from normwise.surgery.swap import swap

BATCH, MICRO = 16, 4
DRAWS = 300  # of batch-mates
GHOSTS = (8, 16, 32, 64, 128, 256)
NORMS = ("none", "batch", "instance", "group:4", "layer")


def measure(run: Run) -> Measures:
    """Effects on the others when one image of a batch is replaced, and the error of micro-batch gradients.

    All relative: to the spread of the outputs, to the length of the gradient.
    """
    images = split(run.seed)
    if "ghost" in run.settings:
        return {"noise": noise(run.settings["norm"], images.train.inputs, int(run.settings["ghost"]))}
    model = swap(networks.build("cnn", (1, SIZE, SIZE), 10), run.settings["norm"]).model
    x, y = images.train.inputs[:BATCH], images.train.targets[:BATCH]
    model.train()
    train = influence(model, x, images.train.inputs[BATCH])
    error = micro_batch_error(model, x, y)
    model.eval()
    return {"train": train, "gradient": error, "eval": influence(model, x, images.train.inputs[BATCH])}


def influence(model: nn.Module, x: Tensor, other: Tensor) -> float:
    """By how much the outputs of the others change, at most, when the last image becomes `other`, ten times as
    bright: relative to the standard deviation of the outputs."""
    changed = x.clone()
    changed[-1] = 10 * other
    with torch.no_grad():
        before, after = model(x)[:-1], model(changed)[:-1]
    return float((before - after).abs().max() / before.std())


def micro_batch_error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The relative distance between the whole batch's gradient and that accumulated over micro-batches."""
    whole = _gradient(model, [(x, y)])
    parts = _gradient(model, list(zip(x.split(MICRO), y.split(MICRO), strict=True)))
    return float((whole - parts).norm() / whole.norm())


def noise(norm: str, images: Tensor, size: int) -> float:
    """The variance of one image's normalized activation over `DRAWS` draws of its `size` - 1 batch-mates."""
    conv, layer = nn.Conv2d(1, 8, 3, stride=2, bias=False), build(norm, 8)
    with torch.no_grad():
        x = conv(images)
        seen = []
        for _ in range(DRAWS):
            mates = torch.randint(1, len(x), (size - 1,))
            seen.append(layer(torch.cat([x[:1], x[mates]]))[0])
    return float(torch.stack(seen).var(0).mean())


def _gradient(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    model.zero_grad()
    for x, y in batches:
        (nn.functional.cross_entropy(model(x), y) / len(batches)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


MATES = Experiment(
    "mates",
    measure,
    (
        *(cell(norm=norm) for norm in NORMS),
        *(cell(norm=norm, ghost=size) for norm in ("batch", "instance") for size in GHOSTS),
    ),
    seconds=0.08,
    seeds=16,
    exact=True,
)
