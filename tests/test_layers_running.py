"""Running statistics: PyTorch's keys and numbers, and the repairs."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import normwise as nw

TRACKING: list[tuple[Any, dict[str, Any]]] = [
    (nw.BatchNorm, {}),
    (nw.BatchNorm2d, {}),
    (nw.InstanceNorm, {"track_running_stats": True}),
    (nw.InstanceNorm2d, {"track_running_stats": True}),
    (nw.BatchInstanceNorm, {}),
    (nw.SwitchableNorm, {}),
]
tracking = pytest.mark.parametrize(("cls", "options"), TRACKING, ids=lambda v: getattr(v, "__name__", ""))


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(4, 3, 5, 5) * (k + 1) + k for k in range(count)]


def of_batch(cls: type, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance that one batch contributes."""
    if issubclass(cls, nn.modules.instancenorm._InstanceNorm):
        return x.mean((0, 2, 3)), x.flatten(2).var(2).mean(0)
    return x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)


@tracking
@pytest.mark.parametrize("masked", [False, True])
def test_exponential_average(cls: Any, options: dict[str, Any], masked: bool) -> None:
    norm = cls(3, momentum=0.2, **options)
    mean, var = torch.zeros(3), torch.ones(3)
    for x in batches():
        norm(x, torch.ones(5, 5, dtype=torch.bool)) if masked else norm(x)
        new_mean, new_var = of_batch(cls, x)
        mean, var = 0.8 * mean + 0.2 * new_mean, 0.8 * var + 0.2 * new_var
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize(("cls", "options"), [TRACKING[1], TRACKING[2], TRACKING[4]], ids=["b", "i", "blend"])
def test_plain_average_compiles_as_one_graph(cls: Any, options: dict[str, Any]) -> None:
    """PyTorch's BatchNorm breaks the graph here."""
    torch._dynamo.reset()
    norm = cls(3, momentum=None, **options)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for x in batches():
        norm(x)
        compiled(x)
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@tracking
def test_momentum_none_is_the_plain_average(cls: Any, options: dict[str, Any]) -> None:
    """PyTorch's InstanceNorm never updates here."""
    norm, given = cls(3, momentum=None, **options), batches()
    for x in given:
        norm(x)
    means, variances = zip(*(of_batch(cls, x) for x in given), strict=True)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))


@tracking
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_a_batch_once(cls: Any, options: dict[str, Any], reentrant: bool) -> None:
    """PyTorch's own is updated twice, silently."""
    norm, x = cls(3, **options), torch.randn(4, 3, 5, 5, requires_grad=True)
    twin = copy.deepcopy(norm)
    twin(x).pow(2).sum().backward()
    y = checkpoint(norm, x, use_reentrant=reentrant)
    y.pow(2).sum().backward()
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


@tracking
def test_evaluation_and_frozen_layers_remember_nothing(cls: Any, options: dict[str, Any]) -> None:
    norm = cls(3, **options).eval()
    before = copy.deepcopy(norm.state_dict())
    norm(torch.randn(4, 3, 5, 5))
    torch.testing.assert_close(norm.state_dict(), before)


@tracking
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_buffers_stay_float32_in_a_half_precision_model(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    norm = cls(3, **options)
    norm.running_mean.fill_(1 / 3)
    for half in (copy.deepcopy(norm).to(dtype), cls(3, **options, dtype=dtype)):
        assert half.weight is None or half.weight.dtype == dtype
        assert {half.running_mean.dtype, half.running_var.dtype} == {torch.float32}
    assert torch.equal(copy.deepcopy(norm).to(dtype).running_mean, norm.running_mean)
    assert norm.double().running_mean.dtype == torch.float64


def test_small_momentum_in_bfloat16() -> None:
    """With bfloat16 buffers the running mean stops at half of the way."""
    norm = nw.BatchNorm2d(1, momentum=1e-3).bfloat16()
    for _ in range(3000):
        norm(torch.randn(4, 1, 2, 2, dtype=torch.bfloat16) + 1)
    assert norm.running_mean is not None
    assert float(norm.running_mean) == pytest.approx(1 - 0.999**3000, abs=0.05)


@tracking
def test_a_half_checkpoint_that_is_assigned_is_remembered_wide(cls: Any, options: dict[str, Any]) -> None:
    """In bfloat16 a small momentum stops at half of the way."""
    with torch.device("meta"):
        norm = cls(3, **options)
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in cls(3, **options).state_dict().items()}
    norm.load_state_dict(half, assign=True)
    assert {norm.running_mean.dtype, norm.running_var.dtype} == {torch.float32}
    assert norm.weight is None or norm.weight.dtype == torch.bfloat16


def test_meta_device_and_to_empty() -> None:
    norm = nw.BatchInstanceNorm(3, device="meta").bfloat16().to_empty(device="cpu")
    norm.reset_parameters()
    assert norm.gate.tolist() == [1, 1, 1]
    assert norm.running_var is not None
    assert norm.running_var.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("ours", "theirs"), [(nw.BatchNorm, nn.BatchNorm2d), (nw.BatchNorm2d, nn.BatchNorm2d)])
def test_loads_pytorchs_checkpoints(ours: Any, theirs: Any) -> None:
    source = theirs(3)
    source(torch.randn(4, 3, 5, 5))
    norm = ours(3)
    norm.load_state_dict(source.state_dict(), strict=True)
    source.load_state_dict(norm.state_dict(), strict=True)
    old = {name: t for name, t in source.state_dict().items() if name != "num_batches_tracked"}
    norm.load_state_dict(old, strict=True)  # written before PyTorch 0.4.1
    assert torch.equal(norm.running_mean, source.running_mean)


@pytest.mark.parametrize("cls", [nw.BatchNorm, nw.RenormNorm])
def test_a_memory_that_is_assigned_to_a_norm_built_on_meta_moves_on(cls: Any) -> None:
    with torch.device("meta"):
        norm = cls(3)
    other, x = cls(3), torch.randn(4, 3, 5) + 7
    norm.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    for each in (norm, other):
        each(x)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())
    assert norm.skipped.device.type == "cpu"


def test_buffers_may_be_written_between_forward_and_backward() -> None:
    """As DistributedDataParallel does when it broadcasts buffers before a second forward pass."""
    norm, x = nw.BatchNorm2d(3), torch.randn(4, 3, 5, 5, requires_grad=True)
    y = norm(x)
    for buffer in norm.buffers():
        buffer.copy_(buffer.clone())
    (y + norm(x)).sum().backward()


def test_an_ensemble_under_vmap() -> None:
    """Members of an ensemble train in one call: their stacked buffers are written in place, as in PyTorch."""
    results, x = [], torch.randn(4, 3, 5, 5)
    for cls in (nw.BatchNorm2d, nn.BatchNorm2d):
        members = [cls(3), cls(3)]
        state = torch.func.stack_module_state(members)
        run = torch.func.vmap(lambda p, b, m=members[0]: torch.func.functional_call(m, (p, b), (x,)))
        results.append((run(*state), state[1]))
    torch.testing.assert_close(*results)


def test_a_training_step_between_evaluation_and_its_backward() -> None:
    norm, x = nw.BatchNorm2d(3), torch.randn(4, 3, 5, 5, requires_grad=True)
    (wanted,) = torch.autograd.grad(norm.eval()(x).pow(2).sum(), x)
    y = norm.eval()(x)
    norm.train()(x)
    torch.testing.assert_close(torch.autograd.grad(y.pow(2).sum(), x)[0], wanted)


def test_a_mask_without_valid_values_does_not_poison_the_statistics() -> None:
    norm, x = nw.InstanceNorm(3, track_running_stats=True), torch.randn(2, 3, 5)
    norm(x, torch.tensor([[True] * 5, [False] * 5]))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * x[0].mean(1))
    before = copy.deepcopy(norm)
    norm(x, torch.zeros(2, 5, dtype=torch.bool))
    torch.testing.assert_close(norm.running_mean, before.running_mean)
    torch.testing.assert_close(norm.running_var, before.running_var)
    with pytest.raises(ValueError, match=r"at least 2 values per channel .* got 0"):
        nw.BatchNorm(3)(x, torch.zeros(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("way", ["eager", "compiled", "accumulated"])
def test_a_batch_without_valid_values_is_not_counted(way: str) -> None:
    torch._dynamo.reset()
    norm, x = nw.InstanceNorm(3, track_running_stats=True, momentum=None), torch.randn(2, 3, 5) + 4
    run = torch.compile(norm, fullgraph=True, backend="aot_eager") if way == "compiled" else norm
    with nw.accumulate(norm) if way == "accumulated" else nullcontext():
        run(x, torch.zeros(2, 5, dtype=torch.bool))
    assert norm.num_batches_tracked == 0
    norm(x)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2)))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("norm", [nw.BatchNorm2d(3), nw.InstanceNorm(3, track_running_stats=True), nw.RenormNorm(3)])
def test_a_shape_is_asked_with_fake_tensors(norm: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert norm(fake.from_tensor(torch.randn(2, 3, 5, 5))).shape == (2, 3, 5, 5)
