"""Blends by their rule on the table of moments: where it is not needed, and where it is not finite but unused."""

from typing import Any

import pytest
import torch
from torch import Tensor

import normwise as nw
from normwise import kernels, ops

WAYS = ["node", "table", "differentiable again", "vmap", "compiled"]


def results(way: str, norm: Any, x: Tensor, g: Tensor, *given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of input and parameters."""
    if way == "table":
        given = *given, torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
    if way == "compiled":
        torch._dynamo.reset()
        run = torch.compile(norm, fullgraph=True, backend="aot_eager")
    else:
        run = norm
    x = x.clone().requires_grad_()
    y = torch.vmap(run)(x[None], *(t[None] for t in given))[0] if way == "vmap" else run(x, *given)
    again = way == "differentiable again"
    return y.detach(), list(torch.autograd.grad(y, [x, *norm.parameters()], g, create_graph=again))


def in_evaluation(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A norm that remembers something, and what it is told beside x."""
    several = torch.tensor([1, 0, 1, 1])
    norm: Any = {
        "conditional": lambda: nw.ConditionalBatchNorm(3, classes=2, dtype=torch.float64),
        "domain": lambda: nw.DomainNorm(3, dtype=torch.float64),
        "batch": lambda: nw.BatchNorm(3, dtype=torch.float64),
        "instance": lambda: nw.InstanceNorm(3, track_running_stats=True, dtype=torch.float64),
    }[name]()
    for t in (*norm.parameters(), norm.running_mean, norm.running_var):
        t.data.uniform_(0.2, 0.8)
    norm.current = several
    return norm.eval(), (several,) if name == "conditional" else ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["conditional", "domain", "batch", "instance"])
def test_given_statistics_need_no_moments(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, given = in_evaluation(name)
    x, g = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for module, function in ((kernels, "moments"), (ops, "moments")):
        monkeypatch.setattr(module, function, lambda *_: pytest.fail("the moments were computed"))
    y, grads = results(way, norm, x, g, *given)
    leaves = [t.detach().requires_grad_() for t in (x, *norm.parameters())]
    z, *weights = leaves
    weight, bias = (t[given[0], :, None] if given else t[:, None] for t in weights)
    mean, var = (
        t[norm.current if name == "domain" else None][..., None] for t in (norm.running_mean, norm.running_var)
    )
    want = (z - mean) / (var + norm.eps).sqrt() * weight + bias
    torch.testing.assert_close(y, want.detach())
    torch.testing.assert_close(grads, list(torch.autograd.grad(want, leaves, g)))
    with torch.no_grad():
        torch.testing.assert_close(norm(x, *given), y)


@pytest.mark.parametrize("name", ["conditional", "domain"])
def test_given_statistics_have_second_derivatives(name: str) -> None:
    norm, given = in_evaluation(name)
    names, values = list(dict(norm.named_parameters())), list(norm.parameters())

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x, *given))

    leaves = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True), *values
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("name", ["conditional", "domain"])
@pytest.mark.parametrize("way", WAYS)
def test_in_evaluation_the_gradient_does_not_read_the_input(name: str, way: str) -> None:
    norm, given = in_evaluation(name)
    x, g = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    (wanted, *_), x[1] = results(way, norm, x, g, *given)[1], float("nan")
    torch.testing.assert_close(results(way, norm, x, g, *given)[1][0], wanted)


def partly_unused(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A norm of which the pool of channel 0 is not asked for."""
    norm: Any = {
        "ibn": lambda: nw.IBNorm(2),
        "batch-instance": lambda: nw.BatchInstanceNorm(2),
        "attentive": lambda: nw.InstanceEnhancedNorm(2),
        "ghost": lambda: nw.GhostNorm(2, chunk_size=2),
        "conditional": lambda: nw.ConditionalBatchNorm(2, classes=2),
    }[name]()
    unused = norm.gate if name == "batch-instance" else None if name == "ibn" else norm.weight
    if unused is not None:
        unused.data[..., 0] = 0
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return norm, (torch.tensor([0, 1, 1, 0]),) if name == "conditional" else ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["ibn", "batch-instance", "attentive", "ghost", "conditional"])
def test_the_gradient_of_an_unused_pool_keeps_nan_to_its_instance(name: str, way: str) -> None:
    norm, given = partly_unused(name)
    x, g = torch.randn(2, 4, 2, 6)
    x[1, :, 0] = float("nan")
    y, (dx, *_) = results(way, norm, x, g, *given)
    for t in (y, dx):
        good = t.isfinite().all(2)
        assert good[[0, 2, 3], 0].all()
        assert not good[0, 1]
        assert not good[1].any()
