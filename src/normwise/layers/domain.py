"""Domain-specific batch norm: a memory for each domain, chosen per batch or per sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normwise import ops
from normwise.errors import UsageError
from normwise.layers.base import TableNorm, check_batch
from normwise.layers.batch import batch_norm
from normwise.layers.running import Memory
from normwise.mixture import Mixture
from normwise.table import Moments, align

_WHOLE = "domain: the domain must be a whole number, or one for each sample"
_SUCH = "write nw.domain(model, 1) or nw.domain(model, [0, 1, 1])."


class DomainNorm(TableNorm):
    """Batch norm with `domains` memories: no domain is standardized with the statistics of another.

    `y = (x - mean_dc) / sqrt(var_dc + eps) * weight + bias`, statistics over the samples of domain d
    (Chang et al., 2019; weight and bias are shared, as in Li et al., 2016). `with nw.domain(model, d):`
    chooses; outside it is domain 0. `running_mean` and `running_var` have shape (domains, C).

    >>> x, norm = torch.randn(8, 3), DomainNorm(3, domains=2)
    >>> with domain(norm, 1):
    ...     y = norm(x)
    >>> norm.num_batches_tracked.tolist()
    [0, 1]
    """

    passing = (*TableNorm.passing, "current")
    current: int | Tensor = 0  # for the whole batch, or (N,)

    def __init__(self, num_features: int, *, domains: int = 2, **common: Any) -> None:
        if domains < 1:
            raise ValueError(f"DomainNorm: domains must be at least 1, got {domains}.")
        super().__init__(num_features, **common)
        self.domains = domains
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            buffer = self._buffers[name]
            if buffer is not None:
                self._buffers[name] = buffer.expand(domains, *buffer.shape).clone()

    def remembered(self) -> tuple[Tensor | None, Tensor | None]:
        mean, var = super().remembered()
        return (None, None) if mean is None or var is None else (mean[self.current], var[self.current])

    def memory(self) -> Memory:
        mean, var, seen, pool = super().memory()
        if isinstance(self.current, Tensor):
            return Memory(mean, var, seen, pool)
        d = self.current
        return Memory(mean[d], var[d], seen[d], None if pool is None else pool[:, d])

    def rule(self, x: Tensor) -> ops.Rule:
        return Mixture(self.eps, pool=torch.as_tensor(self.current), pools=self.domains)

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return None, self.weight, self.bias, *self.remembered()

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not isinstance(self.current, Tensor):
            return batch_norm(self, x, mask)
        if self.current.shape[0] != x.shape[0]:
            raise ValueError(
                f"DomainNorm: a domain for each sample is needed, got {self.current.shape[0]} for a batch of "
                f"{x.shape[0]}; choose them by `with nw.domain(model, domains):` for every batch."
            )
        if self.remembered()[0] is None and ops.valued(self.current, x):
            for d, samples in enumerate(self.current.bincount().tolist()):
                if samples:  # of x the check reads the shape, so that any samples will do
                    own = None if mask is None else align(mask, x).squeeze(1)[self.current == d]
                    check_batch(self, x[:samples], own)
        return ops.normalize(x, self.rule(x), self.tensors(x), mask=mask, observe=self.observe)

    def observe(self, table: Moments) -> None:
        """The table is that of all domains where each sample has its own."""
        if not isinstance(self.current, Tensor):
            return super().observe(table)
        if self.remembers():
            count = torch.as_tensor(table.count)
            met = (count > 1).any(-1)
            everyone = not ops.tracing() and met.is_cpu and bool(met.all())
            self.remember(table.mean, table.unbiased, count, None if everyone else met)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, domains={self.domains}"


@contextmanager
def domain(model: nn.Module, index: int | Sequence[int] | Tensor) -> Iterator[None]:
    """Chooses the domain in all DomainNorms of a model: one for the batch, or one for each sample.

    What was chosen before returns at the end. With activation checkpointing the backward pass belongs
    inside, because it runs the forward again. Raises UsageError for a domain that a layer does not have.

    >>> model = nn.Sequential(nn.Linear(2, 3), DomainNorm(3, domains=2))
    >>> with domain(model, [0, 0, 0, 1, 1, 1]):
    ...     model(torch.randn(6, 2)).shape
    torch.Size([6, 3])
    """
    layers = [layer for layer in model.modules() if isinstance(layer, DomainNorm)]
    if not layers:
        raise UsageError("domain: the model has no DomainNorm; put them in by nw.swap(model, 'domain:2') first.")
    chosen = _index(index)
    for layer in layers:
        _require_known(chosen, layer.domains)
    before = [(layer, layer.current) for layer in layers]
    try:
        for layer in layers:
            layer.current = chosen
        yield
    finally:
        for layer, old in before:
            layer.current = old


def _index(index: int | Sequence[int] | Tensor) -> int | Tensor:
    if isinstance(index, int) and not isinstance(index, bool):
        return index
    try:
        chosen = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"{_WHOLE}, got {index!r}; {_SUCH}") from None
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    if chosen.dim() > 1 or not whole or not chosen.numel():
        raise UsageError(f"{_WHOLE}, got {chosen.dtype} of shape {tuple(chosen.shape)}; {_SUCH}")
    return chosen.to(torch.int64, copy=True) if chosen.dim() else int(chosen)


def _require_known(chosen: int | Tensor, domains: int) -> None:
    if isinstance(chosen, Tensor) and not ops.valued(chosen):
        return
    low, high = (chosen, chosen) if isinstance(chosen, int) else (int(chosen.min()), int(chosen.max()))
    if low < 0 or high >= domains:
        raise UsageError(
            f"domain: must be from 0 to {domains - 1}, got {low if low < 0 else high}; build the layers with "
            "domain:K for K domains."
        )
