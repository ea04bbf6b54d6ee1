"""The LSTM with layer norm by its native kernel, all steps in one node; the loop of operators is its reference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normwise import kernels
from normwise.ops import learning, tracing

Reference = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
_TYPES = (Tensor, torch.nn.Parameter)
_OPS: Any = torch.ops.normwise


def serves(*tensors: Tensor | None) -> bool:
    """Says whether the kernel takes these: all there, plain, on the CPU, all float32 or all float64.

    >>> serves(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    False
    """
    if not kernels.available() or tracing():
        return False
    known = [t for t in tensors if t is not None and type(t) in _TYPES and t.is_cpu and t.numel()]
    return len(known) == len(tensors) and {t.dtype for t in known} in ({torch.float32}, {torch.float64})


def lstm(
    inputs: Tensor,
    state: tuple[Tensor, ...],
    weights: Sequence[Any],
    lengths: Tensor | None,
    eps: float,
    reference: Reference,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All steps, from what comes from the input (T, N, 4H); `weights`: of h, of its norm, of c's norm, c's bias.

    `reference(inputs, state, weights)` computes the same in ordinary operations, for derivatives of the derivative.
    """
    given = [t.contiguous() for t in (inputs, *state, *weights)]
    if learning() and any(t.requires_grad for t in given):
        output, c = _Lstm.apply(lengths, eps, reference, *given)
    else:
        output, cell, *_ = _OPS.lstm(*given, lengths, eps, False)
        c = cell[-1]
    return output, (output[-1], c)


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lengths: Tensor | None, eps: float, reference: Reference, *given: Any
    ) -> tuple[Tensor, Tensor]:
        output, *saved = _OPS.lstm(*given, lengths, eps, True)
        ctx.save_for_backward(lengths, output, *given, *saved)
        ctx.reference = reference
        return output, saved[0][-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or tracing():  # second derivatives are wanted, or many gradients at once
            return None, None, None, *_reference_grads(grads, ctx, needs)
        lengths, output, _, h, *given = ctx.saved_tensors
        c, weight, *norms, cell, sums, gates, stats = given
        g, g_c = (grad.contiguous() for grad in grads)
        dx, ds, dh, dc, dnorms = _OPS.lstm_backward(g, g_c, h, c, weight, *norms, lengths, cell, sums, gates, stats)
        size = h.shape[-1]
        dweight = ds[0].t() @ h
        if len(output) > 1 and needs[3]:  # reshape: for flatten, many gradients at once have no rule
            dweight = dweight.addmm_(ds[1:].reshape(-1, 4 * size).t(), output[:-1].reshape(-1, size))
        found = dx, dh, dc, dweight, *dnorms.split((4 * size, size, size))
        return None, None, None, *(d if need else None for d, need in zip(found, needs, strict=True))


@torch.enable_grad()
def _reference_grads(grads: tuple[Tensor, ...], ctx: Any, needs: tuple[bool, ...]) -> list[Tensor | None]:
    # views, so that a weight computed from the input is not followed back into it
    given = [t.view_as(t) for t in ctx.saved_tensors[2:9]]
    inputs, h, c, *weights = given
    output, (_, end) = ctx.reference(inputs, (h, c), weights)
    wanted = [t for t, need in zip(given, needs, strict=True) if need]
    found = iter(torch.autograd.grad((output, end), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]
