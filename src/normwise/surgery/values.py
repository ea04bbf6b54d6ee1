"""The values that stand for tensors while a forward is traced, and the tracer that writes down what is done to them."""

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods
from torch.fx.proxy import Attribute

from normwise.surgery.unseen import Unsafe, inside


class Value(fx.Proxy):
    """Stands for a value while tracing, and notices a question about its type: any answer could be wrong."""

    @property
    def __class__(self) -> type:  # what isinstance reads
        asking = sys._getframe(1)
        if not inside(asking) or asking.f_code is torch.is_tensor.__code__:
            raise Unsafe("its forward asks of what type a value is")
        return Value

    def __getattr__(self, name: str) -> Any:
        """A method is looked up when it is called, anything else now: it may change with the next write."""
        if inside(sys._getframe(1)) or callable(getattr(Tensor, name, None)):
            return _Method(self, name)
        if not hasattr(Tensor, name):
            raise Unsafe(f"its forward asks a value for {name!r}, which not every tensor has")
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __repr__(self) -> str:
        _require_inside(sys._getframe(1), "writes a value as text")
        return super().__repr__()

    def __hash__(self) -> int:
        _require_inside(sys._getframe(1), "looks for a value in a set or dict")
        return super().__hash__()


class _Method(Attribute, Value):
    """A method of a value; or an entry of a named tuple, where that is called as a tensor's method is."""


class Tracer(fx.Tracer):
    """Every part is one call; modes that a recording would lose are noticed."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._modes = modes()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if modes() != self._modes:
            raise Unsafe("its forward switches gradients, autocast or checkpointing on or off")
        return super().create_node(*args, **kwargs)


def modes() -> tuple[Any, ...]:
    """What PyTorch does differently within a `with` of its own."""
    hooks = _C._autograd._top_saved_tensors_default_hooks(True)
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, hooks


def _require_inside(asking: Any, what: str) -> None:
    if not inside(asking):
        raise Unsafe(f"its forward {what}")


def _in_place(name: str) -> Any:
    """`a += b` writes to `a`, which others may hold; FX's own values would take it for `a = a + b`."""
    target = getattr(operator, name)

    def write(self: Value, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return write


for _name in inplace_methods.keys() - {"setitem"}:
    setattr(Value, f"__{_name}__", _in_place(_name))
_C: Any = torch._C
