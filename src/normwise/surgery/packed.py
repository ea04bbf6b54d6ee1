"""timm's norms, and those that bring their own activation: a class derived from theirs, on our kernels, in one pass."""

from functools import cache
from typing import Any

from torch import Tensor, fx, nn

from normwise.kernels import GELU, NONE, Act
from normwise.layers.base import leaf
from normwise.layers.batch import AnyBatchNorm
from normwise.layers.normact import known_act, watched
from normwise.layers.within import GroupNorm
from normwise.ops import tracing, understood
from normwise.tail import NOTHING, Tail


class Derived(nn.Module):
    """Mixed into a class that is made of ours and timm's: what timm asks of its norms holds of it too."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (type(self).__bases__[-1],), self.__getstate__()


class Packed(Derived):
    """`act(drop(norm(x)))`: in one pass where nothing is dropped and the kernels know the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf(self, x)
        layer: Any = self
        layer.check(x, None)
        act = None if tracing() or not understood(x) else _at_once(self.drop, self.act)
        if act is None:
            return self.act(self.drop(layer.normalize(x, None)))
        return layer.normalize(x, None, NOTHING if act == NONE else Tail(None, act))


def derived(norm: nn.Module) -> type[nn.Module] | None:
    """The class that stands in for that of a norm of timm's; None for any other module, and where it has it already."""
    return _class(type(norm)) if is_known(norm) and not isinstance(norm, Derived) else None


def is_known(norm: nn.Module) -> bool:
    """Whether it is a norm of timm's that has a stand-in, or is one."""
    return _name(type(norm)) in _HOMES


def described(norm: Any) -> str:
    """What a Plan says of what follows such a norm."""
    if not isinstance(norm, Packed):
        return ""
    rest = [type(part).__name__ for part in (norm.drop, norm.act) if not _silent(part)]
    after = "after it" if _at_once(norm.drop, norm.act) is None else "in the same pass"
    return f"{' and '.join(rest)} {after}" if rest else ""


@cache
def _class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the same name."""
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (Packed if "Act" in kind.__name__ else Derived, _HOMES[_name(kind)], kind), names)


def _revive(kind: type[nn.Module]) -> nn.Module:
    """For pickle and deepcopy: the subclass has no name of its own to be found by."""
    new = _class(kind)
    return new.__new__(new)


def _at_once(drop: nn.Module, act: nn.Module) -> Act | None:
    """The activation if one pass can do it, and nobody has to be told."""
    if not isinstance(act, nn.Module) or not _silent(drop) or watched(drop) or watched(act):
        return None
    return GELU if _name(type(act)) == _GELU and "forward" not in vars(act) else known_act(act)


def _silent(part: Any) -> bool:
    """It hands on what it gets."""
    plain = type(part) is nn.Identity or (type(part) in (nn.Dropout, nn.Dropout2d) and part.p == 0)
    return plain and "forward" not in vars(part)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_GELU = "timm.layers.activations.GELU"
_HOMES: dict[str, type[nn.Module]] = {  # whose forward is known to be the norm, and then drop and act where it has them
    "timm.layers.norm_act.BatchNormAct2d": AnyBatchNorm,
    "timm.layers.norm_act.GroupNormAct": GroupNorm,
    "timm.layers.norm_act.GroupNorm1Act": GroupNorm,
    "timm.layers.norm.GroupNorm": GroupNorm,
    "timm.layers.norm.GroupNorm1": GroupNorm,
}
