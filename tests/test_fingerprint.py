"""Fingerprints: the same for the same task, and other where anything changed that decides a result."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from normwise.experiment.fingerprint import digest, model_digest, same_start, source_digest
from normwise.experiment.resolve import resolve

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
FACTOR = 2.0


def net() -> nn.Module:
    return nn.Linear(4, 3)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) * FACTOR


def parts(**said: Any) -> dict[str, str]:
    return resolve(
        SimpleNamespace(**{"model": net, "data": lambda: (X, Y), "loss": loss, "epochs": 5, **said})
    ).fingerprint()


def changed(**said: Any) -> set[str]:
    before, after = parts(), parts(**said)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_nothing_changed() -> None:
    assert changed() == set()
    assert all(isinstance(value, str) and 0 < len(value) <= 16 for value in parts().values())


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"epochs": 3}, {"epochs"}),
        ({"lr": 0.2}, {"learning_rate"}),
        ({"data": lambda: (X + 1, Y)}, {"data"}),
        ({"data": lambda: (X, Y.flip(0))}, {"data"}),
        ({"data": lambda: ((X, Y), (X, Y))}, {"data"}),
        ({"model": lambda: nn.Linear(4, 4)}, {"model"}),
        ({"model": lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout())}, {"model"}),
        ({"loss": lambda model, batch: loss(model, batch)}, {"loss"}),
        ({"groups": [i // 2 for i in range(60)]}, {"split"}),
        ({"optimizer": torch.optim.Adam}, {"optimizer", "learning_rate"}),
        ({"collate": torch.utils.data.default_collate}, {"collate"}),
        ({"failed_score": 0.5}, {"failed_score"}),
    ],
)
def test_what_changed_is_named(said: dict[str, Any], names: set[str]) -> None:
    assert changed(**said) == names


def test_a_constant_that_a_function_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest(loss)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert source_digest(loss) != before


def test_a_function_that_a_function_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normwise.loading import load_object

    code = "def inner(x): return x {} 1\ndef other(): return 1\ndef outer(x): return [inner(y) for y in x]\n"
    found = {}
    for sign in "+-":
        path = tmp_path / f"own{sign}.py"
        path.write_text(code.format(sign))
        found[sign] = [source_digest(load_object(f"{path}:{name}")) for name in ("outer", "other")]
    assert found["+"][0] != found["-"][0]
    assert found["+"][1] == found["-"][1]


def test_what_a_factory_holds() -> None:
    def make(width: int) -> nn.Module:
        return nn.Linear(width, 1)

    assert source_digest(partial(make, 3)) == source_digest(partial(make, 3))
    assert source_digest(partial(make, 3)) != source_digest(partial(make, 4))
    assert source_digest(lambda: make(3)) != source_digest(lambda: make(4))

    def closed(width: int) -> Any:
        return lambda: make(width)

    assert source_digest(closed(3)) != source_digest(closed(4))


def test_settings_of_an_object_count_and_its_network_does_not() -> None:
    class Made:
        def __init__(self, width: int) -> None:
            self.width = width
            self.net = nn.Linear(2, 2)

        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            return model(batch).sum() * self.width

    assert source_digest(Made(3).loss) == source_digest(Made(3).loss)
    assert source_digest(Made(3).loss) != source_digest(Made(4).loss)


def test_forward_of_ones_own_layer_counts() -> None:
    def factory(code: str) -> Any:
        names: dict[str, Any] = {"nn": nn, "__name__": "typed_in"}
        exec(f"class Net(nn.Linear):\n    def forward(self, x): return super().forward(x){code}\n", names)
        return lambda: names["Net"](2, 2)

    assert model_digest(factory("")) == model_digest(factory(""))
    assert model_digest(factory("")) != model_digest(factory(".abs()"))


def test_weights_that_come_with_the_network_count() -> None:
    def pretrained(value: float) -> Any:
        def make() -> nn.Module:
            model = nn.Linear(2, 2)
            nn.init.constant_(model.weight, fill[0])
            return model

        fill[0] = value
        return model_digest(make)

    fill = [0.0]
    assert pretrained(1.0) != pretrained(2.0)


def test_same_start() -> None:
    assert not same_start(net)
    assert same_start(lambda: nn.BatchNorm1d(3))


def test_data_that_are_not_in_memory() -> None:
    class Noisy(Dataset):
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(4) + index, index % 3

    def made(size: int) -> str:
        return parts(data=lambda: Noisy(size))["data"]

    assert made(60) == made(60)
    assert made(60) != made(63)


@pytest.mark.parametrize("value", [None, 1, 1.0, True, "1", b"1", (1,), {"1": 1}, torch.ones(1), torch.ones(1, 1)])
def test_digests_of_different_things_differ(value: Any) -> None:
    others = [None, 1, 1.0, True, "1", b"1", (1,), {"1": 1}, torch.ones(1), torch.ones(1, 1)]
    assert sum(digest(value) == digest(other) for other in others) == 1
    assert digest("ab", "c") != digest("a", "bc")


def test_digest_of_unusual_numbers() -> None:
    assert digest(torch.ones(2, dtype=torch.bfloat16)) != digest(torch.zeros(2, dtype=torch.bfloat16))
    assert digest(torch.ones(2, dtype=torch.bool)) != digest(torch.ones(2, dtype=torch.uint8))
    assert digest(torch.ones(4)[::2]) == digest(torch.ones(2))


def test_same_in_another_process() -> None:
    code = "from normwise.experiment.resolve import resolve; print(resolve('digits').fingerprint())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(resolve("digits").fingerprint()), done.stderr
