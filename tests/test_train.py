"""One trial: paired starts, a lean loop, honest failures."""

import math

import pytest
import small_task
import torch

import normwise as nw
from normwise.errors import UsageError
from normwise.experiment.calibrate import calibrate, probe
from normwise.experiment.evaluate import forget_statistics
from normwise.experiment.job import Job
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.train import Loop, build, environment, train
from normwise.experiment.trial import Result, Trial


class Small:
    """The small task with whatever a test changes."""

    model, data = staticmethod(small_task.model), staticmethod(small_task.data)
    epochs = 2

    def __init__(self, **changes):
        self.__dict__.update(changes)


@pytest.fixture(scope="module")
def task():
    return resolve(Small())


def weights(model):
    """What no arm changes: the weights of the linear layers."""
    return torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])


def test_all_arms_of_a_seed_start_from_the_same_weights(task):
    starts = [weights(build(task, arm, seed=3)) for arm in ("keep", "batch", "layer", "none", "switchable")]
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert not torch.equal(weights(build(task, "keep", seed=4)), starts[0])


def test_all_arms_of_a_seed_see_the_same_batches_in_the_same_order(task):
    def order(arm):
        seen = []
        spying = resolve(Small(loss=lambda model, batch: spy(model, batch, seen)))
        train(spying, Trial(arm, 16, 0.1, seed=5), Setting())
        return torch.stack(seen)

    def spy(model, batch, seen):
        if model.training:
            seen.append(batch[0].sum())
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    assert torch.equal(order("keep"), order("none"))


def test_same_trial_gives_the_same_result_bit_for_bit(task):
    trial = Trial("layer", 16, 0.1, seed=1)
    first, second = train(task, trial, Setting()), train(task, trial, Setting())
    assert (first.measures, first.curve) == (second.measures, second.curve)


def test_a_trial_leaves_random_numbers_and_kernels_alone(task):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    train(task, Trial("keep", 16, 0.1, seed=1, onednn=False), Setting())
    assert torch.equal(torch.rand(1), expected)
    assert torch._C._get_mkldnn_enabled()


def test_length_is_a_multiple_of_the_task(task):
    steps = {
        length: train(task, Trial("keep", 16, 0.1, 0, length), Setting()).measures["steps"] for length in (0.5, 1, 2)
    }
    per_epoch = len(task.parts(0).train) // 16
    assert steps == {0.5: per_epoch, 1: 2 * per_epoch, 2: 4 * per_epoch}


def test_full_length_measures_what_the_scorecard_asks(task):
    full = train(task, Trial("keep", 16, 0.1, 0), Setting()).measures
    assert {"judge", "validation", "judge_loss", "train", "batch_statistics", "recalibrated"} <= full.keys()
    short = train(task, Trial("keep", 16, 0.1, 0, length=0.5), Setting()).measures
    assert {"judge", "validation"} <= short.keys()
    assert "train" not in short


def test_learning_rate_follows_one_cycle_and_ends_near_zero(task):
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    spying = resolve(Small(optimizer=lambda params, lr: Spy(params, lr)))
    train(spying, Trial("keep", 16, 0.1, 0), Setting())
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert 0 <= rates[-1] < 0.002
    assert 0.2 < rates.index(max(rates)) / len(rates) < 0.4


def test_divergence_is_told_and_takes_the_failed_score(task):
    result = train(task, Trial("none", 16, 1e12, 0), Setting())
    assert result.status == "diverged"
    assert "training loss" in result.reason
    assert math.isfinite(result.measures["judge"])
    assert Result.from_json(result.to_json()) == result


def test_rising_loss_is_divergence_and_keeps_its_score():
    up = resolve(Small(loss=lambda model, batch: -torch.nn.functional.cross_entropy(model(batch[0]), batch[1])))
    falls = train(up, Trial("layer", 16, 0.1, 0), Setting())
    assert falls.status == "ok"

    step = iter(range(10_000))

    def risen(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1]) + next(step)

    result = train(resolve(Small(loss=risen)), Trial("layer", 16, 0.1, 0), Setting())
    assert result.status == "diverged"
    assert "above the initial one" in result.reason


def test_forgotten_statistics_are_the_batch_own():
    model = small_task.model().eval()
    x = 5 + 3 * torch.randn(64, 4)
    assert not torch.allclose(model(x), forget_statistics(model)(x), atol=1e-3)
    torch.testing.assert_close(forget_statistics(model)(x), model.train()(x))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_is_honoured(precision):
    seen = set()

    def loss(model, batch):
        scores = model(batch[0])
        seen.add(scores.dtype)
        return torch.nn.functional.cross_entropy(scores, batch[1])

    own = resolve(Small(loss=loss))
    seen.clear()  # of what resolve tried
    result = train(own, Trial("keep", 16, 0.1, 0), Setting(precision=precision))
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert result.status == "ok"


def test_batches_arrive_on_the_device(task):
    batches = Setting(device="meta").batches(task.parts(0).train, 16, shuffle=0)
    assert {tensor.device.type for tensor in next(iter(batches))} == {"meta"}
    assert len(batches) == len(task.parts(0).train) // 16


def test_task_schedule_is_used():
    rates = []

    def schedule(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates.append(step) or 1.0)

    own = resolve(Small(schedule=schedule, epochs=1))
    rates.clear()  # of what resolve tried
    train(own, Trial("keep", 16, 0.1, 0), Setting())
    assert len(rates) == len(own.parts(0).train) // 16


def test_calibration_and_probe_give_finite_numbers(task):
    times = calibrate(task, Trial("keep", 16, 0.1, 0, kind="calibrate"), Setting()).measures
    assert {"step", "inference", "evaluation", "full_length"} <= times.keys()
    assert times["step_low"] <= times["step"] <= times["step_high"]
    found = probe(task, Trial("keep", 16, 0.1, 0, kind="probe"), Setting()).measures
    assert found["gradient_growth"] > 0


def test_highest_rate_is_where_training_breaks():
    """A quadratic of curvature 1: plain SGD diverges above a rate of 2."""

    class Quadratic(Small):
        def model(self):
            return torch.nn.Sequential(torch.nn.BatchNorm1d(4, affine=False), torch.nn.Linear(4, 2, bias=False))

        def loss(self, model, batch):
            return (model[1].weight - 1).square().sum() / 2

        def optimizer(self, params, lr):
            return torch.optim.SGD(params, lr)

    task = resolve(Quadratic())
    found = probe(task, Trial("keep", 16, 0.1, 0, kind="probe"), Setting())
    assert found.measures["highest_rate"] == pytest.approx(0.9)


def test_job_runs_each_kind_of_trial(task):
    job = Job(task, Setting())
    kinds = {kind: job(Trial("keep", 16, 0.1, 0, 0.5, kind=kind)) for kind in ("train", "calibrate", "probe")}
    assert "judge" in kinds["train"].measures
    assert "step" in kinds["calibrate"].measures
    assert "gradient_growth" in kinds["probe"].measures


def test_parts_come_in_mixed_order():
    """Data sorted by class must not give batches, or first halves, of one class."""

    class Sorted(Small):
        def data(self):
            inputs, targets = small_task.data().tensors
            order = targets.argsort(stable=True)
            return torch.utils.data.TensorDataset(inputs[order], targets[order])

    parts = resolve(Sorted()).parts(0)
    for samples in parts:
        half = torch.stack([samples[i][1] for i in range(len(samples) // 2)]).double().mean()
        assert 0.3 < half < 0.7


def test_a_loop_must_use_the_norm_and_return_scores():
    forgets, floats = nw.task(delta=0.1)(lambda trial: nw.Scores(0.5, 0.5)), nw.task(delta=0.1)(lambda trial: 0.5)
    with pytest.raises(UsageError, match=r"must call trial\.norm"):
        train(resolve(forgets), Trial("batch", 8, 0.1, 0), Setting())

    def wrong(trial):
        trial.norm(small_task.model())
        return floats(trial)

    with pytest.raises(UsageError, match=r"must return nw\.Scores"):
        train(resolve(nw.task(delta=0.1)(wrong)), Trial("batch", 8, 0.1, 0), Setting())


def test_a_split_without_a_whole_batch_is_an_error(task):
    with pytest.raises(UsageError, match="fewer than one batch"):
        train(task, Trial("keep", 500, 0.1, 0), Setting())


def test_environment_is_restored_after_an_error():
    with pytest.raises(RuntimeError), environment(Trial("keep", 8, 0.1, 0, onednn=False)):
        raise RuntimeError
    assert torch._C._get_mkldnn_enabled()


def test_loop_takes_no_batch_too_many(task):
    batches = Setting().batches(task.parts(0).train, 16, shuffle=0)
    taken = []

    class Counting:
        def __iter__(self):
            for batch in batches:
                taken.append(1)
                yield batch

        def __len__(self):
            return len(batches)

    Loop(task, Setting(), Counting(), 1.0).fit(build(task, "keep", 0), 0.1)  # type: ignore[arg-type]
    assert len(taken) == len(batches)
