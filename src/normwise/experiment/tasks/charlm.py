"""The task `charlm`: a small transformer that guesses the next character of Python's help texts."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.data import Data
from normwise.data.sequences import LETTERS, WINDOW, charlm
from normwise.experiment.defaults import evaluating

SYMBOLS = len(LETTERS) + 1
WINDOWS = 1500


class Attention(nn.Module):
    """A transformer's block: attention to what came before, then a perceptron, each after a norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CharTransformer(nn.Module):
    """Codes of characters (N, T) to logits (N, symbols, T), with PyTorch's layer norm over the features.

    >>> CharTransformer()(torch.zeros(2, 5)).shape
    torch.Size([2, 60, 5])
    """

    def __init__(self, width: int = 48, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(SYMBOLS, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SYMBOLS)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.letters(codes.long()) + self.places(torch.arange(codes.shape[1], device=codes.device))
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


class CharLM:
    """The task as `compare` sees it: the score is minus the bits per character."""

    name, score_name, delta, lr, epochs = "charlm", "minus bits per character", 0.02, 0.01, 4

    def model(self) -> nn.Module:
        return CharTransformer()

    def data(self) -> Data:
        return charlm(WINDOWS)

    def optimizer(self, params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, loader: Iterable[Any]) -> float:
        """Minus the mean bits per character, in evaluation mode."""
        total, count = 0.0, 0
        with evaluating(model):
            for x, y in loader:
                total += float(F.cross_entropy(model(x), y, reduction="sum"))
                count += y.numel()
        return -total / count / math.log(2) if count else math.nan
