"""Tiny networks, data and tasks to resolve."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from normwise.data import Arrays

X, Y = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3
VALUES = X[:, :1] * 5 + 100


def net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


def given(**said: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"model": net, "data": lambda: (X, Y), **said})


def thirds(seed: int) -> tuple[range, range, range]:
    return range(60), range(60, 90), range(90, 120)


def arrays(samples: Any) -> Arrays:
    assert isinstance(samples, Arrays)
    return samples


class Dicts(Dataset):
    """Samples that are dictionaries."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": X[index], "label": Y[index]}


def dict_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def dict_score(model: nn.Module, loader: Any) -> Tensor:
    model.eval()
    right = [(model(batch["image"]).argmax(1) == batch["label"]).sum() for batch in loader]
    return torch.stack(right).sum() / len(loader.dataset)
