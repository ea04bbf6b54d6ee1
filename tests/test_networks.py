"""The built-in networks: their shapes, their norms, and what is said of a text that names none."""

from collections import Counter

import pytest
import torch
from torch import nn

from normwise.errors import UsageError
from normwise.networks import NETWORKS, build, parse

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.mark.parametrize("text", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (28, 28)])
def test_gives_one_value_per_output(text: str, shape: tuple[int, ...]) -> None:
    model = build(text, shape, 7)
    assert model(torch.randn(4, *shape)).shape == (4, 7)


def test_perceptron_takes_any_samples() -> None:
    assert build("mlp", (5,), 2)(torch.randn(4, 5)).shape == (4, 2)
    assert build("mlp", (2, 3, 4, 5), 2)(torch.randn(4, 2, 3, 4, 5)).shape == (4, 2)


@pytest.mark.parametrize(("text", "norms"), [("cnn", 3), ("cnn:depth=5", 5), ("mlp:depth=2", 2), ("resnet", 9)])
def test_norms_are_plain_batch_norms(text: str, norms: int) -> None:
    kinds = Counter(type(m) for m in build(text, (1, 8, 8), 10).modules() if isinstance(m, NORMS))
    assert set(kinds) <= set(NORMS)
    assert kinds.total() == norms


@pytest.mark.parametrize("text", NETWORKS)
def test_no_bias_stands_before_a_norm(text: str) -> None:
    with_bias = [m for m in build(text, (1, 8, 8), 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [m.bias is not None for m in with_bias] == [False] * (len(with_bias) - 1) + [True]


def test_cnn_is_the_pilots() -> None:
    convs = [m for m in build("cnn", (1, 8, 8), 10).modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convs] == [
        (1, 8, 1),
        (8, 16, 2),
        (16, 32, 1),
    ]


def test_width_and_depth_are_used() -> None:
    convs = [m for m in build("cnn:width=4,depth=5", (1, 8, 8), 10).modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [4, 8, 16, 16, 16]
    blocks = build("resnet:depth=4,width=6", (1, 32, 32), 10)
    assert [name for name, _ in blocks.named_children() if name.startswith("block")] == [
        "block1", "block2", "block3", "block4",
    ]  # fmt: skip


def test_resnet_adds_the_input() -> None:
    model = build("resnet", (1, 8, 8), 10).eval()
    block: nn.Module = model.get_submodule("block1")
    for name in ("norm1", "norm2"):
        nn.init.zeros_(block.get_parameter(f"{name}.weight"))
    x = torch.rand(2, 8, 8, 8)
    assert torch.equal(block(x), x)


def test_every_network_learns() -> None:
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 4
    x += y[:, None, None, None]
    for text in NETWORKS:
        torch.manual_seed(0)
        model = build(text, (1, 8, 8), 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert (model(x).argmax(1) == y).float().mean() > 0.9, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnt", r"unknown network 'resnt'; known: cnn, resnet, mlp, .*; did you mean 'resnet'\?"),
        ("cnn:wdth=3", r"cnn has no option 'wdth=3'; its options and their defaults: width=8, depth=3"),
        ("cnn:16", r"cnn has no option '16'"),
        ("mlp:depth=0", r"mlp: depth must be a whole number of at least 1, got '0'"),
        ("mlp:depth=-1", r"mlp: depth must be a whole number of at least 1, got '-1'"),
        ("mlp:width=x", r"mlp: width must be a whole number of at least 1, got 'x'"),
    ],
)
def test_a_text_that_names_no_network(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_a_cnn_needs_images() -> None:
    with pytest.raises(UsageError, match=r"cnn needs images .* got samples of shape \(5,\); mlp takes any"):
        build("cnn", (5,), 2)
