"""recalibrate: running statistics of the whole data, and nothing else touched."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import DictInput, NormTwice, Tied, WholeDict, WithActivation, lively, plain, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import normwise as nw
from normwise.errors import UsageError
from normwise.surgery.recalibrate import recalibrate

OVER_ALL = (0, 2, 3)


def drifting(sizes: tuple[int, ...] = (4, 7, 2)) -> list[Tensor]:
    """Batches whose means lie far apart, so that between-batch variance is most of the variance."""
    return [torch.randn(size, 3, 5, 5) + 20 * i for i, size in enumerate(sizes)]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nw.BatchNorm(3), nw.BatchInstanceNorm(3), nw.SwitchableNorm(3)])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_those_of_the_population(norm: Any, training: bool) -> None:
    model: Any = nn.Sequential(lively(copy.deepcopy(norm))).train(training)
    batches = drifting()
    recalibrate(model, batches)
    x = torch.cat(batches).double()
    torch.testing.assert_close(model[0].running_mean, x.mean(OVER_ALL).float())
    torch.testing.assert_close(model[0].running_var, x.var(OVER_ALL).float())
    assert model[0].num_batches_tracked.item() == 3


def test_one_batch_is_told_as_one() -> None:
    assert recalibrate(nn.Sequential(nw.BatchNorm(3)), drifting()[:1]).notes == ("1 batch.",)


@given(st.lists(st.integers(2, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_the_cut_into_batches_does_not_matter(sizes: list[int], seed: int) -> None:
    x = torch.randn(sum(sizes), 2, generator=torch.Generator().manual_seed(seed))
    one, other = nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2))
    recalibrate(one, [x])
    recalibrate(other, x.split(sizes))
    torch.testing.assert_close(one[0].running_mean, other[0].running_mean)
    torch.testing.assert_close(one[0].running_var, other[0].running_var)


def test_a_large_mean_leaves_the_variance_its_digits() -> None:
    batches = [1000 + 0.1 * torch.randn(64, 1, 8, 8) for _ in range(4)]
    model: Any = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate(model, batches)
    expected = torch.cat(batches).double().var()
    torch.testing.assert_close(model[0].running_var.double()[0], expected, rtol=1e-3, atol=0)


def test_later_norms_see_what_training_gave_them() -> None:
    model: Any = lively(plain()).eval()
    batches = drifting()
    seen = []
    twin: Any = copy.deepcopy(model).train()
    twin[4].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for batch in batches:
        twin(batch)
    recalibrate(model, batches)
    x = torch.cat(seen).double()
    torch.testing.assert_close(model[4].running_mean, x.mean(OVER_ALL).float())
    torch.testing.assert_close(model[4].running_var, x.var(OVER_ALL).float())


def test_evaluation_then_agrees_with_training_on_one_batch() -> None:
    model, x = lively(plain()), torch.randn(64, 3, 9, 9)
    recalibrate(model, [x])
    trained = model(x)
    recalibrate(model, [x])
    torch.testing.assert_close(model.eval()(x), trained, rtol=1e-3, atol=1e-3)


def test_the_uses_of_one_norm_are_pooled() -> None:
    model: Any = NormTwice()
    seen: list[Tensor] = []
    batches = [torch.randn(4, 3, 7, 7), torch.randn(4, 3, 7, 7) + 5]
    handle = model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    recalibrate(model, batches)
    handle.remove()
    assert len(seen) == 4
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1).double()
    torch.testing.assert_close(model.norm.running_mean, values.mean(1).float())
    torch.testing.assert_close(model.norm.running_var, values.var(1).float())
    assert model.norm.num_batches_tracked.item() == 4


def test_tied_norms_are_recalibrated_once() -> None:
    plan = recalibrate(Tied(), [torch.randn(4, 3, 7, 7)])
    assert [change.path for change in plan.changes] == ["norm"]


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(3, track_running_stats=True), nw.InstanceNorm(3, track_running_stats=True)]
)
def test_instance_norms_remember_averages_over_instances(norm: Any) -> None:
    model = nn.Sequential(norm)
    batches = drifting()
    recalibrate(model, batches)
    x = torch.cat(batches).double()
    torch.testing.assert_close(model[0].running_mean, x.mean((2, 3)).mean(0).float())
    torch.testing.assert_close(model[0].running_var, x.var((2, 3)).mean(0).float())


def test_an_unbatched_instance_norm_is_understood() -> None:
    model: Any = nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True))
    x = torch.randn(3, 8)
    recalibrate(model, [x])
    torch.testing.assert_close(model[0].running_mean, x.mean(1))


def test_masked_values_do_not_count() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nw.BatchNorm(2)

        def forward(self, x: Tensor, valid: Tensor) -> Tensor:
            return self.norm(x, valid)

    model, x = Padded(), torch.randn(3, 2, 6)
    valid = torch.arange(6) < torch.tensor([6, 3, 2])[:, None]
    recalibrate(model, [{"x": x.masked_fill(~valid[:, None], 1e6), "valid": valid}])
    kept = x.transpose(1, 2)[valid]
    torch.testing.assert_close(model.norm.running_mean, kept.mean(0))
    torch.testing.assert_close(model.norm.running_var, kept.var(0))


def test_a_subclass_that_does_more_is_recalibrated_too() -> None:
    model, x = nn.Sequential(WithActivation(3)), torch.randn(8, 3, 4, 4)
    recalibrate(model, [x])
    torch.testing.assert_close(model[0].running_mean, x.mean(OVER_ALL))


def test_frozen_norms_are_left() -> None:
    model: Any = nn.Sequential(
        *(nn.BatchNorm2d(3, momentum=m) for m in (0.1, 0.1, 0.0, None)),
        nn.BatchNorm2d(3, track_running_stats=False),
    )
    lively(model)
    model[1].eval()
    model[3].weight.requires_grad_(False)  # says nothing of the statistics
    values = [copy.deepcopy(model[i].state_dict()) for i in (1, 2)]
    plan = recalibrate(model, drifting())
    assert [change.path for change in plan.changes] == ["0", "3"]
    assert [(left.path, left.note) for left in plan.left] == [
        ("1", "frozen: in eval mode inside a model in training mode"),
        ("2", "frozen: its momentum is 0"),
        ("4", "it remembers no statistics"),
    ]
    for i, before in zip((1, 2), values, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in model[i].state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert [m.momentum for m in model] == [0.1, 0.1, 0.0, None, 0.1]


def test_a_frozen_norm_normalizes_with_what_it_remembers() -> None:
    model: Any = lively(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    model[0].eval()
    x = torch.randn(8, 3, 4, 4)
    expected = model[0](x).mean(OVER_ALL)
    recalibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, expected)


def test_a_model_in_eval_mode_has_no_norm_frozen_by_its_mode() -> None:
    model: Any = lively(plain()).eval()
    assert len(recalibrate(model, drifting()).changes) == 2
    assert not any(m.training for m in model.modules())


def test_dropout_stays_off() -> None:
    batches = drifting()
    with_dropout: Any = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    recalibrate(with_dropout, batches)
    torch.testing.assert_close(with_dropout[1].running_mean, torch.cat(batches).mean(OVER_ALL))


class Noisy(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, 5, 5) + random.random()


def test_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    own = torch.Generator().manual_seed(1)
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=own)
    model = plain()
    states = torch.get_rng_state(), own.get_state(), random.getstate()
    recalibrate(model, loader)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])
    assert random.getstate() == states[2]


def test_only_statistics_change() -> None:
    model = lively(plain())
    before = copy.deepcopy(model.state_dict())
    identities = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    recalibrate(model, drifting())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.{name}" for i in "14" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert identities == {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_on_the_way_changes_nothing(error: type[BaseException]) -> None:
    def breaking() -> Iterator[Tensor]:
        yield from drifting()
        raise error

    model, loader = lively(plain()), breaking()
    state = random.getstate()
    with pytest.raises(error):
        recalibrate(model, loader)
    assert random.getstate() == state
    batches = drifting()
    with untouched(model), pytest.raises(RuntimeError):
        recalibrate(model, [*batches, torch.zeros(2, 7, 5, 5)])


@pytest.mark.parametrize("loader", [[], iter(()), DataLoader([])])  # pyright: ignore
def test_an_empty_loader_is_refused(loader: Any) -> None:
    model = lively(plain())
    with (
        untouched(model),
        pytest.raises(UsageError, match=r"the loader gave no batch; .* Nothing was changed"),
    ):
        recalibrate(model, loader)


@pytest.mark.parametrize("loader", [torch.zeros(2, 3, 5, 5), 3, None])
def test_what_gives_no_batches_is_refused(loader: Any) -> None:
    with pytest.raises(UsageError, match=f"loader must give batches, got {type(loader).__name__}"):
        recalibrate(plain(), loader)


def test_a_lazy_norm_must_know_its_channels() -> None:
    with pytest.raises(UsageError, match="LazyBatchNorm2d must know its channels; run one batch through"):
        recalibrate(nn.Sequential(nn.LazyBatchNorm2d()), [torch.randn(2, 3, 4, 4)])


def test_a_batch_of_one_value_is_skipped() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2))
    x = torch.randn(9, 2)
    plan = recalibrate(model, x.split([4, 4, 1]))
    torch.testing.assert_close(model[0].running_mean, x[:8].mean(0))
    assert plan.notes == ("1 of 3 batches left out: they give a norm one value per channel.", "2 batches.")
    with untouched(model), pytest.raises(UsageError, match="every batch gives a norm one value per channel"):
        recalibrate(model, x.split(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    model, batches = lively(plain()), drifting()
    batches[1][0, 0, 0, 0] = bad
    with untouched(model), pytest.raises(UsageError, match="layer '1' receives values that are not finite"):
        recalibrate(model, batches)


def test_batches_of_any_form() -> None:
    gain, x = torch.rand(4, 1, 1, 1), torch.randn(4, 3, 9, 9)
    plain_model = lively(plain())
    labelled, listed, dicts, whole, own = (copy.deepcopy(plain_model) for _ in range(5))
    expected = x * gain

    def body(model: nn.Module, inner: nn.Module) -> nn.Module:
        model.body = inner
        return model

    label = torch.zeros(4, dtype=torch.long)
    recalibrate(plain_model, [expected])
    recalibrate(labelled, [(expected, label)])
    recalibrate(listed, [[expected, label]])
    recalibrate(body(DictInput(), dicts), [{"image": x, "gain": gain, "label": label}])
    recalibrate(body(WholeDict(), whole), [{"image": x, "gain": gain}])
    recalibrate(own, [{"a": x, "b": gain}], call=lambda model, batch: model(batch["a"] * batch["b"]))
    for other in (labelled, listed, dicts, whole, own):
        torch.testing.assert_close(other.state_dict(), plain_model.state_dict())


def test_half_precision_is_measured_in_full() -> None:
    model: Any = nn.Sequential(nw.BatchNorm2d(3)).bfloat16()
    batches = [batch.bfloat16() for batch in drifting()]
    recalibrate(model, batches)
    assert model[0].running_mean.dtype == torch.float32
    torch.testing.assert_close(model[0].running_mean, torch.cat(batches).float().mean(OVER_ALL))


def test_momentum_none_goes_on_averaging() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    batches = [torch.randn(4, 3, 5, 5) + i for i in range(4)]
    recalibrate(model, batches[:3])
    model(batches[3])
    torch.testing.assert_close(model[0].running_mean, torch.cat(batches).mean(OVER_ALL))


def test_a_norm_that_is_not_reached_is_left() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    plan = recalibrate(Two(), drifting())
    assert [change.path for change in plan.changes] == ["used"]
    assert [(left.path, left.note) for left in plan.left] == [("unused", "the batches do not reach it")]


def test_a_model_that_remembers_nothing_has_nothing_to_recalibrate() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3))
    plan = recalibrate(model, [])
    assert not plan.changes
    assert plan.notes == ("nothing to recalibrate; `left` says why for each layer.",)


def test_the_plan_says_how_far_statistics_moved() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(1, eps=1e-12))
    plan = recalibrate(model, [torch.tensor([[8.0], [12.0]])])  # mean 10, variance 8
    assert plan.changes[0].note == "mean moved by up to 3.5 deviations, variance by up to 8 times"
    assert repr(plan).startswith("recalibrate: 1 layer changed\n  0: BatchNorm1d (mean moved")
    plan.undo()
    assert (model[0].running_mean.item(), model[0].num_batches_tracked.item()) == (0, 0)
