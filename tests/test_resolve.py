"""Whatever the user brings becomes a task; what is missing gets a default that is said; errors are clear."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import VALUES, Dicts, X, Y, arrays, dict_loss, dict_score, given, net, thirds
from torch import Tensor, nn

from normwise.data import Arrays, Batches
from normwise.errors import UsageError
from normwise.experiment import defaults
from normwise.experiment.resolve import resolve


class TestBuiltIn:
    def test_digits(self) -> None:
        found = resolve("digits")
        assert (found.name, found.model_name, found.data_name) == ("digits", "cnn", "digits")
        assert (found.score_name, found.delta, found.lr, found.epochs) == ("accuracy", 0.01, 0.1, 13)
        assert found.failed_score == pytest.approx(183 / 1797)
        assert not found.own_model
        assert found.log_loss is defaults.log_loss
        assert "6,274 parameters" in found.summary()
        assert repr(found) == "Task(digits: cnn, accuracy, 13 epochs)"

    @pytest.mark.parametrize(("model", "name"), [("mlp:width=32", "mlp:width=32"), (None, "cnn"), ("resnet", "resnet")])
    def test_another_network(self, model: str | None, name: str) -> None:
        found = resolve("digits", model=model)
        assert found.model_name == name
        assert found.model()(torch.randn(2, 1, 8, 8)).shape == (2, 10)

    def test_data_of_ones_own_bring_their_name_and_network(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "my flowers.npz", x=X.numpy(), y=Y.numpy())
        found = resolve("digits", data=str(tmp_path / "my flowers.npz"))
        assert (found.name, found.model_name, found.data_name) == ("my-flowers", "mlp", "my flowers")

    def test_model_and_data_without_a_task(self) -> None:
        found = resolve(model=net, data=(X, Y))
        assert (found.own_model, found.model_name, found.sizes()["train"]) == (True, "net", 67)

    def test_a_task_stays_as_it_is(self) -> None:
        found = resolve("digits")
        assert resolve(found) is found

    def test_another_length(self) -> None:
        found = resolve("digits")
        longer = found.with_epochs(2.5)
        assert longer.epochs == 2.5
        assert any("Training length: 13 epochs" in sentence for sentence in found.assumptions)
        assert not any("Training length" in sentence for sentence in longer.assumptions)


class TestObject:
    def test_what_is_missing_gets_a_default(self) -> None:
        found = resolve(given())
        assert (found.loss, found.score, found.optimizer) == (
            defaults.cross_entropy,
            defaults.accuracy,
            defaults.sgd,
        )
        assert (found.epochs, found.lr, found.delta) == (180, 0.1, 0.01)
        assert (found.schedule, found.collate, found.higher_is_better) == (None, None, True)
        text = " ".join(found.assumptions)
        for part in (
            "cross-entropy over 3 classes",
            "Score: accuracy",
            "SGD with momentum 0.9",
            "one-cycle",
            "180 epochs",
        ):
            assert part in text

    def test_what_is_said_is_taken_and_not_called_an_assumption(self) -> None:
        def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

        found = resolve(
            given(name="flowers", loss=defaults.cross_entropy, optimizer=torch.optim.Adam, schedule=schedule,
                  epochs=3, lr=0.02, delta=0.05, failed_score=0.0, split=thirds)
        )  # fmt: skip
        assert (found.name, found.epochs, found.lr, found.delta) == ("flowers", 3, 0.02, 0.05)
        assert (found.schedule, found.failed_score, found.log_loss) == (schedule, 0.0, None)
        assert found.assumptions == ("Score: accuracy.",)

    def test_a_class_with_methods(self) -> None:
        class Flowers:
            higher_is_better = False

            def model(self) -> nn.Module:
                return net()

            def data(self) -> Any:
                return Dicts()

            loss = staticmethod(dict_loss)

            def score(self, model: nn.Module, loader: Any) -> Tensor:
                return 1 - dict_score(model, loader)

        found = resolve(Flowers)
        assert (found.name, found.model_name, found.data_name) == ("Flowers", "Sequential", "Flowers")
        assert (found.score_name, found.delta, found.higher_is_better) == ("score", None, False)
        batches = Batches(found.parts(0).judge, 10, collate=found.collate)
        score = found.score(found.model(), batches)
        assert isinstance(score, float)
        assert 0 < found.failed_score <= 1  # that of the untrained network

    def test_own_score_of_a_known_name_has_its_delta(self) -> None:
        assert resolve(given(score=lambda model, loader: 0.5, score_name="accuracy")).delta == 0.01

    def test_regression(self) -> None:
        found = resolve(given(model=lambda: net(1), data=lambda: (X, VALUES[:, 0])))
        assert (found.score_name, found.delta, found.failed_score, found.log_loss) == ("R^2", 0.01, 0.0, None)
        train_set = found.data().train
        assert isinstance(train_set, Arrays)
        assert train_set.targets.mean().abs() < 1e-5
        assert train_set.targets.std(correction=0) == pytest.approx(1, abs=1e-5)
        assert "standardized targets" in " ".join(found.assumptions)
        assert isinstance(found.score(found.model(), Batches(found.parts(0).judge)), float)

    def test_regression_with_an_own_loss_sees_the_targets_as_they_are(self) -> None:
        found = resolve(given(model=lambda: net(1), data=lambda: (X, VALUES), loss=defaults.squared_error))
        assert torch.equal(found.data().train[3][1], VALUES[3])

    def test_judge_targets_are_standardized_like_those_to_train_on(self) -> None:
        sets = (X, VALUES), (X[:40], VALUES[:40] * 2)
        found = resolve(given(model=lambda: net(1), data=lambda: sets))
        expected = (VALUES[:40] * 2 - VALUES.mean()) / VALUES.std(correction=0)
        torch.testing.assert_close(arrays(found.data().judge).targets, expected)

    @pytest.mark.parametrize(("optimizer", "rate"), [(torch.optim.Adam, 0.001), (torch.optim.RMSprop, 0.01)])
    def test_another_optimizer_has_its_usual_rate(self, optimizer: Any, rate: float) -> None:
        found = resolve(given(optimizer=lambda params, lr: optimizer(params, lr=lr)))
        assert found.lr == rate
        assert f"centred on {rate:g} " in " ".join(found.assumptions)

    def test_an_instance_is_copied_and_said_to_start_the_same(self) -> None:
        model = net()
        found = resolve(model=model, data=(X, Y))
        copy = found.model()
        for weight in copy.parameters():
            weight.data.zero_()
        assert next(model.parameters()).abs().sum() > 0
        assert "same weights" in " ".join(found.assumptions)
        assert "same weights" not in " ".join(resolve(model=net, data=(X, Y)).assumptions)

    def test_resolving_disturbs_no_random_numbers(self) -> None:
        state = torch.get_rng_state()
        resolve(given())
        assert torch.equal(torch.get_rng_state(), state)


def no_module() -> int:
    return 3


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("digts", {}, r"unknown task 'digts'; known: digits, fashion-mnist, .*; did you mean 'digits'\?"),
        (None, {}, "task has no data: give it data"),
        (None, {"model": "cnn"}, "task has no data"),
        ("digits", {"model": "cnnn"}, r"unknown network 'cnnn'.*did you mean 'cnn'\?"),
        ("digits", {"model": no_module}, "no_module must return a torch.nn.Module, got 3"),
        ("digits", {"model": lambda width: net()}, "makes the model and must be callable without arguments"),
        ("digits", {"model": 3}, "the model must be a torch.nn.Module or a function that makes one, got 3"),
        ("digits", {"model": nn.Flatten}, "the model has no parameters to train"),
        (
            "digits",
            {"model": net},
            r"the model failed on a batch with a Tensor of shape \(4, 1, 8, 8\): RuntimeError",
        ),
        ("digits", {"data": (X, Y), "model": "cnn"}, r"cnn needs images .* got samples of shape \(6,\)"),
        ("digits", {"data": (X.long(), Y)}, "built-in network mlp needs float inputs, got torch.int64"),
        (
            "digits",
            {"data": (X, Y), "model": lambda: net(2)},
            r"each of the 3 classes, .* \(4, 3\), got \(4, 2\)",
        ),
        ("digits", {"data": (X, VALUES), "model": lambda: net(2)}, r"outputs \(4, 2\), targets \(4, 1\)"),
        ("digits", {"data": Dicts()}, r"samples that are a dict need the task's own loss\(model, batch\)"),
        (net(), {}, r"must be a task, .* got a Sequential; a network alone is given as the model"),
        (lambda: 3, {}, r"<lambda>\(\) must be a task, an object with model\(\) and data\(\), got 3"),
        (lambda a, b: 3, {}, "requires 2 arguments; a function that makes a task requires none"),
        (3, {}, "the task must be a task, an object|must be a task"),
        (given(data=lambda: 1 / 0), {}, "reading data failed: ZeroDivisionError: division"),
        (given(model=lambda: 1 / 0), {}, "failed: ZeroDivisionError: division by zero"),
        (given(epochs=0), {}, "the task's epochs must be positive, got 0"),
        (given(lr=-1.0), {}, "the task's lr must be positive, got -1.0"),
        (given(lr="fast"), {}, "the task's lr must be a finite number, got 'fast'"),
        (given(delta=0.0), {}, "the task's delta must be positive"),
        (given(groups=[1, 2]), {}, "groups must have one label for each of the 120 samples, got 2"),
        (
            given(loss=lambda model, batch: 3.0),
            {},
            "must return a tensor with one number and its gradient, got 3.0",
        ),
        (given(loss=lambda model, batch: torch.zeros(())), {}, r"shape \(\) without a gradient"),
        (
            given(loss=lambda model, batch: model(batch[0]).sum() * torch.nan),
            {},
            "must be finite for the untrained",
        ),
        (
            given(score=lambda model, loader: "good"),
            {},
            r"score\(model, loader\) must return a number, got 'good'",
        ),
        (
            given(score=lambda model, loader: model.nothing),
            {},
            r"score\(model, loader\) failed on a batch with",
        ),
        (given(score=lambda model, loader: torch.nan), {}, "failed_score must be a finite number, got nan"),
        (given(optimizer=lambda params, lr: 3), {}, "must return a torch.optim.Optimizer, got 3"),
        (given(schedule=lambda optimizer, steps: 3), {}, r"must return a scheduler with step\(\), got 3"),
        (given(collate=lambda samples: {"x": X}), {}, "a batch that is a dict needs the task's own loss"),
        (given(data=lambda: (X[:2], Y[:2])), {}, "the data are too few to split"),
    ],
)
def test_bad_input_gets_one_sentence(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(task, **options)
    assert "\n" not in str(caught.value)
