"""The task `fashion-mnist-shift`: trained on clean images, judged under less contrast, more light, noise and blur."""

import torch
from torch import nn

from normwise import networks
from normwise.data import Arrays, Data
from normwise.data.corrupt import CORRUPTIONS, corrupt
from normwise.data.sources import fashion_mnist

SEVERITY = 2
TRAIN, VALIDATION, JUDGE = 4000, 1000, 2000


class FashionShift:
    """The task as `compare` sees it; every judge image is corrupted in one of the four ways, in turn."""

    name = "fashion-mnist-shift"

    def model(self) -> nn.Module:
        return networks.build("cnn:depth=4", (1, 14, 14), 10)

    def data(self) -> Data:
        data = fashion_mnist()
        assert isinstance(data.train, Arrays)
        assert isinstance(data.judge, Arrays)
        clean = _pooled(data.train.subset(range(TRAIN + VALIDATION)))
        judge = _pooled(data.judge.subset(range(JUDGE)))
        kinds = list(CORRUPTIONS)
        parts = [corrupt(part, kind, SEVERITY) for kind, part in zip(kinds, judge.inputs.chunk(4), strict=True)]
        return Data(
            train=clean.subset(range(TRAIN)),
            validation=clean.subset(range(TRAIN, TRAIN + VALIDATION)),
            judge=Arrays(torch.cat(parts), judge.targets),
            notes=("Learning rates are chosen on clean images, the verdict is taken on corrupted ones.",),
        )


def _pooled(samples: Arrays) -> Arrays:
    return Arrays(nn.functional.avg_pool2d(samples.inputs, 2), samples.targets)
