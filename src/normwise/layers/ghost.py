"""Ghost batch norm: pools the table over chunks of the batch."""

from typing import Any

from torch import Tensor, stack

from normwise import ops
from normwise.layers.base import TableNorm, check_batch
from normwise.layers.batch import batch_norm
from normwise.layers.written import compiling
from normwise.mixture import Mixture
from normwise.table import align


class GhostNorm(TableNorm):
    """Batch norm over chunks of `chunk_size` samples: the noise of small batches at any batch size.

    `y = (x - mean_kc) / sqrt(var_kc + eps) * weight + bias` for chunk k (Hoffer, Hubara and Soudry, 2017).
    A batch of N is cut in ceil(N / chunk_size) consecutive chunks, as equal as can be. Remembered, and
    used in evaluation, is the pool over the whole batch, which knows the distance between chunks too.

    >>> import torch
    >>> x = torch.randn(4, 3, 8, 8)
    >>> y = GhostNorm(3, chunk_size=2)(x)
    >>> bool(y[:2].mean((0, 2, 3)).abs().max() < 1e-5)
    True
    """

    def __init__(self, num_features: int, *, chunk_size: int = 16, **common: Any) -> None:
        if chunk_size < 1:
            raise ValueError(f"GhostNorm: chunk_size must be at least 1 sample, got {chunk_size}.")
        super().__init__(num_features, **common)
        self.chunk_size = chunk_size

    def parts(self, x: Tensor) -> int:
        """The number of chunks."""
        return max(1, -(-x.shape[0] // self.chunk_size))

    def rule(self, x: Tensor) -> ops.Rule:
        return Mixture(self.eps, pools=self.parts(x))

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        parts = self.parts(x)
        if self.remembered()[0] is not None or parts == 1:
            return batch_norm(self, x, mask)
        if mask is None:
            size = x.shape[0] // parts  # of the smallest chunk; a compiler that keeps it open is to guard it
            check_batch(self, x[: 1 if compiling() and size == 1 else size], None)
        elif ops.valued(x, mask):
            valid = align(mask, x).squeeze(1)
            chunks = list(zip(x.tensor_split(parts), valid.tensor_split(parts), strict=True))
            counts = stack([its.sum() for _, its in chunks]).tolist()
            for (part, its), count in zip(chunks, counts, strict=True):
                if 0 < count < 3:  # a chunk of padding alone teaches nothing
                    check_batch(self, part, its)
        return super().normalize(x, mask)

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return None, self.weight, self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunk_size={self.chunk_size}"
