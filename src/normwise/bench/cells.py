"""The cells of the table: a norm, a tensor, a direction. The fixed lists stand in cells.toml."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from math import prod
from typing import Any

import torch
from torch import nn

from normwise.errors import UsageError
from normwise.layers.spec import build

NORMS = ("instance", "group", "batch", "batch+residual+relu")
LAYOUTS = ("contiguous", "channels-last")
PASSES = ("forward", "forward+backward")
FUSED = "+residual+relu"


@dataclass(frozen=True)
class Cell:
    """One norm on one tensor of (N, C, *spatial), forward or forward and backward.

    >>> cell = Cell("group:8+residual+relu", (8, 32, 16, 16))
    >>> cell.groups, cell.fused, cell.bytes
    (8, True, 262144)
    """

    norm: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: str = "float32"
    passes: str = "forward"

    def __str__(self) -> str:
        return f"{self.norm} {self.size} {self.layout} {self.dtype} {self.passes}"

    @property
    def size(self) -> str:
        """The shape as a person writes it."""
        return "x".join(map(str, self.shape))

    @property
    def spec(self) -> str:
        """The norm without what follows it."""
        return self.norm.removesuffix(FUSED)

    @property
    def fused(self) -> bool:
        """Whether a residual is added and a ReLU follows."""
        return self.norm.endswith(FUSED)

    @property
    def backward(self) -> bool:
        """Whether gradients are taken too."""
        return self.passes == PASSES[1]

    @property
    def groups(self) -> int:
        """Groups of channels that share a statistic of an instance; 0 for batch norm."""
        module = build(self.spec, self.shape[1])
        if isinstance(module, nn.GroupNorm):
            return module.num_groups
        return 0 if "batch" in self.norm else self.shape[1]

    @property
    def bytes(self) -> int:
        """The size of x in memory."""
        return prod(self.shape) * torch.empty(0, dtype=getattr(torch, self.dtype)).element_size()

    @property
    def least_copies(self) -> float:
        """What memory allows: tensors that must be read or written once, of which a copy moves two.

        >>> Cell("batch", (2, 4, 8)).least_copies, Cell("batch+residual+relu", (2, 4, 8)).least_copies
        (1.0, 1.5)
        """
        forward = 3 if self.fused else 2  # x, (residual,) output
        backward = 5 if self.fused else 3  # gradient, x, (output,) gradient of x (and of the residual)
        return (forward + backward * self.backward) / 2


def choose(selection: str, norms: Sequence[str] = (), shapes: Sequence[str] = ()) -> list[Cell]:
    """The cells of a fixed list (quick, default or all), of these norms; with shapes, every combination of theirs.

    >>> [str(cell) for cell in choose("quick", norms=["instance"], shapes=["2x4x8"])][1]
    'instance 2x4x8 contiguous float32 forward+backward'
    """
    for norm in norms:
        _check_norm(norm)
    if shapes:
        made = [_check_shape(text) for text in shapes]
        group = {"norms": norms or NORMS, "shapes": made, "layouts": LAYOUTS, "dtypes": ["float32"], "passes": PASSES}
        return _cells(group)
    groups = tomllib.loads(resources.files("normwise.bench").joinpath("cells.toml").read_text())[selection]
    return [cell for group in groups for cell in _cells(group | ({"norms": norms} if norms else {}))]


def _cells(group: dict[str, Any]) -> list[Cell]:
    """All combinations, in an order that keeps together what a reader compares."""
    keys = ("dtypes", "norms", "layouts", "shapes", "passes")
    cells = [
        Cell(norm, _check_shape(shape), layout, dtype, passes)
        for dtype, norm, layout, shape, passes in product(*(group[key] for key in keys))
    ]
    for cell in cells:
        _check_statistic(cell)
    return cells


def _check_statistic(cell: Cell) -> None:
    """What the norm cannot have is told here, before anything is measured: also a group that does not divide."""
    samples, channels, *spatial = cell.shape
    if prod(spatial) * (channels // cell.groups if cell.groups else samples) == 1:
        raise UsageError(
            f"{cell.norm} norm of {cell.size} has one value per statistic, whose variance is 0; "
            "give a larger --shape, or with --norm only those that pool more of it."
        )


def _check_norm(text: str) -> None:
    name = text.removesuffix(FUSED).partition(":")[0]
    if name not in ("batch", "instance", "group", "layer"):
        raise UsageError(
            "bench compares the norms that PyTorch has, batch, instance, group:8 and layer, each also with "
            f"{FUSED} behind it; got {text!r}."
        )


def _check_shape(text: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(text, tuple):
        return text
    sizes = text.lower().split("x")
    if len(sizes) < 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"a shape must be NxCxsizes of positive whole numbers such as 32x256x28x28, got {text!r}.")
    return tuple(map(int, sizes))
