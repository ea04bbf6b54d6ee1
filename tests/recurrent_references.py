"""LSTM and GRU with batch norm per step or layer norm, written from the papers: one list of sequences, step by step."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rows = list[Tensor]


def run(
    kind: str,
    norm: str,
    weights: Mapping[str, Tensor],
    sequences: Sequence[Tensor],
    eps: float = 1e-5,
    remembered: Sequence[Mapping[str, tuple[Tensor, Tensor]]] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs (T_i, H) and last states of one layer and direction, over sequences (T_i, F).

    `weights` by PyTorch's names without suffix; `remembered`: per step and place the mean and variance of evaluation.
    """
    size = weights["weight_hh"].shape[1]
    h = [torch.zeros(size, dtype=torch.float64) for _ in sequences]
    c = [torch.zeros(size, dtype=torch.float64) for _ in sequences]
    outputs: list[Rows] = [[] for _ in sequences]
    last: dict[str, tuple[Tensor, Tensor]] = {}
    for t in range(max(map(len, sequences))):
        alive = [i for i, s in enumerate(sequences) if t < len(s)]

        def standardized(rows: Rows, place: str, t: int = t) -> Rows:
            if norm == "layer":
                return [by_features(row, eps, 2 * size if kind == "GRU" else 0) for row in rows]
            if remembered is None and len(rows) > 1:
                mean = torch.stack(rows).sum(0) / len(rows)
                last[place] = mean, ((torch.stack(rows) - mean) ** 2).sum(0) / len(rows)
            mean, var = last[place] if remembered is None else remembered[min(t, len(remembered) - 1)][place]
            return [(row - mean) / (var + eps).sqrt() for row in rows]

        def scaled(rows: Rows, place: str) -> Rows:
            return [row * weights.get(f"norm_{place}", torch.ones(1)) for row in standardized(rows, place)]

        from_x = [r + weights["bias_ih"] for r in scaled([weights["weight_ih"] @ sequences[i][t] for i in alive], "ih")]
        from_h = [r + weights["bias_hh"] for r in scaled([weights["weight_hh"] @ h[i] for i in alive], "hh")]
        new = lstm if kind == "LSTM" else gru
        new(h, c, alive, from_x, from_h, lambda rows: [r + weights.get("norm_bias_c", 0) for r in scaled(rows, "c")])
        for i in alive:
            outputs[i].append(h[i])
    return [torch.stack(rows) for rows in outputs], h


def by_features(row: Tensor, eps: float, cut: int) -> Tensor:
    """Ba et al., 2016, equation 4, for the parts of the row before and behind the cut."""
    if cut:
        return torch.cat([by_features(row[:cut], eps, 0), by_features(row[cut:], eps, 0)])
    mean = row.sum() / len(row)
    return (row - mean) / (((row - mean) ** 2).sum() / len(row) + eps).sqrt()


def lstm(h: Rows, c: Rows, alive: list[int], from_x: Rows, from_h: Rows, shown: Callable[[Rows], Rows]) -> None:
    """Cooijmans et al., 2017, equations 6 to 8 (and Ba et al., 2016, appendix): moves the states on."""
    out = []
    for i, a, b in zip(alive, from_x, from_h, strict=True):
        enter, forget, gate, leave = (a + b).reshape(4, -1)
        c[i] = torch.sigmoid(forget) * c[i] + torch.sigmoid(enter) * torch.tanh(gate)
        out.append(torch.sigmoid(leave))
    for i, o, cell in zip(alive, out, shown([c[i] for i in alive]), strict=True):
        h[i] = o * torch.tanh(cell)


def gru(h: Rows, c: Rows, alive: list[int], from_x: Rows, from_h: Rows, shown: Callable[[Rows], Rows]) -> None:
    """Ba et al., 2016, appendix, with PyTorch's sense of z."""
    for i, a, b in zip(alive, from_x, from_h, strict=True):
        (xr, xz, xn), (hr, hz, hn) = a.reshape(3, -1), b.reshape(3, -1)
        z = torch.sigmoid(xz + hz)
        h[i] = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h[i]
