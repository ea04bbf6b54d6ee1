"""accelerate: runs a model's norms on the native kernels, together with the activation and residual after them."""

from functools import cache, wraps
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normwise import kernels
from normwise.layers.normact import NormAct, takes_tail
from normwise.layers.within import GroupNorm
from normwise.ops import tracing
from normwise.surgery.adopt import adopt, ours
from normwise.surgery.outputs import outputs_before, require_same
from normwise.surgery.packed import Derived, described
from normwise.surgery.plan import Plan, operation
from normwise.surgery.record import Unsafe, record
from normwise.surgery.tape import Tape, containers, same_looks


def accelerate(model: nn.Module, example: Any = None, *, dry_run: bool = False) -> Plan:
    """Makes the norms of a model faster on the CPU, in place, and says what it did and what it left.

    PyTorch's batch, instance and group norms become normwise's of the same name: the same objects with
    another class, so that names, tensors, hooks and optimizers stay. So do timm's `BatchNormAct2d` and
    `GroupNormAct`, which then do their activation in the same pass. A block whose forward can be traced
    does a norm together with the residual and activation after it, in one pass; its modules stay where
    they are and its class becomes a subclass of the same name. It goes back to its own forward by itself
    where the recorded steps do not hold: when a part was replaced, an attribute changed, a hook watches
    the norm, or something traces or compiles the model. `torch.jit.script` needs the model as it was: `plan.undo()`.

    With `example` (a tensor, a tuple of arguments or a dict of them) each norm is compared with PyTorch's on
    what reaches it, in evaluation and training: output and gradients may be 4 times as far from those in
    float64, and in float32 1e-4 of their size. Where each norm hands on what PyTorch's gives, the outputs
    may differ by 1e-4 of their size. An exception leaves the model as it was; `dry_run=True` changes nothing.

    >>> import torch
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
        before = None if example is None else outputs_before("accelerate", model, example)
        for path, module in model.named_modules():
            _take_over(plan, path, module)
        for path, module in model.named_modules():
            if _calls_norms(module):
                _fuse(plan, path, module)
        if before is not None and plan.changes:
            require_same(plan, model, before, example)
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
    known = ours(norm) is not None
    if not known and (not isinstance(norm, _NORMS) or _is_ours(norm)):
        return
    why = _obstacle(norm) if known else _stranger(norm)
    name = type(norm).__name__
    if why:
        plan.leave(path, name, why)
        return
    adopt(norm)
    if isinstance(norm, GroupNorm):
        norm.strict = False
    if isinstance(norm, Derived):
        plan.change(path, f"timm.layers.{name}", f"{name}, native", described(norm))
    else:
        plan.change(path, f"torch.nn.{name}", f"normwise.{name}")


def _is_ours(norm: nn.Module) -> bool:
    return isinstance(norm, Derived) or type(norm).__module__.startswith("normwise.")


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
    if not all(isinstance(getattr(norm, part, norm), nn.Module) for part in ("drop", "act")):
        return "its drop or its act is no module"
    if getattr(norm, "_fast_norm", False):
        return "timm's fast norm is on, which computes in half precision under autocast"
    if isinstance(norm, _NormBase) and "Instance" in type(norm).__name__ and norm.momentum is None:
        return "PyTorch's never moves its statistics with momentum=None, and normwise's would"
    return ""


def _calls_norms(block: nn.Module) -> bool:
    """By itself, or by a list or dict of modules; a row of modules calls its own."""
    own = [each for each in containers(block) if each is block or not isinstance(each, nn.Sequential)]
    return any(takes_tail(type(part)) for each in own for part in each.children())


def _fuse(plan: Plan, path: str, block: Any) -> None:
    """Gives a block its tape; the plan records what was joined, or why nothing could be."""
    if isinstance(block, NormAct | nn.ModuleList | nn.ModuleDict):
        return
    kind = _own(type(block))
    try:
        if is_parametrized(block):
            raise Unsafe("a parametrization has made its class")
        tape = record(block, kind.forward)
        known = vars(block).get("_tape")
        if not tape.joins or (known and same_looks(known.looks, tape.looks) and known.joins == tape.joins):
            return  # nothing to join, or accelerated before
        block.__class__ = _fused_class(kind)
    except Unsafe as why:
        plan.leave(path, kind.__name__, f"its norms run by themselves: {why}")
        return
    block._tape = tape
    plan.change(path, kind.__name__, f"{kind.__name__}, fused", "; ".join(map(str, tape.joins)))


def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    try:
        return fused_class(kind)
    except Exception as error:
        raise Unsafe(f"a class derived from its own cannot be made ({error})") from error


_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
