"""Every norm again, naively, from its paper: loops over planes in float64, nothing of the library used.

A reference takes x, the norm's state (a dict of tensors by their state_dict names), and what its spec says.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]
Reference = Callable[..., Tensor]


def pooled(x: Tensor, mask: Tensor | None, instances: Iterable[int], channels: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all valid values of some instances and channels."""
    channels = list(channels)
    planes = [x[n, c] if mask is None else x[n, c][mask[n]] for n in instances for c in channels]
    values = torch.cat([plane.reshape(-1) for plane in planes])
    mean = values.sum() / max(len(values), 1)
    return mean, ((values - mean) ** 2).sum() / max(len(values), 1)


def learned(planes: list[list[Tensor]], state: State, mask: Tensor | None) -> Tensor:
    """The learned affine, and 0 where the mask is False."""
    y = torch.stack([torch.stack(row) for row in planes])
    shape = (1, -1) + (1,) * (y.dim() - 2)
    if "weight" in state:
        y = y * state["weight"].reshape(shape)
    if "bias" in state:
        y = y + state["bias"].reshape(shape)
    return y if mask is None else torch.where(mask.unsqueeze(1), y, 0.0)


def standardized(
    x: Tensor, state: State, mask: Tensor | None, moments: Callable[[int, int], tuple[Tensor, Tensor]]
) -> Tensor:
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            mean, var = moments(n, c)
            row.append((x[n, c] - mean) / torch.sqrt(var + 1e-5))
        planes.append(row)
    return learned(planes, state, mask)


def none(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    return learned([list(instance) for instance in x], state, mask)


def batch_moments(x: Tensor, state: State, training: bool, mask: Tensor | None, c: int) -> tuple[Tensor, Tensor]:
    if training:
        return pooled(x, mask, range(x.shape[0]), [c])
    return state["running_mean"][c], state["running_var"][c]


def batch(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Ioffe and Szegedy 2015, algorithms 1 and 2."""
    return standardized(x, state, mask, lambda n, c: batch_moments(x, state, training, mask, c))


def instance(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Ulyanov, Vedaldi and Lempitsky 2016, equation 2."""
    return standardized(x, state, mask, lambda n, c: pooled(x, mask, [n], [c]))


def group(x: Tensor, state: State, training: bool, mask: Tensor | None = None, groups: int = 1) -> Tensor:
    """Wu and He 2018, equation 7."""
    size = x.shape[1] // groups

    def moments(n: int, c: int) -> tuple[Tensor, Tensor]:
        return pooled(x, mask, [n], [k for k in range(x.shape[1]) if k // size == c // size])

    return standardized(x, state, mask, moments)


def layer(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Ba, Kiros and Hinton 2016, equation 3, over all features of an instance."""
    return standardized(x, state, mask, lambda n, c: pooled(x, mask, [n], range(x.shape[1])))


def batch_instance(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Nam and Kim 2018, equation 3."""
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            batch_mean, batch_var = batch_moments(x, state, training, mask, c)
            own_mean, own_var = pooled(x, mask, [n], [c])
            gate = state["gate"][c].clamp(0, 1)
            by_batch = (x[n, c] - batch_mean) / torch.sqrt(batch_var + 1e-5)
            by_instance = (x[n, c] - own_mean) / torch.sqrt(own_var + 1e-5)
            row.append(gate * by_batch + (1 - gate) * by_instance)
        planes.append(row)
    return learned(planes, state, mask)


def switchable(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Luo et al. 2019, equation 3: instance, layer and batch, in this order."""
    mean_weight, var_weight = state["mean_weight"].softmax(0), state["var_weight"].softmax(0)

    def moments(n: int, c: int) -> tuple[Tensor, Tensor]:
        sources = (
            pooled(x, mask, [n], [c]),
            pooled(x, mask, [n], range(x.shape[1])),
            batch_moments(x, state, training, mask, c),
        )
        means, variances = zip(*sources, strict=True)
        return (mean_weight * torch.stack(means)).sum(), (var_weight * torch.stack(variances)).sum()

    return standardized(x, state, mask, moments)


def layer_token(x: Tensor, state: State, training: bool) -> Tensor:
    """Ba, Kiros and Hinton 2016, over the features of one position."""
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * state["weight"] + state["bias"]


def rms_token(x: Tensor, state: State, training: bool) -> Tensor:
    """Zhang and Sennrich 2019, equation 4."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * state["weight"]


REFERENCES: dict[str, Reference] = {
    "none": none,
    "batch": batch,
    "instance": instance,
    "group": group,
    "layer": layer,
    "batch-instance": batch_instance,
    "switchable": switchable,
    "layer-token": layer_token,
    "rms-token": rms_token,
}
