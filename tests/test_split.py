"""Splits: nobody in two parts, classes in their shares, groups together, the same again for the same seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normwise.errors import UsageError
from normwise.experiment.split import Split, split

LABELS = torch.arange(600) % 3  # three equal classes
SKEWED = (torch.arange(600) % 10 == 0).long()  # a class of 10 %


def everyone(drawn: Split) -> Tensor:
    return torch.cat(drawn).sort().values


def same(a: Split, b: Split) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_one_set_is_used_up_once() -> None:
    drawn = split([LABELS], seed=0)
    assert torch.equal(everyone(drawn), torch.arange(600))
    assert [len(part) for part in drawn] == [333, 100, 167]


def test_samples_for_rates_are_fixed_and_the_rest_is_drawn_anew() -> None:
    first, second = split([LABELS], seed=0), split([LABELS], seed=1)
    assert torch.equal(first.validation, second.validation)
    assert not torch.equal(first.train, second.train)
    assert not torch.equal(first.judge, second.judge)


@pytest.mark.parametrize("sets", [[LABELS], [LABELS, SKEWED], [LABELS, 50, SKEWED], [600], [LABELS.float()]])
def test_same_seed_same_split_whatever_was_drawn_before(sets: list) -> None:
    expected = split(sets, seed=7)
    torch.manual_seed(99)
    assert same(split(sets, seed=7), expected)
    assert not same(split(sets, seed=8), expected)


def test_the_callers_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    split([LABELS], seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("labels", [LABELS, SKEWED], ids=["equal", "skewed"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_keep_their_shares(labels: Tensor, seed: int) -> None:
    for drawn, sets in (
        (split([labels], seed=seed), [labels] * 3),
        (split([labels, labels], seed=seed), [labels] * 3),
    ):
        for part, source in zip(drawn, sets, strict=True):
            expected = source.bincount() / len(source) * len(part)
            assert (source[part].bincount() - expected).abs().max() <= 1.5


def test_a_class_of_one_sample_is_drawn_like_any_other() -> None:
    labels = torch.tensor([0] * 59 + [1])
    judged = sum(bool((split([labels], seed=seed).judge == 59).any()) for seed in range(300))
    trained = sum(bool((split([labels], seed=seed).train == 59).any()) for seed in range(300))
    assert judged + trained in (0, 300)  # 0: it is among the samples for rates
    assert judged == 0 or 60 < judged < 140


def test_every_sample_judges_equally_often() -> None:
    counts = torch.zeros(60)
    for seed in range(600):
        counts[split([torch.arange(60) % 3], seed=seed).judge] += 1
    assert int((counts == 0).sum()) == 10  # those for rates
    used = counts[counts > 0] / 600
    assert (used - 1 / 3).abs().max() < 0.08  # four standard errors


def test_separate_sets_are_never_mixed() -> None:
    drawn = split([LABELS, SKEWED[:100]], seed=0)
    assert drawn.judge.max() < 100
    assert [len(part) for part in drawn] == [400, 100, 80]
    assert not set(drawn.train.tolist()) & set(drawn.validation.tolist())
    other = split([LABELS, SKEWED[:100]], seed=1)
    assert torch.equal(drawn.validation, other.validation)
    assert not torch.equal(drawn.judge, other.judge)


def test_a_given_validation_set_is_used_whole() -> None:
    drawn = split([LABELS, 50, SKEWED], seed=0)
    assert torch.equal(drawn.validation, torch.arange(50))
    assert [len(part) for part in drawn] == [480, 50, 480]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_groups_stay_together(number: int, seed: int) -> None:
    people = torch.arange(600) // 7
    drawn = split([LABELS] * number, seed=seed, groups=[people] * number)
    parts = {"train": drawn.train, "judge": drawn.judge} if number == 1 else {"train": drawn.train}
    parts |= {"validation": drawn.validation} if number < 3 else {}
    met = [set(people[part].tolist()) for part in parts.values()]
    assert sum(map(len, met)) == len(set().union(*met))
    assert len(drawn.train) == pytest.approx({1: 333, 2: 400, 3: 480}[number], abs=14)


def test_groups_are_stratified_by_their_commonest_class() -> None:
    people = torch.arange(600) // 5
    labels = (people % 4 == 0).long()
    drawn = split([labels], seed=0, groups=[people])
    for part in drawn:
        assert labels[part].float().mean() == pytest.approx(0.25, abs=0.03)


@given(st.integers(3, 80), st.integers(1, 5), st.integers(0, 99))
def test_any_one_set_is_parted(size: int, classes: int, seed: int) -> None:
    try:
        drawn = split([torch.arange(size) % classes], seed=seed)
    except UsageError:
        assert size < 6
        return
    assert torch.equal(everyone(drawn), torch.arange(size))
    assert abs(len(drawn.validation) - size / 6) <= 0.5
    assert abs(len(drawn.judge) - (size - len(drawn.validation)) / 3) <= 0.5


def test_pixel_targets_are_not_stratified_but_split() -> None:
    assert len(split([torch.zeros(60, 8, 8, dtype=torch.long)], seed=0).train) == 33


def test_too_few_samples_or_groups() -> None:
    with pytest.raises(UsageError, match=r"too few to split: no sample is left for validation .* bring more samples"):
        split([2], seed=0)
    with pytest.raises(UsageError, match="too few to split"):
        split([60], seed=0, groups=[torch.zeros(60)])


def test_groups_of_the_wrong_length() -> None:
    with pytest.raises(UsageError, match="one label for each of the 60 samples, got 3"):
        split([60], seed=0, groups=[torch.zeros(3)])
