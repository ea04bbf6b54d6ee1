"""Applies a rule on the table of moments to an activation: one autograd node, and its plain reference."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch._C._functorch import CInterpreter, peek_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from normwise import kernels
from normwise.table import Moments, align, convert, moments, plane_sum, planes, wide
from normwise.tail import NOTHING, Tail, again


class Affine(NamedTuple):
    """One center, scale and shift per plane: `y = (x - center) * scale + shift`.

    Each broadcasts to (N, C). The center is apart so that no digits are lost where |mean| >> std.
    """

    center: Tensor
    scale: Tensor
    shift: Tensor

    def learned(self, weight: Tensor | None, bias: Tensor | None) -> "Affine":
        """Follows with a learned weight and bias per channel."""
        center, scale, shift = self
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        return Affine(center, scale, shift if bias is None else shift + bias)


_PROXY = torch._C._TorchDispatchModeKey.PROXY  # make_fx
_FAKE = torch._C._TorchDispatchModeKey.FAKE
_TYPES = (Tensor, torch.nn.Parameter)
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
Rule = Callable[..., Affine]
Observe = Callable[[Moments], None]


class ClosedForm(Protocol):
    """A rule that the kernels know as a whole, and that says what of a table it needs and what is observed."""

    def __call__(self, table: Moments, *tensors: Any) -> Affine: ...

    def closed_form(
        self, x: Tensor, tensors: Sequence[Tensor | None], observe: Observe | None, tail: Tail
    ) -> Tensor | None:
        """The output; None where the kernels do not take this call."""

    def ignores_table(self, tensors: Sequence[Tensor | None]) -> bool:
        """True where the result follows from the tensors alone; then the table is not computed."""
        ...

    def observed(self, table: Moments) -> Moments: ...


def standardize(pooled: Moments, eps: float) -> Affine:
    """Subtracts the mean and divides by the deviation, `sqrt(var + eps)`."""
    return Affine(pooled.mean, (pooled.var + eps).rsqrt(), torch.zeros_like(pooled.mean))


def normalize(
    x: Tensor,
    rule: Rule,
    tensors: Sequence[Tensor | None] = (),
    *,
    mask: Tensor | None = None,
    observe: Observe | None = None,
    tail: Tail = NOTHING,
) -> Tensor:
    """Scales and shifts every plane of x as `rule(table, *tensors)` says.

    The rule is a pure function from the table of moments and all tensors it learns to an `Affine`.
    Where `mask` is False the output is 0 and the input has no influence. `observe` is called once,
    with the detached table: so a norm remembers. `tail` follows in the same pass, where the kernels run.
    A rule may be a `ClosedForm`, all in one native call.

    >>> x = torch.randn(2, 3, 4, 4)
    >>> y = normalize(x, lambda table: standardize(table, eps=1e-5))
    >>> bool(torch.allclose(y, torch.nn.functional.instance_norm(x), atol=1e-5))
    True
    """
    known = all(t is None or type(t) in _TYPES for t in (x, *tensors)) and not tracing()
    if (known or empty(x)) and not x.numel():  # nobody divides by the number of values, and nobody learns
        mask, observe = x.new_ones(x.shape[2:], dtype=torch.bool) if mask is None else mask, None
    native = known and mask is None and understood(x) and all(t is None or t.is_cpu for t in tensors)
    if hasattr(rule, "closed_form"):
        whole = cast(ClosedForm, rule)
        done = whole.closed_form(x, tensors, observe, tail) if native else None
        if done is not None:
            return done
        learn = None if whole.ignores_table(tensors) else observe
        observe = learn and (lambda table: learn(whole.observed(table)))
    if known and learning():
        follow = tail if native else NOTHING
        y = _Normalize.apply(x, mask, *follow, rule, observe, native, *tensors)
    elif native:
        table = _table(x, rule, tensors, None, native)
        if observe is not None:
            observe(table)
        y = _scale_shift(x, rule(table, *tensors), tail)
    else:
        y = reference(x, rule, tensors, mask=mask, observe=observe)
    return y if native else tail(y)


def reference(
    x: Tensor,
    rule: Rule,
    tensors: Sequence[Tensor | None] = (),
    *,
    mask: Tensor | None = None,
    observe: Observe | None = None,
) -> Tensor:
    """What `normalize` computes, in ordinary differentiable operations."""
    table = _table(x, rule, tensors, mask)
    if observe is not None:
        observe(_detached(table))
    return _apply(x, rule(table, *tensors), mask)


def backend() -> str:
    """Says which kernels are in use: "native" are this package's own, "reference" is plain PyTorch.

    >>> backend() in ("native", "reference")
    True
    """
    return "native" if kernels.available() else "reference"


def tracing() -> bool:
    """True where only ordinary operations are understood: compilers, tracers, functorch, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_dispatch_mode(_PROXY) is not None
    )


def learning() -> bool:
    """True where a node may keep tensors: gradients are on, and inference mode, whose tensors none can keep, is off.

    To be asked only where nothing is traced: Dynamo refuses the question.

    >>> with torch.inference_mode(), torch.enable_grad():
    ...     learning()
    False
    """
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def empty(x: Tensor) -> bool:
    """True where x holds no values; where it may hold some in a later call of what is traced now, False."""
    if not tracing() or transformed():
        return not x.numel()
    return torch.compiler.is_compiling() and surely(x.numel() == 0)


def surely(condition: Any) -> bool:
    """A condition on sizes; False where a compiler keeps them open, which sets no guard."""
    if isinstance(condition, bool) and not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return statically_known_true(condition)


def valued(*tensors: Tensor) -> bool:
    """True where values may be looked at: not while tracing, nor of tensors without any (meta, fake)."""
    return not tracing() and not faked() and not any(t.is_meta or isinstance(t, FakeTensor) for t in tensors)


def faked() -> bool:
    """True within a FakeTensorMode, where real tensors too have no values to look at."""
    return torch._C._get_dispatch_mode(_FAKE) is not None


def transformed() -> bool:
    """True under vmap, grad and the like of torch.func, also in what Dynamo traces, which wraps the None of none."""
    return isinstance(peek_interpreter_stack(), CInterpreter)


def understood(x: Tensor) -> bool:
    """Says whether the kernels can read x."""
    if not kernels.available() or type(x) not in _TYPES or not x.is_cpu or x.dtype not in _DTYPES:
        return False
    return x.layout == torch.strided and x.dim() >= 2


class _Normalize(torch.autograd.Function):
    """The one node. It keeps x, what the tail needs, and a small graph of (N, C) tensors: table to affine."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        residual: Tensor | None,
        act: kernels.Act,
        rule: Rule,
        observe: Observe | None,
        native: bool,
        *tensors: Any,
    ) -> Tensor:
        table = _table(x, rule, tensors, mask, native)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            # outer hooks (checkpointing, offloading) must not see the small graph: they count what is saved
            need_x, *needs = ctx.needs_input_grad[0:1] + ctx.needs_input_grad[_FIXED:]
            table = Moments(_leaf(table.mean, need_x), _leaf(table.var, need_x), table.count)
            leaves = [_leaf(t, need) for t, need in zip(tensors, needs, strict=True)]
            affine = Affine(*(value.expand_as(table.mean) for value in rule(table, *leaves)))
        if observe is not None:
            observe(_detached(table))
        fixed, tail = Affine(*(value.detach() for value in affine)), Tail(residual, act)
        y = _scale_shift(x, fixed, tail) if native else _apply(x, fixed, mask)
        ctx.save_for_backward(x, mask, tail.kept(y)[1], *tensors)
        ctx.rule, ctx.table, ctx.leaves, ctx.affine, ctx.native, ctx.act = rule, table, leaves, affine, native, act
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, extra, *tensors = ctx.saved_tensors
        need_residual = ctx.needs_input_grad[2]
        if torch.is_grad_enabled() or tracing():  # second derivatives are wanted, or many gradients at once
            dx, extra, *rest = reference_grads(grads[0], x, mask, extra, tensors, ctx.rule, ctx.act, need_residual)
        elif ctx.native:
            dx, extra, *rest = _native_grads(grads[0], x, extra, ctx)
        else:
            dx, *rest = _grads(grads[0], x, mask, ctx)
        return dx, None, extra if need_residual else None, *(None,) * (_FIXED - 3), *rest


_FIXED = 7  # arguments of the node before the tensors of the rule


def _native_grads(g: Tensor, x: Tensor, extra: Tensor | None, ctx: Any) -> list[Tensor | None]:
    """As `_grads`, by the kernels; the second is the gradient of the residual."""
    table: Moments = ctx.table
    center, scale, shift = (value.detach() for value in ctx.affine)
    wanted, found = [table.mean, table.var, *ctx.leaves], [None] * (2 + len(ctx.leaves))
    if any(value.requires_grad for value in ctx.affine):
        sum_g, sum_gx = kernels.reduce_grad(g, x, center, scale, shift, extra, ctx.act)
        found = _backward(ctx.affine, (-scale * sum_g, sum_gx, sum_g), wanted)
    dmean, dvar, *rest = found
    need_x, _, need_residual = ctx.needs_input_grad[:3]
    residual = g if need_residual and ctx.act == kernels.NONE else None
    if not need_x and (residual is not None or not need_residual):
        return [None, residual, *rest]
    zero = torch.zeros_like(scale)
    if ctx.act == kernels.NONE and dmean is None and dvar is None:  # constants to the gradient
        return [kernels.scale_shift(g, scale, zero), residual, *rest]
    slope = zero if dvar is None else dvar * (2 / table.count)
    offset = (zero if dmean is None else dmean / table.count) + slope * (center - table.mean.detach())
    dx, behind = kernels.apply_grad(g, x, scale, slope, offset, center, shift, extra, ctx.act)
    return [dx if need_x else None, behind if residual is None else residual, *rest]


def _grads(g: Tensor, x: Tensor, mask: Tensor | None, ctx: Any) -> list[Tensor | None]:
    """reduce_grad, the small graph backwards, apply_grad."""
    table: Moments = ctx.table
    center, scale = (value.detach() for value in ctx.affine[:2])
    g, wide_x = _fill(convert(g, scale.dtype), mask), _fill(convert(x, scale.dtype), mask)
    sum_g, sum_gx = plane_sum(g), plane_sum(g * (wide_x - planes(center, x)))
    wanted = [table.mean, table.var, *ctx.leaves]
    dmean, dvar, *rest = _backward(ctx.affine, (-scale * sum_g, sum_gx, sum_g), wanted)
    if not ctx.needs_input_grad[0]:
        return [None, *rest]
    dx = planes(scale, x) * g
    count = table.count.clamp(min=1) if isinstance(table.count, Tensor) else table.count
    if dvar is not None:
        dx = dx + planes(2 * dvar / count, x) * (wide_x - planes(table.mean.detach(), x))
    if dmean is not None:
        dx = dx + planes(dmean / count, x)
    return [convert(_fill(dx, mask), x.dtype), *rest]


@torch.enable_grad()
def reference_grads(
    g: Tensor,
    x: Tensor,
    mask: Tensor | None,
    extra: Tensor | None,
    tensors: Sequence[Any],
    rule: Rule,
    act: kernels.Act,
    need_residual: bool,
) -> list[Tensor | None]:
    """Gradients of x, of the residual and of the tensors, by ordinary operations: they can be differentiated again."""
    # views, so that a tensor computed from x is not followed back into x
    x, tensors = x.view_as(x), [None if t is None else t.view_as(t) for t in tensors]
    y = reference(x, rule, tensors, mask=mask)
    y, residual = again(y, extra, act, need_residual)
    return _backward((y,), (g,), [x, residual, *tensors], create_graph=True)


def _backward(
    outputs: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Any], **how: bool
) -> list[Tensor | None]:
    """torch.autograd.grad that leaves None for what needs no gradient."""
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    if not pairs or not wanted:
        return [None for _ in inputs]
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads, retain_graph=True, allow_unused=True, **how))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def _apply(x: Tensor, affine: Affine, mask: Tensor | None) -> Tensor:
    center, scale, shift = (planes(value.expand(x.shape[:2]), x) for value in affine)
    y = (_fill(convert(x, wide(x.dtype)), mask) - center) * scale + shift
    return convert(_fill(y, mask), x.dtype)


def _fill(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~align(mask, x), 0)


def _table(
    x: Tensor, rule: Rule, tensors: Sequence[Tensor | None], mask: Tensor | None, native: bool = False
) -> Moments:
    """The table of x; zeros where the rule ignores it."""
    if hasattr(rule, "closed_form") and cast(ClosedForm, rule).ignores_table(tensors):
        zero = x.new_zeros((), dtype=wide(x.dtype)).expand(x.shape[:2])
        return Moments(zero, zero, 1)
    return Moments(*kernels.moments(x), x.shape[2:].numel()) if native else moments(x, mask)


def _scale_shift(x: Tensor, affine: Affine, tail: Tail) -> Tensor:
    center, scale, shift = affine
    return kernels.scale_shift(x, scale, shift, center, *tail)


def _leaf(t: Any, need: bool) -> Any:
    return None if t is None else t.detach().requires_grad_(need)


def _detached(table: Moments) -> Moments:
    return Moments(table.mean.detach(), table.var.detach(), table.count)


def _same(t: Tensor) -> Tensor:
    return t
