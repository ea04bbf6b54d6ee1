"""NormAct: a norm with the activation and the residual that follow it, in one pass over memory."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as _module

from normwise import kernels, ops
from normwise.layers.base import Plane, PlaneNorm, TableNorm
from normwise.layers.batch import AnyBatchNorm
from normwise.layers.within import AnyInstanceNorm, GroupNorm, RankedInstanceNorm
from normwise.tail import Tail

Activation = Any  # a module or a function of one tensor, or None


class NormAct(nn.Module):
    """A norm, then a residual, then an activation: `forward(x, residual=None) = act(norm(x) + residual)`.

    In one pass where the native kernels know both (batch, instance, group norm and blends; ReLU, ReLU6,
    Hardtanh, LeakyReLU, SiLU, exact GELU); step by step anywhere else, with the same result. Nothing but
    the input is kept for the backward pass, and with a residual the output or, for SiLU and GELU, the
    residual: what is kept may not be written to before it. In `state_dict` and `named_parameters` the
    norm's tensors keep their own names, so that a checkpoint of the norm fits. `norm` stays a module of
    its own: what looks for norms finds it there.

    >>> layer = NormAct(nn.BatchNorm2d(8), nn.ReLU())
    >>> list(layer.state_dict())[:2], [name for name, _ in layer.named_parameters()]
    (['weight', 'bias'], ['weight', 'bias'])
    >>> x = torch.randn(2, 8, 4, 4)
    >>> layer(x, residual=x).min().item()
    0.0
    """

    norm: nn.Module
    act: Activation

    def __init__(self, norm: nn.Module, act: Activation = None) -> None:
        super().__init__()
        if not isinstance(norm, nn.Module) or not (act is None or callable(act)):
            raise TypeError(
                "NormAct: norm must be a module, and act a module, a function or None, "
                f"got {type(norm).__name__} and {type(act).__name__}."
            )
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = fused(self.norm, x, residual, self.act)
        if y is not None:
            return y
        y = self.norm(x)
        y = y if residual is None else y + residual
        return y if self.act is None else self.act(y)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The norm's own, and under `act.` what the activation learns."""
        destination = self.norm.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        if isinstance(self.act, nn.Module):
            self.act.state_dict(destination=destination, prefix=f"{prefix}act.", keep_vars=keep_vars)
        return destination

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, module)
        self._share()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "norm":
            self._share()

    def _share(self) -> None:
        """The registries of tensors are the norm's: so its tensors keep their names."""
        for registry in _SHARED:
            self.__dict__[registry] = vars(self._modules["norm"])[registry]

    def _apply(self, fn: Any, recurse: bool = True) -> "NormAct":
        for child in self.children():
            child._apply(fn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        """Brings the keys to where the norm stands, which is loaded next."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if not name.startswith("act.") or not isinstance(self.act, nn.Module):
                state_dict[f"{prefix}norm.{name}"] = state_dict.pop(key)


def fused(norm: nn.Module, x: Any, residual: Any, act: Activation) -> Tensor | None:
    """`act(norm(x) + residual)` in one pass, or None where the modules have to be called one by one."""
    if ops.tracing() or not takes_tail(type(norm)) or type(x) not in _TYPES:
        return None
    code = known_act(act)
    if code is None or watched(norm) or (isinstance(act, nn.Module) and watched(act)):
        return None
    if "forward" in vars(norm) or (residual is not None and not _like(residual, x)):
        return None
    layer: Any = norm
    if isinstance(norm, RankedInstanceNorm) and x.dim() == norm._get_no_batch_dim():
        return None
    layer.check(x, None)
    return layer.normalize(x, None, Tail(residual, code))


def known_act(act: Activation) -> kernels.Act | None:
    """The activation as the kernels know it, or None.

    >>> known_act(nn.ReLU()) == known_act(F.relu) == kernels.RELU, known_act(torch.tanh)
    (True, None)
    """
    if act is None or type(act) is nn.Identity:
        return kernels.NONE
    if isinstance(act, kernels.Act):
        return act
    if isinstance(act, nn.Module):
        read = None if "forward" in vars(act) else _MODULES.get(type(act))
        return None if read is None else read(act)
    try:
        return _FUNCTIONS.get(act)
    except TypeError:  # cannot be hashed
        return None


_HOMES = (AnyBatchNorm, AnyInstanceNorm, TableNorm, GroupNorm)
_FORWARDS = {Plane.forward, PlaneNorm.forward, RankedInstanceNorm.forward, GroupNorm.forward}
_SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")
_TYPES = (Tensor, nn.Parameter)
_MODULES: dict[type, Any] = {
    nn.ReLU: lambda act: kernels.RELU,
    nn.ReLU6: lambda act: kernels.hardtanh(0.0, 6.0),
    nn.Hardtanh: lambda act: kernels.hardtanh(act.min_val, act.max_val),
    nn.LeakyReLU: lambda act: kernels.leaky_relu(act.negative_slope) if act.negative_slope >= 0 else None,
    nn.SiLU: lambda act: kernels.SILU,
    nn.GELU: lambda act: kernels.GELU if act.approximate == "none" else None,
}
ACTIVATIONS: dict[Any, type[nn.Module]] = {  # the module that does, as it comes, what a function does
    F.relu: nn.ReLU,
    F.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.leaky_relu: nn.LeakyReLU,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
}
_FUNCTIONS: dict[Any, kernels.Act] = {function: _MODULES[kind](kind()) for function, kind in ACTIVATIONS.items()}


@cache
def takes_tail(kind: Any) -> bool:
    """True for the norms that hand a tail to the kernels, and for subclasses that leave their forward alone."""
    home: Any = next((each for each in _HOMES if issubclass(kind, each)), None)
    return home is not None and kind.normalize is home.normalize and kind.forward in _FORWARDS


def watched(module: nn.Module) -> bool:
    """Hooks want the module to be called."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def _like(residual: Any, x: Tensor) -> bool:
    known = type(residual) in _TYPES and residual.layout == torch.strided
    return known and (residual.shape, residual.dtype, residual.device) == (x.shape, x.dtype, x.device)
