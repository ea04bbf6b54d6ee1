"""accelerate: runs a model's norms on the native kernels, together with the activation and residual after them."""

from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from normwise import kernels
from normwise.errors import UsageError
from normwise.layers.normact import NormAct, takes_tail
from normwise.layers.within import GroupNorm
from normwise.ops import tracing
from normwise.surgery.adopt import OURS
from normwise.surgery.fold import tolerance
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.plan import Plan, operation
from normwise.surgery.record import Unsafe, record
from normwise.surgery.tape import Tape, containers, same_looks


def accelerate(model: nn.Module, example: Any = None, *, dry_run: bool = False) -> Plan:
    """Makes the norms of a model faster on the CPU, in place, and says what it did and what it left.

    PyTorch's batch, instance and group norms become normwise's of the same name: the same objects with
    another class, so that names, tensors, hooks and optimizers stay. A block whose forward can be traced
    does a norm together with the residual and activation after it, in one pass; its modules stay where
    they are and its class becomes a subclass of the same name. It goes back to its own forward by itself
    where the recorded steps do not hold: when a part was replaced, an attribute changed, a hook watches
    the norm, or something traces or compiles the model.

    With `example` (a tensor, a tuple of arguments or a dict of them) outputs in evaluation and training
    are compared before and after: in float32 they may differ by 1e-4 of their size. An exception leaves
    the model as it was; `dry_run=True` changes nothing.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> plan = accelerate(model, torch.randn(2, 3, 8, 8))
    >>> type(model[1]).__module__, [str(change) for change in plan.changes][1:]
    ('normwise.layers.batch', ['(the model itself): Sequential -> Sequential, fused (1 + 2)'])
    >>> plan.undo()
    >>> type(model[1]).__module__
    'torch.nn.modules.batchnorm'
    """
    with operation("accelerate", model, dry_run=dry_run) as plan:
        if not kernels.available():
            plan.say("the native kernels were not built, so nothing would be faster and nothing was changed.")
            return plan
        before = None if example is None else _outputs(model, example)
        for path, module in model.named_modules():
            _take_over(plan, path, module)
        for path, module in model.named_modules():
            if any(takes_tail(type(part)) for each in containers(module) for part in each.children()):
                _fuse(plan, path, module)
        if before is not None and plan.changes:
            _verify(plan, model, before, example)
    return plan


class Fused(nn.Module):
    """Mixed into the class of a block that has a tape."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (_own(type(self)),), self.__getstate__()


@cache
def fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass, of the same name, that runs the tape as long as that holds, else the block's own forward."""
    own = kind.forward

    @wraps(own)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tracing() or kwargs or "_tape" not in vars(self):
            return kind.forward(self, *args, **kwargs)
        tape: Tape = vars(self)["_tape"]
        holds = kind.forward is own and tape.fits(self, args)
        return tape.run(self, args) if holds else kind.forward(self, *args, **kwargs)

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (Fused, kind), {**names, "forward": forward})


def _revive(kind: type[nn.Module]) -> nn.Module:
    """For pickle and deepcopy: the subclass has no name of its own to be found by."""
    new = fused_class(kind)
    return new.__new__(new)


def _own(kind: type) -> type[nn.Module]:
    """The class that the user wrote."""
    return kind.__mro__[2] if kind.__mro__[1] is Fused else kind


def _take_over(plan: Plan, path: str, norm: Any) -> None:
    """Changes the class of a norm; the plan records that, or why not."""
    new = OURS.get(type(norm))
    if new is None and (not isinstance(norm, _NORMS) or type(norm).__module__.startswith("normwise.")):
        return
    why = _obstacle(norm) if new is not None else _stranger(norm)
    name = type(norm).__name__
    if new is None or why:
        plan.leave(path, name, why)
        return
    as_ours: Any = norm
    as_ours.__class__ = new
    if new is GroupNorm:
        as_ours.strict = False
    plan.change(path, f"torch.nn.{name}", f"normwise.{name}")


def _stranger(norm: nn.Module) -> str:
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return "it normalizes each position, where PyTorch's own kernel is taken"
    if isinstance(norm, LazyModuleMixin):
        return "it does not know its channels yet; run one batch through the model first"
    return "it is a class of its own, whose forward may do more than normalize"


def _obstacle(norm: Any) -> str:
    if isinstance(norm, nn.SyncBatchNorm):
        return "it pools over processes"
    device = next((t.device.type for t in (*norm.parameters(), *norm.buffers())), "cpu")
    if device != "cpu":
        return f"it is on {device}, and the kernels run on the CPU"
    if "forward" in vars(norm):
        return "it has a forward of its own on the instance"
    if isinstance(norm, _NormBase) and "Instance" in type(norm).__name__ and norm.momentum is None:
        return "PyTorch's never moves its statistics with momentum=None, and normwise's would"
    return ""


def _fuse(plan: Plan, path: str, block: Any) -> None:
    """Gives a block its tape; the plan records what was joined, or why nothing could be."""
    if isinstance(block, NormAct | nn.ModuleList | nn.ModuleDict):
        return
    kind = _own(type(block))
    try:
        tape = record(block, kind.forward)
    except Unsafe as why:
        plan.leave(path, kind.__name__, f"its norms run by themselves: {why}")
        return
    if tape.joins:
        known = vars(block).get("_tape")
        if known is not None and same_looks(known.looks, tape.looks) and known.joins == tape.joins:
            return  # accelerated before
        block.__class__ = fused_class(kind)
        block._tape = tape
        plan.change(path, kind.__name__, f"{kind.__name__}, fused", "; ".join(map(str, tape.joins)))


def _outputs(model: nn.Module, example: Any) -> dict[str, list[Tensor] | None]:
    """What the model gives in evaluation and in training; None where the example is too small for training."""
    found: dict[str, list[Tensor] | None] = {}
    for mode in ("evaluation", "training"):
        try:
            with quiet(model):
                model.train(mode == "training")
                torch.manual_seed(0)  # the same dropout each time
                copies = pytree.tree_map_only(Tensor, Tensor.clone, example)
                found[mode] = [each.clone() for each in tensors(call(model, copies))]
        except Exception as error:
            if mode == "training" and isinstance(error, ValueError):
                found[mode] = None
                continue
            raise UsageError(
                f"accelerate: in {mode} the model does not run on the example: {type(error).__name__}: {error}"
            ) from error
    return found


def _verify(plan: Plan, model: nn.Module, before: dict[str, list[Tensor] | None], example: Any) -> None:
    """The outputs may move by rounding only."""
    after = _outputs(model, example)
    for mode, old in before.items():
        new = after[mode]
        if old is None or new is None:
            plan.say(f"not compared in {mode}: the example has too few values for it.")
            continue
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.numel()]
        error = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
        size = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
        if not error <= tolerance(t.dtype for t in (*old, *model.parameters())) * size:
            raise UsageError(
                f"accelerate: in {mode} the outputs of the example moved by up to {error:.3g} (their size is "
                f"{size:.3g}), more than rounding explains; nothing was changed."
            )
        plan.say(f"in {mode} the outputs of the example moved by at most {error:.3g} (their size is {size:.3g}).")


_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
