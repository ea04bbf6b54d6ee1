"""The native kernels as thin functions; `available()` says whether they were built."""

from pathlib import Path
from typing import NamedTuple
from warnings import warn

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from normwise.fakes import FAKES

_OPS = torch.ops.normwise
_UNKNOWN = None, None, 1.0, 0.0  # no remembered statistics


class Act(NamedTuple):
    """An activation as the kernels know it: a number and two parameters."""

    code: int
    low: float = 0.0
    high: float = 0.0

    @property
    def output_tells(self) -> bool:
        """True where the gradient can be told from the output, so that the residual need not be kept."""
        return self.code in (1, 2)


NONE = Act(0)
RELU = Act(1, 0.0, float("nan"))
SILU = Act(3)
GELU = Act(4)
_FLOOR = Act(5)  # comes with a tensor


def hardtanh(low: float = -1.0, high: float = 1.0) -> Act:
    """Clips to [low, high]; ReLU6 is `hardtanh(0, 6)`."""
    return Act(1, low, high)


def leaky_relu(slope: float = 0.01) -> Act:
    """x where positive, else `slope * x`, for a slope of at least 0."""
    if slope < 0:
        raise ValueError(f"leaky_relu: the kernels know slopes of at least 0, got {slope}; use the reference.")
    return Act(2, slope)


def available() -> bool:
    """Says whether the kernels were built at install and could be loaded.

    >>> isinstance(available(), bool)
    True
    """
    return _LOADED


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every plane of x (N, C, *spatial): two tables (N, C), float32 or wider."""
    return _OPS.moments(x)


def scale_shift(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    center: Tensor | None = None,
    residual: Tensor | None = None,
    act: Act = NONE,
) -> Tensor:
    """`act((x - center) * scale + shift + residual)`; coefficients are tables (N, C), (1, C) or (C,)."""
    return _OPS.scale_shift(x, scale, shift, center, residual, *act)


def reduce_grad(
    g: Tensor,
    x: Tensor,
    center: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
    act: Act = NONE,
) -> tuple[Tensor, Tensor]:
    """Sums of g and of `g * (x - center)` over every plane, g taken behind the activation.

    `extra`, if there was a residual: the output where `act.output_tells`, else the residual.
    """
    return _OPS.reduce_grad(g, x, center, scale, shift, extra, *act)


def apply_grad(
    g: Tensor,
    x: Tensor,
    scale: Tensor,
    slope: Tensor,
    offset: Tensor,
    center: Tensor | None = None,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
    act: Act = NONE,
) -> tuple[Tensor, Tensor]:
    """`scale * g + slope * (x - center) + offset`, and with `extra` the gradient of the residual (else empty)."""
    return _OPS.apply_grad(g, x, scale, slope, offset, center, shift, extra, *act)


def norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    statistics: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    act: Act = NONE,
    floor: Tensor | None = None,
    about_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm (groups = 0), group norm, or instance norm (groups = C), with what follows it.

    Gives the output, and mean and biased variance: (C,) for batch, else (N, groups); empty where
    `statistics` (running mean and variance) were given. `about_zero`: divides by the root mean square and
    subtracts nothing; the mean is then 0 and the variance the mean square. `floor` (C,), in place of an
    activation: what the output does not fall below.
    """
    mean, var = statistics or (None, None)
    return _OPS.norm.default(x, weight, bias, mean, var, residual, groups, eps, *_either(act, floor), about_zero)


def norm_backward(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    extra: Tensor | None = None,
    act: Act = NONE,
    fixed: bool = False,
    need_input: bool = True,
    floor: Tensor | None = None,
    about_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, bias, residual (empty without `extra`; see `reduce_grad`) and floor (likewise).

    `fixed`: mean and var did not come from x. `bias` matters behind an activation only. Where the output
    equals the floor, each side gets half of g, as in torch.maximum.
    """
    code, low, high, floor = _either(act, floor)
    return _OPS.norm_backward.default(
        g, x, mean, var, weight, bias, extra, groups, eps, code, low, high, fixed, need_input, floor, about_zero
    )


class Known(NamedTuple):
    """Remembered mean and variance (C,), and how far batch renormalization may go towards them."""

    mean: Tensor
    var: Tensor
    r_max: float
    d_max: float


class Blend(NamedTuple):
    """The weights of what is blended, of shape (C,) or (N, C), where None and 0 leave their part out; and the pools.

    `pool` is the pool of each instance, of `pools`; None: all are in one. `known`, for one pool: its part is
    corrected as by batch renormalization. `gain` and `lift` (C,): `pooled` is multiplied by `sigmoid(gain * m + lift)`.
    """

    own: Tensor | None
    pooled: Tensor | None
    bias: Tensor | None
    pool: Tensor | None
    pools: int
    eps: float
    known: Known | None = None
    gain: Tensor | None = None
    lift: Tensor | None = None

    @property
    def arguments(self) -> tuple[object, ...]:
        """As the operators take it."""
        return *self[:6], *(self.known or _UNKNOWN), self.gain, self.lift


def blend(
    x: Tensor, parts: Blend, residual: Tensor | None = None, act: Act = NONE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`own * (x - m) / s + pooled * (x - M) / S + bias`, and what follows; also the moments (N, C), and the pools'.

    m and s are a plane's own mean and deviation, M and S those of its channel over the instances of its pool.
    """
    return _OPS.blend.default(x, *parts.arguments, residual, *act)


def blend_backward(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    parts: Blend,
    extra: Tensor | None = None,
    act: Act = NONE,
    need_input: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, own, pooled, bias, gain, lift (each empty where there is none) and residual (see `norm`)."""
    return _OPS.blend_backward.default(g, x, mean, var, *parts.arguments, extra, *act, need_input)


def remember(
    mean: Tensor,
    var: Tensor,
    seen: Tensor,
    skipped: Tensor | None,
    new_mean: Tensor,
    new_var: Tensor,
    momentum: float | None,
    unbiasing: float = 1.0,
) -> bool:
    """Moves running statistics (C,), or (K, C) with K counts, on by one batch, in place; False where it cannot.

    What the variance moves to is `new_var * unbiasing`. A memory that meets inf or NaN stays as it is and is
    counted in `skipped`.
    """
    dtype = mean.dtype
    if not (_LOADED and mean.is_cpu and new_mean.dtype == dtype and new_var.dtype == dtype and seen.is_cpu):
        return False
    if skipped is not None and not skipped.is_cpu:
        return False
    given = mean, var, seen, new_mean, new_var
    if not all([type(t) is Tensor and t.is_contiguous() for t in given]) or new_mean.requires_grad:
        return False
    _OPS.remember.default(mean, var, seen, skipped, new_mean, new_var, momentum, unbiasing)
    increment_version((mean, var, seen))
    return True


def _either(act: Act, floor: Tensor | None) -> tuple[int, float, float, Tensor | None]:
    """A floor stands in place of an activation."""
    code, low, high = act if floor is None else _FLOOR
    return code, low, high, floor


def _load() -> bool:
    try:
        for path in sorted(Path(__file__).parent.glob("_C*.so")):
            torch.ops.load_library(path)
    except OSError as error:
        return _unusable(f"cannot be loaded ({error.__cause__ or error})")
    missing = [name for name in FAKES if not hasattr(_OPS, name)]
    if len(missing) == len(FAKES):
        return False
    if missing:
        return _unusable(f"are older than the code (no {missing[0]})")
    for name, fake in FAKES.items():
        torch.library.register_fake(f"normwise::{name}")(fake)
    return True


def _unusable(why: str) -> bool:
    warn(
        f"normwise: the kernels {why}, so that the reference in plain PyTorch runs; build them anew: "
        "pip install --no-build-isolation -e .",
        stacklevel=3,
    )
    return False


_LOADED = _load()
