"""Styled norms: what they take as a second input, what they refuse, and what they draw."""

from typing import Any

import pytest
import torch
from torch import Tensor

import normwise as nw


def test_adain_has_the_styles_moments() -> None:
    content, style = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 5) * 2 + 7
    y = nw.functional.adain(content, style)
    torch.testing.assert_close(y, nw.AdaptiveInstanceNorm(4)(content, style))
    torch.testing.assert_close(y.flatten(2).mean(2), style.mean(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.flatten(2).var(2, correction=0), style.var(2, correction=0), rtol=1e-3, atol=1e-3)


def test_one_style_for_all() -> None:
    content, style = torch.randn(3, 4, 8, 8), torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(
        nw.functional.adain(content, style), nw.functional.adain(content, style.expand(3, 4, 5, 5))
    )


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 5, 5), (4,)])
def test_a_style_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"adain: style must have shape \(N or 1, C, \*spatial\).*, got "):
        nw.functional.adain(torch.randn(3, 4, 8, 8), torch.randn(shape))


def test_a_padded_style() -> None:
    content, style = torch.randn(2, 4, 8), torch.randn(2, 4, 5)
    padded = torch.cat([style, torch.full((2, 4, 3), float("nan"))], 2).requires_grad_()
    mask = torch.arange(8) < 5
    y = nw.AdaptiveInstanceNorm(4)(content, padded, style_mask=mask)
    torch.testing.assert_close(y, nw.functional.adain(content, style))
    (gradient,) = torch.autograd.grad(y.pow(2).sum(), padded)
    assert gradient[..., :5].all()
    assert not gradient[..., 5:].any()
    one = nw.functional.adain(content, padded[:1], style_mask=mask)
    torch.testing.assert_close(one, nw.functional.adain(content, style[:1]))
    with pytest.raises(ValueError, match=r"mask must be bool and broadcast to .* = \(2, 8\)"):
        nw.functional.adain(content, padded, style_mask=mask[:5])


CONDITIONAL: list[Any] = [nw.ConditionalBatchNorm, nw.ConditionalInstanceNorm]


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_each_class_has_its_weight(cls: Any) -> None:
    norm, x = cls(4, classes=3), torch.randn(2, 4, 8, 8)
    norm.weight.data[2] = 5.0
    norm.bias.data[2] = 1.0
    plain, styled = norm(x, torch.tensor([0, 1])), norm(x, torch.tensor([0, 2]))
    torch.testing.assert_close(styled[0], plain[0])
    torch.testing.assert_close(styled[1], 5 * plain[1] + 1)


@pytest.mark.parametrize("cls", CONDITIONAL)
@pytest.mark.parametrize(
    ("options", "condition", "message"),
    [
        ({"classes": 3}, torch.tensor([0, 3]), "classes go from 0 to 2, got 3; build it with more classes"),
        ({"classes": 3}, torch.tensor([-1, 0]), "classes go from 0 to 2, got -1"),
        ({"classes": 3}, torch.tensor([0]), r"a class index, .* instance, shape \(2,\), got .*\(1,\)"),
        ({"classes": 3}, torch.ones(2), r"a class index, .* got torch.float32 .*; call condition.long\(\)"),
        ({"classes": 3}, torch.ones(2).byte(), r"a class index, int64 or int32, .* got torch.uint8 .* condition.long"),
        ({"classes": 3}, torch.ones(2).bool(), r"a class index, .* got torch.bool of shape \(2,\); call"),
        ({"embedding": 3}, torch.ones(2, 4), r"an embedding, floating point, .*, shape \(2, 3\), got .*\(2, 4\)"),
        ({"embedding": 3}, torch.zeros(2, 3).long(), r"an embedding, .* got torch.int64 .*; call condition.float\(\)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_condition_that_does_not_fit(cls: Any, options: dict[str, int], condition: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(4, **options)(torch.randn(2, 4, 8, 8), condition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3, "embedding": 2}, "takes classes or embedding, got 3 and 2; leave one out"),
        ({"classes": 0}, "classes and embedding must be at least 1, got 0"),
        ({"embedding": -1}, "classes and embedding must be at least 1, got -1"),
    ],
)
def test_options_of_conditional_norms(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nw.ConditionalBatchNorm(4, **options)


def test_reset_parameters_puts_the_table_back() -> None:
    norm = nw.ConditionalBatchNorm(4, embedding=2)
    weight = norm.weight
    weight.data.fill_(7)
    norm.reset_parameters()
    assert norm.weight is weight
    assert norm.weight.tolist() == [[1] * 4, [0] * 4, [0] * 4]


def test_mixstyle_draws_the_same_from_the_same_seed() -> None:
    norm, x = nw.MixStyle(4, p=1.0), torch.randn(6, 4, 8, 8)
    torch.manual_seed(3)
    first, other = norm(x), norm(x)
    torch.manual_seed(3)
    assert torch.equal(norm(x), first)
    assert not torch.equal(other, first)


def test_mixstyle_draws_nothing_in_evaluation() -> None:
    norm, x = nw.MixStyle(4).eval(), torch.randn(6, 4, 8, 8)
    state = torch.get_rng_state()
    assert norm(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_mixstyle_mixes_as_often_as_it_says() -> None:
    norm, x = nw.MixStyle(4, p=0.25), torch.randn(6, 4, 2, 2)
    mixed = sum(norm(x) is not x for _ in range(400))
    assert 70 <= mixed <= 130


def test_mixstyle_keeps_what_the_instance_standardizes_to() -> None:
    x = torch.randn(6, 4, 8, 8, dtype=torch.float64)
    y, standardize = nw.MixStyle(4, p=1.0, eps=0.0)(x), nw.InstanceNorm(4, eps=0.0).double()
    torch.testing.assert_close(standardize(y), standardize(x))


def test_mixstyle_never_mixes_with_padding() -> None:
    """A partner without a valid value once pulled the mean and deviation of a valid instance to 0."""
    x, mask = torch.randn(2, 4, 6) + 5, torch.tensor([[True] * 6, [False] * 6])
    for seed in range(5):
        torch.manual_seed(seed)
        y = nw.MixStyle(4, p=1.0)(x, mask)
        torch.testing.assert_close(y[0], x[0])
        assert not y[1].any()


@pytest.mark.parametrize("way", ["compiled", "vmap"])
def test_mixstyle_that_does_not_mix_keeps_nan_to_its_instance(way: str) -> None:
    """There the batch passes the arithmetic with a share of 1, and 0 times the partner's NaN is NaN."""
    torch._dynamo.reset()
    norm, x = nw.MixStyle(4, p=0.0), torch.randn(6, 4, 8)
    x[0] = float("nan")
    compiled, mapped = torch.compile(norm, backend="aot_eager"), torch.vmap(norm, randomness="different")
    y = compiled(x) if way == "compiled" else mapped(x[None])[0]
    torch.testing.assert_close(y[1:], x[1:])


@pytest.mark.parametrize("options", [{"p": 1.5}, {"p": -0.1}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_options_of_mixstyle(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="p must be between 0 and 1 and alpha above 0 and finite, got"):
        nw.MixStyle(4, **options)


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_ratio_of_ibn(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"IBNorm: ratio, .* must be between 0 and 1, got {ratio}"):
        nw.IBNorm(4, ratio=ratio)


def test_a_mask_that_is_all_false() -> None:
    """Norms of the batch refuse it; an instance without valid values gives zeros, and its gradient is zero."""
    x, nothing = torch.randn(3, 4, 8, requires_grad=True), torch.zeros(3, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at least 2 values per channel \(N\*H\*W\), got 0"):
        nw.BatchNorm(4)(x, nothing)
    for norm in (nw.InstanceNorm(4), nw.GroupNorm(2, 4), nw.FilterResponseNorm(4), nw.GlobalResponseNorm(4)):
        y = norm(x, nothing)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert not y.any()
        assert not gradient.any()
