"""SPADE: a norm whose weight and bias at each position follow from a map, such as a segmentation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normwise.errors import UsageError
from normwise.layers.catalogue import NORMS
from normwise.layers.spec import NormSpec, build, parse
from normwise.table import convert


class SPADE(nn.Module):
    """Normalizes images without weight and bias, then scales and shifts each position as a map of labels says.

    `forward(x, labels)`, `y = norm(x) * (1 + gamma(labels)) + beta(labels)`: gamma and beta are convolutions
    of one hidden layer, `relu(conv(labels))` (Park et al., 2019, arXiv:1903.07291). x is (N, C, H, W) and
    labels (N, num_labels, any height, any width), floating point (classes one-hot), sampled to the nearest
    position of x. `norm` is a spec; the paper's is synchronized batch norm. Parameters have the names of the
    paper's code; the norm within stays a module of its own, which `nw.swap` and `nw.compare` find.

    >>> layer = SPADE(8, num_labels=3, hidden=16)
    >>> layer(torch.randn(2, 8, 6, 6), torch.rand(2, 3, 12, 12)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        *,
        norm: str | NormSpec = "batch",
        hidden: int = 128,
        kernel_size: int = 3,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if min(num_features, num_labels, hidden) < 1 or kernel_size % 2 != 1:
            raise ValueError(
                "SPADE: num_features, num_labels and hidden must be at least 1 and kernel_size odd, "
                f"got {num_features}, {num_labels}, {hidden} and {kernel_size}."
            )
        spec = parse(norm)
        if NORMS[spec.name].kind != "plane":
            raise UsageError(
                "SPADE: norm must be one of a plane that is called with x alone, such as batch, instance or "
                f"group:8, got {spec}; for each position over its channels take channel-layer."
            )
        super().__init__()
        where: Any = {"device": device, "dtype": dtype}
        same: Any = {"kernel_size": kernel_size, "padding": kernel_size // 2, **where}
        self.num_features, self.num_labels = num_features, num_labels
        self.param_free_norm = build(spec, num_features, affine=False, **where)
        self.mlp_shared = nn.Sequential(nn.Conv2d(num_labels, hidden, **same), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, num_features, **same)
        self.mlp_beta = nn.Conv2d(hidden, num_features, **same)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check("x", x, (None, self.num_features))
        self._check("labels", labels, (x.shape[0], self.num_labels))
        sampled = F.interpolate(labels, size=x.shape[2:], mode="nearest")
        hidden = self.mlp_shared(convert(sampled, self.mlp_gamma.weight.dtype))
        return convert(self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden), x.dtype)

    def _check(self, name: str, t: Tensor, start: tuple[Any, int]) -> None:
        fits = t.dim() == 4 and t.shape[1] == start[1] and start[0] in (None, t.shape[0])
        if not fits or not t.is_floating_point():
            raise ValueError(
                f"SPADE: {name} must be floating point of shape ({'N' if start[0] is None else start[0]}, {start[1]}, "
                f"height, width), got {t.dtype} of shape {tuple(t.shape)}."
            )
