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


def filter_response(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Singh and Krishnan 2020, equations 1 to 3."""
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            values = x[n, c].reshape(-1) if mask is None else x[n, c][mask[n]]
            row.append(x[n, c] / torch.sqrt((values**2).sum() / max(len(values), 1) + 1e-5))
        planes.append(row)
    threshold = state["threshold"].reshape((1, -1) + (1,) * (x.dim() - 2))
    y = torch.maximum(learned(planes, state, None), threshold)
    return y if mask is None else torch.where(mask.unsqueeze(1), y, 0.0)


def grn(x: Tensor, state: State, training: bool, mask: Tensor | None = None, axis: int = 1) -> Tensor:
    """Woo et al. 2023, algorithm 1; without weight and bias as if they were 1 and 0."""
    if axis == -1:
        return grn(x.movedim(-1, 1), state, training, mask).movedim(1, -1)
    instances = []
    for n in range(x.shape[0]):
        valid = [x[n, c].reshape(-1) if mask is None else x[n, c][mask[n]] for c in range(x.shape[1])]
        sizes = torch.stack([torch.linalg.vector_norm(values) for values in valid])
        share = (sizes / (sizes.mean() + 1e-5)).reshape((-1,) + (1,) * (x.dim() - 2))
        shape = share.shape
        gain = state["weight"].reshape(shape) if "weight" in state else 1.0
        offset = state["bias"].reshape(shape) if "bias" in state else 0.0
        instances.append(gain * (x[n] * share) + offset + x[n])
    y = torch.stack(instances)
    return y if mask is None else torch.where(mask.unsqueeze(1), y, 0.0)


def ibn(x: Tensor, state: State, training: bool, mask: Tensor | None = None, ratio: float = 0.5) -> Tensor:
    """Pan et al. 2018, IBN-a: instance norm for the first channels, batch norm for the others."""
    half = int(ratio * x.shape[1])
    first = {name: t[:half] for name, t in state.items() if t.dim()}
    rest = {name: t[half:] for name, t in state.items() if t.dim()}
    parts = instance(x[:, :half], first, training, mask), batch(x[:, half:], rest, training, mask)
    return torch.cat(parts, 1)


def instance_enhanced(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Liang et al. 2020, equations 4 to 6."""
    plain = {name: t for name, t in state.items() if name not in ("weight", "bias")}
    y = batch(x, plain, training, mask)
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            own, _ = pooled(x, mask, [n], [c])
            row.append(y[n, c] * torch.sigmoid(state["gain"][c] * own + state["offset"][c]))
        planes.append(row)
    return learned(planes, state, mask)


def channel_layer(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Ba, Kiros and Hinton 2016, over the channels of each position."""
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    columns = []
    for p in range(flat.shape[2]):
        mean = flat[:, :, p].mean(1, keepdim=True)
        var = ((flat[:, :, p] - mean) ** 2).mean(1, keepdim=True)
        columns.append((flat[:, :, p] - mean) / torch.sqrt(var + 1e-5))
    return learned([list(y) for y in torch.stack(columns, 2).reshape(x.shape)], state, mask)


def channel_rms(x: Tensor, state: State, training: bool, mask: Tensor | None = None) -> Tensor:
    """Zhang and Sennrich 2019, equation 4, over the channels of each position."""
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    columns = [
        flat[:, :, p] / torch.sqrt((flat[:, :, p] ** 2).mean(1, keepdim=True) + 1e-5) for p in range(flat.shape[2])
    ]
    return learned([list(y) for y in torch.stack(columns, 2).reshape(x.shape)], state, mask)


def dyt(x: Tensor, state: State, training: bool, mask: Tensor | None = None, start: float = 0, axis: int = 1) -> Tensor:
    """Zhu et al. 2025, equation 1."""
    return learned([list(instance) for instance in torch.tanh(state["alpha"] * x)], state, mask)


def adain(x: Tensor, state: State, training: bool, style: Tensor, mask: Tensor | None = None) -> Tensor:
    """Huang and Belongie 2017, equation 8, with the standard deviation of equation 6."""
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            mean, var = pooled(x, mask, [n], [c])
            style_mean, style_var = pooled(style, None, [n], [c])
            row.append(torch.sqrt(style_var + 1e-5) * (x[n, c] - mean) / torch.sqrt(var + 1e-5) + style_mean)
        planes.append(row)
    return learned(planes, {}, mask)


def conditional(parent: Reference) -> Reference:
    """Dumoulin et al. 2017, equation 5, and de Vries et al. 2017, section 3: the parent without its affine, then the
    weight and bias of each instance."""

    def reference(
        x: Tensor, state: State, training: bool, condition: Tensor, mask: Tensor | None = None, **options: int
    ) -> Tensor:
        y = parent(x, {name: t for name, t in state.items() if name not in ("weight", "bias")}, training, mask)
        instances = []
        for n in range(x.shape[0]):
            rows = {}
            for name in {"weight", "bias"} & state.keys():
                table = state[name]
                rows[name] = table[condition[n]] if "classes" in options else table[0]
                for e in range(options.get("embedding", 0)):
                    rows[name] = rows[name] + condition[n, e] * table[1 + e]
            instances.append(learned([list(y[n])], rows, None if mask is None else mask[n : n + 1]))
        return torch.cat(instances)

    return reference


def mixstyle(
    x: Tensor, state: State, training: bool, mask: Tensor | None = None, p: float = 0.5, alpha: float = 0.1
) -> Tensor:
    """Zhou et al. 2021, equations 3 to 6; drawn in this order: coin, partners, shares."""
    y = learned([list(instance) for instance in x], {}, mask)
    coin, order = float(torch.rand(())), torch.randperm(len(x))
    share = torch.distributions.Beta(alpha, alpha).sample(torch.Size((len(x),))).double()
    if not training or coin >= p:
        return y
    planes = []
    for n in range(x.shape[0]):
        if mask is not None and not mask[order[n]].any():
            share[n] = 1  # its partner is padding
        row = []
        for c in range(x.shape[1]):
            mean, var = (t.detach() for t in pooled(x, mask, [n], [c]))
            other_mean, other_var = (t.detach() for t in pooled(x, mask, [int(order[n])], [c]))
            std, other_std = torch.sqrt(var + 1e-5), torch.sqrt(other_var + 1e-5)
            scale = share[n] * std + (1 - share[n]) * other_std
            row.append((x[n, c] - mean) / std * scale + share[n] * mean + (1 - share[n]) * other_mean)
        planes.append(row)
    return learned(planes, {}, mask)


def ghost(x: Tensor, state: State, training: bool, mask: Tensor | None = None, chunk_size: int = 16) -> Tensor:
    """Hoffer, Hubara and Soudry 2017, algorithm 1, on chunks as equal as can be; remembered: the whole batch."""
    if not training:
        return batch(x, state, training, mask)
    number = max(1, -(-len(x) // chunk_size))
    chunks = [chunk.tolist() for chunk in torch.arange(len(x)).tensor_split(number)]

    def moments(n: int, c: int) -> tuple[Tensor, Tensor]:
        return pooled(x, mask, next(chunk for chunk in chunks if n in chunk), [c])

    return standardized(x, state, mask, moments)


def renorm(
    x: Tensor, state: State, training: bool, mask: Tensor | None = None, r_max: float = 3, d_max: float = 5
) -> Tensor:
    """Ioffe 2017, algorithm 1; sigma includes eps."""
    if not training or "running_mean" not in state:
        return batch(x, state, training, mask)
    planes = []
    for n in range(x.shape[0]):
        row = []
        for c in range(x.shape[1]):
            mean, var = pooled(x, mask, range(x.shape[0]), [c])
            sigma, running_sigma = torch.sqrt(var + 1e-5), torch.sqrt(state["running_var"][c] + 1e-5)
            r = (sigma / running_sigma).detach().clamp(1 / r_max, r_max)
            d = ((mean - state["running_mean"][c]) / running_sigma).detach().clamp(-d_max, d_max)
            row.append((x[n, c] - mean) / sigma * r + d)
        planes.append(row)
    return learned(planes, state, mask)


def frozen(x: Tensor, state: State, training: bool, mask: Tensor | None = None, learn: int = 1) -> Tensor:
    """Batch norm's algorithm 2, for inference, whatever the mode."""
    return batch(x, state, False, mask)


def domain(x: Tensor, state: State, training: bool, mask: Tensor | None = None, domains: int = 2) -> Tensor:
    """Chang et al. 2019, section 3.2, in domain 0: batch norm with statistics of its own."""
    rows = {name: t[0] if name.startswith("running") else t for name, t in state.items()}
    return batch(x, rows, training, mask)


REFERENCES: dict[str, Reference] = {
    "ghost": ghost,
    "renorm": renorm,
    "frozen": frozen,
    "sync": batch,
    "domain": domain,
    "none": none,
    "batch": batch,
    "instance": instance,
    "group": group,
    "layer": layer,
    "batch-instance": batch_instance,
    "switchable": switchable,
    "layer-token": layer_token,
    "rms-token": rms_token,
    "filter-response": filter_response,
    "grn": grn,
    "ibn": ibn,
    "instance-enhanced": instance_enhanced,
    "channel-layer": channel_layer,
    "channel-rms": channel_rms,
    "dyt": dyt,
    "adain": adain,
    "conditional-instance": conditional(instance),
    "conditional-batch": conditional(batch),
    "mixstyle": mixstyle,
}
