"""Several processes: synchronized batch norm equals the joined batch, and DDP does not disturb statistics."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normwise as nw
from normwise.errors import UsageError

PROGRAM = Path(__file__).with_name("two_ranks.py")


def in_processes(folder: Path, job: str, sizes: list[int], masked: bool = False) -> list[dict[str, Any]]:
    """What `job` of two_ranks.py gives in each process; the batch is cut in these sizes."""
    text = ",".join(map(str, sizes))
    commands = [
        [sys.executable, "-W", "error::UserWarning", str(PROGRAM), str(folder), job, str(rank), text, str(masked)]
        for rank in range(len(sizes))
    ]
    started = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in commands]
    errors = [process.communicate(timeout=150)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(sizes), "\n".join(errors)[-2000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(sizes))]


@pytest.mark.parametrize(
    ("sizes", "masked"), [([4, 4], False), ([5, 0, 2], False), ([1, 6], True)], ids=["even", "uneven, empty", "mask"]
)
def test_sync_equals_batch_norm_on_the_joined_batch(tmp_path: Path, sizes: list[int], masked: bool) -> None:
    results = in_processes(tmp_path, "sync", sizes, masked)
    torch.manual_seed(0)
    x, mask = torch.randn(2, sum(sizes), 3, 5, dtype=torch.float64), torch.rand(2, sum(sizes), 5) > 0.3
    norm, wanted = nw.BatchNorm(3, dtype=torch.float64), []
    for batch, valid in zip(x, mask, strict=True):
        whole = batch.clone().requires_grad_()
        y = norm(whole, valid) if masked else norm(whole)
        (first,) = torch.autograd.grad(y.pow(3).sum(), whole, create_graph=True)
        first.pow(2).sum().backward()
        wanted += [y.detach(), first.detach(), whole.grad]
    joined = [torch.cat(parts) for parts in zip(*(result["found"] for result in results), strict=True)]
    torch.testing.assert_close(joined, wanted)
    weights = torch.stack([p.grad for p in norm.parameters() if p.grad is not None])
    for result in results:
        torch.testing.assert_close(result["weights"], weights)
        torch.testing.assert_close(result["state"], dict(norm.state_dict()))
        assert "at least 2 values per channel over all processes, got 1" in result["refusal"]


def test_in_compiled_code_it_pools_over_processes_too(tmp_path: Path) -> None:
    for result in in_processes(tmp_path, "compiled", [6, 4]):
        torch.testing.assert_close(*result["found"])
        torch.testing.assert_close(*result["states"])
        assert result["states"][0]["num_batches_tracked"] == 2


def test_two_forwards_before_one_backward_under_ddp(tmp_path: Path) -> None:
    """PyTorch's batch norm stops here: a buffer was "modified by an inplace operation"."""
    results = in_processes(tmp_path, "ddp", [6, 4])
    torch.manual_seed(0)
    x = torch.randn(4, 2, 10, 3)
    ranks = [nn.Sequential(nw.BatchNorm(3), nw.RenormNorm(3), nw.SwitchableNorm(3)) for _ in range(2)]
    gradients = []
    for pair in x[:3]:
        outputs = [forwards(ranks, batch) for batch in pair]
        for first, second in zip(*outputs, strict=True):
            (first * 2 + second).pow(3).sum().backward()
        pairs = zip(*(norm.parameters() for norm in ranks), strict=True)
        gradients += [(a.grad + b.grad) / 2 for a, b in pairs]
        for norm in ranks:
            norm.zero_grad()
    with nw.accumulate(nn.ModuleList(ranks)):
        for batch in x[3]:
            forwards(ranks, batch)
    for result, norm in zip(results, ranks, strict=True):
        torch.testing.assert_close(result["gradients"], gradients, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result["state"], dict(norm.state_dict()))


def forwards(ranks: list[nn.Sequential], batch: Tensor) -> list[Tensor]:
    """One forward in each process, the buffers of the first broadcast before it."""
    for ours, theirs in zip(ranks[1].buffers(), ranks[0].buffers(), strict=True):
        ours.copy_(theirs)
    return [norm(part) for norm, part in zip(ranks, batch.split([6, 4]), strict=True)]


def test_a_process_may_evaluate_alone_and_trains_in_its_own_group(tmp_path: Path) -> None:
    """Where nothing is remembered, evaluation takes the batch's own statistics, as in nn.SyncBatchNorm."""
    inside, outside = in_processes(tmp_path, "alone", [4, 4])
    torch.testing.assert_close(*inside["found"])
    assert inside["refusal"] == ""
    wanted = (
        "SyncNorm: process_group must hold this process, got a group without rank 1; give each process one it is in."
    )
    assert outside["refusal"] == wanted


def test_without_processes_it_is_batch_norm() -> None:
    x = torch.randn(4, 3)
    torch.testing.assert_close(nw.SyncNorm(3)(x), nw.BatchNorm(3)(x))
    with pytest.raises(ValueError, match="SyncNorm: batch statistics need at least 2 values"):
        nw.SyncNorm(3)(x[:1])


def test_sync_and_unsync_keep_what_was_learned() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nw.GroupNorm(1, 4))
    weight, calls = model[1].weight, []
    model[1].register_forward_hook(lambda *args: calls.append(1))
    plan = nw.sync(model)
    assert (plan.verb, [change.path for change in plan.changes]) == ("sync", ["1"])
    assert isinstance(model[1], nw.SyncNorm)
    assert model[1].weight is weight
    model[1](torch.randn(2, 4, 5, 5))
    assert calls == [1]
    assert [change.path for change in nw.unsync(model).changes] == ["1", "2"]
    assert {type(layer) for layer in model[1:3]} == {nw.BatchNorm}
    plan.undo()
    assert type(model[1]) is nn.BatchNorm2d


def test_an_adapted_norm_stays_adapted() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(4, 3, 8, 8)
    nw.adapt(model, 0.3)
    wanted = model(x)
    nw.sync(model)
    torch.testing.assert_close(model(x), wanted)
    nw.unsync(model)
    torch.testing.assert_close(model(x), wanted)


def test_nothing_to_synchronize() -> None:
    with pytest.raises(UsageError, match="sync: GroupNorm has no batch normalization layer"):
        nw.sync(nn.GroupNorm(1, 3))
    with pytest.raises(UsageError, match="unsync: BatchNorm2d has no sync normalization layer"):
        nw.unsync(nn.BatchNorm2d(3))
