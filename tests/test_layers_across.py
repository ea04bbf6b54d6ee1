"""Norms that pool across the batch in another way: ghost, renorm, domain, frozen."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import normwise as nw
from normwise.errors import UsageError
from normwise.layers import base
from normwise.layers.spec import read


@pytest.fixture(autouse=True)
def _nobody_was_warned() -> None:
    base._warn_two.cache_clear()


def image(n: int = 6) -> Tensor:
    return torch.randn(n, 4, 5, 5) * torch.rand(n, 4, 1, 1) * 3 + torch.randn(n, 4, 1, 1)


@pytest.mark.parametrize(
    ("norm", "same"),
    [
        (nw.GhostNorm(4, chunk_size=1), nw.InstanceNorm(4)),
        (nw.GhostNorm(4, chunk_size=1), nw.GroupNorm(4, 4)),
        (nw.GhostNorm(4, chunk_size=6), nw.BatchNorm(4)),
        (nw.GhostNorm(4, chunk_size=99), nw.BatchNorm(4)),
        (nw.RenormNorm(4, r_max=1, d_max=0), nw.BatchNorm(4)),
        (nw.SyncNorm(4), nw.BatchNorm(4)),
        (nw.DomainNorm(4, domains=1), nw.BatchNorm(4)),
        (nw.FrozenNorm(4), nw.BatchNorm(4).eval()),
    ],
    ids=["ghost:1 = instance", "ghost:1 = group:C", "ghost:N", "ghost:99", "renorm:1,0", "sync", "domain:1", "frozen"],
)
def test_identities(norm: nn.Module, same: nn.Module) -> None:
    x = image()
    torch.testing.assert_close(norm(x), same(x))


def test_ghost_chunks_are_consecutive_and_as_equal_as_can_be() -> None:
    x = image(7)
    parts = [F.batch_norm(part, None, None, training=True) for part in x.split([3, 2, 2])]
    torch.testing.assert_close(nw.GhostNorm(4, chunk_size=3)(x), torch.cat(parts))


def test_ghost_remembers_the_whole_batch() -> None:
    x, ghost, batch = image(7), nw.GhostNorm(4, chunk_size=3), nw.BatchNorm(4)
    for norm in (ghost, batch):
        norm(x)
    torch.testing.assert_close(ghost.state_dict(), batch.state_dict())
    torch.testing.assert_close(ghost.eval()(x), batch.eval()(x))


def test_ghost_chunks_of_few_values() -> None:
    with pytest.raises(ValueError, match=r"GhostNorm: .* at least 2 values per channel .* got 1"):
        nw.GhostNorm(4, chunk_size=2)(torch.randn(3, 4))
    with pytest.warns(UserWarning, match=r"GhostNorm: with 2 values per channel"):
        nw.GhostNorm(4, chunk_size=2)(torch.randn(4, 4))
    with pytest.raises(ValueError, match="chunk_size must be at least 1 sample, got 0"):
        nw.GhostNorm(4, chunk_size=0)


def test_ghost_chunks_of_one_value_in_a_compiled_batch_of_any_size() -> None:
    torch._dynamo.reset()
    run = torch.compile(nw.GhostNorm(4, chunk_size=2), backend="aot_eager", dynamic=True)
    assert run(torch.randn(9, 4, 3)).all()
    run(torch.randn(12, 4))
    with pytest.raises(ValueError, match=r"GhostNorm: .* at least 2 values per channel .* got 1"):
        run(torch.randn(7, 4))


def test_domains_per_sample_of_which_only_the_shape_is_known() -> None:
    with torch.device("meta"):
        norm, x = nw.DomainNorm(4), torch.empty(6, 4, 5)
        with nw.domain(norm, [0, 0, 0, 1, 1, 1]):
            assert norm(x, torch.ones(6, 5, dtype=torch.bool)).shape == x.shape


def test_ghost_chunks_of_one_valid_value() -> None:
    """It was silently 0; a chunk without any is padding, and no reason to stop."""
    norm, x = nw.GhostNorm(4, chunk_size=2), torch.randn(5, 4, 3)
    valid = torch.tensor([3, 3, 2, 1, 0])[:, None] > torch.arange(3)
    norm(x, valid)  # chunks of 2, 2 and 1
    valid[2] = False
    with pytest.raises(ValueError, match=r"GhostNorm: .* at least 2 values per channel .* got 1 \(input shape \(2, 4"):
        norm(x, valid)


def test_renorm_remembers_as_its_paper_says() -> None:
    norm, mean, sigma = nw.RenormNorm(4, momentum=0.2), torch.zeros(4), (torch.ones(4) + 1e-5).sqrt()
    for _ in range(3):
        x = image()
        norm(x)
        mean = mean + 0.2 * (x.mean((0, 2, 3)) - mean)
        sigma = sigma + 0.2 * ((x.var((0, 2, 3), correction=0) + 1e-5).sqrt() - sigma)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close((norm.running_var + 1e-5).sqrt(), sigma)  # pyright: ignore


def test_renorm_in_training_is_as_in_evaluation_within_its_bounds() -> None:
    norm, x = nw.RenormNorm(4, r_max=100, d_max=100), image()
    assert norm.running_mean is not None
    norm.running_mean.uniform_()
    evaluated = copy.deepcopy(norm).eval()(x)
    torch.testing.assert_close(norm(x), evaluated, rtol=1e-4, atol=1e-5)


def test_renorm_bounds() -> None:
    norm, x = nw.RenormNorm(4, r_max=2, d_max=1), image() * 100 + 500
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True) * 2 + 1)
    for wrong in ({"r_max": 0.5}, {"d_max": -1.0}, {"r_max": float("nan")}, {"d_max": float("nan")}):
        with pytest.raises(ValueError, match="r_max must be at least 1 and d_max at least 0"):
            nw.RenormNorm(4, **wrong)


def test_renorm_second_derivatives_use_what_was_remembered_before() -> None:
    norm, x = nw.RenormNorm(3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = norm.weight
    (first,) = torch.autograd.grad(norm(x).pow(3).sum(), weight, create_graph=True)
    for _ in range(20):
        norm(x.detach() + 1)
    (second,) = torch.autograd.grad(first.sum(), weight)
    fresh = nw.RenormNorm(3, dtype=torch.float64)
    y = fresh(x.detach())
    torch.testing.assert_close(second, (6 * y**3).sum(0))


def test_domains_are_apart() -> None:
    norm, a, b = nw.DomainNorm(4, domains=2), image(), image() * 3 + 5
    twins = [nw.BatchNorm(4), nw.BatchNorm(4)]
    for _ in range(3):
        for d, x in enumerate((a, b)):
            with nw.domain(norm, d):
                torch.testing.assert_close(norm(x), twins[d](x))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(norm.get_buffer(name), torch.stack([twin.get_buffer(name) for twin in twins]))
    norm.eval()
    with nw.domain(norm, 1):
        torch.testing.assert_close(norm(a), twins[1].eval()(a))


def test_a_domain_for_each_sample() -> None:
    norm, x, which = (
        nw.DomainNorm(4, domains=3, dtype=torch.float64),
        image(7).double(),
        torch.tensor([2, 0, 2, 2, 0, 2, 0]),
    )
    twins = {d: nw.BatchNorm(4, dtype=torch.float64) for d in (0, 2)}
    x.requires_grad_()
    with nw.domain(norm, which):
        y = norm(x)
    wanted = torch.empty_like(y)
    for d, twin in twins.items():
        wanted[which == d] = twin(x[which == d])
        torch.testing.assert_close(norm.get_buffer("running_var")[d], twin.running_var)
    torch.testing.assert_close(y, wanted)
    ours, theirs = (torch.autograd.grad(z.pow(3).sum(), x)[0] for z in (y, wanted))
    torch.testing.assert_close(ours, theirs)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.tolist() == [1, 0, 1]
    assert norm.get_buffer("running_var")[1].tolist() == [1, 1, 1, 1]
    norm.eval()
    with nw.domain(norm, which.tolist()):
        torch.testing.assert_close(norm(x)[which == 0], twins[0].eval()(x[which == 0]))


def test_domains_per_sample_with_a_mask_and_micro_batches() -> None:
    norm, x, mask = nw.DomainNorm(3, domains=2), torch.randn(8, 3, 6), torch.rand(8, 6) > 0.3
    which, twin = torch.tensor([0, 1] * 4), nw.BatchNorm(3)
    twin(x[1::2], mask[1::2])
    with nw.accumulate(norm):
        for part in (slice(0, 5), slice(5, 8)):
            with nw.domain(norm, which[part]):
                norm(x[part], mask[part])
    torch.testing.assert_close(norm.get_buffer("running_var")[1], twin.running_var)
    assert norm.get_buffer("num_batches_tracked").tolist() == [1, 1]


class Picked(TorchDispatchMode):
    """Notes the largest tensor that was made by picking from another."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index.Tensor:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_domains_per_sample_are_counted_without_a_copy(masked: bool) -> None:
    norm, x, mask = nw.DomainNorm(2, domains=3), torch.randn(6, 2, 50), torch.ones(6, 50, dtype=torch.bool)
    with nw.domain(norm, [0, 2, 0, 2, 0, 0]), Picked() as picked:
        norm(x, mask if masked else None)
    assert picked.largest <= mask.numel()


def test_a_mask_that_leaves_a_domain_one_value() -> None:
    norm, mask = nw.DomainNorm(4, domains=2), torch.ones(6, 5, dtype=torch.bool)
    mask[3:] = torch.arange(5) < 1
    with nw.domain(norm, [0, 0, 0, 0, 0, 1]), pytest.raises(ValueError, match=r"DomainNorm: .* got 1"):
        norm(torch.randn(6, 4, 5), mask)


def test_the_domain_before_returns() -> None:
    norm = nw.DomainNorm(4, domains=3)
    with nw.domain(norm, 2):
        with pytest.raises(ValueError, match="4 channels"), nw.domain(norm, torch.tensor(1)):
            norm(torch.ones(4, int(norm.current)))
        assert norm.current == 2
    assert norm.current == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (3, "must be from 0 to 2, got 3; build the layers with domain:K"),
        (-1, "must be from 0 to 2, got -1"),
        ([0, 3, 1], "must be from 0 to 2, got 3"),
        (True, "must be a whole number, or one for each sample"),
        (torch.ones(4), "must be a whole number, or one for each sample, got torch.float32"),
        ([[0, 1]], r"of shape \(1, 2\)"),
        (None, r"must be a whole number, .* sample, got None; write nw.domain\(model, 1\) or"),
        ("a", r"must be a whole number, .* sample, got 'a'; write"),
        ([0, [1]], r"must be a whole number, .* sample, got \[0, \[1\]\]; write"),
        ([], r"must be a whole number, .* sample, got torch.float32 of shape \(0,\); write"),
        (1j, r"must be a whole number, .* sample, got torch.complex64 of shape \(\); write"),
    ],
)
def test_domains_out_of_range(index: Any, message: str) -> None:
    norm = nw.DomainNorm(4, domains=3)
    with pytest.raises(UsageError, match=message):
        nw.domain(norm, index).__enter__()
    assert norm.current == 0


def test_domains_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"the model has no DomainNorm; put them in by nw.swap\(model, 'domain:2'\)"):
        nw.domain(nn.Linear(2, 2), 0).__enter__()
    norm = nw.DomainNorm(4)
    with (
        nw.domain(norm, [0, 1]),
        pytest.raises(ValueError, match=r"a domain for each sample .* got 2 for a batch of 6"),
    ):
        norm(image())
    with nw.domain(norm, [0, 0, 0, 1]), pytest.raises(ValueError, match=r"at least 2 values per channel .* got 1"):
        norm(torch.randn(4, 4))
    with pytest.raises(ValueError, match="domains must be at least 1, got 0"):
        nw.DomainNorm(4, domains=0)


def test_frozen_never_moves_and_is_the_same_in_both_modes() -> None:
    norm, x = nw.FrozenNorm(4, momentum=None), image()
    before = copy.deepcopy(norm.state_dict())
    y = norm.train()(x)
    torch.testing.assert_close(norm.state_dict(), before)
    assert torch.equal(norm.eval()(x), y)
    assert [p.requires_grad for p in nw.FrozenNorm(4, learn=0).parameters()] == [False, False]
    with pytest.raises(ValueError, match=r"learn must be 1 .* or 0 .*, got 2"):
        nw.FrozenNorm(4, learn=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm.train()(torch.randn(1, 4))


@pytest.mark.parametrize("spec", ["ghost:2", "renorm:2,d_max=1", "sync", "domain:3", "frozen", "frozen:0"])
def test_swapped_there_and_back(spec: str) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nw.BatchNorm2d(4)), torch.randn(6, 3, 7, 7)
    for _ in range(3):
        model(x)
    evaluated, weight = copy.deepcopy(model).eval()(x), model[1].weight
    nw.swap(model, spec)
    state = read(model[1])
    assert state is not None
    assert state.spec == read(nw.build(spec, 4)).spec  # pyright: ignore
    assert model[1].weight is weight
    assert weight.requires_grad == (spec != "frozen:0")
    torch.testing.assert_close(model.eval()(x), evaluated)
    assert not nw.swap(model, spec).changes
    nw.swap(model, "batch")
    assert isinstance(model[1], nw.BatchNorm)
    torch.testing.assert_close(model(x), evaluated)


@pytest.mark.parametrize("spec", ["ghost", "renorm", "sync", "frozen"])
def test_folds_as_batch_norm(spec: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nw.build(spec, 4))
    model[1].get_buffer("running_mean").uniform_()
    x = torch.randn(2, 3, 7, 7)
    wanted = model.eval()(x)
    assert nw.fold(model).changes
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
