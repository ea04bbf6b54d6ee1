"""Finds the norm layers of a model, and puts other modules in their place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from normwise.layers.recurrent import Recurrent
from normwise.layers.spec import NormState, read


@dataclass(frozen=True)
class Found:
    """A norm layer, every path it stands at (more than one if tied), and what `read` says of it.

    `state` is None, and `locked` says why, where the layer may compute more than a norm.
    """

    module: nn.Module
    paths: tuple[str, ...]
    state: NormState | None
    locked: str | None

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def what(self) -> str:
        return str(self.state.spec) if self.state else type(self.module).__name__

    @property
    def frozen(self) -> bool:
        """A batch norm of torchvision or detectron2 whose weights and statistics are all buffers."""
        return type(self.module).__name__ == _FROZEN

    @property
    def tied(self) -> str:
        """A note on the other paths, or nothing."""
        return f"also at {', '.join(self.paths[1:])}" if len(self.paths) > 1 else ""


def norm_layers(model: nn.Module) -> list[Found]:
    """The norm layers in the order of the model, each object once; what stands inside a norm is part of it.

    >>> norm = nn.BatchNorm1d(4)
    >>> [(found.path, found.tied) for found in norm_layers(nn.Sequential(norm, nn.ReLU(), norm))]
    [('0', 'also at 2')]
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, module in _walk(model, ""):
        paths.setdefault(module, []).append(path)
    return [_found(module, tuple(places)) for module, places in paths.items()]


def replace(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts the stand-ins at every place of a module: as a child, and in attributes, lists and dicts too.

    Returns the model, or its stand-in where the model itself is to be replaced.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in stand_ins:
                parent._modules[name] = stand_ins[child]
        for name, value in list(vars(parent).items()):
            if name not in _REGISTRIES:
                changed = _exchanged(value, stand_ins)
                if changed is not value:
                    vars(parent)[name] = changed
    return stand_ins.get(model, model)


_REGISTRIES = frozenset(vars(nn.Module()))
_FROZEN = "FrozenBatchNorm2d"
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, _NORMS) or type(module).__name__ == _FROZEN or read(module) is not None:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}" if path else name)


def _found(module: nn.Module, paths: tuple[str, ...]) -> Found:
    state = read(module)
    locked = _locked(module, state)
    return Found(module, paths, None if locked else state, locked)


def _locked(module: nn.Module, state: NormState | None) -> str | None:
    """Why a replacement could lose something of this layer, or None."""
    if isinstance(module, Recurrent):
        return "its norm is part of a recurrent layer's equations"
    if hasattr(module, "parametrizations"):
        return "a parametrization computes its weight; remove it first"
    if any(type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in module._forward_pre_hooks.values()):
        return "weight_norm or spectral_norm computes its weight; remove it first"
    if len(getattr(module, "normalized_shape", "1")) > 1:
        return "it normalizes over several axes at once"
    if state is None or "forward" in vars(module):
        return "it has a forward of its own, and a replacement would lose what it does besides"
    if type(module).__module__.split(".")[0] not in ("torch", "normwise") and any(True for _ in module.children()):
        return "it holds further layers, which a replacement would lose"
    return None


def _exchanged(value: Any, stand_ins: Mapping[nn.Module, nn.Module], depth: int = 4) -> Any:
    """The value itself, or a new container with the modules in it exchanged, some levels deep."""
    if isinstance(value, nn.Module):
        return stand_ins.get(value, value)
    if depth == 0:
        return value
    if type(value) is dict:
        new = {key: _exchanged(each, stand_ins, depth - 1) for key, each in value.items()}
        return new if any(new[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        items = [_exchanged(each, stand_ins, depth - 1) for each in value]
        return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
