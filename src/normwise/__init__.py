"""Which normalization should this network use? Measure it, then swap it."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AdaptiveInstanceNorm": "layers.styled",
    "BatchInstanceNorm": "layers.blend",
    "BatchNorm": "layers.batch",
    "BatchNorm1d": "layers.batch",
    "BatchNorm2d": "layers.batch",
    "BatchNorm3d": "layers.batch",
    "ChannelAffine": "layers.within",
    "ChannelLayerNorm": "layers.channel",
    "ChannelRMSNorm": "layers.channel",
    "Comparison": "experiment.comparison",
    "ConditionalBatchNorm": "layers.styled",
    "ConditionalInstanceNorm": "layers.styled",
    "DomainNorm": "layers.domain",
    "DynamicTanh": "layers.axis",
    "FilterResponseNorm": "layers.response",
    "FrozenNorm": "layers.frozen",
    "GRU": "layers.recurrent",
    "GhostNorm": "layers.ghost",
    "GlobalResponseNorm": "layers.axis",
    "GroupNorm": "layers.within",
    "IBNorm": "layers.blend",
    "InstanceEnhancedNorm": "layers.enhanced",
    "InstanceNorm": "layers.within",
    "InstanceNorm1d": "layers.within",
    "InstanceNorm2d": "layers.within",
    "InstanceNorm3d": "layers.within",
    "LSTM": "layers.recurrent",
    "MixStyle": "layers.styled",
    "Moments": "table",
    "NORMS": "layers",
    "NormAct": "layers.normact",
    "RenormNorm": "layers.renorm",
    "SPADE": "layers.spade",
    "Scores": "experiment.trial",
    "SwitchableNorm": "layers.blend",
    "SyncNorm": "layers.sync",
    "Trial": "experiment.trial",
    "WeightStandardization": "layers.weights",
    "accelerate": "surgery.accelerate",
    "accumulate": "layers.accumulate",
    "adapt": "surgery.adapt",
    "backend": "ops",
    "build": "layers.spec",
    "compare": "experiment.compare",
    "domain": "layers.domain",
    "fold": "surgery.fold",
    "freeze": "surgery.freeze",
    "from_flax": "surgery.conventions",
    "from_keras": "surgery.conventions",
    "moments": "measure",
    "recalibrate": "surgery.recalibrate",
    "remove_weight_standardization": "surgery.weights",
    "simplify": "surgery.simplify",
    "swap": "surgery.swap",
    "sync": "surgery.sync",
    "task": "experiment.task",
    "to_flax": "surgery.conventions",
    "to_keras": "surgery.conventions",
    "unfreeze": "surgery.freeze",
    "unsync": "surgery.sync",
    "weight_standardization": "surgery.weights",
}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  (checkers read __init__.pyi)


def __getattr__(name: str) -> Any:
    if name in ("claims", "functional"):
        return import_module(f"normwise.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'normwise' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"normwise.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("normwise", "torch"):
            raise
        message = f"normwise.{name} needs {error.name}; install the extra lab: pip install 'normwise[lab]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "claims", "functional", "__version__"]
