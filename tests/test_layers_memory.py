"""What running statistics do with bad batches, micro-batches, and torch.func."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normwise as nw
from normwise.errors import UsageError

TRACKED: list[Any] = [
    nw.BatchNorm(3),
    nw.BatchNorm2d(3, momentum=None),
    nw.InstanceNorm(3, track_running_stats=True),
    nw.SwitchableNorm(3),
    nw.GhostNorm(3, chunk_size=2),
    nw.SyncNorm(3),
    nw.RenormNorm(3),
    nw.DomainNorm(3),
]
tracked = pytest.mark.parametrize("norm", TRACKED, ids=lambda norm: type(norm).__name__)


def image(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 5, 5) * 2 + 3


@tracked
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_batch_that_is_not_finite_is_left_out(norm: Any, bad: float) -> None:
    norm, x = copy.deepcopy(norm), image()
    norm(x)
    before = copy.deepcopy(norm.state_dict())
    x[1, 2, 0, 0] = bad
    with pytest.warns(UserWarning, match=r"\(3\): a batch with inf or NaN was left out of the running statistics"):
        norm(x)
    norm(x)  # told once: a second warning would be an error here
    torch.testing.assert_close(norm.state_dict(), before)
    assert int(norm.skipped) == 2
    norm(image())
    assert norm.num_batches_tracked.sum() == 2
    assert norm.running_mean.isfinite().all()


def test_counting_changes_no_state_dict() -> None:
    assert list(nw.BatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    assert len(list(nw.BatchNorm2d(3).buffers())) == 3
    norm = nw.BatchNorm2d(3).to("meta").to_empty(device="cpu")
    norm.reset_running_stats()
    assert norm.skipped is not None
    assert int(norm.skipped) == 0


@tracked
def test_micro_batches_are_pooled_exactly(norm: Any) -> None:
    norm, x = copy.deepcopy(norm), image(12)
    x[5:] += 4
    whole = copy.deepcopy(norm)
    whole(x)
    with nw.accumulate(nn.Sequential(norm)):
        for part in x.split([4, 1, 7]):
            norm(part)
        assert norm.num_batches_tracked.sum() == 0
    torch.testing.assert_close(norm.state_dict(), whole.state_dict())


def test_masked_micro_batches_are_pooled_by_what_is_valid() -> None:
    norm, x, mask = nw.BatchNorm(3), torch.randn(6, 3, 5), torch.rand(6, 5) > 0.4
    whole = copy.deepcopy(norm)
    whole(x, mask)
    with nw.accumulate(norm):
        for part in (slice(0, 2), slice(2, 6)):
            norm(x[part], mask[part])
    torch.testing.assert_close(norm.state_dict(), whole.state_dict())


def accumulated(norm: nn.Module, parts: list[Tensor]) -> None:
    with nw.accumulate(norm):
        for part in parts:
            norm(part)


@tracked
def test_a_bad_micro_batch_is_left_out_of_the_pool(norm: Any) -> None:
    norm, x = copy.deepcopy(norm), image()
    whole = copy.deepcopy(norm)
    whole(x)
    with pytest.warns(UserWarning, match="a batch with inf or NaN was left out"):
        accumulated(norm, [x[:2], torch.full((2, 3, 5, 5), float("nan")), x[2:]])
    torch.testing.assert_close(norm.state_dict(), whole.state_dict())
    assert int(norm.skipped) == 1


@pytest.mark.parametrize("verb", [nw.accelerate, nw.adapt, nw.freeze], ids=lambda verb: verb.__name__)
def test_pytorchs_own_counts_what_it_leaves_out_once_it_is_ours(verb: Any) -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    before = [set(vars(norm)) for norm in model]
    plan = verb(model)
    if verb is nw.freeze:
        nw.unfreeze(model)
    with pytest.warns(UserWarning, match=r"BatchNorm2d\(3\): a batch with inf or NaN was left out"):
        model(torch.full((4, 3, 5, 5), float("inf")))
    assert (int(model[0].skipped), getattr(model[1], "skipped", None)) == (1, None)
    plan.undo()
    assert [set(vars(norm)) for norm in model] == before
    assert {type(norm) for norm in model} == {nn.BatchNorm2d}


def test_an_empty_layer_brought_from_meta_has_left_nothing_out() -> None:
    norm = nw.BatchNorm2d(3, device="meta")
    assert norm.to_empty(device="cpu").skipped == 0


def test_an_exception_while_accumulating_leaves_the_statistics() -> None:
    norm = nw.BatchNorm(3)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match="3 channels"), nw.accumulate(norm):
        norm(torch.cat([norm(image()), image()], 1))
    torch.testing.assert_close(norm.state_dict(), before)
    norm(image())
    assert norm.num_batches_tracked == 1


def test_accumulate_without_a_batch_or_within_another() -> None:
    norm = nw.BatchNorm(3)
    with nw.accumulate(norm):
        pass
    assert norm.num_batches_tracked == 0
    with nw.accumulate(norm), nw.accumulate(norm):
        norm(image())
    assert norm.num_batches_tracked == 1


def test_accumulate_refuses_pytorchs_own() -> None:
    model = nn.Sequential(nw.BatchNorm2d(3), nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match=r"'1' is BatchNorm2d of torch, which updates .* every micro-batch"):
        nw.accumulate(model).__enter__()
    assert model[0].pool is None
    model[1].eval()
    with nw.accumulate(model):
        model(image())


@tracked
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
def test_gradients_of_torch_func_in_training(norm: Any) -> None:
    """PyTorch's own batch norm refuses: its buffers are written in place."""
    norm, x = copy.deepcopy(norm).double(), image().double()
    twin = copy.deepcopy(norm)
    parameters = dict(norm.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(norm, parameters, (x,)).pow(3).sum()

    found = torch.func.grad(loss)(parameters, x)
    twin(x).pow(3).sum().backward()
    torch.testing.assert_close(found, {name: p.grad for name, p in twin.named_parameters()})
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())
    torch.func.jvp(norm, (x,), (x,))
    twin(x)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


def test_functional_call_writes_to_the_buffers_it_is_given() -> None:
    norm, x = nw.BatchNorm2d(3), image()
    state = {name: t.detach().clone() for name, t in norm.state_dict().items()}
    torch.func.functional_call(norm, state, (x,))
    assert norm.num_batches_tracked == 0
    norm(x)
    torch.testing.assert_close(state, dict(norm.state_dict()))


def test_vmap_over_samples_cannot_remember() -> None:
    norm = nw.BatchNorm2d(3)
    with pytest.raises(RuntimeError, match=r"cannot be updated under vmap unless the buffers .* nw.freeze\(model\)"):
        torch.func.vmap(lambda x: norm(x[None]))(image())
    nw.freeze(norm)
    assert torch.func.vmap(lambda x: norm(x[None])[0])(image()).shape == (6, 3, 5, 5)


def test_an_ensemble_learns_under_vmap_and_grad() -> None:
    members, x = [nw.BatchNorm2d(3) for _ in range(2)], image()
    parameters, buffers = torch.func.stack_module_state(members)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(members[0], (parameters, buffers), (x,)).pow(3).sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    members[0](x).pow(3).sum().backward()
    torch.testing.assert_close(gradients["weight"][1], members[0].weight.grad)
    torch.testing.assert_close(buffers["running_var"][1], members[0].running_var)


POOLS_THE_BATCH = ["batch", "ghost:2", "renorm", "domain:2", "batch-instance", "switchable", "ibn", "sync"]


@pytest.mark.parametrize("spec", POOLS_THE_BATCH)
def test_a_compiled_batch_of_too_few_valid_values_teaches_nothing(spec: str) -> None:
    """Eager it is refused; the running program cannot, and moved the memory towards mean and variance 0."""
    torch._dynamo.reset()
    norm, mask = nw.build(spec, 3), torch.zeros(6, 5, 5, dtype=torch.bool)
    run = torch.compile(norm, fullgraph=True, backend="aot_eager")
    run(image(), ~mask)
    before = copy.deepcopy(norm.state_dict())
    for valid in (0, 1):
        mask[0, 0, :valid] = True
        assert run(image(), mask).isfinite().all()
        with nw.accumulate(norm):
            run(image(), mask)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_a_compiled_domain_of_one_sample_teaches_nothing() -> None:
    torch._dynamo.reset()
    norm = nw.DomainNorm(3)
    with nw.domain(norm, [0, 0, 0, 1]):
        torch.compile(norm, fullgraph=True, backend="aot_eager")(torch.randn(4, 3))
    assert norm.get_buffer("running_var")[1].tolist() == [1, 1, 1]
    assert norm.get_buffer("num_batches_tracked").tolist() == [1, 0]


@pytest.mark.parametrize("spec", ["batch", "instance", "renorm", "batch-instance"])
@pytest.mark.parametrize("shape", [(4, 3, 0, 5), (0, 3, 5, 5)], ids=str)
def test_compiled_for_no_values_nothing_is_learned(spec: str, shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    norm, x = nw.build(spec, 3, track_running_stats=True), torch.randn(shape, requires_grad=True)
    norm(image())
    before = copy.deepcopy(norm.state_dict())
    y = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    gradients = torch.autograd.grad(y.sum(), [x, *norm.parameters()], allow_unused=True)
    assert not any(g.any() for g in gradients if g is not None)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert norm.skipped == 0


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_a_copy_made_while_accumulating_goes_on_by_itself(copied: Any) -> None:
    """Its pool stayed open, which nobody would have closed: it remembered nothing any more."""
    norm, x = nw.BatchNorm(3, momentum=1.0), image()
    with nw.accumulate(norm):
        norm(x)
        twin = copied(norm)
        norm(x)
    twin(x)
    torch.testing.assert_close(twin.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


def test_a_copy_made_for_a_domain_is_of_no_domain() -> None:
    norm = nw.DomainNorm(3)
    with nw.domain(norm, 1):
        twins = copy.deepcopy(norm), saved(norm)
        assert norm.current == 1
    assert [twin.current for twin in twins] == [0, 0]
