"""The rank-free norms: identities, gates, weights, and clear errors."""

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import normwise as nw
from normwise.layers import base
from normwise.layers.blend import box
from normwise.table import wide


@pytest.fixture(autouse=True)
def _nobody_was_warned() -> None:
    base._warn_two.cache_clear()


POOLS_THE_BATCH: list[Any] = [nw.BatchNorm, nw.BatchNorm1d, nw.BatchInstanceNorm, nw.SwitchableNorm]


@pytest.mark.parametrize("cls", POOLS_THE_BATCH)
def test_one_value_per_channel(cls: Any) -> None:
    norm, x = cls(3), torch.randn(1, 3)
    with pytest.raises(
        ValueError, match=r"at least 2 values per channel \(N\*H\*W\), got 1 .*shape \(1, 3\).*larger batch"
    ):
        norm(x)
    norm.eval()(x)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("spec", ["batch", "batch-instance", "switchable", "renorm", "ghost:2", "conditional-batch"])
def test_one_value_per_channel_compiled(spec: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    norm, counter = nw.build(spec, 3), CompileCounter()
    compiled = torch.compile(norm, backend=counter, dynamic=dynamic)
    given = [torch.zeros(8, dtype=torch.long)] if spec == "conditional-batch" else []
    for n in (4, 6, 8):
        compiled(torch.randn(n, 3), *(g[:n] for g in given))
    assert counter.frame_count == (1 if dynamic else 2)  # the check does not tie the program to one size
    with pytest.raises(ValueError, match=r"at least 2 values per channel \(N\*H\*W\), got 1"):
        compiled(torch.randn(1, 3), *(g[:1] for g in given))
    assert norm.get_buffer("num_batches_tracked") == 3


@pytest.mark.parametrize("spec", ["switchable", "renorm"])
def test_compiled_for_a_batch_of_unknown_size(spec: str) -> None:
    torch._dynamo.reset()
    norm, x = nw.build(spec, 3), torch.randn(6, 3, 4)
    mark_unbacked(x, 0)
    assert torch.compile(norm, backend="eager", fullgraph=True)(x).shape == x.shape


@pytest.mark.parametrize("cls", POOLS_THE_BATCH)
def test_two_values_per_channel_warn_once(cls: Any) -> None:
    norm = cls(3)
    with pytest.warns(UserWarning, match=r"with 2 values per channel every output is \+-1"):
        norm(torch.randn(2, 3))
    norm(torch.randn(2, 3))  # a second warning would be an error here


TWO_PER_STATISTIC = [
    nw.InstanceNorm(3),
    nw.InstanceNorm1d(3),
    nw.GroupNorm(3, 3),
    nw.IBNorm(3),
    nw.InstanceNorm(3).eval(),
]


@pytest.mark.parametrize("norm", TWO_PER_STATISTIC, ids=str)
def test_two_values_per_statistic_warn_once(norm: nn.Module) -> None:
    x = torch.randn(4, 3, 2)
    with pytest.warns(UserWarning, match=r"Norm.*: with 2 values per statistic every output is \+-1 .*fewer groups"):
        y = norm(x)
    torch.testing.assert_close(y[:, 0].abs(), torch.ones(4, 2), rtol=0, atol=0.05)
    norm(x)  # a second warning would be an error here


def test_a_mask_that_leaves_one_value() -> None:
    with pytest.raises(ValueError, match="got 1"):
        nw.BatchNorm(3)(torch.randn(2, 3, 2), torch.tensor([[True, False], [False, False]]))


def test_two_values_that_no_statistic_uses() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nw.BatchNorm(3).eval()(torch.randn(2, 3))
        nw.GroupNorm(1, 3)(torch.randn(2, 3))


def test_one_value_per_statistic() -> None:
    """PyTorch's group norm is silent here, and returns nothing but the bias."""
    message = r"at least 2 values .*, got 1 \(input shape \(4, 3, 1, 1\)\); place .* too: group norm, with fewer groups"
    for norm in (nw.InstanceNorm(3), nw.GroupNorm(3, 3)):
        with pytest.raises(ValueError, match=message):
            norm(torch.randn(4, 3, 1, 1))
    tracked = nw.InstanceNorm(3, track_running_stats=True)
    tracked(torch.randn(4, 3, 2, 2))
    assert tracked.eval()(torch.randn(4, 3, 1, 1)).shape == (4, 3, 1, 1)
    assert tracked(torch.randn(4, 3)).shape == (4, 3)


def test_features_without_positions() -> None:
    """(N, C) is refused; PyTorch's 1d class takes it for one sequence (C, L), and so does ours."""
    with pytest.raises(ValueError, match=r"at least 2 values .*, got 1 \(input shape \(4, 3\)\)"):
        nw.InstanceNorm(3)(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"must have 3 channels on axis 1, got shape \(1, 4, 3\)"):
        nw.InstanceNorm1d(3, affine=True)(torch.randn(4, 3))
    x = torch.randn(3, 3)
    torch.testing.assert_close(nw.InstanceNorm1d(3)(x), nn.InstanceNorm1d(3)(x))


@pytest.mark.parametrize("way", ["plainly", "torch.func"])
def test_planes_without_positions_teach_instance_norm_nothing(way: str) -> None:
    norm, x = nw.InstanceNorm(4, track_running_stats=True), torch.empty(2, 4, 0, 5)
    before = copy.deepcopy(norm.state_dict())
    (torch.func.grad(lambda x: norm(x).sum()) if way == "torch.func" else norm)(x)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [nw.BatchNorm, nw.InstanceNorm, nw.ChannelAffine])
def test_num_features_must_be_positive(cls: Any) -> None:
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        cls(0)


def test_options_are_keywords_and_known() -> None:
    with pytest.raises(TypeError):
        nw.BatchInstanceNorm(3, 1e-3)  # pyright: ignore
    with pytest.raises(TypeError):
        nw.SwitchableNorm(3, momentun=0.1)  # pyright: ignore


def test_group_norm_input() -> None:
    with pytest.raises(ValueError, match=r"GroupNorm: x must have shape \(N, C, \*spatial\), got \(4,\)"):
        nw.GroupNorm(2, 4)(torch.randn(4))


@pytest.mark.parametrize(
    ("norm", "same"),
    [
        (nw.GroupNorm(4, 4), nw.InstanceNorm(4)),
        (nw.GroupNorm(1, 4), nn.LayerNorm([4, 5, 5], elementwise_affine=False)),
        (nw.InstanceNorm(4), nn.InstanceNorm2d(4)),
        (nw.BatchNorm(4), nn.BatchNorm2d(4)),
        (nw.BatchInstanceNorm(4), nn.BatchNorm2d(4)),
    ],
    ids=["group:C = instance", "group:1 = layer", "instance", "batch", "batch-instance starts at batch"],
)
def test_identities(norm: nn.Module, same: nn.Module) -> None:
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(norm(x), same(x))


def test_instance_norm_is_affine_by_default_and_tracks_nothing() -> None:
    assert list(nw.InstanceNorm(3).state_dict()) == ["weight", "bias"]


def test_channel_affine_holds_a_weight_and_a_bias() -> None:
    norm = nw.ChannelAffine(3)
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert list(nw.ChannelAffine(3, track_running_stats=True).buffers()) == []
    assert torch.equal(nw.ChannelAffine(3, affine=False)(torch.ones(2, 3)), torch.ones(2, 3))


def test_gate_at_zero_is_instance_norm() -> None:
    norm, x = nw.BatchInstanceNorm(3), torch.randn(4, 3, 5, 5)
    nn.init.zeros_(norm.gate)
    torch.testing.assert_close(norm(x), F.instance_norm(x), rtol=1e-4, atol=1e-5)


def test_gate_finds_back_from_outside() -> None:
    """A plain clamp has no gradient outside: a gate that once stepped over the border would stay there."""
    gate = torch.tensor([1.3, -0.2], requires_grad=True)
    optimizer = torch.optim.SGD([gate], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (box(gate) - 0.5).pow(2).sum().backward()
        optimizer.step()
    assert ((gate - 0.5).abs() < 0.2).all()


def test_gate_does_not_wander_off() -> None:
    gate = torch.tensor([0.9, 0.1], requires_grad=True)
    optimizer = torch.optim.SGD([gate], lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        (box(gate) * torch.tensor([-1.0, 1.0])).sum().backward()
        optimizer.step()
    assert box(gate).tolist() == [1, 0]
    assert gate.detach().sub(0.5).abs().max() < 0.75


@pytest.mark.parametrize("way", ["compiled", "torch.func.grad", "vmap"])
def test_gate_outside_has_one_gradient_whoever_computes_it(way: str) -> None:
    torch._dynamo.reset()
    norm, x = nw.BatchInstanceNorm(4, track_running_stats=False, dtype=torch.float64), torch.randn(6, 4, 3).double()
    gate, found = torch.tensor([1.2, -0.2, 1.2, -0.2], dtype=torch.float64, requires_grad=True), []
    for sign in (1, -1):

        def loss(gate: Tensor, sign: int = sign) -> Tensor:
            y = torch.func.functional_call(norm, {"gate": gate}, (x,))
            return sign * (y * torch.arange(6)[:, None, None]).pow(2).sum()

        (right,) = torch.autograd.grad(loss(gate), gate)
        if way == "compiled":
            (ours,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(gate), gate)
        elif way == "vmap":
            ours = torch.func.vmap(torch.func.grad(loss))(torch.stack([gate - 9, gate]).detach())[1]
        else:
            ours = torch.func.grad(loss)(gate)
        torch.testing.assert_close(ours, right)
        found.append(right)
    assert ((found[0] == 0) != (found[1] == 0)).all()  # one direction leads back, the other further out


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_gate_outside_where_only_ordinary_operations_are_understood() -> None:
    """Forward mode, torch.jit.trace and torch.export: the gradient passes in both directions."""
    norm, x = nw.BatchInstanceNorm(4).eval(), torch.randn(6, 4, 3)
    nn.init.constant_(norm.gate, 1.2)
    gate, ones = norm.gate.detach(), torch.ones(4)
    assert torch.equal(torch.func.jvp(box, (gate,), (ones,))[1], ones)
    wanted = norm(x)
    programs: list[Any] = [torch.jit.trace(norm, (x,)), torch.export.export(norm, (x,)).module()]
    torch.jit.save(programs[0], io.BytesIO())
    for other in programs:
        torch.testing.assert_close(other(x), wanted)
        assert all(torch.autograd.grad(sign * other(x).pow(3).sum(), other.gate)[0].all() for sign in (1, -1))


def test_eval_blend_uses_gate() -> None:
    norm, x = nw.BatchInstanceNorm(3).eval(), torch.randn(4, 3, 5, 5)
    nn.init.constant_(norm.gate, 0.25)
    torch.testing.assert_close(norm(x), 0.25 * x / (1 + 1e-5) ** 0.5 + 0.75 * F.instance_norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", range(3))
def test_switchable_norm_can_choose_one_pool(chosen: int) -> None:
    norm, x = nw.SwitchableNorm(4), torch.randn(3, 4, 5, 5)
    for weight in (norm.mean_weight, norm.var_weight):
        weight.data[chosen] = 50
    wanted = [F.instance_norm(x), F.group_norm(x, 1), F.batch_norm(x, None, None, training=True)][chosen]
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-5)


def test_instance_norm_ignores_contrast() -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(nw.InstanceNorm(3)(7 * x - 3), nw.InstanceNorm(3)(x), rtol=1e-3, atol=1e-4)


def response(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Tensor:
    """Filter response norm as its paper writes it."""
    weight, bias, threshold = (t.reshape(-1, 1, 1) for t in (weight, bias, threshold))
    return torch.maximum(x / (x**2).mean((2, 3), keepdim=True).add(1e-5).sqrt() * weight + bias, threshold)


def filter_response(dtype: torch.dtype = torch.float32) -> nw.FilterResponseNorm:
    norm = nw.FilterResponseNorm(6, dtype=dtype)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.2, 0.8)
    return norm


TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 3e-2}
in_one_node = pytest.mark.skipif(nw.backend() != "native", reason="the kernels were not built")


@in_one_node
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("learned", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_filter_response_in_one_node(dtype: torch.dtype, learned: torch.dtype, layout: torch.memory_format) -> None:
    x = (torch.randn(4, 6, 8, 9) * 2 + 1).to(dtype).contiguous(memory_format=layout).requires_grad_()
    norm, g = filter_response(learned), torch.randn(4, 6, 8, 9).to(dtype)
    y = norm(x)
    assert type(y.grad_fn).__name__ == "_ResponseBackward"
    inputs = [x, norm.weight, norm.bias, norm.threshold]
    found = [y, *torch.autograd.grad(y, inputs, g)]
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    want = response(leaves[0], *leaves[1:])
    right = [want.detach(), *torch.autograd.grad(want, leaves, g.double())]
    for got, exact, like in zip(found, right, [x, *inputs], strict=True):
        assert got.dtype == like.dtype
        tolerance = max(TOLERANCE[like.dtype], TOLERANCE[wide(dtype)])
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


@in_one_node
@pytest.mark.parametrize("needed", range(4))
def test_filter_response_gives_the_gradients_that_are_asked_for(needed: int) -> None:
    norm, x = filter_response(torch.float64).requires_grad_(False), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    inputs = [x, norm.weight, norm.bias, norm.threshold]
    leaf = inputs[needed].requires_grad_()
    others, many = [t.detach() for t in inputs], torch.randn(3, 2, 6, 4, 5, dtype=torch.float64)
    others[needed] = other = leaf.detach().clone().requires_grad_()
    y, want = norm(x), response(others[0], *others[1:])
    (found,) = torch.autograd.grad(y, leaf, many[0], retain_graph=True)
    (twice,) = torch.autograd.grad(y, leaf, many[0], create_graph=True)
    (each,) = torch.autograd.grad(y, leaf, many, is_grads_batched=True)
    for i, got in [(0, found), (0, twice), *enumerate(each)]:
        torch.testing.assert_close(got, torch.autograd.grad(want, other, many[i], retain_graph=True)[0])


@in_one_node
def test_filter_response_keeps_the_input_and_a_table() -> None:
    norm, x, kept = filter_response(), torch.randn(4, 6, 40, 40, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
        y = norm(x)
    assert x.nbytes < sum(kept) <= 1.01 * x.nbytes
    with torch.no_grad():
        assert norm(x).grad_fn is None
        torch.testing.assert_close(norm(x), y, rtol=0, atol=0)
        everything = torch.ones(4, 40, 40, dtype=torch.bool)
        torch.testing.assert_close(norm(x, everything), y)  # the table's way


@in_one_node
def test_filter_response_of_nothing_and_of_one_value() -> None:
    norm = filter_response()
    y = norm(torch.empty(0, 6, 3, 3, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 6, 3, 3)
    assert all(p.grad is not None and not p.grad.any() for p in norm.parameters())
    x = torch.randn(5, 6, 1, 1)
    torch.testing.assert_close(norm(x), response(x, norm.weight, norm.bias, norm.threshold))
