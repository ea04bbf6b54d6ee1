"""What tests run in several processes: synchronized batch norm, and DistributedDataParallel."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normwise as nw


def parts_of(x: Tensor, sizes: list[int]) -> Tensor:
    return x.split(sizes)[dist.get_rank()]


def sync(sizes: list[int], masked: bool) -> dict[str, Any]:
    """Two steps of a small network on this process' part of the batch, its gradients and statistics."""
    torch.manual_seed(0)
    x, mask = torch.randn(2, sum(sizes), 3, 5, dtype=torch.float64), torch.rand(2, sum(sizes), 5) > 0.3
    norm = nw.SyncNorm(3, dtype=torch.float64)
    found = []
    for batch, valid in zip(x, mask, strict=True):
        own = parts_of(batch, sizes).clone().requires_grad_()
        y = norm(own, parts_of(valid, sizes)) if masked else norm(own)
        (first,) = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        first.pow(2).sum().backward()
        found += [y.detach(), first.detach(), own.grad]
    weights = torch.stack([p.grad for p in norm.parameters()])  # pyright: ignore
    dist.all_reduce(weights)
    return {"found": found, "weights": weights, "state": norm.state_dict(), "refusal": refusal()}


def refusal() -> str:
    """What every process says to a single value in the first of them."""
    try:
        nw.SyncNorm(3)(torch.randn(1 if dist.get_rank() == 0 else 0, 3))
    except ValueError as error:
        return str(error)
    return ""


def alone(sizes: list[int], masked: bool) -> dict[str, Any]:
    """The first process evaluates while the other does not; then both train, in a group that holds the first alone."""
    x, found, refused = torch.randn(4, 3, 5), [], ""
    if dist.get_rank() == 0:
        found = [cls(3, track_running_stats=False).eval()(x) for cls in (nw.SyncNorm, nw.BatchNorm)]
    dist.barrier()
    norm = nw.SyncNorm(3)
    norm.process_group = dist.new_group([0])
    try:
        norm(x)
    except ValueError as error:
        refused = str(error)
    return {"found": found, "refusal": refused}


def compiled(sizes: list[int], masked: bool) -> dict[str, Any]:
    """Two steps of synchronized batch norm in one graph, and the same without compiling."""
    torch.manual_seed(0)
    x = torch.randn(2, sum(sizes), 3, 5, dtype=torch.float64)
    found, states = [], []
    for compiling in (True, False):
        norm = nw.SyncNorm(3, dtype=torch.float64)
        call = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiling else norm
        leaves = [parts_of(batch, sizes).clone().requires_grad_() for batch in x]
        outputs = [call(leaf) for leaf in leaves]
        found.append([*outputs, *torch.autograd.grad(torch.stack(outputs).pow(3).sum(), [*leaves, *norm.parameters()])])
        states.append(norm.state_dict())
    return {"found": found, "states": states}


def ddp(sizes: list[int], masked: bool) -> dict[str, Any]:
    """Two forwards before one backward, three times, buffers broadcast; then two pooled micro-batches."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, sum(sizes), 3)
    norms = nn.Sequential(nw.BatchNorm(3), nw.RenormNorm(3), nw.SwitchableNorm(3))
    model = DistributedDataParallel(norms, broadcast_buffers=True)
    found = []
    for first, second in x[:3]:
        (model(parts_of(first, sizes)) * 2 + model(parts_of(second, sizes))).pow(3).sum().backward()
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    with nw.accumulate(model):
        for batch in x[3]:
            model(parts_of(batch, sizes)).sum().backward()
    return {"gradients": found, "state": norms.state_dict()}


if __name__ == "__main__":
    folder, job, rank, sizes, masked = sys.argv[1:]
    torch.set_num_threads(1)
    numbers = [int(n) for n in sizes.split(",")]
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=int(rank), world_size=len(numbers), timeout=timedelta(seconds=20)
    )
    torch.save(globals()[job](numbers, masked == "True"), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # an interpreter that ends while gloo's threads let go of tensors aborts (pytorch issue 190489)
