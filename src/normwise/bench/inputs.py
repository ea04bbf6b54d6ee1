"""What every peer of a cell is given, the truth in float64, and how far a result is from it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise.bench.cells import Cell

EPS = 1e-5
OFFSET = {"float64": 1e3, "float32": 1e3, "bfloat16": 10.0, "float16": 10.0}  # mean/std of the second check
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
TOLERANCE_AT_OFFSET = {"float64": 1e-3, "float32": 0.05, "bfloat16": 0.15, "float16": 0.05}


class Inputs(NamedTuple):
    """The tensors of a cell; `residual` is None where the cell has none."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    grad: Tensor

    def leaves(self, gradients: bool) -> tuple[Tensor, ...]:
        """x, weight, bias and the residual where there is one: what gradients are taken of, if they are."""
        given = (self.x, self.weight, self.bias, *(() if self.residual is None else (self.residual,)))
        return tuple(t.detach().requires_grad_(gradients) for t in given)


def make(cell: Cell, mean: float = 0.0) -> Inputs:
    """The same random tensors in every process; x has this mean and standard deviation 1.

    >>> make(Cell("instance", (2, 4, 8, 8), "channels-last")).x.stride()
    (256, 1, 32, 4)
    """
    random = torch.Generator().manual_seed(0)
    dtype = getattr(torch, cell.dtype)

    def tensor(mean: float = 0.0) -> Tensor:
        return laid_out((torch.randn(cell.shape, generator=random) + mean).to(dtype), cell.layout)

    weight, bias = (torch.randn(2, cell.shape[1], generator=random) / 4 + torch.tensor([[1.0], [0.0]])).to(dtype)
    return Inputs(tensor(mean), weight, bias, tensor() if cell.fused else None, tensor())


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with channels closest in memory, or in the order of the axes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels-last" else x.contiguous()


def eager(groups: int, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """What a user of PyTorch writes; 0 groups are batch norm."""
    if groups == 0:
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    elif groups == x.shape[1]:
        y = F.instance_norm(x, None, None, weight, bias, eps=EPS)
    else:
        y = F.group_norm(x, groups, weight, bias, EPS)
    return y if residual is None else F.relu(y + residual)


def truth(cell: Cell, inputs: Inputs) -> list[Tensor]:
    """The output in float64, and where the cell has them the gradients of x, weight, bias and residual."""
    wide = Inputs(*(None if t is None else t.double().contiguous() for t in inputs))  # pyright: ignore
    leaves = wide.leaves(cell.backward)
    y = eager(cell.groups, *leaves)
    return [y.detach(), *(torch.autograd.grad(y, leaves, wide.grad) if cell.backward else ())]


def error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """How far the results are off, as a share of their size: the output at its worst value, gradients on the whole.

    A value that is almost 0 before the ReLU may fall on either side of it and its gradient with it, which is why
    gradients are not judged by their worst value.

    >>> error([torch.tensor([1.0, -1.1])], [torch.tensor([1.0, -1.0])])
    0.1...
    """
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    output, *gradients = [(a.double() - b, b.square().mean().sqrt()) for a, b in zip(found, wanted, strict=True)]
    worst = [output[0].abs().max() / output[1], *(d.square().mean().sqrt() / size for d, size in gradients)]
    return max(float(share.nan_to_num(float("inf"))) for share in worst)
