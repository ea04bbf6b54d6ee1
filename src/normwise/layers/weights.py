"""Weight standardization: each filter of a convolution is standardized before it is used."""

from torch import Tensor, nn

from normwise.table import convert, wide


class WeightStandardization(nn.Module):
    """A parametrization of a convolution's weight: mean 0 and variance 1 over each output channel's filter.

    `W' = (W - mean_o) / sqrt(var_o + eps)`, moments over all axes but the first (Qiao et al., 2019),
    computed in float32 or wider.

    >>> import torch
    >>> from torch.nn.utils import parametrize
    >>> convolution = nn.Conv2d(3, 8, 3)
    >>> parametrize.register_parametrization(convolution, "weight", WeightStandardization())
    ParametrizedConv2d(
      3, 8, kernel_size=(3, 3), stride=(1, 1)
      (parametrizations): ModuleDict(
        (weight): ParametrizationList(
          (0): WeightStandardization(eps=1e-05)
        )
      )
    )
    >>> bool(torch.allclose(convolution.weight.mean((1, 2, 3)), torch.zeros(8), atol=1e-5))
    True
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        axes, values = tuple(range(1, weight.dim())), convert(weight, wide(weight.dtype))
        centered = values - values.mean(axes, keepdim=True)
        return convert(centered * (centered.square().mean(axes, keepdim=True) + self.eps).rsqrt(), weight.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
