"""The arms: which can run, which are the same, what a forward pass says of them."""

import pytest
import small_task
import torch
from torch import nn

from normwise.errors import UsageError
from normwise.experiment.arms import survey
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting

SETTING = Setting()


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(120, 3, 8, 8, generator=generator), torch.arange(120) % 3


class Images:
    """Three channels, eight by eight, three classes."""

    data = staticmethod(images)
    epochs = 1

    def model(self):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 3),
        )  # fmt: skip


@pytest.fixture(scope="module")
def arms():
    found, left = survey(resolve(Images()), ["batch", "instance", "group:2", "none", "layer"], [4, 16], SETTING)
    assert not left
    return {arm.name: arm for arm in found}


def test_the_users_model_is_an_arm_and_batch_is_the_same(arms):
    assert list(arms) == ["batch", "instance", "group:2", "none", "layer"]
    assert arms["batch"].aliases == ("keep",)


def test_values_are_those_of_the_poorest_layer(arms):
    assert arms["batch"].values == {4: 4 * 16, 16: 16 * 16}
    assert arms["instance"].values == {4: 16, 16: 16}
    assert arms["instance"].smallest == {4: "5", 16: "5"}
    assert arms["layer"].values[4] == 6 * 16  # six channels of 4x4, fewer than four of 8x8
    assert arms["none"].values == {4: 0, 16: 0}


def test_what_folds_costs_nothing(arms):
    assert arms["batch"].cost == arms["none"].cost == 0
    assert arms["instance"].cost == arms["layer"].cost > 0


def test_parameters_are_equal_for_all_arms(arms):
    assert len({arm.parameters for arm in arms.values()}) == 1


def test_instance_norm_before_global_pooling_is_noticed(arms):
    assert arms["instance"].before_pooling == ("5",)
    assert arms["batch"].before_pooling == ()


def test_pools_are_told(arms):
    assert (arms["batch"].pools, arms["none"].pools) == ("N,HW", "nothing")


def test_group_of_every_channel_is_instance_and_runs_once():
    class Four(Images):
        def model(self):
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    found, _ = survey(resolve(Four()), ["instance", "group:4", "none"], [8], SETTING)
    assert {arm.name: arm.aliases for arm in found} == {"keep": (), "instance": ("group:4",), "none": ()}


def test_impossible_default_arm_is_left_out_with_a_reason():
    class Planes(small_task.Unscored):
        model = staticmethod(small_task.small_planes)
        delta = 0.1

        def data(self):
            inputs, targets = small_task.data().tensors
            return inputs.repeat(1, 3)[:, :9].reshape(-1, 1, 3, 3), targets

    _, left = survey(resolve(Planes()), None, [16], SETTING)
    assert [entry.norm for entry in left] == ["instance", "group"]
    assert "layer '1'" in left[0].why


def test_built_in_networks_have_no_keep():
    found, _ = survey(resolve("digits"), ["batch", "none"], [8], SETTING)
    assert [arm.name for arm in found] == ["batch", "none"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["instnace", "none"], "did you mean instance"),
        (["group:5"], "1, 2 or 4 would do"),
        (["layer-token"], "alters no layer"),
        (["adain"], "alters no layer of this network; this one stands in for no norm"),
        (["batch"], "at least two different arms, got batch = keep"),
    ],
)
def test_bad_arms_are_refused(named, message):
    with pytest.raises(UsageError, match=message):
        survey(resolve(Images()), named, [8], SETTING)


def test_batch_must_not_exceed_the_data():
    with pytest.raises(UsageError, match="67 training samples"):
        survey(resolve(Images()), ["none"], [100], SETTING)
