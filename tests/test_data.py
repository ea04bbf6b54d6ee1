"""Data sets and their batches: what is understood, what is refused and in which words."""

import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from normwise.data import (
    Arrays,
    Batches,
    Data,
    Facts,
    Indexed,
    as_data,
    as_samples,
    examine,
    find,
    load,
    targets_of,
)
from normwise.errors import UsageError

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Squares(Dataset):
    """A map-style data set that is not in memory."""

    def __init__(self, size: int = 12) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index % 3


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0], 0


class TestUnderstood:
    @pytest.mark.parametrize(
        "value",
        [
            (X, Y),
            [X, Y],
            (X.numpy(), Y.numpy()),
            (X.double(), Y.int()),
            TensorDataset(X, Y),
            Arrays(X, Y),
            Subset(TensorDataset(X, Y), range(12)),
        ],
        ids=["tensors", "list", "arrays", "dtypes", "TensorDataset", "Arrays", "Subset"],
    )
    def test_tensors_stay_in_memory(self, value: Any) -> None:
        samples = as_samples(value)
        assert isinstance(samples, Arrays)
        torch.testing.assert_close(samples.inputs, X)
        assert torch.equal(samples.targets, Y)
        assert samples.inputs.dtype == torch.float32

    def test_float_targets_stay_floats_and_token_ids_stay_whole(self) -> None:
        samples = as_samples((np.arange(6).reshape(3, 2), np.array([0.5, 1.0, 2.0])))
        assert isinstance(samples, Arrays)
        assert samples.targets.dtype == torch.float32
        assert samples.inputs.dtype == torch.int64

    def test_a_column_of_classes_is_one_class_each(self) -> None:
        assert as_data((X, Y[:, None])).train[4][1] == Y[4]
        assert as_data((X, torch.rand(12, 1))).train[4][1].shape == (1,)

    def test_truth_values_are_classes(self) -> None:
        assert as_data((X, Y > 0)).train[0][1].dtype == torch.int64

    def test_other_data_sets_are_kept_as_they_are(self) -> None:
        dataset = Squares()
        samples = as_samples(dataset)
        assert isinstance(samples, Indexed)
        assert samples.dataset is dataset
        part = samples.subset(torch.tensor([3, 5])).subset([1])
        assert len(part) == 1
        assert part[0][0].item() == 5

    def test_a_tensor_data_set_with_its_own_ways_keeps_them(self) -> None:
        class Noisy(TensorDataset):
            def __getitem__(self, index):
                return self.tensors[0][index] * 2, self.tensors[1][index]

        torch.testing.assert_close(as_samples(Noisy(X, Y))[1][0], X[1] * 2)

    def test_separate_sets(self) -> None:
        two = as_data(((X, Y), (X[:4], Y[:4])))
        assert (two.validation, len(two.sets)) == (None, 2)
        assert two.sources == (two.train, two.train, two.judge)
        three = as_data([TensorDataset(X, Y), Squares(5), (X[:4], Y[:4])])
        assert three.validation is not None
        assert [len(part) for part in three.sets] == [12, 5, 4]
        assert three.sources == three.sets

    def test_subsets_copy(self) -> None:
        samples = Arrays(X.clone(), Y)
        samples.subset([0]).inputs.zero_()
        assert torch.equal(samples.inputs, X)

    def test_targets_of_a_data_set_that_has_them(self) -> None:
        class Named(Squares):
            targets = list(range(12))

        found = targets_of(as_samples(Named()).subset([2, 4]))
        assert found is not None
        assert found.tolist() == [2, 4]
        assert targets_of(as_samples(Squares())) is None


class TestRefused:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                Stream(),
                r"data\(\): an iterable data set cannot be split anew for each seed; give one with __len__",
            ),
            (DataLoader(TensorDataset(X, Y)), r"gave a DataLoader; .* give its data set \(loader.dataset\)"),
            ((X, Y[:5]), r"inputs and targets must be equally long, got shapes \(12, 3\) and \(5,\)"),
            ((X, np.array(["a"] * 12)), r"data\(\): y must hold numbers, got an array of <U1"),
            ((X, torch.zeros(12, dtype=torch.complex64)), r"y must be a dense tensor of real numbers"),
            ((X, X, Y, Y), r"must give a data set, .* got a tuple of 4 \(Tensor, Tensor, Tensor, Tensor\)"),
            ((X, Y, Y), r"got a tuple of 3"),
            (X, r"must give a data set, .*; got a Tensor of shape \(12, 3\)"),
            (None, r"must give a data set, .*; got None"),
            ("digits", r"must give a data set, .*; got 'digits'"),
            ({"x": X}, r"must give a data set, .*; got a dict"),
        ],
    )
    def test_what_is_no_data_set(self, value: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            as_data(value)

    def test_no_length(self) -> None:
        class Endless:
            def __getitem__(self, index: int) -> int:
                return index

        with pytest.raises(UsageError, match="an Endless has no length; give it a method __len__"):
            as_samples(Endless())

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                (torch.full((12, 3), torch.nan), Y),
                "x must be finite, got 36 NaN or infinite values, the first at index 0",
            ),
            ((X, Y * torch.inf), "y must be finite, got 12 NaN or infinite"),
            ((X, Y * 0), "training targets must hold at least two classes, got only class 0"),
            ((X, Y * 0 + 1.5), "training targets must hold at least two values, got only value 1.5"),
            ((X, Y - 1), r"integer targets are classes 0, 1, 2, ...; got -1 \(for regression give floats\)"),
            ((X[:0], Y[:0]), "the data set is empty"),
            (((X, Y), (X[:0], Y[:0])), "data: judge: the data set is empty"),
            (((X, Y), (X[:, :2], Y)), r"samples of one shape, got \(\d,\) and \(\d,\)"),
        ],
    )
    def test_data_nobody_can_learn_from(self, value: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load(value)

    def test_index_of_the_first_bad_sample(self) -> None:
        x = X.clone()
        x[7, 1] = torch.inf
        with pytest.raises(UsageError, match="got 1 NaN or infinite values, the first at index 7; remove or replace"):
            load((x, Y))

    def test_a_sample_that_cannot_be_read(self) -> None:
        class Broken(Squares):
            def __getitem__(self, index: int):
                if index == 11:
                    raise OSError("disk on fire")
                return super().__getitem__(index)

        with pytest.raises(UsageError, match="reading sample 11 failed: OSError: disk on fire"):
            load(Broken())

    def test_nan_in_a_sample(self) -> None:
        class Undefined(Squares):
            def __getitem__(self, index: int):
                return torch.full((2,), torch.nan), 0

        with pytest.raises(UsageError, match="sample 11 must be finite"):
            load(Undefined())


class TestExamined:
    def test_classes(self) -> None:
        facts = examine(as_data(((X, Y), (X, Y + 2))))
        assert facts == Facts(True, (3,), classes=5, outputs=5, majority=4 / 12)

    def test_values(self) -> None:
        assert examine(as_data((X, torch.rand(12, 2)))) == Facts(sample_shape=(3,), outputs=2)

    def test_pixels(self) -> None:
        facts = examine(as_data((torch.zeros(2, 1, 4, 4), torch.arange(32).view(2, 4, 4) % 3)))
        assert (facts.classes, facts.dense) == (3, True)

    def test_a_data_set_without_known_targets_is_looked_at(self) -> None:
        assert examine(as_data(Squares(5000))).classes == 3

    def test_classes_by_name(self) -> None:
        class Named(Squares):
            classes = "abcde"

        assert examine(as_data(Named())).classes == 5

    def test_dictionaries_are_no_pairs(self) -> None:
        class Dicts(Squares):
            def __getitem__(self, index: int):
                return {"x": X[index], "y": Y[index]}

        assert examine(as_data(Dicts())) == Facts(pairs=False)


class TestBatches:
    @pytest.mark.parametrize("samples", [Arrays(X, Y), as_samples(Squares())], ids=["arrays", "indexed"])
    def test_in_order_all_samples_come(self, samples: Any) -> None:
        batches = Batches(samples, 5)
        assert [len(y) for _, y in batches] == [5, 5, 2]
        assert len(batches) == 3
        assert torch.equal(torch.cat([y for _, y in batches]), Y)
        assert batches.dataset is samples

    @pytest.mark.parametrize("samples", [Arrays(X, torch.arange(12)), as_samples(Squares())], ids=["arrays", "indexed"])
    def test_shuffled_full_batches_only(self, samples: Any) -> None:
        batches = Batches(samples, 5, shuffle=3)
        first, second = ([x for x, _ in batches] for _ in range(2))
        assert [len(x) for x in first] == [5, 5]
        assert len(batches) == 2
        assert not torch.equal(torch.cat(first), torch.cat(second))
        again = Batches(samples, 5, shuffle=3)
        for expected in (first, second):
            assert all(torch.equal(a, b) for a, (b, _) in zip(expected, again, strict=True))

    def test_pairs_stay_pairs(self) -> None:
        samples = Arrays(torch.arange(100.0)[:, None], torch.arange(100))
        for x, y in Batches(samples, 7, shuffle=0):
            assert torch.equal(x[:, 0].long(), y)

    def test_rows_are_gathered_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        samples = Arrays(torch.arange(100.0)[:, None], torch.arange(100))
        whole = [x for x, _ in Batches(samples, 8, shuffle=5)]
        monkeypatch.setattr("normwise.data.batches.GATHERED_BYTES", 200)
        pieces = [x for x, _ in Batches(samples, 8, shuffle=5)]
        assert [len(x) for x in pieces] == [8] * 12
        assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))

    def test_drop_last_without_shuffling(self) -> None:
        assert [len(y) for _, y in Batches(Arrays(X, Y), 5, drop_last=True)] == [5, 5]
        assert [len(y) for _, y in Batches(Arrays(X, Y), 5, shuffle=0, drop_last=False)] == [5, 5, 2]

    def test_collate_is_honoured_for_tensors_too(self) -> None:
        batches = Batches(Arrays(X, Y), 4, collate=lambda samples: {"x": torch.stack([x for x, _ in samples])})
        assert [batch["x"].shape for batch in batches] == [(4, 3)] * 3

    def test_a_changed_batch_leaves_the_data_alone(self) -> None:
        samples = Arrays(X.clone(), Y)
        for x, _ in Batches(samples, 4):
            x.zero_()
        assert torch.equal(samples.inputs, X)

    @pytest.mark.parametrize("samples", [Arrays(X, Y), as_samples(Squares())], ids=["arrays", "indexed"])
    def test_the_callers_random_numbers_are_left_alone(self, samples: Any) -> None:
        state = torch.get_rng_state()
        list(Batches(samples, 4, shuffle=1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_smaller_than_a_batch(self) -> None:
        assert len(Batches(Arrays(X, Y), 13, shuffle=0)) == 0
        assert list(Batches(Arrays(X, Y), 13, shuffle=0)) == []

    def test_as_cheap_as_indexing(self) -> None:
        """Going through the batches costs at most 5 us a step more than indexing (less, in fact)."""
        samples = Arrays(torch.randn(2048, 64), torch.zeros(2048, dtype=torch.long))

        def bare() -> None:
            for index in torch.randperm(2048).split(8):
                _ = samples.inputs[index], samples.targets[index]

        def ours() -> None:
            for _ in Batches(samples, 8, shuffle=0):
                pass

        times = {run: min(_seconds(run) for _ in range(20)) for run in (bare, ours)}
        assert times[ours] < times[bare] + 256 * 5e-6


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class TestSources:
    def test_digits(self) -> None:
        data = load("digits").train
        assert isinstance(data, Arrays)
        assert data.inputs.shape == (1797, 1, 8, 8)
        assert data.inputs.mean().abs() < 1e-3
        assert data.inputs.std() == pytest.approx(1, abs=1e-3)
        assert data.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_digits_are_scikit_learns(self) -> None:
        from sklearn.datasets import load_digits

        content: Any = load_digits()
        images = torch.from_numpy(content.images).float()
        torch.testing.assert_close(load("digits").train[5][0][0] * 6.0168 + 4.8842, images[5], atol=1e-4, rtol=0)

    def test_read_once_and_sent_without_content(self) -> None:
        calls = []

        def read() -> Any:
            calls.append(1)
            return X, Y

        source = find(read)
        assert source() is source()
        assert len(calls) == 1
        big = find("digits")
        big()
        assert len(cloudpickle.dumps(big)) < 1000
        assert torch.equal(cloudpickle.loads(cloudpickle.dumps(big))().train[7][0], big().train[7][0])

    def test_random_data_are_the_same_in_every_process(self) -> None:
        def random_data() -> Any:
            return torch.randn(9, 2), np.random.randint(0, 2, 9)

        first, second = load(random_data).train, load(random_data).train
        assert isinstance(first, Arrays)
        assert isinstance(second, Arrays)
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.targets, second.targets)

    def test_by_name_of_a_function(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own_data.py").write_text("import torch\ndef make(): return torch.zeros(4, 2), torch.arange(4)\n")
        monkeypatch.chdir(tmp_path)
        assert len(load("own_data.py:make").train) == 4
        assert find("own_data.py:make").name == "make"

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                "digts",
                r"unknown data 'digts'; did you mean 'digits'\?; known: digits, fashion-mnist, a folder",
            ),
            ("nowhere.npz", "there is no file 'nowhere.npz'"),
            ("nowhere:size=32", "there is no folder '/.*/nowhere'"),
            (lambda x: x, "makes the data and must be callable without arguments"),
            (lambda: None, "must return the data themselves, got None"),
            (lambda: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        ],
    )
    def test_no_source(self, value: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load(value)

    def test_each_changes_every_set(self) -> None:
        data = as_data(((X, Y), (X, Y))).each(lambda samples: samples.subset([0, 1]))
        assert isinstance(data, Data)
        assert [len(part) for part in data.sets] == [2, 2]
