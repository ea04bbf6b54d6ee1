"""accelerate compares norms and outputs on its example: rounding may move them, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import Pooled, image, resnet
from models import untouched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels
from normwise.errors import UsageError
from normwise.surgery import outputs
from normwise.surgery.tape import Join

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]


def test_a_difference_is_noticed_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = resnet(), image()
    whole = Join.run

    def wrong(self: Join, block: nn.Module, slots: list[Any]) -> None:
        whole(self, block, slots)
        slots[self.steps[-1].out] = slots[self.steps[-1].out] * 1.01

    monkeypatch.setattr(Join, "run", wrong)
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation the outputs .* more than rounding explains"):
        nw.accelerate(model, x)


def test_a_backward_pass_that_breaks_is_noticed_and_taken_back() -> None:
    class Late(nn.Module):
        """Writes to the residual that SiLU's backward pass needs here, and not in PyTorch, by another name."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            residual = x * 2
            other = residual.view_as(x)
            y = F.silu(self.norm(self.conv(x)) + residual)
            return y + other.mul_(2)

    model, x = Late(), image()
    with untouched(model), pytest.raises(UsageError, match=r"in training the backward pass fails .*; nothing was ch"):
        nw.accelerate(model, x)


def test_a_model_without_a_backward_pass_is_compared_all_the_same() -> None:
    class Broken(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x).sigmoid()
            return y + y.mul_(2)

    for model in (Pooled().requires_grad_(False), Broken()):
        assert any("in training the outputs" in note for note in nw.accelerate(model, image()).notes)


class Picky(Pooled):
    """Trains with PyTorch's norm only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and type(self.norm) is not nn.BatchNorm2d:
            raise ValueError("only PyTorch's norms are trained here")
        return super().forward(x)


def test_a_model_that_trained_before_the_change_must_train_after_it() -> None:
    model, x = Picky(), image()
    with (
        untouched(model),
        pytest.raises(UsageError, match=r"after the change: in training the model .*only PyTorch's norms"),
    ):
        nw.accelerate(model, x)


def test_what_a_norm_skipped_in_the_comparison_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "moved", lambda *_: (1.0, 0.0))
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nw.BatchNorm2d(4), nn.ReLU())
    model[0].table, x = torch.eye(3).to_sparse(), image()
    x[0, 0, 0, 0] = torch.inf
    with (
        pytest.warns(match="a batch with inf or NaN was left out"),
        pytest.raises(UsageError, match="nothing was changed"),
    ):
        nw.accelerate(model, x)
    assert (int(model[1].skipped), model[1]._told) == (0, False)


class Steep(nn.Module):
    """Multiplies what rounding leaves of a difference."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.norm, self.steepness = nn.BatchNorm2d(3), steepness

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * torch.sin(self.steepness * F.relu(self.norm(x)))


class Close(nn.Module):
    """Of values that differ in the last digits the norm makes +1 and -1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Counted(nn.Module):
    """Beside its outputs a number that the last digit of the norm changes by whole steps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm(x))
        return y, (y * 1e9).floor().remainder(5)


class OneLarge(nn.Module):
    """PyTorch's group norm in channels_last loses the digits of a large mean, and ours does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + 3e3
        return F.relu(self.norm(y.contiguous(memory_format=torch.channels_last)))


CARRIED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "all of it": (lambda: Steep(1e7), image),
    "much of it": (lambda: Steep(1e4), image),
    "close values": (Close, lambda: torch.ones(2, 3, 4, 4) + 1e-6 * torch.randn(2, 3, 4, 4)),
    "counted": (Counted, image),
    "PyTorch's own error": (OneLarge, image),
}


@pytest.mark.parametrize("name", CARRIED)
def test_what_a_network_makes_of_the_last_digit_is_no_difference(name: str) -> None:
    make, example = CARRIED[name]
    model, x = make(), example()
    model.train()(x)
    notes = nw.accelerate(model, x).notes
    assert [note.split(" the outputs")[0] for note in notes] == ["in evaluation", "in training"]
    assert any("each norm is right to rounding, which the network carries so far" in note for note in notes)
    assert not any("carries" in note for note in nw.accelerate(resnet(), image()).notes)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_with_checkpoints_under_autocast_is_compared(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.drop = resnet(), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.net.conv1(x)
                x = checkpoint(self.net.layer1, x, use_reentrant=reentrant)
                return self.drop(checkpoint(self.net.layer2, x, use_reentrant=reentrant))

    notes = nw.accelerate(Checkpointed(), image()).notes
    assert [note.split(" the outputs")[0] for note in notes] == ["in evaluation", "in training"]


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "the output": ("norm", lambda y, *rest: (y * 1.1, *rest)),
    "the input's gradient": ("norm_backward", lambda dx, *rest: (dx * 1.1, *rest)),
    "the weight's gradient": ("norm_backward", lambda dx, dw, *rest: (dx, dw + 0.1 * dw.norm(), *rest)),
    "the bias's gradient": ("norm_backward", lambda dx, dw, db, *rest: (dx, dw, db * 0, *rest)),
    "the residual's gradient": ("norm_backward", lambda *grads: (*grads[:3], grads[3].clamp(min=0), grads[4])),
}


@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "half"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_found_whatever_the_network_makes_of_it(
    what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, wrong = WRONG[what]
    whole = getattr(kernels, name)
    monkeypatch.undo()  # small inputs, for which PyTorch is asked, are compared all the same
    monkeypatch.setattr(kernels, name, lambda *args: wrong(*whole(*args)))
    model: Any = resnet()
    model.fc = nn.Sequential(Steep(1e6))
    model.fc[0].norm = nn.Identity()
    x = image()
    if kind == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if kind == "half":
        model, x = model.bfloat16(), x.bfloat16()
    with untouched(model), pytest.raises(UsageError, match=rf"{what} of a norm on an .* float64 .*; nothing was chan"):
        nw.accelerate(model, x)


def test_an_output_lost_behind_another_is_noticed() -> None:
    class Lost(Pooled):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return x, y * float("nan") if isinstance(self.norm, nw.BatchNorm2d) else y

    model, x = Lost(), image()
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation .* moved by at most nan"):
        nw.accelerate(model, x)


def test_nan_that_stays_in_its_place_is_no_movement() -> None:
    class Undefined(Pooled):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y.masked_fill(torch.arange(y.shape[-1]) == 0, float("nan"))

    assert all("nan" not in note for note in nw.accelerate(Undefined(), image()).notes)


def group_of_each(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, group_of_each])
def test_an_example_without_structure_is_no_difference(norm: Callable[[int], nn.Module], dtype: torch.dtype) -> None:
    """Of equal values a norm makes its bias and what rounding left, which ReLU may pass or stop."""
    for seed in range(12):
        torch.manual_seed(seed)
        head = nn.Conv2d(3, 8, 1), norm(8), nn.ReLU()
        model = nn.Sequential(*head, nn.Conv2d(8, 8, 3), norm(8), nn.SiLU()).to(dtype)
        assert nw.accelerate(model, torch.zeros(2, 3, 16, 16, dtype=dtype)).applied


def test_infinity_that_stays_in_its_place_is_no_movement() -> None:
    class Masked(Pooled):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y.masked_fill(torch.arange(y.shape[-1]) == 0, float("-inf"))

    notes = nw.accelerate(Masked(), image()).notes
    assert all("inf" not in note for note in notes)


def test_an_example_of_one_value_is_compared_in_evaluation_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    plan = nw.accelerate(model, torch.randn(1, 3))
    assert [note.split(":")[0] for note in plan.notes][-1] == "not compared in training"
    assert plan.applied
