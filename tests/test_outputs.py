"""accelerate compares the outputs of its example: rounding may move them, and nothing else."""

from typing import Any

import pytest
import torch
from blocks import Pooled, image, resnet, use_kernels
from models import untouched
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw
from normwise import kernels
from normwise.errors import UsageError
from normwise.surgery.tape import Join

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


@pytest.fixture(autouse=True)
def always_native(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels(monkeypatch)


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


def test_how_the_example_is_rounded_does_not_hang_on_the_generators() -> None:
    def seen(seed: int) -> list[Tensor]:
        found: list[Tensor] = []
        model, x = Pooled(), torch.linspace(-1, 1, 4 * 3 * 6 * 6).view(4, 3, 6, 6)
        model.register_forward_pre_hook(lambda module, args: found.append(args[0].clone()))
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        nw.accelerate(model, x)
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert all(map(torch.equal, seen(1), seen(2)))


def test_what_a_norm_skipped_in_the_comparison_is_not_counted() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nw.BatchNorm2d(4), nn.ReLU())
    model[0].table, x = torch.eye(3).to_sparse(), image()
    x[0, 0, 0, 0] = torch.inf
    with (
        pytest.warns(match="a batch with inf or NaN was left out"),
        pytest.raises(UsageError, match="nothing was changed"),
    ):
        nw.accelerate(model, x)
    assert (int(model[1].skipped), model[1]._told) == (0, False)


def test_a_small_example_may_move_as_far_as_its_own_rounding_moves_it() -> None:
    """Of two values per channel the norm makes +1 and -1, however close they are: the last digit decides."""

    class Close(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=1e-12)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)))

    x = torch.ones(2, 3, 4, 4) + 1e-6 * torch.randn(2, 3, 4, 4)
    notes = nw.accelerate(Close(), x).notes
    assert "the last digit of the example alone moves them by" in notes[-1]


class Steep(nn.Module):
    """Multiplies what rounding leaves of a difference."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.norm, self.steepness = nn.BatchNorm2d(3), steepness

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * torch.sin(self.steepness * F.relu(self.norm(x)))


def test_a_network_may_move_as_far_as_rounding_moves_it_in_evaluation_too() -> None:
    model = Steep(1e4)
    model.train()(image())
    notes = nw.accelerate(model, image()).notes
    assert "in evaluation the outputs of the example moved by" in notes[0]
    assert "the last digit of the example alone moves them by" in notes[0]
    assert "larger one" not in notes[0]


@pytest.fixture
def wrong_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that give the activation the wrong values."""
    whole = kernels.norm

    def norm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, var = whole(*args)
        return y * 1.05, mean, var

    monkeypatch.setattr(kernels, "norm", norm)


class Counted(nn.Module):
    """Beside its outputs a number that the last digit of the input changes by whole steps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.norm(x)), (x * 1e9).floor().remainder(5)


@pytest.mark.usefixtures("wrong_norms")
def test_an_output_that_rounding_moves_far_is_no_leave_for_the_others() -> None:
    model, x = Counted(), image()
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation .* more than rounding explains"):
        nw.accelerate(model, x)


@pytest.mark.usefixtures("wrong_norms")
def test_where_the_last_digit_decides_everything_nothing_can_be_said_in_evaluation() -> None:
    model, x = Steep(1e6), image()
    model.train()(x)
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation .* last digit .* more than rounding expl"):
        nw.accelerate(model, x)


def test_an_output_lost_behind_another_is_noticed() -> None:
    class Lost(Pooled):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return x, y * float("nan") if isinstance(self.norm, nw.BatchNorm2d) else y

    model, x = Lost(), image()
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation .* moved by up to nan"):
        nw.accelerate(model, x)


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
