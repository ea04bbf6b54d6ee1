"""SPADE against its paper's equation, position by position, and the common promises."""

import copy

import pytest
import torch
from torch import Tensor

import normwise as nw
from normwise.errors import UsageError
from normwise.layers.spade import SPADE
from normwise.layers.spec import read

NORMS = ("batch", "instance", "group:2")


def made(norm: str = "batch") -> tuple[SPADE, Tensor, Tensor]:
    layer = SPADE(4, 3, norm=norm, hidden=5, dtype=torch.float64)
    return layer, torch.randn(2, 4, 4, 6, dtype=torch.float64) * 2 + 1, torch.randn(2, 3, 8, 3, dtype=torch.float64)


def convolved(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One image (C, H, W), sum by sum; outside it is 0."""
    height, width = image.shape[1:]
    rows = []
    for i in range(height):
        for j in range(width):
            total = bias
            for a in range(3):
                for b in range(3):
                    y, x = i + a - 1, j + b - 1
                    if 0 <= y < height and 0 <= x < width:
                        total = total + weight[:, :, a, b] @ image[:, y, x]
            rows.append(total)
    return torch.stack(rows, -1).view(-1, height, width)


def reference(layer: SPADE, x: Tensor, labels: Tensor) -> Tensor:
    """Park et al. 2019, equation 1."""
    state = layer.state_dict()
    found = read(layer.param_free_norm)
    assert found is not None
    axes, groups = {"batch": ((0, 2, 3), 4), "instance": ((2, 3), 4), "group": ((2, 3), 2)}[found.spec.name]
    parts = x.view(2, groups, -1, 6)
    var, mean = torch.var_mean(parts, axes, correction=0, keepdim=True)
    normed = ((parts - mean) / torch.sqrt(var + 1e-5)).view(x.shape)
    outputs = []
    for n in range(len(x)):
        near = [[labels[n, :, i * 8 // 4, j * 3 // 6] for j in range(6)] for i in range(4)]
        sampled = torch.stack([torch.stack(row, -1) for row in near], 1)
        hidden = convolved(sampled, state["mlp_shared.0.weight"], state["mlp_shared.0.bias"]).clamp(min=0)
        gamma, beta = (
            convolved(hidden, state[f"mlp_{of}.weight"], state[f"mlp_{of}.bias"]) for of in ("gamma", "beta")
        )
        outputs.append(normed[n] * (1 + gamma) + beta)
    return torch.stack(outputs)


@pytest.mark.parametrize("norm", NORMS)
def test_equals_reference_and_keeps_its_names(norm: str) -> None:
    layer, x, labels = made(norm)
    torch.testing.assert_close(layer(x, labels), reference(layer, x, labels))
    learned = [name for name, _ in layer.named_parameters()]
    assert learned == [
        f"{part}.{kind}" for part in ("mlp_shared.0", "mlp_gamma", "mlp_beta") for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_compiling_and_export(norm: str) -> None:
    torch._dynamo.reset()
    layer, x, labels = made(norm)
    inputs = (x[:, :, :2, :2].clone().requires_grad_(), labels.requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)
    layer.eval()
    wanted = layer(x, labels)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x, labels), wanted)
    torch.testing.assert_close(torch.export.export(copy.deepcopy(layer), (x, labels)).module()(x, labels), wanted)


def test_layout_autocast_and_the_norm_within() -> None:
    layer, x, labels = made()
    layer, x, labels = layer.float(), x.float().to(memory_format=torch.channels_last), labels.float()
    wanted = layer(x, labels)
    assert wanted.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x, labels).float(), wanted, rtol=0.1, atol=0.1)
    plan = nw.swap(layer, "instance", example=(x, labels))
    assert [(change.path, change.after) for change in plan.changes] == [("param_free_norm", "instance")]
    assert len(list(layer.parameters())) == 6


@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_labels_of_any_type_and_the_output_has_that_of_x(of: torch.dtype, given: torch.dtype) -> None:
    layer, x, labels = made()
    wanted = layer(x, labels)
    for kind in (torch.float32, torch.bfloat16):
        y = layer.to(of)(x.to(given), labels.to(kind))
        assert y.dtype == given
        torch.testing.assert_close(y.double(), wanted, rtol=0.1, atol=0.15)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 5, 4, 4), (2, 3, 4, 4)), r"x must be floating point of shape \(N, 4, .* got .* \(2, 5, 4, 4\)"),
        (((2, 4, 4, 4), (1, 3, 4, 4)), r"labels must be floating point of shape \(2, 3, .* \(1, 3, 4, 4\)"),
        (((2, 4, 4, 4), (2, 4, 4)), r"labels .* got torch.float64 of shape \(2, 4, 4\)"),
    ],
)
def test_bad_input(shapes: tuple[tuple[int, ...], tuple[int, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()[0](*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    with pytest.raises(ValueError, match="kernel_size odd, got 4, 3, 128 and 2"):
        SPADE(4, 3, kernel_size=2)
    with pytest.raises(ValueError, match="labels must be floating point"):
        made()[0](made()[1], torch.zeros(2, 3, 4, 4, dtype=torch.long))


@pytest.mark.parametrize("norm", ["adain", "conditional-batch:3", "layer-token", "rms-token", "mixstyle"])
def test_a_norm_that_needs_more_than_planes_is_refused(norm: str) -> None:
    with pytest.raises(UsageError, match=f"norm must be one of a plane that is called with x alone, .* got {norm}.*;"):
        SPADE(4, 3, norm=norm)
