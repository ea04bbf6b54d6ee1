"""Standardizes the sums inside a recurrent layer: over the features of a step, or over the batch step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normwise.functional import layer_norm
from normwise.ops import tracing
from normwise.table import convert, wide


@dataclass
class NoSteps:
    """Leaves the sums as they are: PyTorch's own recurrent layer."""

    def inputs(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """All steps at once: (T, N, G)."""
        return x if bias is None else x + bias

    def hidden(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """Step t of what comes from the state: (N, G)."""
        return x if bias is None else x + bias

    def cell(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Step t of the cell: (N, H)."""
        return x


@dataclass
class LayerSteps(NoSteps):
    """Standardizes the gates of each sequence and step over their features, in `blocks` that stand apart."""

    eps: float
    blocks: Sequence[int]

    def inputs(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if len(self.blocks) == 1:
            return layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        blocks = list(self.blocks)
        parts = (t.split(blocks, -1) if t is not None else [None] * len(blocks) for t in (x, weight, bias))
        return torch.cat([layer_norm(x, x.shape[-1:], w, b, self.eps) for x, w, b in zip(*parts, strict=True)], -1)

    def hidden(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return self.inputs(x, weight, bias)

    def cell(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return layer_norm(x, x.shape[-1:], weight, bias, self.eps)


@dataclass
class BatchSteps(NoSteps):
    """Standardizes each feature over the sequences that are alive at a step.

    `remembered` are mean and variance (T, 2G + H) to use instead of the batch's. A step with fewer than
    two sequences alive takes the batch's statistics of the last step that had two.
    """

    eps: float
    alive: Tensor | None
    remembered: tuple[Tensor, Tensor] | None
    measured: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def inputs(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.remembered is not None:
            return self._affine(x, self._row("inputs", slice(None), x.shape[-1]), weight, bias)
        mean, var = over_batch(x, self.alive)
        if self.alive is not None:
            rows = torch.arange(len(x), device=x.device).clamp(max=(self.enough.sum() - 1).clamp(min=0))
            mean, var = mean[rows], var[rows]
        self.measured["inputs"] = [(mean, var)]
        return self._affine(x, (mean, var), weight, bias)

    def hidden(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return self._affine(x, self._statistics("hidden", x, t), weight, bias)

    def cell(self, x: Tensor, t: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return self._affine(x, self._statistics("cell", x, t), weight, bias)

    @property
    def enough(self) -> Tensor:
        """(T,): whether a step has two sequences to take statistics from; where a sequence ends it stays ended."""
        assert self.alive is not None
        return self.alive.sum((1, 2)) > 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of all steps, (T, 2G + H), for the record."""
        parts = [
            [torch.cat(side).flatten(0, -2) for side in zip(*found, strict=True)] for found in self.measured.values()
        ]
        mean, var = (torch.cat(side, -1).detach() for side in zip(*parts, strict=True))
        return mean, var

    def _statistics(self, place: str, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        if self.remembered is not None:
            return self._row(place, t, x.shape[-1])
        found = self.measured.setdefault(place, [])
        now = over_batch(x, None if self.alive is None else self.alive[t])
        if self.alive is not None and found:
            enough = self.alive[t].sum() > 1
            now = torch.where(enough, now[0], found[-1][0]), torch.where(enough, now[1], found[-1][1])
        found.append(now)
        return now

    def _row(self, place: str, t: Any, width: int) -> tuple[Tensor, Tensor]:
        assert self.remembered is not None
        total = self.remembered[0].shape[-1]
        start = {"inputs": 0, "hidden": width, "cell": total - width}[place]
        mean, var = (rows[t, None, start : start + width] for rows in self.remembered)
        return mean, var

    def _affine(
        self, x: Tensor, statistics: tuple[Tensor, Tensor], weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        mean, var = statistics
        scale = (var + self.eps).rsqrt()
        y = (convert(x, mean.dtype) - mean) * (scale if weight is None else scale * weight)
        return convert(y if bias is None else y + bias, x.dtype)


def over_batch(x: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the sequences, (..., N, F) to (..., 1, F); `alive` is (..., N, 1)."""
    x = convert(x, wide(x.dtype))
    if not tracing() and not x.shape[-2]:  # of which var_mean says that it has too few values
        nothing = x.sum(-2, keepdim=True)
        return nothing, nothing
    if alive is None:
        var, mean = torch.var_mean(x, -2, correction=0, keepdim=True)
        return mean, var
    n = alive.sum(-2, keepdim=True).clamp(min=1)
    mean = x.masked_fill(~alive, 0).sum(-2, keepdim=True) / n
    return mean, ((x - mean).masked_fill(~alive, 0) ** 2).sum(-2, keepdim=True) / n
