"""Activation checkpointing: for every norm the gradient and the memory of a step are those without it."""

import copy
from typing import Any

import pytest
import torch
from conformance import every_norm, feed, sample
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise.layers import NORMS
from normwise.layers.spec import build

KINDS = ["reentrant", "not reentrant", "compiled inside", "compiled outside", "compiled inside a reentrant one"]
READS = ["batch", "switchable", "renorm:3", "domain:2"]  # what a layer does with its memory in training
REST = [name for name in NORMS if name not in {spec.partition(":")[0] for spec in READS}]
COMPILED = [*READS, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]  # half a minute in all


def model(spec: str) -> nn.Module:
    norm = build(spec, 4, dtype=torch.float64)
    for tensor in norm.parameters():
        tensor.data.uniform_(0.2, 0.8)
    return norm


def way(norm: nn.Module, kind: str) -> Any:
    """A function that runs the norm under a checkpoint."""
    if kind == "compiled outside":
        run = lambda *args: checkpoint(norm, *args, use_reentrant=False) * 1.0  # noqa: E731
        return torch.compile(run, backend="aot_eager", fullgraph=True)
    inner = torch.compile(norm, backend="aot_eager", fullgraph=True) if kind.startswith("compiled") else norm
    return lambda *args: checkpoint(
        inner, *args, use_reentrant=kind in ("reentrant", "compiled inside a reentrant one")
    )


def steps(run: Any, norm: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Two optimizer steps of two forwards and one backward each; gives all gradients."""
    found = []
    for first, second in (inputs[:2], inputs[2:]):
        first, second = (x.clone().requires_grad_() for x in (first, second))
        outputs = [run(*feed(norm, x)) for x in (first, second)]
        sum((k + 1) * y.pow(3).sum() for k, y in enumerate(outputs)).backward()  # pyright: ignore
        found += [first.grad, second.grad, *(p.grad for p in norm.parameters())]
        norm.zero_grad()
    return found


def assert_same_steps(spec: str, kind: str) -> None:
    torch._dynamo.reset()
    norm = model(spec)
    twin, inputs = copy.deepcopy(norm), [sample(spec, 3, 5) for _ in range(4)]
    torch.testing.assert_close(steps(way(twin, kind), twin, inputs), steps(norm, norm, inputs))
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@every_norm
@pytest.mark.parametrize("kind", KINDS[:2])
def test_checkpointing_changes_nothing(spec: str, kind: str) -> None:
    assert_same_steps(spec, kind)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at it of a style
@pytest.mark.parametrize("spec", COMPILED)
@pytest.mark.parametrize("kind", KINDS[2:])
def test_checkpointing_and_compiling_change_nothing(spec: str, kind: str) -> None:
    if (spec, kind) == ("renorm:3", "compiled outside"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            assert_same_steps(spec, kind)  # loud: the compiler keeps the buffers themselves for the recomputation
    else:
        assert_same_steps(spec, kind)


def test_renorm_with_a_checkpoint_in_compiled_code() -> None:
    torch._dynamo.reset()
    norm = nw.RenormNorm(4)
    twin, run = copy.deepcopy(norm), way(norm, "compiled outside")
    for _ in range(3):
        ours = torch.randn(6, 4, requires_grad=True)
        theirs = ours.detach().clone().requires_grad_()
        run(ours).pow(3).sum().backward()
        twin(theirs).pow(3).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_is_skipped_once(kind: str) -> None:
    torch._dynamo.reset()
    norm, x = nw.BatchNorm(4), torch.full((3, 4), float("inf"), requires_grad=True)
    run = way(norm, kind)
    if kind.startswith("compiled"):
        run(x).sum().backward()
        with pytest.warns(UserWarning, match="a batch with inf or NaN was left out"):
            norm.eval()  # compiled, the count is asked for when training ends
    else:
        with pytest.warns(UserWarning, match="a batch with inf or NaN was left out"):
            run(x).sum().backward()
    assert norm.skipped is not None
    assert (int(norm.skipped), int(norm.get_buffer("num_batches_tracked"))) == (1, 0)
    assert norm.get_buffer("running_mean").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_under_a_checkpoint_are_pooled_once(kind: str) -> None:
    torch._dynamo.reset()
    norm = nw.BatchNorm(4)
    twin, x = copy.deepcopy(norm), torch.randn(12, 4)
    twin(x)
    run = way(norm, kind)
    with nw.accumulate(norm):
        for part in x.split([3, 5, 4]):
            run(part.clone().requires_grad_()).sum().backward()
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


@pytest.mark.filterwarnings("ignore:.*a batch with inf or NaN was left out")
def test_renorm_finds_its_call_beside_a_bad_batch() -> None:
    norm, x = nw.RenormNorm(4), torch.randn(6, 4) + 1
    norm(torch.full((6, 4), float("nan")))
    twin, ours, theirs = copy.deepcopy(norm), x.clone().requires_grad_(), x.clone().requires_grad_()
    way(norm, "reentrant")(ours).pow(3).sum().backward()
    twin(theirs).pow(3).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_checkpoint_within_a_checkpoint() -> None:
    norm = nw.RenormNorm(4)
    twin, x = copy.deepcopy(norm), torch.randn(6, 4)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    def inner(x: Tensor) -> Tensor:
        return checkpoint(norm, x, use_reentrant=False)

    checkpoint(inner, ours, use_reentrant=False).pow(3).sum().backward()
    twin(theirs).pow(3).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())
