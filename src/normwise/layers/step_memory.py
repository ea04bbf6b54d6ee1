"""What a recurrent layer with batch norm remembers: mean and variance of each time step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normwise.layers.written import Skipping, add_batch, written
from normwise.ops import tracing
from normwise.table import convert, wide

_NAMES = ("running_mean", "running_var")


class StepMemory(Skipping):
    """Running mean and unbiased variance of each step: (steps, features), longer with each longer sequence.

    The first batches that reach a step are averaged plainly, until one weighs as little as `momentum`
    (`None`: always): late steps, which few sequences reach, do not start from an invented 0 and 1.
    `num_batches_tracked` (steps,) counts them. The buffers stay float32 or wider. A batch with inf or NaN
    at a step is left out of that step, counted in `skipped` for each such step, and told once.

    >>> memory = StepMemory(2, momentum=0.1)
    >>> memory.remember(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2), 4)
    >>> memory.rows(3)[0]        # the third step takes the statistics of the last one known
    tensor([[1., 2.],
            [3., 4.],
            [3., 4.]])
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    pool: Tensor | None = None  # (3, steps, features): mean, spread and count, while micro-batches are accumulated

    def __init__(self, num_features: int, momentum: float | None, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_features, self.momentum = num_features, momentum
        kind = {"device": device, "dtype": wide(dtype or torch.get_default_dtype())}
        for name in _NAMES:
            self.register_buffer(name, torch.empty(1, num_features, **kind))
        self.register_buffer("num_batches_tracked", torch.empty(1, dtype=torch.long, device=device))
        self.reset_parameters()

    @property
    def forgotten(self) -> bool:
        """True where someone set the buffers to None: then the batch's own statistics are used, and none kept."""
        return self._buffers["running_mean"] is None

    def rows(self, steps: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (steps, features) for evaluation."""
        last = ((self.num_batches_tracked > 0).sum() - 1).clamp(min=0)
        index = torch.arange(steps, device=last.device).clamp(max=last)
        return self.running_mean[index], self.running_var[index]

    def reset_parameters(self) -> None:
        """Forgets all batches, as PyTorch's batch norm does under this name; the number of steps stays."""
        if not self.forgotten:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()
            self.start_counting(self.num_batches_tracked.device)

    @torch.no_grad()
    def remember(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        """Moves on by one batch, or pools it: mean and biased variance (T, F) of `count` sequences, a number or (T, 1).

        A step of fewer than two sequences is passed over.
        """
        count = torch.as_tensor(count, device=mean.device).expand(len(mean), 1)
        unbiased = var * (count / (count - 1).clamp(min=1))
        if self.pool is None:
            self._move(mean, unbiased, count > 1)
            return
        if len(mean) > self.pool.shape[1]:
            with lasting():
                self.pool = F.pad(self.pool, (0, 0, 0, len(mean) - self.pool.shape[1]))
        number = (count * (count > 1)).expand_as(mean)
        add_batch(self.pool[:, : len(mean)], self._counter, mean, unbiased, number, True, 1)

    def open_pool(self) -> None:
        """From now on batches are pooled, by the law of total variance; `close_pool` makes them one update."""
        self.pool = self.running_mean.new_zeros(3, *self.running_mean.shape)

    def close_pool(self, *, keep: bool = True) -> None:
        """Writes the pooled batches as one, or forgets them."""
        pool, self.pool = self.pool, None
        if pool is not None and keep:
            mean, spread, count = pool
            self._move(mean, spread / (count - 1).clamp(min=1), count[:, :1] > 1)

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}"

    @torch.no_grad()
    def _move(self, mean: Tensor, unbiased: Tensor, counted: Tensor) -> None:
        self._grow(len(mean))
        memory = self.running_mean, self.running_var, self.num_batches_tracked, self._counter
        move_steps(*memory, mean, unbiased, counted, self.momentum)
        if not tracing() and mean.is_cpu:
            self._tell()

    def _grow(self, steps: int) -> None:
        new = steps - len(self.running_mean)
        if new > 0:
            with lasting():
                for name in _NAMES:
                    rows = self.get_buffer(name)
                    setattr(self, name, torch.cat([rows, rows[-1:].expand(new, -1)]))
                seen = self.num_batches_tracked
                self.num_batches_tracked = torch.cat([seen, seen.new_zeros(new)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes as many steps as the checkpoint has."""
        for name in (*_NAMES, "num_batches_tracked"):
            given, mine = state_dict.get(prefix + name), self.get_buffer(name)
            if isinstance(given, Tensor) and given.dim() == mine.dim() and given.shape[1:] == mine.shape[1:]:
                setattr(self, name, mine.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


@written("mean", "var", "seen", "skipped")
def move_steps(
    mean: Tensor,
    var: Tensor,
    seen: Tensor,
    skipped: Tensor | None,
    new_mean: Tensor,
    new_var: Tensor,
    counted: Tensor,
    momentum: float | None,
) -> None:
    """Moves the first T of the remembered steps on by one batch, in place: those that `counted` (T, 1) names."""
    steps = len(new_mean)
    ok = (new_mean + new_var).isfinite().all(-1, keepdim=True)
    taken = ok & counted
    seen[:steps].add_(taken[:, 0])
    weight = 1 / seen[:steps, None].clamp(min=1).to(mean.dtype)
    if momentum is not None:
        weight = weight.clamp(min=momentum)
    for old, new in ((mean[:steps], new_mean), (var[:steps], new_var)):
        old.add_(torch.where(taken, weight * (convert(new, old.dtype) - old), 0))
    if skipped is not None:
        skipped.add_((~ok & counted).sum())


def lasting() -> AbstractContextManager[Any]:
    """New tensors made within may be written to by later training, inside `torch.inference_mode` too."""
    return nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)


def memories(layer: nn.Module) -> dict[str, StepMemory]:
    """Those of a recurrent layer that remember anything, by name."""
    found = {name: part for name, part in layer.named_children() if isinstance(part, StepMemory)}
    return {name: part for name, part in found.items() if not part.forgotten}
