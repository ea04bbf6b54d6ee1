"""Norms from and to Keras and Flax: names, momentum, epsilon, and the libraries themselves where they are."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normwise as nw
from normwise.errors import UsageError

PEERS = "NORMWISE_PEERS_PYTHON"
KERAS = {"gamma": [2.0, 3.0], "beta": [0.5, -0.5], "moving_mean": [1.0, -1.0], "moving_variance": [4.0, 9.0]}
FLAX = {"params": {"scale": [2.0, 3.0], "bias": [0.5, -0.5]}, "batch_stats": {"mean": [1.0, -1.0], "var": [4.0, 9.0]}}


def lively() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4, eps=0.1, momentum=0.3)
    norm.load_state_dict({name: torch.rand_like(t.float()) for name, t in norm.state_dict().items()})
    return norm.eval()


@pytest.mark.parametrize("norm", [nw.from_keras(KERAS), nw.from_flax(FLAX)], ids=["keras", "flax"])
def test_the_formula(norm: Any) -> None:
    x = torch.tensor([[3.0, 5.0]])
    expected = [(3 - 1) / (4 + norm.eps) ** 0.5 * 2 + 0.5, (5 + 1) / (9 + norm.eps) ** 0.5 * 3 - 0.5]
    torch.testing.assert_close(norm.eval()(x), torch.tensor([expected]))


def test_what_the_libraries_start_from() -> None:
    keras, flax = nw.from_keras(KERAS), nw.from_flax(FLAX)
    assert (keras.eps, keras.momentum, flax.eps, flax.momentum) == (1e-3, 0.01, 1e-5, 0.01)
    token = nw.from_flax({"params": FLAX["params"]}, "layer-token")
    assert isinstance(token, nn.LayerNorm)
    assert token.eps == 1e-6
    group: Any = nw.from_keras({"gamma": [1.0] * 6, "beta": [0.0] * 6}, "group:3", epsilon=0.5)
    assert (group.num_groups, group.eps) == (3, 0.5)


@pytest.mark.parametrize(("there", "back"), [(nw.to_keras, nw.from_keras), (nw.to_flax, nw.from_flax)])
def test_there_and_back(there: Any, back: Any) -> None:
    norm, x = lively(), torch.randn(3, 4, 5, 5)
    made = back(there(norm))
    torch.testing.assert_close(made.eval()(x), norm(x))
    assert (made.eps, made.momentum) == (norm.eps, norm.momentum)
    assert made.running_mean.data_ptr() != norm.running_mean.data_ptr()  # pyright: ignore
    for other in (nn.LayerNorm(4, eps=0.2), nw.GroupNorm(2, 4), nw.GroupNorm(1, 4)):
        name = "layer-token" if isinstance(other, nn.LayerNorm) else "group"
        assert repr(back(there(other), name)) == repr(other)


def test_the_remembered_variance_is_converted_only_when_asked() -> None:
    norm: Any = nw.from_keras(KERAS, count=10)
    torch.testing.assert_close(norm.running_var, torch.tensor([4.0, 9.0]) * 10 / 9)
    np.testing.assert_allclose(nw.to_keras(norm, count=10)["weights"]["moving_variance"], [4, 9], rtol=1e-6)
    np.testing.assert_allclose(nw.to_flax(norm)["batch_stats"]["var"], [40 / 9, 10], rtol=1e-6)


def test_without_scale_or_center() -> None:
    bare = {name: KERAS[name] for name in ("moving_mean", "moving_variance")}
    assert nw.from_keras(bare).weight is None
    centered: Any = nw.from_keras({**bare, "beta": [1.0, 2.0]})
    assert (centered.weight.tolist(), centered.bias.tolist()) == ([1, 1], [1, 2])
    nn.Sequential(centered)(torch.randn(8, 2)).square().sum().backward()
    assert (centered.weight.requires_grad, centered.bias.grad is None) == (False, False)
    for _ in range(2):  # frozen by us too
        assert list(nw.to_keras(centered)["weights"]) == ["beta", "moving_mean", "moving_variance"]
        assert list(nw.to_flax(centered)["params"]) == ["bias"]
        nw.freeze(centered, affine=True)
    assert centered.bias.requires_grad is False
    for other in (nw.BatchNorm(2).requires_grad_(False), nn.Sequential(nw.BatchNorm(2))):  # theirs has a gamma
        nw.freeze(other, affine=True)
        assert "gamma" in nw.to_keras(other[0] if isinstance(other, nn.Sequential) else other)["weights"]
    scaled: Any = nw.from_keras({**bare, "gamma": [1.0, 2.0]})
    assert (scaled.weight.tolist(), scaled.bias) == ([1, 2], None)
    assert "gamma" not in nw.to_keras(nw.BatchNorm(2, affine=False))["weights"]


@pytest.mark.parametrize("frozen", ["frozen", "batch", "ghost:2", "sync"])
def test_a_frozen_batch_norm_goes_over_as_batch_norm(frozen: str) -> None:
    norm, x = nw.build(frozen, 4, eps=0.1, momentum=0.3), torch.randn(3, 4, 5, 5)
    norm.load_state_dict(lively().state_dict())
    nw.freeze(norm)
    there = nw.to_keras(norm)
    assert there["config"] == {"epsilon": 0.1, "momentum": 0.7}
    for made in (nw.from_keras(there), nw.from_flax(nw.to_flax(norm))):
        assert type(made) is nw.BatchNorm
        torch.testing.assert_close(made.eval()(x), norm(x))


def test_bfloat16_goes_over_as_float32() -> None:
    norm = lively().bfloat16()
    made: Any = nw.from_keras(nw.to_keras(norm))
    torch.testing.assert_close(made.running_var, norm.running_var.float())  # pyright: ignore
    tensors = {name: torch.tensor(values, dtype=torch.bfloat16) for name, values in KERAS.items()}
    assert nw.from_keras(tensors).weight.dtype == torch.float32


def test_what_was_given_does_not_move_with_the_norm() -> None:
    norm = lively()
    given = nw.to_keras(norm)["weights"]["gamma"].copy(), nw.to_keras(norm)["weights"]["gamma"]
    nn.init.constant_(norm.weight, 7.0)
    np.testing.assert_array_equal(*given)


def test_float64_stays() -> None:
    norm: Any = nw.from_keras({name: np.array(values) for name, values in KERAS.items()})
    assert (norm.weight.dtype, norm.running_var.dtype) == (torch.float64, torch.float64)


class Variable:
    """What nnx keeps an array in."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values, dtype="float32")

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]


class BatchNormalization:
    """A built layer of Keras, as far as it is read (`peers.py` reads the real one so)."""

    gamma, beta, moving_mean, moving_variance = (np.array(values, dtype="float32") for values in KERAS.values())

    def get_config(self) -> dict[str, Any]:
        return {"name": "norm", "axis": [3], "epsilon": 0.5, "momentum": 0.9}


class GroupNorm:
    """An nnx module, as far as it is read."""

    scale, bias, epsilon, num_groups = Variable([1.0] * 4), None, 0.25, 2


def test_layers_are_read_by_their_attributes() -> None:
    keras: Any = nw.from_keras(BatchNormalization())
    assert (keras.eps, keras.momentum, keras.running_var.tolist()) == (0.5, 0.1, [4, 9])
    flax: Any = nw.from_flax(GroupNorm())
    assert (flax.eps, flax.num_groups, flax.weight.tolist(), flax.bias) == (0.25, 2, [1] * 4, None)


class LayerNormalization:
    """A built layer of Keras that normalizes over one axis."""

    gamma, beta, moving_mean, moving_variance = np.ones(4, "float32"), np.zeros(4, "float32"), None, None

    def __init__(self, axis: int | list[int]) -> None:
        self.axis = axis

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis, "epsilon": 0.5}


def test_a_layer_norm_of_keras_is_one_of_the_last_axis() -> None:
    for axis in (-1, [-1], 3, [2]):
        assert isinstance(nw.from_keras(LayerNormalization(axis)), nn.LayerNorm)
    for axis in (1, [1], -2, [-3]):
        with pytest.raises(UsageError, match=r"over the last axis, got axis=-?[123]: say norm='channel-layer'"):
            nw.from_keras(LayerNormalization(axis))
    x = torch.randn(2, 4, 3, 3)
    norm, expected = nw.from_keras(LayerNormalization(1), "channel-layer"), nn.LayerNorm(4, eps=0.5)
    torch.testing.assert_close(norm(x), expected(x.movedim(1, -1)).movedim(-1, 1))
    assert isinstance(nw.from_keras(LayerNormalization([1]), "layer-token"), nn.LayerNorm)


class RMSNormalization:
    """A layer of Keras that has no counterpart."""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nw.from_keras({"gamma": [1.0]}), "without moving_mean it is no batch norm"),
        (lambda: nw.from_keras({**KERAS, "kernel": [1.0]}), r"got \['kernel'\]"),
        (lambda: nw.from_keras(KERAS, epsilonn=1), r"options epsilon, momentum and groups; got \['epsilonn'\]"),
        (lambda: nw.from_keras({}, "layer-token"), "a layer without arrays does not say its channels"),
        (lambda: nw.from_keras({**KERAS, "beta": [1.0]}), r"bias must have shape \(2,\), got \(1,\)"),
        (
            lambda: nw.from_keras(KERAS, norm="layer-token"),
            "LayerNorm has no running_mean; leave it out, or say another",
        ),
        (lambda: nw.from_keras(RMSNormalization()), "must be one of BatchNormalization, .* got RMSNormalization"),
        (lambda: nw.from_keras(KERAS, count=1), "at least 2, got 1"),
        (lambda: nw.to_keras(nn.ReLU()), "ReLU is none of them"),
        (lambda: nw.to_flax(nw.InstanceNorm(3)), "instance is none of them"),
        (lambda: nw.to_keras(nn.BatchNorm1d(3, momentum=None)), "set one"),
        (lambda: nw.to_flax(nn.BatchNorm1d(3, track_running_stats=False)), "without running statistics"),
    ],
)
def test_bad_input(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], nn.BatchNorm2d]:
    """What tests/peers.py was given, what Keras and Flax made of it, and the norm that was handed over."""
    python = os.environ.get(PEERS)
    if not python:
        pytest.skip(f"{PEERS} names no Python that has Keras and Flax: `make test-conventions` sets one up")
    folder, norm = tmp_path_factory.mktemp("peers"), lively()
    start = {f"start.{i}": np.random.default_rng(i).uniform(0.5, 2, 4).astype("float32") for i in range(4)}
    keras, flax = nw.to_keras(norm), nw.to_flax(norm)
    given: dict[str, Any] = {"x": np.random.default_rng(9).normal(3, 2, (8, 5, 5, 4)).astype("float32"), **start}
    given |= {f"to.keras.{name}": array for name, array in keras["weights"].items()}
    given |= {f"to.flax.{name}": array for part in ("params", "batch_stats") for name, array in flax[part].items()}
    given |= {f"to.{name}": value for name, value in keras["config"].items()}
    np.savez(folder / "x.npz", **given)
    subprocess.run([python, str(Path(__file__).with_name("peers.py")), str(folder)], check=True, capture_output=True)
    return given, dict(np.load(folder / "made.npz")), norm


def first(x: Any) -> Tensor:
    """(N, H, W, C) to (N, C, H, W)."""
    return torch.from_numpy(np.asarray(x)).movedim(-1, 1)


def own_training(given: dict[str, Any], eps: float) -> nn.Module:
    """Ours from the same start, after the same batch."""
    names = "weight", "bias", "running_mean", "running_var"
    norm = nn.BatchNorm2d(4, eps=eps, momentum=0.01)
    norm.load_state_dict({name: torch.from_numpy(given[f"start.{i}"]) for i, name in enumerate(names)}, strict=False)
    norm(first(given["x"]))
    return norm.eval()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "nnx", "linen"])
def test_batch_norm_of_the_library(peers: Any, library: str) -> None:
    given, made, _ = peers
    np.testing.assert_allclose(made["config.keras"], (1e-3, 0.99))
    np.testing.assert_allclose(made["config.nnx"], (1e-5, 0.99))
    arrays = {name.rpartition(".")[2]: value for name, value in made.items() if name.startswith(f"{library}.batch.")}
    y = first(arrays.pop("y"))
    if library == "keras":
        norm: Any = nw.from_keras(arrays)
    else:
        params = {"scale": arrays.get("scale", given["start.0"]), "bias": arrays.get("bias", given["start.1"])}
        norm = nw.from_flax({"params": params, "batch_stats": {name: arrays[name] for name in ("mean", "var")}})
    torch.testing.assert_close(norm.eval()(first(given["x"])), y, rtol=1e-5, atol=1e-5)
    if library == "keras":  # one batch later the momentum, and the unbiased variance, count
        ours: Any = own_training(given, norm.eps)
        torch.testing.assert_close(norm.running_mean, ours.running_mean)
        gain, start = ours.running_var - 0.99 * torch.from_numpy(given["start.3"]), 200 / 199
        torch.testing.assert_close(norm.running_var, ours.running_var - gain * (1 - 1 / start))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "linen"])
@pytest.mark.parametrize("name", ["layer-token", "group"])
def test_layer_and_group_norm_of_the_library(peers: Any, library: str, name: str) -> None:
    given, made, _ = peers
    spec = "group:2" if name == "group" else name
    if library == "keras":
        norm = nw.from_keras({n: made[f"keras.{name}.{n}"] for n in ("gamma", "beta")}, spec)
    else:
        norm = nw.from_flax({"params": {"scale": given["start.0"], "bias": given["start.1"]}}, spec)
    x = torch.from_numpy(given["x"])
    y = norm(x) if name == "layer-token" else norm(first(x)).movedim(1, -1)
    torch.testing.assert_close(y, torch.from_numpy(made[f"{library}.{name}.y"]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "flax"])
def test_our_batch_norm_in_the_library(peers: Any, library: str) -> None:
    given, made, norm = peers
    torch.testing.assert_close(first(made[f"back.{library}.y"]), norm(first(given["x"])), rtol=1e-5, atol=1e-5)
