"""Times a training step of torchvision's MobileNetV2 and ResNet-50, channels-last, with and without normwise.

    make test-zoo && .venv-zoo/bin/python benchmarks/models.py [--models mobilenet_v2] [--threads 2] [--rounds 5]

Random weights, images of 224x224. Both sides run in processes of their own, in turns; the only difference is
`nw.accelerate(model)`.
"""

from functools import partial

import torch
import torchvision
from steps import Made, main

IMAGES = {"mobilenet_v2": 16, "resnet50": 8}


def model_and_images(name: str) -> Made:
    """The model in channels-last, random images and random labels."""
    model = getattr(torchvision.models, name)(weights=None).to(memory_format=torch.channels_last)
    x = torch.randn(IMAGES[name], 3, 224, 224).to(memory_format=torch.channels_last)
    return model, x, torch.randint(1000, (IMAGES[name],))


if __name__ == "__main__":
    main(__doc__, {name: partial(model_and_images, name) for name in IMAGES})
