"""Specs: parse a text into a NormSpec, build a norm from it, read one off a module."""

from collections.abc import Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from normwise.errors import UsageError
from normwise.layers.batch import AnyBatchNorm
from normwise.layers.catalogue import NORMS
from normwise.layers.entry import NormEntry
from normwise.layers.recurrent import Recurrent
from normwise.layers.within import RankedInstanceNorm

KEEP = "for compare and swap: each layer stays as it is (a name, not a norm to build)"


@dataclass(frozen=True)
class NormSpec:
    """Which norm with which options; `str(spec)` is the text that parses to it."""

    name: str
    options: tuple[tuple[str, int | float], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        first = next(iter(NORMS[self.name].options), None)
        return f"{self.name}:" + ",".join(f"{v}" if k == first else f"{k}={v}" for k, v in self.options)


@dataclass(frozen=True)
class NormState:
    """What `read` finds: enough to build the same norm, or another in its place.

    `momentum` and `track_running_stats` are the defaults 0.1 and None where the norm has none.
    `device` and `dtype` are None where it holds no tensors.
    """

    spec: NormSpec
    num_features: int
    eps: float | None
    momentum: float | None
    affine: bool
    bias: bool
    track_running_stats: bool | None
    training: bool
    device: torch.device | None
    dtype: torch.dtype | None


def parse(text: str | NormSpec) -> NormSpec:
    """Reads `name[:value | :key=value][,key=value...]`.

    >>> parse("group:8")
    NormSpec(name='group', options=(('groups', 8),))
    >>> str(parse("group:size=16"))
    'group:size=16'
    """
    if isinstance(text, NormSpec):
        return text
    if not isinstance(text, str):
        raise UsageError(f"a norm must be given as a spec such as 'group:8', got {text!r}; the channels come after it.")
    name, colon, rest = text.strip().partition(":")
    if name not in NORMS:
        _unknown(name)
    if colon and not rest:
        raise UsageError(f"{name}: an option must follow the colon, got {text!r}; write {name} without it.")
    items = rest.split(",") if rest else []
    options = tuple(_option(NORMS[name], item, position) for position, item in enumerate(items))
    if len(dict(options)) < len(options):
        raise UsageError(f"{name}: each option may be given once, got {text!r}.")
    order = list(NORMS[name].options)
    return NormSpec(name, tuple(sorted(options, key=lambda option: order.index(option[0]))))


def build(
    spec: str | NormSpec,
    num_features: int,
    *,
    eps: float | None = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    bias: bool = True,
    track_running_stats: bool | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Builds a norm for `num_features` channels.

    >>> build("group:2", 6)
    GroupNorm(2, 6, eps=1e-05, affine=True, bias=True)
    """
    spec = parse(spec)
    _require_size(spec, num_features)
    common = dict(eps=eps, momentum=momentum, affine=affine, bias=bias, track_running_stats=track_running_stats)
    try:
        entry = NORMS[spec.name]
        return (entry.make or entry.cls)(num_features, **dict(spec.options), **common, device=device, dtype=dtype)
    except ValueError as error:
        raise UsageError(str(error)) from error


def read(module: nn.Module) -> NormState | None:
    """Reads a norm of PyTorch's or ours; None for any other module.

    Also None for a subclass with a forward of its own: it may do more than normalize.

    >>> state = read(nn.BatchNorm2d(8, momentum=0.01))
    >>> str(state.spec), state.num_features, state.momentum
    ('batch', 8, 0.01)
    """
    if isinstance(module, LazyModuleMixin) and isinstance(module, _NormBase):
        raise UsageError(f"{type(module).__name__} must know its channels; run one batch through the model first.")
    spec = _spec(module)
    if spec is None:
        return None
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    return NormState(
        spec,
        _features(module),
        getattr(module, "eps", None),
        getattr(module, "momentum", 0.1),
        getattr(module, "weight", None) is not None,
        getattr(module, "bias", None) is not None,
        getattr(module, "track_running_stats", None),
        module.training,
        None if tensor is None else tensor.device,
        None if tensor is None else tensor.dtype,
    )


def signature(module: nn.Module) -> Hashable:
    """A value that is equal for two norms that compute the same family of functions.

    >>> signature(build("group:6", 6)) == signature(build("instance", 6))
    True
    """
    state = read(module)
    if state is None:
        return None
    name, options = state.spec.name, state.spec.options
    channels, tracked = state.num_features, bool(state.track_running_stats)
    if name in ("group", "layer") or (name == "instance" and not tracked):
        groups = {"layer": 1, "instance": channels}.get(name) or dict(options)["groups"]
        name, options, tracked = "group", (("groups", groups),), False
    memory = (state.momentum, tracked) if tracked else ()
    return name, options, channels, state.eps if name != "none" else None, state.affine, state.bias, memory


_KNOWN: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (AnyBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "sync": (nn.SyncBatchNorm,),
    "instance": (RankedInstanceNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "group": (nn.GroupNorm,),
}


_FREEZES = "batch", "ghost", "renorm", "sync"  # with fixed statistics they are one and the same


# Classes of other packages that compute what the entry's class does, though their forward is written anew.
_ELSEWHERE = {
    "timm.layers.norm.GroupNorm": "group",
    "timm.layers.norm.GroupNorm1": "group",
    "timm.layers.norm.LayerNorm": "layer-token",
    "timm.layers.norm.LayerNorm2d": "channel-layer",
    "torchvision.models.convnext.LayerNorm2d": "channel-layer",
}


def _spec(module: nn.Module) -> NormSpec | None:
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return None  # pools more than the features of a token
    if isinstance(module, Recurrent):
        return NormSpec(module.norm)
    entry = next((entry for entry in NORMS.values() if _is(module, entry)), None)
    if entry is None:
        return None
    if isinstance(module, nn.GroupNorm):
        return NormSpec("layer") if module.num_groups == 1 else NormSpec("group", (("groups", module.num_groups),))
    if entry.name in _FREEZES and getattr(module, "frozen", False):
        return NormSpec("frozen", (("learn", int(not getattr(module, "frozen_affine", False))),))
    given = ((name, getattr(module, name)) for name in entry.options)
    return NormSpec(entry.name, tuple((name, value) for name, value in given if value is not None))


def _is(module: nn.Module, entry: NormEntry) -> bool:
    elsewhere = _ELSEWHERE.get(f"{type(module).__module__}.{type(module).__qualname__}")
    if elsewhere is not None:
        return elsewhere == entry.name
    classes = entry.cls, *_KNOWN.get(entry.name, ())
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)


def _features(module: Any) -> int:
    for name in ("num_features", "num_channels"):
        if hasattr(module, name):
            return getattr(module, name)
    return module.normalized_shape[0]


def _option(entry: NormEntry, item: str, position: int) -> tuple[str, int | float]:
    key, equals, value = item.strip().partition("=")
    if not equals:
        key, value = next(iter(entry.options), ""), key
    if (not equals and position) or key not in entry.options:
        known = ", ".join(entry.options) or "none"
        raise UsageError(f"{entry.name}: the known options are: {known}; got {item!r}.")
    try:
        return key, entry.options[key](value)
    except ValueError:
        kind = "a whole number" if entry.options[key] is int else "a number"
        raise UsageError(f"{entry.name}: {key} must be {kind}, got {value!r}.") from None


def _require_size(spec: NormSpec, num_features: int) -> None:
    if not isinstance(num_features, Integral) or num_features < 1:
        raise UsageError(
            f"{spec.name}: num_features must be a positive whole number, got {num_features!r}; "
            "give the number of channels."
        )


def _unknown(name: str) -> NoReturn:
    if name == "keep":
        raise UsageError(f"keep is {KEEP}; to build one, name one of: {', '.join(NORMS)}.")
    near = get_close_matches(name, NORMS, n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(f"unknown norm {name!r}, known are: {', '.join(NORMS)}{hint}")
