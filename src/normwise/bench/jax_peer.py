"""JAX as a peer: the formula in jax.numpy, jitted; channels-last is an array whose last axis holds the channels."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normwise.bench.cells import Cell
from normwise.bench.inputs import EPS, Inputs
from normwise.bench.peers import Bind, Run


class Jax:
    """What a user of JAX writes: statistics in float32, the result in the dtype of x."""

    def __init__(self) -> None:
        if hasattr(os, "sched_setaffinity"):  # XLA makes a thread for each core it may use
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])])
        self.jax, self.jnp = import_module("jax"), import_module("jax.numpy")
        self.last = False

    def versions(self) -> dict[str, str]:
        return {"jax": self.jax.__version__}

    def prepare(self, cell: Cell) -> Bind:
        self.jax.config.update("jax_enable_x64", cell.dtype == "float64")
        self.last = cell.layout == "channels-last"
        function = self.jax.jit(self.function(cell))

        def bind(inputs: Inputs) -> dict[str, Run]:
            arrays = [self.array(t) for t in (*inputs.leaves(False), *((inputs.grad,) if cell.backward else ()))]
            return {"run": lambda: self.jax.block_until_ready(function(*arrays))}

        return bind

    def read(self, result: Any) -> list[Tensor]:
        tensors = [torch.from_numpy(np.array(self.wide(a))) for a in result]
        return [t.movedim(-1, 1) if self.last and t.dim() > 1 else t for t in tensors]

    def array(self, t: Tensor) -> Any:
        """A tensor in JAX's memory, channels in the place the layout gives them."""
        t = t.movedim(1, -1) if self.last and t.dim() > 1 else t
        wide = t.contiguous().to(torch.promote_types(t.dtype, torch.float32))
        return self.jnp.array(wide.numpy()).astype(str(t.dtype).removeprefix("torch."))

    def wide(self, a: Any) -> Any:
        """In float32 at least."""
        return a.astype(self.jnp.promote_types(a.dtype, self.jnp.float32))

    def function(self, cell: Cell) -> Callable[..., tuple[Any, ...]]:
        """The output, and with gradients those of all but the last argument, which is the output's."""

        def forward(x: Any, weight: Any, bias: Any, *residual: Any) -> Any:
            y = self.norm(x, weight, bias, cell.groups)
            return self.jax.nn.relu(y + residual[0]) if residual else y

        def both(*args: Any) -> tuple[Any, ...]:
            y, pull = self.jax.vjp(forward, *args[:-1])
            return y, *pull(args[-1])

        return both if cell.backward else lambda *args: (forward(*args),)

    def norm(self, x: Any, weight: Any, bias: Any, groups: int) -> Any:
        """Pools over the axes of a view that splits the channels in groups; 0 groups pool over the batch."""
        axis = -1 if self.last else 1
        split = (groups or x.shape[axis], x.shape[axis] // (groups or x.shape[axis]))
        view = (*x.shape[:-1], *split) if self.last else (x.shape[0], *split, *x.shape[2:])
        wide = self.wide(x.reshape(view))
        kept = {wide.ndim - 2 if self.last else 1} | ({0} if groups else set())
        axes = tuple(i for i in range(wide.ndim) if i not in kept)
        mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        y = ((wide - mean) * self.jax.lax.rsqrt(var + EPS)).reshape(x.shape)
        place = [1] * x.ndim
        place[axis] = -1
        return (y * weight.reshape(place) + bias.reshape(place)).astype(x.dtype)
