"""Which normalization should this network use? Measure it, swap it, check it."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BatchInstanceNorm": "layers.blend",
    "BatchNorm": "layers.batch",
    "BatchNorm1d": "layers.batch",
    "BatchNorm2d": "layers.batch",
    "BatchNorm3d": "layers.batch",
    "ChannelAffine": "layers.within",
    "Comparison": "experiment.compare",
    "GroupNorm": "layers.within",
    "InstanceNorm": "layers.within",
    "InstanceNorm1d": "layers.within",
    "InstanceNorm2d": "layers.within",
    "InstanceNorm3d": "layers.within",
    "Moments": "table",
    "NORMS": "layers",
    "Scores": "experiment.trial",
    "SwitchableNorm": "layers.blend",
    "Trial": "experiment.trial",
    "backend": "ops",
    "build": "layers.spec",
    "compare": "experiment.compare",
    "fold": "surgery.fold",
    "moments": "table",
    "recalibrate": "surgery.recalibrate",
    "swap": "surgery.swap",
    "task": "experiment.task",
}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  (checkers read __init__.pyi)


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("normwise.functional")
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
    return [*__all__, "functional", "__version__"]
