"""Blends of two standardizations, a plane's own and that of its pool: a rule that has a closed form."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normwise import kernels, ops
from normwise.ops import Affine, Observe, standardize
from normwise.table import Moments, convert, wide
from normwise.tail import Tail


class Mixture(NamedTuple):
    """The rule `own * (x - m) / s + pooled * (x - M) / S + bias` on the table of moments.

    m and s are a plane's own mean and deviation, M and S its channel's over the instances of its pool.
    `own` and `pooled` say which parts there are; their tensors, and bias, have shape (C,) or (N, C), and
    None is 1 (for bias 0). `pool` is the pool of each instance, of `pools`; without it the pools are
    consecutive chunks, as equal as can be. With `known` the pooled part is batch renormalization's. The
    remembered `mean` and `var`, which broadcast to (N, C), stand for the pool's. With `gain` and `lift`, of
    shape (C,), the pooled weight is multiplied by `sigmoid(gain * m + lift)`.

    >>> batch, table = Mixture(eps=1e-5), Moments(torch.zeros(2, 3), torch.ones(2, 3), 16)
    >>> batch(table, None, None, None).scale.shape
    torch.Size([1, 3])
    """

    eps: float
    own: bool = False
    pooled: bool = True
    pool: Tensor | None = None
    pools: int = 1
    known: kernels.Known | None = None

    def __call__(
        self,
        table: Moments,
        own: Tensor | None,
        pooled: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None = None,
        var: Tensor | None = None,
        gain: Tensor | None = None,
        lift: Tensor | None = None,
    ) -> Affine:
        if not self.pooled:
            return standardize(table, self.eps).learned(own, bias)
        unused = None if pooled is None else pooled == 0
        given = None if mean is None or var is None else Moments(mean, var, 1)
        shared = _used(given or self._each(table, unused), unused)
        part = standardize(shared, self.eps)
        if self.known is not None:
            part = _renormalized(part, shared, self.known, self.eps)
        part = part.learned(pooled, None)
        if gain is not None and lift is not None:
            part = part.learned(torch.sigmoid(table.mean * gain + lift), None)
        if self.own:
            itself = standardize(_used(table, None if own is None else own == 0), self.eps).learned(own, None)
            moved = (itself.center - part.center) * part.scale + part.shift
            part = Affine(itself.center, itself.scale + part.scale, moved)
        return part.learned(None, bias)

    def ignores_table(self, tensors: Sequence[Tensor | None]) -> bool:
        """True where a plane's own moments are not asked for and the pool's are given."""
        _, _, _, mean, _, gain, _ = _seven(tensors)
        return self.pooled and not self.own and mean is not None and gain is None

    def closed_form(
        self, x: Tensor, tensors: Sequence[Tensor | None], observe: Observe | None, tail: Tail
    ) -> Tensor | None:
        """The whole in one call each way; None where the pool's statistics are given, or x is not for the kernels."""
        own, pooled, bias, mean, _, gain, lift = _seven(tensors)
        if mean is not None or not x.numel():
            return None
        if ops.learning():
            return _Mixture.apply(x, own, pooled, bias, gain, lift, *tail, self, observe)
        return self.run(x, (own, pooled, bias, gain, lift), observe, tail)[0]

    def run(
        self, x: Tensor, weights: Sequence[Tensor | None], observe: Observe | None, tail: Tail
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and mean and variance of every plane."""
        parts = self.parts(x, weights)
        y, *moments = kernels.blend(x, parts, *tail)
        _observe(x, moments, parts.pool, observe)
        return y, moments[0], moments[1]

    def parts(self, x: Tensor, weights: Sequence[Tensor | None]) -> kernels.Blend:
        """As the kernels are told: own, pooled, bias, gain and lift."""
        own, pooled, bias, gain, lift = weights
        if (self.own and own is None) or (self.pooled and pooled is None):
            one = x.new_ones(x.shape[1], dtype=wide(x.dtype))
            own, pooled = one if own is None else own, one if pooled is None else pooled
        own, pooled = own if self.own else None, pooled if self.pooled else None
        return kernels.Blend(own, pooled, bias, self._pool(x), self.pools, self.eps, self.known, gain, lift)

    def observed(self, table: Moments) -> Moments:
        """What a norm remembers: the moments of the pools, (pools, C), where instances name them, else those of all."""
        return table if self.pool is None else by_pool(table, self.pool, self.pools)

    def _pool(self, x: Tensor) -> Tensor | None:
        """The pool of each instance; None where all are in one."""
        if self.pool is not None:
            return self.pool.to(x.device).contiguous()
        if self.pools == 1:
            return None
        chunks = torch.arange(len(x), device=x.device).tensor_split(self.pools)
        return torch.cat([torch.full_like(chunk, k) for k, chunk in enumerate(chunks)])

    def _each(self, table: Moments, unused: Tensor | None) -> Moments:
        """The moments of each instance's pool."""
        if unused is not None:  # the gradient of a channel that no instance takes, 0 times NaN, would reach them all
            channels = unused if unused.dim() < 2 else unused.all(0)
            table = _without(table, channels & ~_finite(table).all(0))
        if self.pool is None:
            return table.pool(0, self.pools)
        pooled, pool = by_pool(table, self.pool, self.pools), self.pool.to(table.mean.device)
        return Moments(pooled.mean[pool], pooled.var[pool], 1)


def by_pool(table: Moments, pool: Tensor, pools: int) -> Moments:
    """Pools the instances of each pool: (pools, C). One without instances has mean and variance 0."""
    pool, none = pool.to(table.mean.device), table.mean.new_zeros(pools, table.mean.shape[1])
    count = torch.as_tensor(table.count, dtype=table.mean.dtype, device=table.mean.device).expand_as(table.mean)
    total = none.index_add(0, pool, count)  # no product with who is in: NaN stays in its pool
    mean = none.index_add(0, pool, count * table.mean) / total.clamp(min=1)
    deviation = table.mean - mean[pool]
    spread = none.index_add(0, pool, count * (table.var + deviation**2))
    return Moments(mean, spread / total.clamp(min=1), total)


def _seven(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What a rule may be given, None for what is left out at the end."""
    return *tensors, *[None] * (7 - len(tensors))


def _renormalized(part: Affine, batch: Moments, known: kernels.Known, eps: float) -> Affine:
    std = (known.var + eps).sqrt()
    r = ((batch.var + eps).sqrt() / std).detach().clamp(1 / known.r_max, known.r_max)
    d = ((batch.mean - known.mean) / std).detach().clamp(-known.d_max, known.d_max)
    return Affine(part.center, part.scale * r, part.shift + d)


def _used(moments: Moments, unused: Tensor | None) -> Moments:
    """Without what is not finite where it is unused, its weight being 0: there it has no influence."""
    return moments if unused is None else _without(moments, unused & ~_finite(moments))


def _finite(moments: Moments) -> Tensor:
    return (moments.mean + moments.var).isfinite()


def _without(moments: Moments, out: Tensor) -> Moments:
    return Moments(torch.where(out, 0.0, moments.mean), torch.where(out, 1.0, moments.var), moments.count)


def _observe(x: Tensor, moments: Sequence[Tensor], pool: Tensor | None, observe: Observe | None) -> None:
    """Hands on the moments of the pools, or of all planes where nothing is pooled."""
    if observe is None:
        return
    mean, var, pool_mean, pool_var = moments
    values = x.shape[2:].numel()
    if not len(pool_mean):
        observe(Moments(mean, var, values))
    elif pool is None:
        observe(Moments(pool_mean, pool_var, len(x) * values))
    else:
        count = pool.bincount(minlength=len(pool_mean))[:, None].to(pool_mean.dtype)
        observe(Moments(pool_mean, pool_var, count * values))


class _Mixture(torch.autograd.Function):
    """The closed form. It keeps x, the weights, the table and what the tail needs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        own: Tensor | None,
        pooled: Tensor | None,
        bias: Tensor | None,
        gain: Tensor | None,
        lift: Tensor | None,
        residual: Tensor | None,
        act: kernels.Act,
        rule: Mixture,
        observe: Observe | None,
    ) -> Tensor:
        weights, tail = (own, pooled, bias, gain, lift), Tail(residual, act)
        y, mean, var = rule.run(x, weights, observe, tail)
        ctx.save_for_backward(x, *tail.kept(y, bias), mean, var, own, pooled, gain, lift)
        ctx.rule, ctx.act, ctx.bias = rule, act, bias  # the bias is read only where it is saved, else it is a shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, _, extra, mean, var, own, pooled, *attention), g = ctx.saved_tensors, grads[0]
        tensors = own, pooled, ctx.bias, *attention
        rule: Mixture = ctx.rule
        need_x, *needs, need_residual = ctx.needs_input_grad[:7]
        if torch.is_grad_enabled() or ops.tracing():  # second derivatives are wanted, or many gradients at once
            given = *tensors[:3], None, None, *tensors[3:]  # without remembered statistics
            dx, behind, *rest = ops.reference_grads(g, x, None, extra, given, rule, ctx.act, need_residual)
            del rest[3:5]
            return dx, *rest, behind, *_FIXED
        through = need_residual and ctx.act == kernels.NONE  # the gradient of the residual is g itself
        need_input = need_x or (need_residual and not through)
        parts = rule.parts(x, tensors)
        dx, *rest, behind = kernels.blend_backward(g, x, mean, var, parts, extra, ctx.act, need_input)
        rest = [convert(d, t.dtype) if need else None for d, t, need in zip(rest, tensors, needs, strict=True)]
        return dx if need_x else None, *rest, (g if through else behind) if need_residual else None, *_FIXED


_FIXED = (None,) * 3  # arguments of the node behind its tensors
