"""What the native operators give, in shape, type and layout only: for compilers and exporters."""

from itertools import pairwise

import torch
from torch import Tensor


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
    gain: Tensor | None,
    lift: Tensor | None,
    extra: Tensor | None,
    act: int,
    low: float,
    high: float,
    need_input: bool,
) -> tuple[Tensor, ...]:
    dx = _like(x) if need_input else x.new_empty(0)
    residual = _like(x) if extra is not None and need_input else x.new_empty(0)
    weights = (_table(x, (0,) if t is None else t.shape) for t in (own, pooled, bias, gain, lift))
    return dx, *weights, residual


def _fake_lstm(inputs: Tensor, h: Tensor, *others: object) -> tuple[Tensor, ...]:
    steps, batch, size = *inputs.shape[:2], h.shape[-1]
    rows = steps if others[-1] else 1
    widths = (rows, size), (rows, 4 * size), (rows, 4 * size), (rows, 3)
    return inputs.new_empty(steps, batch, size), *(inputs.new_empty(n, batch, width) for n, width in widths)


def _fake_lstm_backward(g: Tensor, g_c: Tensor, h: Tensor, *others: object) -> tuple[Tensor, ...]:
    wide = (*g.shape[:2], 4 * g.shape[2])
    return (*(g.new_empty(shape) for shape in (wide, wide, h.shape, h.shape, (6 * h.shape[-1],))),)


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


FAKES = {
    "moments": _fake_moments,
    "scale_shift": _fake_scale_shift,
    "reduce_grad": _fake_reduce_grad,
    "apply_grad": _fake_apply_grad,
    "norm": _fake_norm,
    "norm_backward": _fake_backward,
    "blend": _fake_blend,
    "blend_backward": _fake_blend_backward,
    "lstm": _fake_lstm,
    "lstm_backward": _fake_lstm_backward,
    "remember": lambda *args: None,
}
