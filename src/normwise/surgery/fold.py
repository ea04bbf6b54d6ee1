"""fold: multiplies a norm that is a fixed scale and shift per channel into the layer before it."""

from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from normwise.errors import UsageError
from normwise.layers.normact import watched
from normwise.ops import Affine
from normwise.surgery.affine import fixed_affine, product
from normwise.surgery.find import Found, norm_layers, replace
from normwise.surgery.flow import Look, Sources, look, traced_sources
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.outputs import moved, tolerance
from normwise.surgery.plan import Plan, operation


def fold(model: nn.Module, example: Any = None, *, dry_run: bool = False) -> Plan:
    """Folds norms into the convolution or linear layer before them, so that inference does not pay for them.

    `W' = W * scale`, `b' = (b - mean) * scale + bias`. Foldable is what evaluates with a fixed scale
    per channel: batch norm in eval mode, instance norm with running statistics, frozen batch norm,
    `none`. The layer that feeds the norm is found by following the data; it must be used once and feed
    nothing else, or the norm is left, with the reason. A folded norm becomes `nn.Identity`. With
    `example` (a tensor, a tuple of arguments or a dict of them) the outputs before and after are
    compared, and a model that cannot be traced is followed through that one forward. Inputs are
    taken to be batches.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> plan = fold(model, torch.randn(1, 3, 8, 8))
    >>> model[1], plan.changes[0].note
    (Identity(), 'into 0')
    """
    with operation("fold", model, dry_run=dry_run) as plan:
        layers = norm_layers(model)
        norms = [layer.module for layer in layers]
        seen = None if example is None else _look(model, norms, example)
        sources = _sources(plan, model, norms, seen) if layers else {}
        owners = _owners(model)
        pairs = [pair for layer in layers if (pair := _pair(plan, layer, sources, owners, seen)) is not None]
        if model.training and not pairs and any("training mode" in left.note for left in plan.left):
            raise UsageError("fold: the model is in training mode, where norms follow the batch; call model.eval().")
        _apply(model, pairs)
        if seen is not None and pairs:
            _verify(plan, model, pairs, seen.outputs, example)
    return plan


class OnlyFlat(nn.Identity):
    """Stands for a norm folded into a linear layer: passes (N, C) on, refuses other shapes.

    On (N, C, L) the norm would have worked on another axis than the linear layer does.

    >>> import torch
    >>> OnlyFlat()(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        return require_flat(input)


@fx.wrap
def require_flat(x: Tensor) -> Tensor:
    """Passes (N, C) on, else says why not."""
    if x.dim() != 2:
        raise ValueError(
            "a norm was folded into the linear layer before it, which holds for inputs of shape (N, C) only, "
            f"got {tuple(x.shape)}; give fold an example of this shape, and it leaves the norm."
        )
    return x


class _Pair(NamedTuple):
    layer: Found
    source: nn.Module
    affine: Affine
    stand_in: nn.Module


def _apply(model: nn.Module, pairs: list[_Pair]) -> None:
    for pair in pairs:
        weight, bias = product(pair.source, pair.affine)
        pair.source._parameters.update(weight=weight, bias=bias)
    replace(model, {pair.layer.module: pair.stand_in for pair in pairs})


def _pair(
    plan: Plan, layer: Found, sources: Sources, owners: dict[int, list[nn.Module]], seen: Look | None
) -> _Pair | None:
    """What is to be folded where, or None; the plan records which."""
    affine, source = fixed_affine(layer), sources[layer.module]
    why = affine if isinstance(affine, str) else source if isinstance(source, str) else None
    if isinstance(affine, Affine) and isinstance(source, nn.Module):
        why = _obstacle(layer.module, source, owners) or _misshaped(layer, source, len(affine.scale), seen)
    if why or isinstance(affine, str) or isinstance(source, str):
        plan.leave(layer.path, layer.what, why or "")
        return None
    unsure = isinstance(source, nn.Linear) and (seen is None or layer.module not in seen.ranks)
    stand_in = OnlyFlat() if unsure else nn.Identity()
    name = next(name for name, module in plan.model.named_modules() if module is source)
    plan.change(layer.path, layer.what, "identity", f"into {name}")
    return _Pair(layer, source, affine, stand_in.train(layer.module.training))


def _obstacle(norm: nn.Module, source: nn.Module, owners: dict[int, list[nn.Module]]) -> str | None:
    """Why the weights of the layer before cannot be exchanged, or the norm not go."""
    if source._parameters.get("weight") is None:
        return "a parametrization or the like computes the weight of the layer before it; remove that first"
    tied = [p for p in source._parameters.values() if p is not None and len(owners[id(p)]) > 1]
    if tied:
        return "the layer before it shares its weight with another layer"
    hooked = next((type(m).__name__ for m in (norm, source) if watched(m)), None)
    return f"a hook watches {hooked}, and would see other values" if hooked else None


def _misshaped(layer: Found, source: Any, num_features: int, seen: Look | None) -> str | None:
    """The channels of the norm must be those that the layer puts out, on axis 1."""
    linear = isinstance(source, nn.Linear)
    channels = source.out_features if linear else source.out_channels
    if num_features != channels:
        return f"it has {num_features} channels, and the layer before it puts out {channels}"
    if linear and layer.what == "instance":
        return "on (N, C) it takes the batch axis for channels"
    rank = seen.ranks.get(layer.module) if seen is not None else None
    expected = source.weight.dim()
    if rank is not None and rank != expected:
        return f"its input has {rank} axes, so that its channels are not those of the layer before it"
    return None


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return owners


def _look(model: nn.Module, norms: list[nn.Module], example: Any) -> Look:
    try:
        return look(model, norms, example)
    except Exception as error:
        raise UsageError(f"fold: the model does not run on the example: {type(error).__name__}: {error}") from error


def _sources(plan: Plan, model: nn.Module, norms: list[nn.Module], seen: Look | None) -> Sources:
    try:
        sources, fixed = traced_sources(model, norms)
        if fixed:
            plan.say(f"followed the forward with {', '.join(fixed)} at their defaults only.")
        return sources
    except Exception as error:
        why = f"the forward cannot be traced ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    if seen is None:
        plan.say(f"{why}; give an example, and its forward is followed instead.")
        return dict.fromkeys(norms, "the forward cannot be traced, and there is no example to follow")
    plan.say(f"{why}; the example was followed instead, inputs that take another path are not covered.")
    return seen.sources


def _verify(plan: Plan, model: nn.Module, pairs: list[_Pair], before: list[Tensor], example: Any) -> None:
    """The outputs may move by rounding only."""
    try:
        with quiet(model):
            after = tensors(call(model, example))
    except Exception as error:
        raise UsageError(
            f"fold: the folded model does not run ({type(error).__name__}: {error}); nothing was folded. "
            "Does the forward look at the norm itself?"
        ) from error
    error, size = moved(before, after)
    held = [*before, *(pair.source.get_parameter("weight") for pair in pairs)]
    if not error <= tolerance(tensor.dtype for tensor in held) * size:
        raise UsageError(
            f"fold: the outputs of the example moved by up to {error:.3g} (their size is {size:.3g}), more "
            "than rounding explains; nothing was folded. Does the forward look at the norm itself?"
        )
    plan.say(f"outputs of the example moved by at most {error:.3g} (their size is {size:.3g}).")
