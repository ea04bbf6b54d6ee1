"""LSTM and GRU with batch norm per time step, layer norm, or none; called like PyTorch's."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from normwise import ops
from normwise.layers import unroll
from normwise.layers.base import check_batch
from normwise.layers.step_memory import StepMemory
from normwise.layers.steps import BatchSteps, LayerSteps, NoSteps
from normwise.layers.unroll import State, Weights
from normwise.layers.written import compiling, recomputing
from normwise.table import convert

RECURRENT_NORMS = ("none", "batch", "layer")


class Recurrent(nn.RNNBase):
    """What LSTM and GRU share: parameters beside PyTorch's, sequences of unequal length, layers and directions."""

    kind: ClassVar[str]
    blocks: ClassVar[tuple[int, ...]]  # in units of hidden_size: the gates that layer norm takes together
    cell: ClassVar[bool]
    plain: ClassVar[type[nn.RNNBase]]
    run: ClassVar[Callable[..., tuple[Tensor, State]]]
    frozen = False  # then what is remembered is used in training too, and never moves

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        norm: object = "none",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        state_noise: float = 0.0,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = str(norm)
        if name not in RECURRENT_NORMS:
            known = ", ".join(RECURRENT_NORMS)
            raise ValueError(f"{type(self).__name__}: norm must be one of {known}, got {name!r}.")
        if proj_size:
            raise ValueError(
                f"{type(self).__name__}: proj_size is not offered, got {proj_size}; project the output by "
                f"nn.Linear({hidden_size}, {proj_size}), or take a smaller hidden_size."
            )
        sizes = input_size, hidden_size, num_layers
        where: Any = {"device": device, "dtype": dtype}
        super().__init__(self.kind, *sizes, bias, batch_first, dropout, bidirectional, **where)
        self.norm, self.eps, self.momentum, self.state_noise = name, eps, momentum, state_noise
        for suffix in self.suffixes() if name != "none" else ():
            for place, size in self._norm_sizes().items():
                self.register_parameter(f"{place}_{suffix}", nn.Parameter(torch.empty(size, **where)))
            if name == "batch":
                features = sum(size for place, size in self._norm_sizes().items() if place != "norm_bias_c")
                self.add_module(f"memory_{suffix}", StepMemory(features, momentum, **where))
        self.reset_norm()

    def suffixes(self) -> list[str]:
        """The endings of the parameters' names: l0, l0_reverse, l1, ..."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "norm"):
            self.reset_norm()

    @torch.no_grad()
    def reset_norm(self) -> None:
        """The norm's weights start at 1, or at 0.1 for batch norm, where 1 would saturate tanh; its memory empty."""
        for name, parameter in self.named_parameters():
            if name.startswith("norm_"):
                start = 0.1 if self.norm == "batch" else 1.0
                parameter.fill_(0.0 if name.startswith("norm_bias") else start)
        for part in self.children():
            if isinstance(part, StepMemory):
                part.reset_parameters()

    def forward(self, input: Any, hx: Any = None, lengths: Tensor | Sequence[int] | None = None) -> Any:
        """Output and last state, as PyTorch's layer gives them.

        `lengths` (N,) are those of a padded batch: what lies behind has no influence, is 0 in the
        output, and the last state is that of the last valid step.
        """
        if isinstance(input, fx.Proxy):
            path = input.tracer.path_of_module(self)  # pyright: ignore[reportAttributeAccessIssue]
            return input.tracer.create_proxy("call_module", path, (input, hx, lengths), {})
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            self._check_lengths(input, lengths)
        if self.norm == "none" and not ops.tracing():
            return self._plainly(input, hx, lengths)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() == 2:
            output, end = self._padded(input.unsqueeze(1), _each(hx, lambda s: s.unsqueeze(1)), None)
            return output.squeeze(1), _each(end, lambda s: s.squeeze(1))
        output, end = self._padded(input.transpose(0, 1) if self.batch_first else input, hx, lengths)
        return output.transpose(0, 1) if self.batch_first else output, end

    def statistics_shape(self, input: Any) -> tuple[int, int]:
        """(N, hidden_size): the values that one step has for its statistics."""
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0]), self.hidden_size
        size = 1 if input.dim() == 2 else input.shape[0 if self.batch_first else 1]
        return size, self.hidden_size

    @property
    def num_features(self) -> int:
        return self.hidden_size

    @property
    def track_running_stats(self) -> bool:
        return self.norm == "batch"

    def _plainly(self, input: Any, hx: Any, lengths: Tensor | None) -> Any:
        """By PyTorch's own operator."""
        if lengths is None:
            return self.plain.forward(self, input, hx)
        packed = pack_padded_sequence(input, lengths.cpu(), self.batch_first, enforce_sorted=False)
        output, end = self.plain.forward(self, packed, hx)
        steps = input.shape[1 if self.batch_first else 0]
        return pad_packed_sequence(output, self.batch_first, total_length=steps)[0], end

    def _packed(self, input: PackedSequence, hx: Any) -> Any:
        x, lengths = pad_packed_sequence(input)
        output, end = self._padded(x, hx, lengths)
        order = input.sorted_indices
        if order is not None:
            output, lengths = output.index_select(1, order), lengths[order.cpu()]
        data = output[valid(lengths.to(output.device), len(output))[..., 0]]
        return PackedSequence(data, input.batch_sizes, order, input.unsorted_indices), end

    def _padded(self, x: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        """All layers, (T, N, features)."""
        alive = None if lengths is None else valid(lengths.to(x.device), len(x))
        kind = x.device.type
        weight: Any = self.weight_ih_l0
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            self._check_input(x, dtype)
            output, end = self._layers(convert(x, dtype), self._first(x, hx, dtype), alive)
        return output, end if self.cell else end[0]

    def _layers(self, x: Tensor, first: State, alive: Tensor | None) -> tuple[Tensor, State]:
        ends: list[State] = []
        ways = 1 + self.bidirectional
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self.suffixes()[layer * ways : (layer + 1) * ways]:
                output, end = self._direction(x, tuple(s[len(ends)] for s in first), suffix, alive)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(each) for each in zip(*ends, strict=True))

    def _direction(self, x: Tensor, state: State, suffix: str, alive: Tensor | None) -> tuple[Tensor, State]:
        x = x if alive is None else x.masked_fill(~alive, 0)
        backwards = suffix.endswith("_reverse")
        weights = Weights(*(convert(getattr(self, f"{name}_{suffix}", None), x.dtype) for name in Weights._fields))
        norm = self._norm(suffix, len(x), alive)
        output, end = self.run(turned(x, alive) if backwards else x, state, weights, norm, alive)
        if isinstance(norm, BatchSteps) and self._remembers(suffix):
            self._memory(suffix).remember(*norm.moments(), x.shape[1] if alive is None else alive.sum(1))
        output = turned(output, alive) if backwards else output
        return output if alive is None else output.masked_fill(~alive, 0), end

    def _norm(self, suffix: str, steps: int, alive: Tensor | None) -> NoSteps:
        if self.norm == "none":
            return NoSteps()
        if self.norm == "layer":
            return LayerSteps(self.eps, [n * self.hidden_size for n in self.blocks])
        memory = self._memory(suffix)
        return BatchSteps(self.eps, alive, None if self._measures(suffix) else memory.rows(steps))

    def _memory(self, suffix: str) -> StepMemory:
        return getattr(self, f"memory_{suffix}")

    def _measures(self, suffix: str) -> bool:
        """Whether the batch's own statistics are used."""
        return (self.training and not self.frozen) or self._memory(suffix).forgotten

    def _remembers(self, suffix: str) -> bool:
        """In training, but not while a checkpoint runs the forward again."""
        return self._measures(suffix) and not self._memory(suffix).forgotten and (compiling() or not recomputing())

    def _first(self, x: Tensor, hx: Any, dtype: torch.dtype) -> State:
        """The first states, h and for an LSTM c, each of shape (layers * directions, N, hidden_size)."""
        shape = len(self.suffixes()), x.shape[1], self.hidden_size
        if hx is None:
            state = (x.new_zeros(shape, dtype=dtype),) * (1 + self.cell)
        else:
            self._check_first(hx, shape)
            state = tuple(convert(s, dtype) for s in (hx if self.cell else (hx,)))
        if self.training and self.state_noise and self.norm != "none":
            state = state[0] + self.state_noise * torch.randn_like(state[0]), *state[1:]
        return state

    def _norm_sizes(self) -> dict[str, int]:
        gates = sum(self.blocks) * self.hidden_size
        cell = {"norm_c": self.hidden_size} if self.cell else {}
        bias = {"norm_bias_c": self.hidden_size} if self.cell and self.bias else {}
        return {"norm_ih": gates, "norm_hh": gates} | cell | bias

    def _check_input(self, x: Tensor, dtype: torch.dtype) -> None:
        name = type(self).__name__
        if x.dim() != 3 or x.shape[-1] != self.input_size or not len(x):
            order = "(N, T, {})" if self.batch_first else "(T, N, {})"
            raise ValueError(
                f"{name}: the input must have shape {order.format(self.input_size)} with T at least 1, or be packed; "
                f"a sequence came as (T, N, features) = {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise ValueError(f"{name}: the input must be floating point, got {x.dtype}; call x.float() first.")
        if self.norm == "batch" and self._measures("l0"):
            check_batch(self, x[0], None)

    def _check_first(self, hx: Any, shape: tuple[int, ...]) -> None:
        name, several = type(self).__name__, isinstance(hx, tuple | list)
        if several != self.cell or (several and len(hx) != 2):
            wanted = "the pair (h, c)" if self.cell else "the tensor h by itself"
            raise ValueError(f"{name}: hx must be {wanted}, got a {type(hx).__name__} of {len(hx)}.")
        for s in hx if several else (hx,):
            if s.shape != shape:
                raise ValueError(f"{name}: each state must have shape {shape}, got {tuple(s.shape)}.")

    def _check_lengths(self, input: Any, lengths: Tensor) -> None:
        name = type(self).__name__
        if isinstance(input, PackedSequence) or input.dim() == 2:
            what = "a packed sequence" if isinstance(input, PackedSequence) else "a single sequence"
            raise ValueError(f"{name}: {what} has its length; leave lengths out.")
        steps, batch = input.shape[:2][:: -1 if self.batch_first else 1]
        whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
        if lengths.shape != (batch,) or not whole:
            raise ValueError(
                f"{name}: lengths must be whole numbers of shape ({batch},), "
                f"got {lengths.dtype} of shape {tuple(lengths.shape)}."
            )
        if batch and not ops.tracing() and not 1 <= int(lengths.min()) <= int(lengths.max()) <= steps:
            raise ValueError(f"{name}: lengths must lie in 1 .. {steps}, got {lengths.tolist()}.")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm}"


class LSTM(Recurrent):
    """`torch.nn.LSTM` with `norm="batch"`, per time step, or `norm="layer"`; without a norm the very same.

    `gates = norm(W_ih x) + norm(W_hh h) + bias`, `c' = f * c + i * g`, `h' = o * tanh(norm(c'))`
    (Cooijmans et al., 2017; Ba, Kiros and Hinton, 2016). Batch norm keeps statistics for each step;
    beyond the longest sequence seen it takes those of the last step; in training a step with one
    sequence left takes those of the last step that had two. `state_noise` is the deviation of normal noise
    on the first h in training, for sequences that begin alike. Parameters have the names of `torch.nn.LSTM`.

    >>> lstm = LSTM(3, 8, norm="layer")
    >>> output, (h, c) = lstm(torch.randn(5, 2, 3), lengths=torch.tensor([5, 2]))
    >>> output.shape, bool((output[2:, 1] == 0).all()), bool((h[0, 1] == output[1, 1]).all())
    (torch.Size([5, 2, 8]), True, True)
    """

    kind, blocks, cell, plain = "LSTM", (4,), True, nn.LSTM
    run = staticmethod(unroll.lstm)
    # what PyTorch's forward calls on itself: dynamo refuses subclasses of nn.LSTM
    check_forward_args: Any = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden: Any = nn.LSTM.permute_hidden


class GRU(Recurrent):
    """`torch.nn.GRU` with `norm="batch"`, per time step, or `norm="layer"`; without a norm the very same.

    `r, z = sigmoid(norm(W_ih x) + norm(W_hh h))`, `n = tanh(norm(W_in x) + r * norm(W_hn h))`,
    `h' = (1 - z) * n + z * h`, each norm followed by its bias; layer norm takes r and z together and n
    by itself. All else is as in `LSTM`.

    >>> gru = GRU(3, 8, batch_first=True, norm="batch")
    >>> gru(torch.randn(4, 5, 3))[0].shape, gru.memory_l0.num_batches_tracked
    (torch.Size([4, 5, 8]), tensor([1, 1, 1, 1, 1]))
    """

    kind, blocks, cell, plain = "GRU", (2, 1), False, nn.GRU
    run = staticmethod(unroll.gru)


def valid(lengths: Tensor, steps: int) -> Tensor:
    """(steps, N, 1): True up to the length of each sequence."""
    return (torch.arange(steps, device=lengths.device)[:, None] < lengths)[..., None]


def turned(x: Tensor, alive: Tensor | None) -> Tensor:
    """Each sequence from its end to its beginning; what lies behind it stays."""
    if alive is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None, None]
    index = torch.where(alive, alive.sum(0, keepdim=True) - 1 - steps, steps)
    return x.gather(0, index.expand_as(x))


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tuple(map(change, state)) if isinstance(state, tuple | list) else state if state is None else change(state)
