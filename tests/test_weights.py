"""Weight standardization: the parametrization, what is left, undo, and baking the result in."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import normwise as nw


def prune_nothing(module: nn.Module) -> nn.Module:
    return prune.identity(module, "weight")


def naive(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Qiao et al. 2019, equations 7 to 9, filter by filter."""
    return torch.stack([(w - w.mean()) / torch.sqrt(((w - w.mean()) ** 2).mean() + eps) for w in weight])


def test_equals_the_paper() -> None:
    convolution, x = nn.Conv2d(4, 8, 3, groups=2).double(), torch.randn(2, 4, 6, 6).double()
    model = nn.Sequential(convolution)
    weight, bias = convolution.weight.detach().clone(), convolution.bias
    nw.weight_standardization(model, eps=1e-3)
    torch.testing.assert_close(model(x), nn.functional.conv2d(x, naive(weight, 1e-3), bias, groups=2))
    assert torch.autograd.gradcheck(lambda w: nw.WeightStandardization()(w), (weight.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    weight = (torch.randn(8, 64, 3, 3) * 0.05 + 0.5).to(dtype)
    standardized = nw.WeightStandardization()(weight)
    torch.testing.assert_close(standardized, naive(weight.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_the_trained_parameter_stays_the_same() -> None:
    model: Any = nn.Sequential(nn.Conv1d(3, 8, 3))
    weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = nw.weight_standardization(model)
    assert model[0].parametrizations.weight.original is weight
    before = weight.detach().clone()
    model(torch.randn(2, 3, 9)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    plan.undo()
    assert model[0].weight is weight
    assert type(model[0]) is nn.Conv1d


def test_baked_in_it_computes_the_same() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 3, 8, 8)
    nw.weight_standardization(model)
    before, keys = model(x), set(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict())
    plan = nw.remove_weight_standardization(model)
    assert plan.changes[0].after == "Conv2d"
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(x), before)
    assert len(nw.fold(model, x).changes) == 1


def test_what_is_left_and_why() -> None:
    spectral = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4), spectral)
    first = nw.weight_standardization(model, where=["0", "1", "2"])
    assert [(left.path, left.note) for left in first.left] == [
        ("1", "a transposed convolution has its output channels on another axis"),
        ("2", "its filters have one value each, which would all become 0"),
    ]
    again = nw.weight_standardization(model, where=("0", "3"))
    assert (again.left[0].note, [change.path for change in again.changes]) == (
        "its weight is standardized already",
        ["3"],
    )
    removed = nw.remove_weight_standardization(model)
    assert [change.path for change in removed.changes] == ["0"]
    assert "further parametrizations" in removed.left[0].note


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("hook", [weight_norm, spectral_norm, prune_nothing])
def test_a_weight_computed_by_a_hook_is_left(hook: Any) -> None:
    model = nn.Sequential(hook(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    plan = nw.weight_standardization(model)
    assert [(left.path, left.note) for left in plan.left] == [
        ("0", "a hook computes its weight before each call, as torch.nn.utils.weight_norm does; remove that first")
    ]
    assert [change.path for change in plan.changes] == ["1"]


def test_dry_run_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    keys = list(model.state_dict())
    assert len(nw.weight_standardization(model, dry_run=True).changes) == 1
    assert list(model.state_dict()) == keys
