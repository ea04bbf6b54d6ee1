"""Which network a task trains: a built-in one by its text, or the user's own."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from normwise import networks
from normwise.data import Data, Facts
from normwise.errors import UsageError
from normwise.loading import describe, load_object, required_parameters


@dataclass(frozen=True)
class Network:
    """How to make a network, what it is called, and whether the user brought it."""

    make: Callable[[], Any]
    name: str
    own: bool


@dataclass(frozen=True)
class Copies:
    """A factory that gives copies of one network."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)


def find_network(model: Any, facts: Facts, data: Data) -> Network:
    """The network that a text, a factory or a module stands for; None: a CNN for images, else a perceptron.

    >>> import torch
    >>> from normwise.data import as_data, examine
    >>> data = as_data((torch.zeros(4, 8), torch.tensor([0, 1, 2, 2])))
    >>> find_network(None, examine(data), data).name
    'mlp'
    """
    if model is None or (isinstance(model, str) and _is_built_in(model)):
        text = model or ("cnn" if len(facts.sample_shape or ()) in (2, 3) else "mlp")
        shape = _shape_for(text, facts, data)
        return Network(partial(networks.build, text, shape, facts.outputs), text, own=False)
    if isinstance(model, nn.Module):
        return Network(Copies(model), type(model).__name__, own=True)
    name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    make: Any = load_object(model) if isinstance(model, str) else model
    if isinstance(make, nn.Module):
        return Network(Copies(make), name, own=True)
    if not callable(make):
        raise UsageError(f"the model must be a torch.nn.Module or a function that makes one, got {describe(make)}")
    if required_parameters(make):
        raise UsageError(f"{name} makes the model and must be callable without arguments")
    return Network(make, name, own=True)


def _is_built_in(text: str) -> bool:
    """A name of a built-in network, or no name of a function at all (which `parse` will say)."""
    head = text.partition(":")[0]
    if head in networks.NETWORKS or ":" not in text:
        networks.parse(text)
        return True
    return False


def _shape_for(text: str, facts: Facts, data: Data) -> tuple[int, ...]:
    """The shape of a sample, where a built-in network can be made for the data."""
    if not facts.pairs or facts.sample_shape is None or facts.dense:
        raise UsageError(
            f"the built-in network {text} needs samples that are pairs of a tensor and one target "
            "(a class or a vector): for others bring a model"
        )
    inputs: Tensor = data.train[0][0]
    if not inputs.is_floating_point():
        raise UsageError(
            f"the built-in network {text} needs float inputs, got {inputs.dtype}: "
            "give x as float32, standardized (images in files may be uint8)"
        )
    if math.prod(facts.sample_shape) == 0:
        raise UsageError(f"samples must not be empty, got shape {facts.sample_shape}")
    return facts.sample_shape
