"""The peers that need nothing but PyTorch, and the list of all: how each prepares a cell to be timed."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from normwise import functional
from normwise.bench.cells import Cell
from normwise.bench.inputs import EPS, Inputs, eager
from normwise.layers.normact import NormAct
from normwise.layers.spec import build

Run = Callable[[], Any]
Bind = Callable[[Inputs], dict[str, Run]]


class NotOfferedError(Exception):
    """The peer has no such operation; the message says which."""


class Peer(Protocol):
    """How a peer computes a cell; it lives in a process of its own."""

    def versions(self) -> dict[str, str]:
        """What is measured here."""
        ...

    def prepare(self, cell: Cell) -> Bind:
        """From inputs to the functions to be timed, by name; what can be compiled is compiled once for all inputs."""
        ...

    def read(self, result: Any) -> list[Tensor]:
        """A result as tensors (N, C, *spatial): the output, then the gradients."""
        ...


class Entry(NamedTuple):
    """A peer's title in tables, the module:class that speaks for it, and what it needs beside PyTorch."""

    title: str
    home: str
    needs: tuple[str, ...] = ()

    def load(self) -> Peer:
        """Imports what the peer needs, in the process that is to measure it."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"normwise.bench.{module}"), name)()


class Eager:
    """PyTorch's operators, called one by one."""

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def prepare(self, cell: Cell) -> Bind:
        function = self.function(cell)

        def bind(inputs: Inputs) -> dict[str, Run]:
            leaves = inputs.leaves(cell.backward)
            return {"run": with_gradients(cell, inputs, partial(function, *leaves), leaves)}

        return bind

    def read(self, result: Sequence[Tensor]) -> list[Tensor]:
        return [t.detach() for t in result]

    def function(self, cell: Cell) -> Callable[..., Tensor]:
        """From x, weight, bias and perhaps a residual to the output."""
        return partial(eager, cell.groups)


class Compiled(Eager):
    """`torch.compile` of the same lines, for exactly this shape."""

    def function(self, cell: Cell) -> Callable[..., Tensor]:
        torch.compiler.reset()  # after eight shapes of one function it would stop compiling, in silence
        return torch.compile(super().function(cell), dynamic=False, fullgraph=True)


class Normwise(Eager):
    """Ours, called as a user calls it."""

    def versions(self) -> dict[str, str]:
        return {"normwise": version("normwise"), "backend": import_module("normwise.ops").backend()}

    def function(self, cell: Cell) -> Callable[..., Tensor]:
        groups, channels = cell.groups, cell.shape[1]

        def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if groups == 0:
                return functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
            if groups == channels:
                return functional.instance_norm(x, None, None, weight, bias, eps=EPS)
            return functional.group_norm(x, groups, weight, bias, EPS)

        return norm

    def prepare(self, cell: Cell) -> Bind:
        return partial(_with_tail, cell) if cell.fused else super().prepare(cell)


class Memory:
    """The yardsticks: `x.clone()`, and a copy into memory that is in use already."""

    def versions(self) -> dict[str, str]:
        return {}

    def prepare(self, cell: Cell) -> Bind:
        return self.functions

    def functions(self, inputs: Inputs) -> dict[str, Run]:
        target = torch.empty_like(inputs.x).copy_(inputs.x)
        return {"clone": inputs.x.clone, "copy": lambda: target.copy_(inputs.x)}

    def read(self, result: Tensor) -> list[Tensor]:
        return [result]


def _with_tail(cell: Cell, inputs: Inputs) -> dict[str, Run]:
    """A norm with its residual and its ReLU as one layer."""
    norm: Any = build(cell.spec, cell.shape[1], dtype=inputs.x.dtype, track_running_stats=False)
    norm.load_state_dict({"weight": inputs.weight, "bias": inputs.bias})
    layer = NormAct(norm, nn.ReLU())
    x, _, _, residual = inputs.leaves(cell.backward)
    return {"run": with_gradients(cell, inputs, partial(layer, x, residual), (x, norm.weight, norm.bias, residual))}


def with_gradients(cell: Cell, inputs: Inputs, call: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Run:
    """The call without gradients, or with those of the leaves."""
    if not cell.backward:
        return torch.no_grad()(lambda: (call(),))

    def run() -> tuple[Tensor, ...]:
        y = call()
        return y, *torch.autograd.grad(y, leaves, inputs.grad)

    return run


OURS, MEMORY = "normwise", "memory"
PEERS = {
    "eager": Entry("PyTorch eager", "peers:Eager"),
    "compile": Entry("torch.compile", "peers:Compiled"),
    "jax": Entry("JAX", "jax_peer:Jax", ("jax",)),
    "onnxruntime": Entry("ONNX Runtime", "onnx_peer:OnnxRuntime", ("onnxruntime", "onnx")),
}
ALL = {MEMORY: Entry("memory", "peers:Memory"), OURS: Entry("normwise", "peers:Normwise"), **PEERS}
