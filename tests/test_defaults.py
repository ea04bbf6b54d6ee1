"""What a task does where it is silent, against PyTorch's and scikit-learn's answers."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.metrics import log_loss as sklearn_log_loss
from torch import Tensor, nn

from normwise.data import Arrays, Batches
from normwise.errors import UsageError
from normwise.experiment import defaults


class Say(nn.Module):
    """Returns its input, and remembers whether it was in training mode and kept gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_inference_mode_enabled()))
        return x


DRAWN = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(57, 4, generator=DRAWN), torch.randint(0, 4, (57,), generator=DRAWN)
GUESSES, VALUES = torch.randn(2, 57, 3, generator=DRAWN)


@pytest.mark.parametrize("steps", [10, 77, 360, 1500])
def test_rate_is_that_of_one_cycle(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings(action="ignore"):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert defaults.rate_factor(step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_rate_of_a_handful_of_steps(steps: int) -> None:
    rates = [defaults.rate_factor(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1, abs=0.3)


def test_accuracy_and_log_loss_are_scikit_learns() -> None:
    batches = Batches(Arrays(LOGITS, CLASSES), 10)
    assert defaults.accuracy(Say(), batches) == pytest.approx(accuracy_score(CLASSES, LOGITS.argmax(1)))
    expected = sklearn_log_loss(CLASSES, LOGITS.double().softmax(1).numpy(), labels=range(4))
    assert defaults.log_loss(Say(), batches) == pytest.approx(expected)


@pytest.mark.parametrize(("guess", "truth"), [(GUESSES, VALUES), (GUESSES[:, :1], VALUES[:, 0])], ids=["three", "one"])
def test_r_squared_is_scikit_learns(guess: Tensor, truth: Tensor) -> None:
    expected = r2_score(truth.numpy(), guess.numpy())
    assert defaults.r_squared(Say(), Batches(Arrays(guess, truth), 10)) == pytest.approx(expected)


def test_r_squared_of_an_output_that_does_not_vary() -> None:
    truth = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    guess = torch.tensor([[1.5, 2.0], [1.0, 3.0]])
    assert defaults.r_squared(Say(), Batches(Arrays(guess, truth), 10)) == 0.5
    assert defaults.r_squared(Say(), Batches(Arrays(truth, truth), 10)) == 1.0


def test_losses_are_pytorchs() -> None:
    expected = nn.functional.cross_entropy(LOGITS, CLASSES)
    assert torch.equal(defaults.cross_entropy(Say(), (LOGITS, CLASSES)), expected)
    expected = nn.functional.mse_loss(GUESSES[:, 0], VALUES[:, 0])
    assert torch.equal(defaults.squared_error(Say(), (GUESSES[:, :1], VALUES[:, 0])), expected)


def test_pixels_are_scored_one_by_one() -> None:
    logits, labels = torch.randn(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    score = defaults.accuracy(Say(), Batches(Arrays(logits, labels), 3))
    assert score == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("score", [defaults.accuracy, defaults.log_loss, defaults.r_squared])
def test_scores_are_taken_in_evaluation_mode_and_modes_come_back(score) -> None:
    say = Say()
    model = nn.Sequential(say, nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    model[2].eval()
    truth = torch.randn(57, 4) if score is defaults.r_squared else CLASSES
    first = score(model, Batches(Arrays(LOGITS, truth), 10))
    assert set(say.seen) == {(False, True)}
    assert [module.training for module in model] == [True, True, False]
    assert isinstance(first, float)
    assert score(model, Batches(Arrays(LOGITS, truth), 10)) == first


def test_modes_come_back_after_an_exception() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="no"):
        defaults.accuracy(model, Batches(Arrays(LOGITS, CLASSES)))
    assert model.training
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("score", [defaults.accuracy, defaults.log_loss])
def test_nan_is_no_answer(score) -> None:
    logits = LOGITS.clone()
    logits[3, 2] = torch.nan
    assert np.isnan(score(Say(), Batches(Arrays(logits, CLASSES))))
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("score", [defaults.accuracy, defaults.log_loss, defaults.r_squared])
def test_score_of_no_batch_is_nan(score) -> None:
    assert np.isnan(score(Say(), Batches(Arrays(LOGITS, CLASSES), 99, drop_last=True)))


@pytest.mark.parametrize(
    ("batch", "classes", "message"),
    [
        ({"x": LOGITS}, 4, "a batch that is a dict needs the task's own loss"),
        ((LOGITS,), 4, "a batch that is a tuple of 1"),
        (
            (LOGITS, CLASSES),
            5,
            r"one value for each of the 5 classes, an output of shape \(57, 5\), got \(57, 4\)",
        ),
        ((LOGITS[:, 0], CLASSES), 4, r"an output of shape \(57, 4\), got \(57,\)"),
        ((LOGITS[:9], CLASSES), 4, r"an output of shape \(57, 4\), got \(9, 4\)"),
        (
            (LOGITS, VALUES),
            None,
            r"as many values as there are targets: outputs \(57, 4\), targets \(57, 3\)",
        ),
        (
            ((LOGITS, LOGITS), CLASSES),
            4,
            "the model must return a tensor for the default loss, got a tuple of 2",
        ),
    ],
)
def test_outputs_that_the_default_loss_cannot_understand(batch, classes: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        defaults.check_output(Say(), batch, classes)


def test_outputs_that_fit() -> None:
    defaults.check_output(Say(), (LOGITS, CLASSES), 3)
    defaults.check_output(Say(), (GUESSES, VALUES), None)
    defaults.check_output(Say(), (torch.zeros(2, 3, 5, 5), torch.zeros(2, 5, 5)), 3)
