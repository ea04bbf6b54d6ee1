"""Norm layers from and to Keras and Flax: their names, their sense of momentum, their epsilon.

Both count `momentum` as what is kept (0.99), PyTorch as what is new (0.01). Both average the biased
variances of the batches, PyTorch the unbiased ones; a layer evaluates alike with either, so the
remembered variance is taken as it is, unless `count` says how many values (N*H*W) were behind it.
Both put channels last, our plane norms on axis 1. Neither library is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import UsageError
from normwise.layers.spec import build, parse, read

_KINDS = {"BatchNormalization": "batch", "LayerNormalization": "layer-token", "GroupNormalization": "group"}
_KINDS |= {"BatchNorm": "batch", "LayerNorm": "layer-token", "GroupNorm": "group"}
_KERAS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_FLAX = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


@dataclass(frozen=True)
class _Norm:
    """A norm layer between two conventions: arrays by PyTorch's names, momentum as what is kept."""

    kind: str
    arrays: dict[str, Any]
    epsilon: float
    momentum: float = 0.99
    groups: int | None = None


def from_keras(source: Any, norm: str | None = None, *, count: int | None = None, **config: float) -> nn.Module:
    """Makes our layer of a Keras layer (BatchNormalization, LayerNormalization, GroupNormalization).

    `source` is the built layer, what `to_keras` gave, or its arrays by name (`gamma`, `beta`,
    `moving_mean`, `moving_variance`), then with `epsilon` and `momentum` where they are not Keras' 1e-3
    and 0.99, and with `norm="layer-token"` or `"group:8"` where it is no batch norm. Of a layer with
    `scale=False` the weight is 1 and does not learn.

    >>> norm = from_keras({"gamma": [1.0], "beta": [0.0], "moving_mean": [2.0], "moving_variance": [4.0]})
    >>> norm.eps, norm.momentum, norm.running_var
    (0.001, 0.01, tensor([4.]))
    """
    if isinstance(source, Mapping):
        weights, config = source.get("weights", source), {**source.get("config", {}), **config}
    else:
        given = _keras_config(source, norm)
        norm, config = norm or _kind_of(source), {**given, **config}
        weights = {name: getattr(source, name, None) for name in _KERAS.values()}
    return _made(weights, _KERAS, norm, config, {"batch": 1e-3}, 1e-3, count)


def to_keras(norm: nn.Module, *, count: int | None = None) -> dict[str, dict[str, Any]]:
    """The arrays and options of a norm for Keras, the arrays in the order of `layer.set_weights`.

    A weight of 1 that does not learn beside a bias that does is left out, as `scale=False` has none. Of a
    frozen batch norm the arrays are given; `layer.trainable = False` freezes it there.

    >>> made = to_keras(nn.BatchNorm2d(3, momentum=0.1))
    >>> list(made["weights"]), made["config"]
    (['gamma', 'beta', 'moving_mean', 'moving_variance'], {'epsilon': 1e-05, 'momentum': 0.9})
    """
    given = _taken(norm, count)
    groups = {"groups": given.groups} if given.groups else {}
    return {"config": _config(given) | groups, "weights": {_KERAS[name]: a for name, a in given.arrays.items()}}


def from_flax(source: Any, norm: str | None = None, *, count: int | None = None, **config: float) -> nn.Module:
    """Makes our layer of a Flax layer (BatchNorm, LayerNorm, GroupNorm).

    `source` is an nnx module, what `to_flax` gave, or the linen variables of the one layer,
    `{"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}`, then with `epsilon` and `momentum` where
    they are not Flax' (1e-5, for layer and group norm 1e-6; 0.99), and `norm="layer-token"` or
    `"group:8"` where it is no batch norm.

    >>> norm = from_flax({"params": {"scale": [1.0], "bias": [0.0]}, "batch_stats": {"mean": [2.0], "var": [4.0]}})
    >>> norm.eps, norm.momentum, norm.running_var
    (1e-05, 0.01, tensor([4.]))
    """
    if isinstance(source, Mapping):
        config = {**source.get("config", {}), **config}
        weights = {**source.get("params", {}), **source.get("batch_stats", {})}
    else:
        names = "epsilon", "momentum", "num_groups"
        given = {name: getattr(source, name) for name in names if getattr(source, name, None) is not None}
        norm, config = norm or _kind_of(source), {**given, **config}
        weights = {name: None if (v := getattr(source, name, None)) is None else v[...] for name in _FLAX.values()}
    if "num_groups" in config:
        config["groups"] = config.pop("num_groups")
    return _made(weights, _FLAX, norm, config, {"batch": 1e-5}, 1e-6, count)


def to_flax(norm: nn.Module, *, count: int | None = None) -> dict[str, dict[str, Any]]:
    """The linen variables and options of a norm for Flax.

    >>> made = to_flax(nn.BatchNorm2d(3))
    >>> list(made["params"]), list(made["batch_stats"]), made["config"]
    (['scale', 'bias'], ['mean', 'var'], {'epsilon': 1e-05, 'momentum': 0.9})
    """
    given = _taken(norm, count)
    arrays = {_FLAX[name]: array for name, array in given.arrays.items()}
    stats = {name: arrays.pop(name) for name in ("mean", "var") if name in arrays}
    groups = {"num_groups": given.groups} if given.groups else {}
    return {"config": _config(given) | groups, "params": arrays} | ({"batch_stats": stats} if stats else {})


def _made(
    weights: Mapping[str, Any], names: Mapping[str, str], norm: str | None, config: Mapping[str, Any],
    epsilons: Mapping[str, float], epsilon: float, count: int | None,
) -> nn.Module:  # fmt: skip
    """Our layer, from arrays by the other library's names."""
    unknown = weights.keys() - set(names.values()) or config.keys() - {"epsilon", "momentum", "groups"}
    if unknown:
        raise UsageError(
            f"arrays are {', '.join(names.values())}; options epsilon, momentum and groups; got {sorted(unknown)}."
        )
    arrays = {mine: _tensor(a) for mine, name in names.items() if (a := weights.get(name)) is not None}
    if norm is None and "running_mean" not in arrays:
        raise UsageError(
            f"without {names['running_mean']} it is no batch norm: say norm='layer-token' or 'group:8'; "
            f"got {', '.join(weights) or 'no arrays'}."
        )
    spec = parse(norm or "batch")
    if not arrays:
        raise UsageError(f"{spec}: a layer without arrays does not say its channels; build it with normwise.build.")
    channels = len(next(iter(arrays.values())))
    groups = config.get("groups", dict(spec.options).get("groups"))
    text = f"group:{channels if groups == -1 else groups}" if spec.name == "group" and groups else spec
    made: Any = build(
        text, channels, eps=config.get("epsilon", epsilons.get(spec.name, epsilon)),
        momentum=round(1 - config.get("momentum", 0.99), 12), affine="weight" in arrays or "bias" in arrays,
        bias="bias" in arrays,
    )  # fmt: skip
    _fill(made, arrays, count)
    if "bias" in arrays and "weight" not in arrays:
        made.weight.requires_grad_(False)
    return made


def _fill(norm: nn.Module, arrays: Mapping[str, Tensor], count: int | None) -> None:
    norm.to(next(iter(arrays.values())).dtype)
    with torch.no_grad():
        for name, array in arrays.items():
            if name == "running_var" and count is not None:
                array = array * (_several(count) / (count - 1))
            mine = getattr(norm, name, None)
            if mine is None:
                raise UsageError(f"{type(norm).__name__} has no {name}; leave it out, or say another norm=.")
            if mine.shape != array.shape:
                raise UsageError(f"{name} must have shape {tuple(mine.shape)}, got {tuple(array.shape)}.")
            mine.copy_(array)


def _taken(norm: nn.Module, count: int | None) -> _Norm:
    """What a norm of PyTorch's or ours holds."""
    state = read(norm)
    kind = None if state is None else {"layer": "group", "frozen": "batch"}.get(state.spec.name, state.spec.name)
    if state is None or kind not in ("batch", "layer-token", "group"):
        what = type(norm).__name__ if state is None else str(state.spec)
        raise UsageError(f"Keras and Flax have batch, layer-token and group; {what} is none of them.")
    names = [name for name in _KERAS if isinstance(getattr(norm, name, None), Tensor)]
    if {"weight", "bias"} <= {*names} and _learns(norm, "bias") and not _learns(norm, "weight"):
        names = [name for name in names if name != "weight" or bool((norm.get_parameter(name) != 1).any())]
    arrays = {name: _wide(getattr(norm, name)) for name in names}
    if "running_mean" in arrays and state.momentum is None:
        raise UsageError("momentum=None is a plain average over all batches, which Keras and Flax have not: set one.")
    if kind == "batch" and "running_mean" not in arrays:
        raise UsageError("a batch norm without running statistics has no counterpart in Keras and Flax.")
    if "running_var" in arrays and count is not None:
        arrays["running_var"] = arrays["running_var"] * ((_several(count) - 1) / count)
    epsilon = torch.finfo(torch.float32).eps if state.eps is None else state.eps
    kept = round(1 - (state.momentum or 0.0), 12)
    return _Norm(kind, {n: t.numpy() for n, t in arrays.items()}, epsilon, kept, getattr(norm, "num_groups", None))


def _learns(norm: nn.Module, name: str) -> bool:
    """Whether it does, or would if nw.freeze had not been there."""
    return norm.get_parameter(name).requires_grad or name in getattr(norm, "frozen_affine", ())


def _config(norm: _Norm) -> dict[str, Any]:
    return {"epsilon": norm.epsilon} | ({"momentum": norm.momentum} if norm.kind == "batch" else {})


def _keras_config(layer: Any, norm: str | None) -> dict[str, Any]:
    config = layer.get_config() if hasattr(layer, "get_config") else {}
    if config.get("rms_scaling"):
        raise UsageError("LayerNormalization with rms_scaling does not subtract the mean: take nn.RMSNorm.")
    axis = config.get("axis", -1)
    axes = list(axis) if isinstance(axis, list | tuple) else [axis]
    if len(axes) > 1:
        raise UsageError(f"a layer that normalizes over several axes, {axes}, has no counterpart here.")
    if norm is None and _KINDS.get(type(layer).__name__) == "layer-token" and axes[0] != -1 and axes[0] < 2:
        raise UsageError(
            f"LayerNormalization must normalize over the last axis, got axis={axes[0]}: say norm='channel-layer' if "
            "that is the channels of (N, C, *spatial), or norm='layer-token' if it is the last one."
        )
    return {name: config[name] for name in ("epsilon", "momentum", "groups") if name in config}


def _kind_of(layer: Any) -> str:
    name = type(layer).__name__
    if name not in _KINDS:
        raise UsageError(f"a layer must be one of {', '.join(_KINDS)}, or a dict of arrays; got {name}.")
    return _KINDS[name]


def _tensor(array: Any) -> Tensor:
    import numpy as np

    if isinstance(array, Tensor):  # Keras on PyTorch
        return _wide(array)
    dtype = np.float64 if getattr(array, "dtype", None) == np.float64 else np.float32
    return torch.from_numpy(np.asarray(array).astype(dtype))


def _wide(t: Tensor) -> Tensor:
    """A copy in a type that NumPy has: float32 or float64."""
    return t.detach().to("cpu", torch.float64 if t.dtype == torch.float64 else torch.float32, copy=True)


def _several(count: int) -> int:
    if count < 2:
        raise UsageError(f"count must be the values behind a statistic, at least 2, got {count}.")
    return count
