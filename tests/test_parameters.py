"""The optimizer follows a swap: groups, places, names and state."""

from functools import partial
from typing import Any

import pytest
import torch
from models import plain
from torch import nn

from normwise.errors import UsageError
from normwise.surgery.swap import swap


@pytest.mark.parametrize("make", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam])
def test_the_optimizer_follows(make: Any) -> None:
    model: Any = plain()
    norms = [p for n, p in model.named_parameters() if n[0] in "14"]
    rest = [p for n, p in model.named_parameters() if n[0] not in "14"]
    optimizer = make([{"params": rest, "lr": 0.1}, {"params": norms, "lr": 0.2}], lr=0.3)
    model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    state = {id(p): each for p, each in optimizer.state.items()}
    swap(model, {"1": "batch-instance", "4": "none"}, optimizer=optimizer)
    expected = [model[1].weight, model[1].bias, model[1].gate, model[4].weight, model[4].bias]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in expected]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in rest]
    assert {id(p): each for p, each in optimizer.state.items()} == state
    gate = model[1].gate.clone()
    model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(gate, model[1].gate)
    swap(model, "group:2", optimizer=optimizer)
    assert len(optimizer.param_groups[1]["params"]) == 4
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}


def test_names_in_the_optimizer_follow() -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    swap(model, "switchable", optimizer=optimizer)
    held = dict(zip(optimizer.param_groups[0]["param_names"], optimizer.param_groups[0]["params"], strict=True))
    assert held == dict(model.named_parameters())


def test_what_was_kept_out_of_the_optimizer_stays_out() -> None:
    model: Any = plain().double()
    optimizer = torch.optim.SGD([model[0].weight, model[4].weight], lr=0.1)
    swap(model, "batch-instance", optimizer=optimizer)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    expected = [model[0].weight, model[4].weight, model[4].gate, model[1].gate]
    assert sorted(held) == sorted(id(p) for p in expected)


def test_a_new_weight_takes_the_place_of_the_old_one() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    model[1].weight = nn.Parameter(model[1].weight.double())  # another type than its bias: not to be shared
    model[1].bias.requires_grad_(False)
    order = [model[0].weight, model[1].weight, model[2].weight]
    optimizer = torch.optim.SGD(order, lr=0.1)
    swap(model, "group:2", optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model[i].weight) for i in range(3)]


def test_a_foreign_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match="optimizer holds no parameter of this model"):
        swap(plain(), "group:2", optimizer=torch.optim.SGD(plain().parameters(), lr=0.1))
    with pytest.raises(UsageError, match=r"optimizer must be a torch\.optim\.Optimizer, got float"):
        swap(plain(), "group:2", optimizer=0.1)  # pyright: ignore
