"""simplify: blends that have settled become their parent, and compute the same; the rest is left with a reason."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normwise as nw
from normwise.errors import UsageError


def model(norm: nn.Module) -> Any:
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point() and tensor.shape == (6,):
            tensor.data.uniform_(0.2, 0.8)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU()).double()


def gated(*gates: float) -> Any:
    made = model(nw.BatchInstanceNorm(6))
    made[1].gate.data = torch.tensor(gates * (6 // len(gates)), dtype=torch.float64)
    return made


def leaning(k: int, by: float = 40.0) -> Any:
    made = model(nw.SwitchableNorm(6))
    for weights in (made[1].mean_weight, made[1].var_weight):
        weights.data[k] += by
    return made


def both_modes(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.train()(x)
    return [model.train()(x), model.eval()(x)]


@pytest.mark.parametrize(
    ("blend", "parent"),
    [
        (gated(1.0), "batch"),
        (gated(1.0, 1.5), "batch"),
        (gated(0.0, -0.2), "instance"),
        (leaning(0), "instance"),
        (leaning(1), "layer"),
        (leaning(2), "batch"),
        (model(nw.IBNorm(6, ratio=0)), "batch"),
        (model(nw.IBNorm(6, ratio=1)), "instance"),
    ],
)
def test_a_settled_blend_becomes_its_parent(blend: Any, parent: str) -> None:
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(blend.parameters(), lr=0.1)
    twin = nn.Sequential(*blend)
    before = both_modes(twin, x)[-1]
    plan = nw.simplify(blend.eval(), optimizer=optimizer, example=x)
    assert [change.after for change in plan.changes] == [parent]
    torch.testing.assert_close(blend(x), before)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in blend.parameters()}
    plan.undo()
    torch.testing.assert_close(blend(x), before)


@pytest.mark.parametrize(
    ("blend", "reason"),
    [
        (gated(1.0, 0.0), "it takes 0.00 to 1.00 of batch, 0.00 to 1.00 of instance"),
        (gated(0.97), "it takes 0.97 to 0.97 of batch"),
        (leaning(2, 3.0), "of layer, 0.91 to 0.91 of batch"),
        (model(nw.IBNorm(6)), "it takes 0.00 to 1.00 of instance"),
    ],
)
def test_what_has_not_settled_is_left(blend: Any, reason: str) -> None:
    plan = nw.simplify(blend)
    assert not plan.changes
    assert reason in plan.left[0].note


def test_tolerance() -> None:
    blend = gated(0.97)
    assert nw.simplify(blend, tolerance=0.05, dry_run=True).changes[0].after == "batch"
    assert isinstance(blend[1], nw.BatchInstanceNorm)


def test_other_norms_are_not_mentioned() -> None:
    plan = nw.simplify(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))
    assert (plan.changes, plan.left) == ((), ())


def test_what_does_not_run_is_told_by_its_own_name() -> None:
    with pytest.raises(UsageError, match=r"^simplify: before the simplify the model does not run"):
        nw.simplify(gated(1.0), example=torch.randn(2, 5, 8, 8))
