"""How the squared gradient grows from layer to layer at initialization, and how alike inputs become."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.layers.spec import build
from normwise.probe.measure import gradient_growth
from normwise.probe.record import record

WIDTH, DEPTH = 500, 24  # of the perceptron
CHANNELS, CONV_DEPTH, IMAGES = 64, 20, 16  # of the convolutional network
CLASSES = 10  # of training for a few steps
SETTLED = 4  # layers after which the correlations between inputs have settled

VECTORS = tuple(cell(net="mlp", norm="batch", values=n) for n in (8, 32, 128)) + tuple(
    cell(net="mlp", norm=norm, values=32, gain=gain)
    for norm, gain in (("none", 1), ("none", 0.5), ("batch", 0.5), ("layer", 1))
)
SKIPS = tuple(cell(net="skip", norm=norm, values=32, gain=1) for norm in ("none", "batch"))
STEPPED = tuple(  # at 0.1 the network without norms breaks
    cell(net="mlp", norm=norm, values=32, gain=1, steps=steps, rate=rate)
    for steps in (1, 10)
    for norm, rate in (("none", 0.01), ("batch", 0.01), ("batch", 0.1))
)
MAPS = tuple(
    cell(net="conv", norm=norm, side=side, values=side * side * (IMAGES if norm == "batch" else 1))
    for side in (8, 4, 2)
    for norm in ("batch", "instance")
)


def measure(run: Run) -> Measures:
    """The growth per layer, its logarithm, and the mean cosine between the last activations of two inputs."""
    given = run.settings
    gain = float(given.get("gain", 1))
    if given["net"] == "conv":
        model = conv_net(given["norm"], gain)
        x = torch.randn(IMAGES, CHANNELS, int(given["side"]), int(given["side"]))
    else:
        model = perceptron(given["norm"], gain, skip=given["net"] == "skip")
        x = torch.randn(int(given["values"]), WIDTH)
    if "steps" in given:
        descend(model, int(given["steps"]), len(x), float(given["rate"]))
    with record(model) as records:
        last = model(x)
    (last * torch.randn_like(last)).sum().backward()
    rate = gradient_growth(records[SETTLED:]) or math.nan
    return {"growth": rate, "log_growth": math.log(rate), "likeness": likeness(last.detach())}


def perceptron(norm: str, gain: float = 1.0, skip: bool = False) -> nn.Sequential:
    """Linear, norm, ReLU, `DEPTH` times, with He's initialization times `gain` (He et al., 2015), or with each
    three of them beside a skip connection."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        branch = _he(nn.Linear(WIDTH, WIDTH, bias=False), gain), build(norm, WIDTH), nn.ReLU()
        layers += [Skip(*branch)] if skip else branch
    return nn.Sequential(*layers)


class Skip(nn.Sequential):
    """Adds what the branch makes of its input to it."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def descend(model: nn.Module, steps: int, batch: int, rate: float) -> None:
    """Some steps of SGD on random inputs with random classes; the first outputs are the classes' scores."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        x, y = torch.randn(batch, WIDTH), torch.randint(CLASSES, (batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(x)[:, :CLASSES], y).backward()
        optimizer.step()
    optimizer.zero_grad()


def conv_net(norm: str, gain: float = 1.0) -> nn.Sequential:
    """3 x 3 convolution with circular padding (every position is alike), norm, ReLU, `CONV_DEPTH` times."""
    layers: list[nn.Module] = []
    for _ in range(CONV_DEPTH):
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode="circular", bias=False)
        layers += [_he(conv, gain), build(norm, CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers)


def likeness(x: Tensor) -> float:
    """The mean cosine between two instances.

    >>> round(likeness(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), 3)
    0.707
    """
    flat = F.normalize(x.flatten(1), dim=1)
    products = flat @ flat.T
    return float((products.sum() - products.trace()) / (len(x) * (len(x) - 1)))


def _he(layer: nn.Module, gain: float) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.mul_(gain)  # type: ignore[operator, union-attr]
    return layer


GROWTH = Experiment("growth", measure, (*VECTORS, *SKIPS, *STEPPED, *MAPS), seconds=0.12, seeds=24, exact=True)
