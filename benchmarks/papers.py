"""Norms in PyTorch's operators, the straightforward way from formula to code, to be timed against: see hybrids.py."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchInstance(nn.BatchNorm2d):
    """As github.com/hyeonseobnam/Batch-Instance-Normalization."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.gate = nn.Parameter(torch.ones(num_features))

    def forward(self, input: Tensor) -> Tensor:
        batch_weight, rest = self.weight * self.gate, self.weight * (1 - self.gate)
        mean, var = self.running_mean, self.running_var
        batch = F.batch_norm(input, mean, var, batch_weight, self.bias, self.training, self.momentum or 0.0, self.eps)
        n, c = input.shape[:2]
        flat = input.reshape(1, n * c, *input.shape[2:])
        instance = F.batch_norm(flat, None, None, None, None, True, 0.0, self.eps).view(input.shape)
        return batch + instance * rest[None, :, None, None]


class Switchable(nn.BatchNorm2d):
    """As github.com/switchablenorms/Switchable-Normalization."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, input: Tensor) -> Tensor:
        x = input.reshape(*input.shape[:2], -1)
        mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        temp = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = temp.mean(1, keepdim=True) - mean_ln**2
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = temp.mean(0, keepdim=True) - mean_bn**2
        a, b = F.softmax(self.mean_weight, 0), F.softmax(self.var_weight, 0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        x = ((x - mean) / (var + self.eps).sqrt()).view(input.shape)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Ghost(nn.BatchNorm2d):
    """Hoffer, Hubara and Soudry, 2017: batch norm, chunk by chunk."""

    def forward(self, input: Tensor) -> Tensor:
        forward = super().forward
        return torch.cat([forward(chunk) for chunk in input.split(8)])


class Renorm(nn.BatchNorm2d):
    """Ioffe, 2017, algorithm 1, over the last axis."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        x = input.transpose(1, -1)
        axes = tuple(range(x.dim() - 1))
        mean, std = x.mean(axes), x.std(axes, unbiased=False) + self.eps
        running_std = self.running_var
        r = (std.detach() / running_std).clamp(1 / 3, 3)
        d = ((mean.detach() - self.running_mean) / running_std).clamp(-5, 5)
        x = (x - mean) / std * r + d
        self.running_mean += self.momentum * (mean.detach() - self.running_mean)
        self.running_var += self.momentum * (std.detach() - running_std)
        return (self.weight * x + self.bias).transpose(1, -1)


class IBN(nn.Module):
    """Pan et al., 2018: two layers of PyTorch, on halves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.half = num_features // 2
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.batch = nn.BatchNorm2d(num_features - self.half)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.half, x.shape[1] - self.half], 1)
        return torch.cat((self.instance(first.contiguous()), self.batch(rest.contiguous())), 1)


class FilterResponse(nn.Module):
    """Singh and Krishnan, 2020, equations 1 to 3."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.gamma, self.beta, self.tau = (nn.Parameter(torch.zeros(1, num_features, 1, 1)) for _ in range(3))
        nn.init.ones_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        square = torch.mean(x.pow(2), (2, 3), keepdim=True)
        x = x * torch.rsqrt(square + 1e-6)
        return torch.max(self.gamma * x + self.beta, self.tau)


class GRN(nn.Module):
    """Woo et al., 2023, algorithm 1, with the channels on axis 1."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, num_features, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        share = size / (size.mean(1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class InstanceEnhanced(nn.Module):
    """Liang et al., 2020: attention from the mean of an instance on top of PyTorch's batch norm."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.batch = nn.BatchNorm2d(num_features)
        self.gain = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.offset = nn.Parameter(-torch.ones(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        attention = F.adaptive_avg_pool2d(x, 1) * self.gain + self.offset
        return self.batch(x) * torch.sigmoid(attention)


PAPERS: dict[str, Callable[[int], nn.Module]] = {
    "batch-instance": BatchInstance,
    "switchable": Switchable,
    "ghost": Ghost,
    "renorm": Renorm,
    "ibn": IBN,
    "filter-response": FilterResponse,
    "grn": GRN,
    "instance-enhanced": InstanceEnhanced,
}
