"""The plain norms under DistributedDataParallel, on two processes: PyTorch's gradients, and two passes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normwise as nw

NORMS = ("BatchNorm2d", "InstanceNorm2d", "GroupNorm")


def network(home: object, norm: str) -> nn.Module:
    torch.manual_seed(0)
    made = getattr(home, norm)(*([2] if norm == "GroupNorm" else []), 8, affine=True)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), made, nn.ReLU(), nn.Conv2d(8, 2, 1))


def batch(rank: int) -> Tensor:
    """Large enough for the kernels."""
    return torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(rank)) * (rank + 1)


def gradients(model: nn.Module, x: Tensor, passes: int) -> list[Tensor]:
    sum(model(x * (i + 1)) for i in range(passes)).square().mean().backward()  # pyright: ignore
    return [p.grad for p in model.parameters() if p.grad is not None]


def work(rank: int, store: str) -> None:
    """One process: DDP's gradients are the mean of what each would have found alone."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for norm in NORMS:
        for passes, accelerated in ((1, False), (2, False), (2, True)):
            alone = [gradients(network(torch.nn if passes == 1 else nw, norm), batch(r), passes) for r in (0, 1)]
            model = network(torch.nn if accelerated else nw, norm)
            if accelerated:
                assert any("fused" in change.after for change in nw.accelerate(model).changes)
            found = gradients(DistributedDataParallel(model), batch(rank), passes)
            wanted = [(a + b) / 2 for a, b in zip(*alone, strict=True)]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            if norm == "BatchNorm2d":
                assert model[1].num_batches_tracked == passes  # pyright: ignore
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(60)
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, __file__]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [worker.communicate(timeout=50)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
    os._exit(0)  # an interpreter that ends while gloo's threads let go of tensors aborts (pytorch issue 190489)
