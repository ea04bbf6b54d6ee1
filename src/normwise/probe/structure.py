"""What the data flow of a network says of its norms, where it can be traced."""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from normwise.layers import spec

GLOBAL_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
POOL_FUNCTIONS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
# What passes a plane's mean on unchanged.
TRANSPARENT = (nn.Identity, nn.Dropout)


def before_global_pooling(model: nn.Module) -> list[str]:
    """The norms whose output is averaged over all positions with no activation between.

    An instance norm there is fatal: the mean of each plane is its bias, whatever the input. Empty
    where the model cannot be traced.

    >>> before_global_pooling(nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.AdaptiveAvgPool2d(1)))
    ['0']
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # tracing runs the user's code on proxies: anything may come
        return []
    modules = dict(model.named_modules())
    norms = [n for n in graph.nodes if n.op == "call_module" and spec.read(modules[n.target]) is not None]
    return [str(n.target) for n in norms if any(_pooled(user, modules) for user in n.users)]


def _pooled(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, TRANSPARENT):
            return any(_pooled(user, modules) for user in node.users)
        return isinstance(module, GLOBAL_POOLS) and _to_one(module.output_size)
    if node.op == "call_function" and node.target in POOL_FUNCTIONS:
        return _to_one(node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size"))
    if (node.op == "call_method" and node.target == "mean") or node.target is torch.mean:
        return _over_positions(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"))
    return False


def _to_one(size: object) -> bool:
    return size == 1 or (isinstance(size, (tuple, list)) and all(s == 1 for s in size))


def _over_positions(dims: object) -> bool:
    """Whether a mean runs over positions only: all of (2, 3) or (-2, -1)."""
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    return bool(dims) and all(isinstance(d, int) and operator.index(d) not in (0, 1) for d in dims)
