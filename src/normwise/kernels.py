"""The native kernels as thin functions; `available()` says whether they were built."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

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


def blend(
    x: Tensor,
    own: Tensor | None,
    pooled: Tensor | None,
    bias: Tensor | None,
    pool: Tensor | None,
    pools: int,
    eps: float,
    known: Known | None = None,
    residual: Tensor | None = None,
    act: Act = NONE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`own * (x - m) / s + pooled * (x - M) / S + bias`, and what follows; also the moments (N, C), and the pools'.

    m and s are a plane's own mean and deviation, M and S those of its channel over the instances of the same
    `pool` (N,), one of `pools`; None: all. Weights have shape (C,) or (N, C); None and 0 leave their part out.
    `known`, for one pool: `(x - M) / S` is corrected as by batch renormalization.
    """
    return _OPS.blend.default(x, own, pooled, bias, pool, pools, eps, *(known or _UNKNOWN), residual, *act)


def blend_backward(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    own: Tensor | None,
    pooled: Tensor | None,
    bias: Tensor | None,
    pool: Tensor | None,
    pools: int,
    eps: float,
    known: Known | None = None,
    extra: Tensor | None = None,
    act: Act = NONE,
    need_input: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, own, pooled, bias (empty where it is None) and residual (empty without `extra`)."""
    remembered = known or _UNKNOWN
    return _OPS.blend_backward.default(
        g, x, mean, var, own, pooled, bias, pool, pools, eps, *remembered, extra, *act, need_input
    )


def remember(
    mean: Tensor,
    var: Tensor,
    seen: Tensor,
    skipped: Tensor | None,
    new_mean: Tensor,
    new_var: Tensor,
    momentum: float | None,
) -> bool:
    """Moves running statistics (C,), or (K, C) with K counts, on by one batch, in place; False where it cannot.

    A memory that meets inf or NaN stays as it is and is counted in `skipped`.
    """
    dtype = mean.dtype
    if not (_LOADED and mean.is_cpu and new_mean.dtype == dtype and new_var.dtype == dtype and seen.is_cpu):
        return False
    if skipped is not None and not skipped.is_cpu:
        return False
    given = mean, var, seen, new_mean, new_var
    if not all([type(t) is Tensor and t.is_contiguous() for t in given]) or new_mean.requires_grad:
        return False
    _OPS.remember.default(mean, var, seen, skipped, new_mean, new_var, momentum)
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
    missing = [name for name in _FAKES if not hasattr(_OPS, name)]
    if len(missing) == len(_FAKES):
        return False
    if missing:
        return _unusable(f"are older than the code (no {missing[0]})")
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"normwise::{name}")(fake)
    return True


def _unusable(why: str) -> bool:
    warn(
        f"normwise: the kernels {why}, so that the reference in plain PyTorch runs; build them anew: "
        "pip install --no-build-isolation -e .",
        stacklevel=3,
    )
    return False


def _fake_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return _table(x, x.shape[:2]), _table(x, x.shape[:2])


def _fake_scale_shift(x: Tensor, *others: object) -> Tensor:
    return _like(x)


def _fake_reduce_grad(g: Tensor, x: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return _table(x, x.shape[:2]), _table(x, x.shape[:2])


def _fake_apply_grad(
    g: Tensor,
    x: Tensor,
    scale: Tensor,
    slope: Tensor,
    offset: Tensor,
    center: object,
    shift: object,
    extra: Tensor | None,
    *others: object,
) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty(0) if extra is None else _like(x)


def _fake_norm(
    x: Tensor,
    weight: object,
    bias: object,
    mean: Tensor | None,
    var: object,
    residual: object,
    groups: int,
    *others: object,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (0,) if mean is not None else (x.shape[0], groups) if groups else (x.shape[1],)
    return _like(x), _table(x, shape), _table(x, shape)


def _fake_backward(
    g: Tensor,
    x: Tensor,
    mean: object,
    var: object,
    weight: object,
    bias: object,
    extra: Tensor | None,
    groups: int,
    eps: float,
    act: int,
    low: float,
    high: float,
    fixed: bool,
    need_input: bool,
    floor: Tensor | None = None,
    about_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx = _like(x) if need_input else x.new_empty(0)
    residual = _like(x) if extra is not None and need_input else x.new_empty(0)
    learned = _table(x, x.shape[1:2]), _table(x, x.shape[1:2])
    return dx, *learned, residual, _table(x, (0,) if floor is None else x.shape[1:2])


def _fake_blend(
    x: Tensor, own: object, pooled: object, bias: object, pool: object, pools: int, *others: object
) -> tuple[Tensor, ...]:
    shapes = *[x.shape[:2]] * 2, *[(0 if pooled is None else pools, x.shape[1])] * 2
    return _like(x), *(_table(x, shape) for shape in shapes)


def _fake_blend_backward(
    g: Tensor,
    x: Tensor,
    mean: object,
    var: object,
    own: Tensor | None,
    pooled: Tensor | None,
    bias: Tensor | None,
    pool: object,
    pools: int,
    eps: float,
    known_mean: object,
    known_var: object,
    r_max: float,
    d_max: float,
    extra: Tensor | None,
    act: int,
    low: float,
    high: float,
    need_input: bool,
) -> tuple[Tensor, ...]:
    dx = _like(x) if need_input else x.new_empty(0)
    residual = _like(x) if extra is not None and need_input else x.new_empty(0)
    weights = (_table(x, (0,) if t is None else t.shape) for t in (own, pooled, bias))
    return dx, *weights, residual


def _table(x: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _like(x: Tensor) -> Tensor:
    """A new tensor as the kernels lay it out: like x where dense, else packed, channels last if x is so."""
    strides, (n, c) = x.stride(), x.shape[:2]
    sides = [(size, step) for size, step in zip(x.shape[2:], strides[2:], strict=True) if size != 1]
    regular = all(a[1] == b[0] * b[1] for a, b in pairwise(sides))
    s, step = x.shape[2:].numel(), sides[-1][1] if sides else 1
    is_planes = regular and s > 1 and step == 1
    is_rows = regular and not is_planes and (c == 1 or strides[1] == 1) and step > 0
    packed = (s == 1 or step == c) if is_rows else (c == 1 or strides[1] == s)
    if (is_planes or is_rows) and packed and (n == 1 or strides[0] == c * s):
        return x.new_empty_strided(x.shape, strides)
    if is_rows:
        return x.new_empty((n, *x.shape[2:], c)).movedim(-1, 1)
    return x.new_empty(x.shape)


_FAKES = {
    "moments": _fake_moments,
    "scale_shift": _fake_scale_shift,
    "reduce_grad": _fake_reduce_grad,
    "apply_grad": _fake_apply_grad,
    "norm": _fake_norm,
    "norm_backward": _fake_backward,
    "blend": _fake_blend,
    "blend_backward": _fake_blend_backward,
    "remember": lambda *args: None,
}
_LOADED = _load()
