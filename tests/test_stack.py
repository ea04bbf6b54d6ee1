"""Stacked trials: each member trains as it does alone, whatever the others do; what cannot be stacked is told."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.stack import Members
from normwise.experiment.stack_graph import grouped
from normwise.experiment.stack_layers import Fused
from normwise.experiment.stack_loss import make_losses
from normwise.experiment.stacked_train import Stack, train_stack
from normwise.experiment.task import Task
from normwise.experiment.train import build, environment, standard, train
from normwise.experiment.trial import Trial, UnstackableError

IMAGES = torch.randn(150, 2, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long() + (IMAGES[:, 0].mean((1, 2)) > 0.1).long()
DEFAULT_ARMS = ("keep", "batch", "instance", "group:4", "layer", "none")


class Net(nn.Module):
    """Most that the surgery knows: residual, concatenation, pooling, views, functional calls, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.2)
        self.linear = nn.Linear(16 * 9, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = torch.cat([x, self.drop(self.norm2(self.again(x))) + x], dim=1)
        x = F.max_pool2d(x, 2)
        x = self.linear(x.view(x.size(0), -1)).tanh()
        return self.out(F.dropout(x, 0.3, self.training))


class Images:
    """Images with three classes, trained for one epoch."""

    epochs, model = 1, Net

    def __init__(self, **changes: Any) -> None:
        self.__dict__.update(changes)

    def data(self) -> tuple[Tensor, Tensor]:
        return IMAGES, LABELS


def small(**changes: Any) -> Task:
    return resolve(Images(**changes))


@pytest.fixture(scope="module")
def images() -> Task:
    return small()


def trials(
    arm: str = "keep", count: int = 3, batch_size: int = 6, length: float = 1.0, *, channels_last: bool = False
) -> list[Trial]:
    """Two seeds share a rate, two rates a seed."""
    rates = itertools.cycle((0.005, 0.015))
    more = {"stack": 4, "channels_last": channels_last}
    return [Trial(arm, batch_size, next(rates), seed // 2, length, **more) for seed in range(count)]


def stacked(task: Task, members: Sequence[Trial]) -> Stack:
    with environment(members[0]):
        stack = Stack(task, members, Setting())
        stack.fit()
    return stack


def losses_alone(task: Task, trial: Trial) -> list[float]:
    with environment(trial):
        return standard(task, trial, Setting())[0].losses


def assert_as_alone(task: Task, members: Sequence[Trial], tolerance: float = 2e-5) -> None:
    """Every step's loss is that of the member trained alone; in time rounding grows, as between any two kernels."""
    stack = stacked(task, members)
    for trial, fit in zip(members, stack.fits, strict=True):
        alone = losses_alone(task, trial)
        assert len(alone) == len(fit.losses) >= 10
        assert fit.losses[:8] == pytest.approx(alone[:8], rel=tolerance, abs=tolerance), trial
        assert fit.losses == pytest.approx(alone, rel=100 * tolerance, abs=100 * tolerance), trial


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("arm", [*DEFAULT_ARMS, "batch-instance"])
def test_every_default_arm_trains_as_alone_dropout_included(images: Task, arm: str, channels_last: bool) -> None:
    assert_as_alone(images, trials(arm, channels_last=channels_last))


@pytest.mark.parametrize("arm", ["batch", "group:4"])
def test_a_resnet_with_pixels_side_by_side_trains_as_alone(arm: str) -> None:
    assert_as_alone(small(model="resnet:width=4"), trials(arm, channels_last=True))


def test_pixels_lie_side_by_side_and_norms_are_joined_with_what_follows_them() -> None:
    members = Members([build(small(model="resnet:width=4"), "batch", seed) for seed in range(2)])
    network: Any = grouped(members, IMAGES, [], channels_last=True)
    seen = [module for module in network.children() if not isinstance(module, nn.Conv2d)]
    assert sum(isinstance(module, Fused) for module in seen) == 7
    assert not any(isinstance(module, nn.ReLU) for module in seen)
    convolutions = [module for module in network.children() if isinstance(module, nn.Conv2d)]
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    assert members.leaves["conv1.weight"].data_ptr() == members.flat.data_ptr()


def test_a_network_without_pixels_has_no_layout_to_choose() -> None:
    with pytest.raises(UnstackableError, match="no convolution has a layout to choose"):
        Stack(small(model="mlp:width=16"), trials("batch", channels_last=True), Setting())
    with pytest.raises(UnstackableError, match="SwitchableNorm, whose values may cross"):
        Stack(small(model="cnn:width=4"), trials("switchable", channels_last=True), Setting())


class ManyNorms(nn.Module):
    """PyTorch's own norms that normwise takes over in a stack, far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.BatchNorm2d(8)])
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x + 5)
        group, instance, batch = self.norms
        return self.out((group(x) + F.relu(instance(x)) + F.silu(batch(x) + x)).mean((2, 3)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_norms_of_pytorch_train_as_alone(channels_last: bool) -> None:
    assert_as_alone(small(model=ManyNorms), trials(channels_last=channels_last))


@pytest.mark.parametrize("arm", [*DEFAULT_ARMS, "switchable"])
@pytest.mark.parametrize("network", ["cnn:width=4", "mlp:width=16", "resnet:width=4"])
def test_built_in_networks_train_as_alone(network: str, arm: str) -> None:
    if network.startswith("mlp") and arm == "instance":
        return  # impossible alone too
    assert_as_alone(small(model=network), trials(arm))


def test_a_network_that_the_surgery_refuses_is_stacked_by_vmap() -> None:
    task = small(model="cnn:width=4")
    model = Members([build(task, "switchable", 0)] * 2)
    with pytest.raises(UnstackableError, match="SwitchableNorm, whose values may cross"):
        grouped(model, IMAGES, [])
    assert_as_alone(task, trials("switchable"))


def test_results_are_those_of_training_alone() -> None:
    images = small(epochs=5)
    for result in train_stack(images, trials("group:4", batch_size=20), Setting()):
        alone = train(images, result.trial, Setting())
        assert result.status == alone.status == "ok"
        assert result.measures == pytest.approx(alone.measures, abs=0.05)  # two of 42 samples
        assert [point[0] for point in result.curve] == [point[0] for point in alone.curve]
        assert result.seconds > 0


def test_regression_is_stacked() -> None:
    task = small(data=lambda: (IMAGES, IMAGES.mean((1, 2, 3))), model="cnn:width=4")
    assert task.score_name == "R^2"
    assert_as_alone(task, trials("group:4"))


def test_a_loss_of_the_users_own_is_mapped() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x) + model(-x), y, label_smoothing=0.1)

    assert_as_alone(small(model="cnn:width=4", loss=loss), trials("batch"))


def test_a_split_of_the_users_own_is_stacked() -> None:
    def split(seed: int) -> tuple[Any, ...]:
        return torch.randperm(150, generator=torch.Generator().manual_seed(seed)).split((90, 30, 30))

    assert_as_alone(small(model="cnn:width=4", split=split), trials("none"))


def test_a_member_of_nan_changes_no_other_by_one_bit(images: Task) -> None:
    def others(poison: float | None, arm: str, layout: bool) -> list[Tensor]:
        members = trials(arm, count=4, channels_last=layout)
        with environment(members[0]):
            stack = Stack(images, members, Setting())
            if poison is not None:
                with torch.no_grad():
                    for value in (*stack.members.parameters.values(), *stack.members.buffers.values()):
                        value[1] = poison if value.is_floating_point() else value[1]
            stack.fit()
        return [t for member in (0, 2, 3) for t in stack.members.state(member).values()]

    arms = "keep", "batch", "group:4", "batch-instance"
    for arm, layout, poison in itertools.product(arms, (False, True), (torch.nan, torch.inf)):
        healthy, beside = others(None, arm, layout), others(poison, arm, layout)
        assert all(torch.equal(a, b) for a, b in zip(healthy, beside, strict=True)), arm


def test_a_member_that_diverges_is_told_as_alone_and_the_others_go_on() -> None:
    images, members = small(model="cnn:width=4"), trials("none", count=4)
    wild = replace(members[1], learning_rate=1e25)
    results = {r.trial: r for r in train_stack(images, [members[0], wild, *members[2:]], Setting())}
    alone = train(images, wild, Setting())
    assert (results[wild].status, results[wild].reason) == ("diverged", alone.reason)
    assert results[wild].measures == pytest.approx(alone.measures)
    assert results[wild].curve == pytest.approx(alone.curve)
    for trial in (members[0], *members[2:]):
        assert results[trial].measures["last_loss"] == pytest.approx(
            train(images, trial, Setting()).measures["last_loss"], rel=1e-4
        )


def test_a_stack_that_diverges_as_a_whole_stops_early() -> None:
    wild = [replace(trial, learning_rate=1e25) for trial in trials("none")]
    stack = stacked(small(model="cnn:width=4"), wild)
    assert max(len(fit.losses) for fit in stack.fits) < stack.steps
    assert all(fit.reason.startswith("training loss") for fit in stack.fits)


def refused(model: Callable[[], nn.Module], x: Tensor = IMAGES) -> str:
    with pytest.raises(UnstackableError) as error:
        grouped(Members([model(), model()]), x, [])
    return str(error.value)


class Calls(nn.Module):
    """Whatever a test does with the images."""

    def __init__(self, forward: Callable[["Calls", Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.does, self.scale = nn.Conv2d(2, 2, 1), forward, nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.does(self, self.conv(x))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: x * net.scale, "the forward uses scale directly"),
        (lambda net, x: x.softmax(1), "softmax is an operation whose values may cross"),
        (lambda net, x: x + x.mean(1, keepdim=True), "mean is an operation whose values may cross"),
        (lambda net, x: x.view(-1, 36), "view mixes samples"),
        (lambda net, x: torch.cat([x, x], 2), "concatenates along another axis than the channels"),
        (lambda net, x: x * x.shape[1], "getitem is no tensor"),
        (lambda net, x: (x, x), "must return one tensor"),
        (lambda net, x: F.max_pool1d(x.flatten(2).mean(2), 2), "max_pool1d is an operation"),
        (lambda net, x: x if x.sum() > 0 else -x, "cannot be traced"),
        (lambda net, x: x.flatten(0, 1), "flatten mixes samples"),
        (lambda net, x: net.conv(x.flatten(0, 1)), "fails on a few samples"),
    ],
    ids=["parameter", "softmax", "mean", "view", "cat", "shape", "two", "rank", "control", "flatten", "fails"],
)
def test_what_could_cross_the_members_is_refused(forward: Callable[..., Any], reason: str) -> None:
    assert reason in refused(lambda: Calls(forward))


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_forward_hook(lambda module, args, output: None)
    return net


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tied, "1.weight is shared between layers"),
        (hooked, "a layer has hooks"),
        (lambda: nn.Sequential(nn.LayerNorm(4)), "0 is a LayerNorm, whose values may cross"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4, momentum=None)), "0 has the momentum None"),
        (lambda: nn.Linear(4, int(torch.randint(1, 10**6, ()))), "networks of different shape"),
        (lambda: nn.Linear(4, 2).double(), "must be float32"),
    ],
    ids=["tied", "hooked", "layer norm", "momentum", "shapes", "double"],
)
def test_networks_that_cannot_be_one_are_refused(model: Callable[[], nn.Module], reason: str) -> None:
    assert reason in refused(model, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": lambda params, lr: torch.optim.Adam(params, lr)}, "the optimizer is the task's own"),
        ({"schedule": lambda o, steps: torch.optim.lr_scheduler.ConstantLR(o)}, "the schedule is the task's own"),
        ({"collate": torch.utils.data.default_collate}, "the task's own collate"),
        ({"split": lambda seed: tuple((IMAGES[i::3], LABELS[i::3]) for i in range(3))}, "data sets of its own"),
    ],
    ids=["optimizer", "schedule", "collate", "split"],
)
def test_tasks_that_train_another_way_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnstackableError, match=reason):
        Stack(small(**changes), trials(), Setting())


def test_other_precision_and_too_large_batches_are_refused(images: Task) -> None:
    with pytest.raises(UnstackableError, match="only float32 on the CPU"):
        Stack(images, trials(), Setting(precision="bf16"))
    with pytest.raises(UnstackableError, match="smaller than a batch"):
        Stack(images, trials(batch_size=140), Setting())


def test_random_numbers_under_vmap_are_refused(images: Task) -> None:
    """They would be others than those of the member trained alone."""
    with pytest.raises(UnstackableError, match="random"):
        Stack(images, trials("switchable"), Setting())


def test_an_ignored_target_counts_as_alone() -> None:
    members = Members([nn.Linear(4, 3), nn.Linear(4, 3)])
    x, y = torch.randn(6, 2, 4), torch.tensor([[0, 1], [-100, 2], [1, -100], [2, 2], [0, -100], [1, 1]])
    from normwise.experiment.defaults import cross_entropy

    losses = make_losses(members, cross_entropy, (x[:, 0], y[:, 0]), [])(x, y)
    alone = [cross_entropy(members.load(members.state(k)), (x[:, k], y[:, k])).item() for k in range(2)]
    assert losses.tolist() == pytest.approx(alone)
