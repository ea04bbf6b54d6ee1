"""The equations of LSTM and GRU, one step after the other, in ordinary differentiable operations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise.layers import lstm_kernel
from normwise.layers.steps import LayerSteps, NoSteps

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """One direction of one layer; G is 4H (gates i, f, g, o) or 3H (r, z, n). None: absent.

    Weights (G, features) and (G, H), biases (G,); of the norm: weights (G,), (G,), (H,) and a bias (H,).
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    norm_ih: Tensor | None = None
    norm_hh: Tensor | None = None
    norm_c: Tensor | None = None
    norm_bias_c: Tensor | None = None


def lstm(x: Tensor, state: State, w: Weights, norm: NoSteps, alive: Tensor | None) -> tuple[Tensor, State]:
    """All steps of an LSTM, `x` of shape (T, N, features), state (h, c) of (N, H) each.

    `gates = norm(W_ih x) + norm(W_hh h) + bias`, `c' = f * c + i * g`, `h' = o * tanh(norm(c'))`.
    """
    bias = None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh
    inputs = norm.inputs(F.linear(x, w.weight_ih), w.norm_ih, bias)
    weights = w.weight_hh, w.norm_hh, w.norm_c, w.norm_bias_c
    if isinstance(norm, LayerSteps) and lstm_kernel.serves(inputs, *state, *weights):
        lengths = None if alive is None else alive.sum((0, 2))
        return lstm_kernel.lstm(inputs, state, weights, lengths, norm.eps, partial(lstm_steps, norm, alive))
    return lstm_steps(norm, alive, inputs, state, weights)


def lstm_steps(
    norm: NoSteps, alive: Tensor | None, inputs: Tensor, state: State, weights: Sequence[Any]
) -> tuple[Tensor, State]:
    """The steps of `lstm`, from what comes from the input; weights: of h, of its norm, of c's norm, c's bias."""
    weight_hh, norm_hh, norm_c, norm_bias_c = weights

    def step(x: Tensor, state: State, t: int) -> State:
        h, c = state
        i, f, g, o = (x + norm.hidden(F.linear(h, weight_hh), t, norm_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * norm.cell(c, t, norm_c, norm_bias_c).tanh(), c

    return unroll(step, inputs, state, alive)


def gru(x: Tensor, state: State, w: Weights, norm: NoSteps, alive: Tensor | None) -> tuple[Tensor, State]:
    """All steps of a GRU, state (h,).

    `r, z = sigmoid(norm(W_ih x) + norm(W_hh h))`, `n = tanh(norm(W_in x) + r * norm(W_hn h))`,
    `h' = (1 - z) * n + z * h`, each norm followed by its bias.
    """

    def step(x: Tensor, state: State, t: int) -> State:
        (h,) = state
        in_r, in_z, in_n = x.chunk(3, -1)
        r, z, n = norm.hidden(F.linear(h, w.weight_hh), t, w.norm_hh, w.bias_hh).chunk(3, -1)
        n = (in_n + (in_r + r).sigmoid() * n).tanh()
        return (n + (in_z + z).sigmoid() * (h - n),)

    return unroll(step, norm.inputs(F.linear(x, w.weight_ih), w.norm_ih, w.bias_ih), state, alive)


def unroll(
    step: Callable[[Tensor, State, int], State], inputs: Tensor, state: State, alive: Tensor | None
) -> tuple[Tensor, State]:
    """Applies the step T times; a sequence that is not alive keeps its state."""
    outputs: list[Tensor] = []
    for t, x in enumerate(inputs.unbind(0)):
        new = step(x, state, t)
        state = new if alive is None else kept(alive[t], new, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def kept(alive: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> State:
    """The new state where alive, else the old one."""
    return tuple(torch.where(alive, a, b) for a, b in zip(new, old, strict=True))
