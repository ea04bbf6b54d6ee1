"""Looking into a network: values per statistic, gradient growth against theory, norms before global pooling."""

import math

import pytest
import torch
from torch import nn

from normwise.layers import spec
from normwise.probe.measure import gradient_growth, norm_cost, values_per_statistic
from normwise.probe.record import Record, record
from normwise.probe.structure import before_global_pooling
from normwise.surgery.swap import swap


def records_of(text, shape=(4, 8, 6, 5)):
    model = nn.Sequential(spec.build(text, shape[1]))
    with record(model) as records:
        model(torch.randn(shape))
    return records


@pytest.mark.parametrize(
    ("text", "values"),
    [("batch", 120), ("instance", 30), ("group:4", 60), ("layer", 240), ("none", 0), ("switchable", 30)],
)
def test_values_per_statistic(text, values):
    assert [values_per_statistic(r) for r in records_of(text)] == [values]


def test_values_per_statistic_of_tokens():
    model = nn.Sequential(nn.LayerNorm(7))
    with record(model) as records:
        model(torch.randn(2, 3, 7))
    assert values_per_statistic(records[0]) == 7


def test_values_per_statistic_of_planes_with_features_last():
    model = nn.Sequential(spec.build("grn:axis=-1", 7))
    with record(model) as records:
        model(torch.randn(2, 4, 3, 7))
    assert values_per_statistic(records[0]) == 12


def test_hooks_are_taken_off_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert not model[0]._forward_pre_hooks


def test_a_remembering_norm_is_cheaper_than_one_that_measures():
    costs = {text: norm_cost(records_of(text)[0]) for text in ("none", "batch", "instance", "switchable")}
    assert costs["none"] == costs["batch"] < costs["instance"] < costs["switchable"]


def test_norms_that_do_the_same_in_evaluation_cost_the_same():
    costs = {norm_cost(records_of(text)[0]) for text in ("batch", "ghost", "renorm", "sync", "frozen", "domain")}
    assert len(costs) == 1


def entries(squares):
    state = spec.read(nn.BatchNorm2d(1))
    assert state is not None
    return [Record(str(i), state, (1, 1), squared_gradient=square) for i, square in enumerate(squares)]


def test_gradient_growth_is_the_factor_per_layer_towards_the_input():
    assert gradient_growth(entries([16.0, 8.0, 4.0, 2.0])) == pytest.approx(2.0)
    assert gradient_growth(entries([3.0])) is None


@pytest.mark.parametrize(("batch", "theory"), [(8, 1.788), (32, 1.522)])
def test_gradient_growth_of_batch_norm_is_the_mean_field_rate(batch, theory):
    """Yang et al., 2019, theorem 8, for a deep ReLU network at initialization."""
    torch.manual_seed(0)
    width, depth = 300, 16
    layers = [
        layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    rates = []
    for _ in range(3):
        with record(model) as records:
            output = model(torch.randn(batch, width))
        (output * torch.randn_like(output)).sum().backward()
        rates.append(gradient_growth(records[1:]) or math.nan)
    assert sum(rates) / len(rates) == pytest.approx(theory, rel=0.06)


class Functional(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.norm, self.pool = nn.InstanceNorm2d(3, affine=True), pool

    def forward(self, x):
        return self.pool(self.norm(x))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: torch.mean(x, dim=(-2, -1)),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1),
    ],
)
def test_norm_before_global_pooling_is_found(pool):
    assert before_global_pooling(Functional(pool)) == ["norm"]


@pytest.mark.parametrize("pool", [torch.relu, lambda x: x.mean(1), lambda x: nn.functional.adaptive_avg_pool2d(x, 2)])
def test_other_uses_are_not_fatal(pool):
    assert before_global_pooling(Functional(pool)) == []


def test_own_norms_are_found_through_dropout():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
    swap(model, "instance")
    assert before_global_pooling(model) == ["0"]


def test_a_model_that_cannot_be_traced_gives_nothing():
    assert before_global_pooling(Functional(lambda x: x if x.sum() > 0 else -x)) == []
