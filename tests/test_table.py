"""The table of moments: measuring planes and pooling them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normwise.table import Moments, moments


def naive(x: Tensor, mask: Tensor | None = None) -> tuple[float, float, int]:
    """Mean, biased variance and number of the valid values."""
    values = x.double()[mask.expand_as(x)] if mask is not None else x.double().flatten()
    return float(values.mean()), float(values.var(correction=0)), values.numel()


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_moments_of_planes(spatial: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *spatial)
    table = moments(x)
    assert table.mean.shape == table.var.shape == (2, 3)
    for n in range(2):
        for c in range(3):
            got = float(table.mean[n, c]), float(table.var[n, c]), table.count
            assert got == pytest.approx(naive(x[n, c]), rel=1e-5, abs=1e-6)


def test_planes_without_spatial_axes_hold_one_value() -> None:
    """`var_mean(dim=())` would reduce everything, silently."""
    x = torch.randn(4, 3)
    mean, var, count = moments(x)
    assert torch.equal(mean, x)
    assert torch.equal(var, torch.zeros(4, 3))
    assert count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_table_is_float32_or_wider(dtype: torch.dtype) -> None:
    table = moments(torch.ones(2, 3, 4, dtype=dtype))
    assert {table.mean.dtype, table.var.dtype} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_masked_moments() -> None:
    x = torch.randn(3, 2, 6)
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    x[1, :, 2:] = float("nan")
    mean, var, count = moments(x, mask)
    assert isinstance(count, Tensor)
    assert count.flatten().tolist() == [6, 2, 0]
    for n in range(2):
        for c in range(2):
            got = float(mean[n, c]), float(var[n, c]), int(count[n, 0])
            assert got == pytest.approx(naive(x[n, c], mask[n]), rel=1e-5, abs=1e-6)
    assert mean[2].tolist() == var[2].tolist() == [0, 0]


def test_moments_refuse_what_has_no_planes() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, C, \*spatial\), got \(3,\)"):
        moments(torch.ones(3))


@given(
    n=st.integers(1, 6),
    c=st.sampled_from([1, 4, 6]),
    s=st.integers(1, 5),
    axis=st.sampled_from([0, 1]),
    data=st.data(),
)
def test_pool_equals_the_moments_of_all_values(n: int, c: int, s: int, axis: int, data: st.DataObject) -> None:
    """Instances may be cut unequally, channels only where they divide; with a mask or without."""
    size = (n, c)[axis]
    parts = data.draw(st.integers(1, n) if axis == 0 else st.sampled_from([k for k in range(1, c + 1) if c % k == 0]))
    mask = torch.rand(n, s) < 0.7 if data.draw(st.booleans()) else None
    x = torch.randn(n, c, s, dtype=torch.float64) + 3
    pooled = moments(x, mask).pool(axis, parts)
    everything = torch.as_tensor(pooled.count).expand(n, c) if parts > 1 else torch.as_tensor(pooled.count)
    means, variances, counts = (torch.broadcast_to(t, (n, c)) for t in (pooled.mean, pooled.var, everything))
    for chunk in torch.arange(size).tensor_split(parts):
        part = x.index_select(axis, chunk)
        inside = mask if mask is None or axis == 1 else mask[chunk]
        values = part.movedim(1, 0).flatten(1) if inside is None else part.movedim(1, 0)[:, inside]
        lines = values if axis == 0 else part.flatten(1) if mask is None else None
        for k in range((c, n)[axis]):
            line = lines[k] if lines is not None else part[k][:, mask[k]].flatten()  # pyright: ignore[reportOptionalSubscript]
            at = (int(chunk[0]), k) if axis == 0 else (k, int(chunk[0]))
            wanted = naive(line) if line.numel() else (0.0, 0.0, 0)
            assert (float(means[at]), float(variances[at]), int(counts[at])) == pytest.approx(wanted, abs=1e-9)


def test_pool_of_everything_in_two_steps() -> None:
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    pooled = moments(x).pool(0).pool(1)
    assert (float(pooled.mean), float(pooled.var), pooled.count) == pytest.approx(naive(x))


def test_uneven_chunks_are_as_equal_as_can_be() -> None:
    count = moments(torch.randn(5, 2, 3)).pool(0, parts=2).count
    assert isinstance(count, Tensor)
    assert count[:, 0].tolist() == [9, 9, 9, 6, 6]


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e4])
def test_pool_keeps_its_digits_where_the_mean_is_large(spread: float) -> None:
    """E[x^2] - E[x]^2 is off by 0.17 here, for a true 1."""
    x = torch.randn(16, 4, 8, 8) + spread
    var = moments(x).pool(0).var
    true = x.double().transpose(0, 1).flatten(1).var(1, correction=0)[None]
    assert float((var - true).abs().max()) < 2e-6 + 1e-7 * spread


def test_unbiased_variance() -> None:
    x = torch.randn(4, 3, 5)
    pooled = moments(x).pool(0)
    torch.testing.assert_close(pooled.unbiased[0], x.transpose(0, 1).flatten(1).var(1))
    masked = moments(x, torch.ones(4, 5, dtype=torch.bool)).pool(0)
    torch.testing.assert_close(masked.unbiased, pooled.unbiased)
    assert moments(torch.ones(1, 1)).unbiased.item() == 0


def test_a_chunk_without_valid_values_gives_no_nan() -> None:
    table = moments(torch.randn(4, 2, 3), torch.zeros(4, 3, dtype=torch.bool))
    for pooled in (table.pool(0), table.pool(1, 2), table.pool(0, 3)):
        assert torch.isfinite(torch.cat([pooled.mean.flatten(), pooled.var.flatten(), pooled.unbiased.flatten()])).all()


def test_pool_refuses_uneven_groups_and_too_many_parts() -> None:
    table = moments(torch.randn(2, 6, 3))
    with pytest.raises(ValueError, match="divisible by parts, got 6 and 4; 1, 2, 3 or 6 would do"):
        table.pool(1, parts=4)
    with pytest.raises(ValueError, match="between 1 and the number of instances, got 3 parts of 2"):
        table.pool(0, parts=3)


def test_pool_is_differentiable() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        table: Moments = moments(x)
        return table.pool(0, 2).var, table.pool(1, 2).mean

    assert torch.autograd.gradcheck(function, (x,))
