"""What every norm promises: each entry of NORMS against its naive reference and the common contract."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from references import REFERENCES
from torch import Tensor, nn

from normwise.layers import NORMS
from normwise.layers.spec import build, read

C = 4
SPECS = [*NORMS, "group:2"]
KIND = {text: NORMS[text.partition(":")[0]].kind for text in SPECS}
AXES = {text: NORMS[text.partition(":")[0]].axes for text in SPECS}
PLANE = [text for text in SPECS if KIND[text] == "plane"]
SPATIAL = {2: (), 3: (7,), 4: (3, 5), 5: (2, 3, 4)}

every_norm = pytest.mark.parametrize("spec", SPECS)
every_plane_norm = pytest.mark.parametrize("spec", PLANE)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def make(spec: str, dtype: torch.dtype = torch.float64, training: bool = True, **options: Any) -> Any:
    """A norm with random weights, gates and running statistics, all between 0.2 and 0.8."""
    norm = build(spec, C, dtype=dtype, **options).train(training)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 0.8)
    return norm


def sample(spec: str, *spatial: int, n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values of several scales and means; channels where the norm expects them."""
    x = torch.randn(n, C, *spatial, dtype=torch.float64) * torch.rand(n, C, *(1 for _ in spatial)) * 3 + 1
    return (x.movedim(1, -1) if KIND[spec] == "position" else x).to(dtype)


def expected(norm: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The reference's result for the state of this norm, in float64."""
    state = read(norm)
    assert state is not None
    given = {name: t.double() for name, t in {**dict(norm.named_parameters()), **dict(norm.named_buffers())}.items()}
    return REFERENCES[state.spec.name](x.double(), given, norm.training, **options, **dict(state.spec.options))


def needs_pixels(spec: str) -> bool:
    """Planes of one value are refused where a plane is all there is to pool."""
    return AXES[spec] == ("HW",) or spec == "group"  # of 4 channels it makes 4 groups


def gradients(y: Tensor, norm: nn.Module, x: Tensor) -> list[Tensor]:
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return list(torch.autograd.grad((y * seed).sum(), [x, *norm.parameters()]))


@every_norm
@modes
@pytest.mark.parametrize("rank", SPATIAL)
def test_equals_reference(spec: str, training: bool, rank: int) -> None:
    if rank == 2 and needs_pixels(spec):
        pytest.skip("refused: see test_one_pixel_planes")
    norm, x = make(spec, training=training), sample(spec, *SPATIAL[rank]).requires_grad_()
    ours, theirs = norm(x), expected(norm, x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, norm, x), gradients(theirs, norm, x))


@every_norm
@modes
def test_first_and_second_derivatives(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, n=2).requires_grad_()
    names, values = zip(*norm.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values), fast_mode=True)


@every_plane_norm
@modes
@pytest.mark.parametrize("affine", [(True, False), (False, False)], ids=["no bias", "no affine"])
def test_without_bias_or_affine(spec: str, training: bool, affine: tuple[bool, bool]) -> None:
    norm = make(spec, training=training, affine=affine[0], bias=affine[1])
    x = sample(spec, 3, 5)
    torch.testing.assert_close(norm(x), expected(norm, x))


@every_plane_norm
def test_remembers_the_unbiased_batch(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    if not read(norm).track_running_stats:  # pyright: ignore[reportOptionalMemberAccess]
        pytest.skip("remembers nothing")
    before = norm.running_mean.clone(), norm.running_var.clone()
    norm(x)
    values = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, 0.9 * before[0] + 0.1 * values.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 * before[1] + 0.1 * values.var(1))


@every_plane_norm
@modes
@pytest.mark.parametrize("spatial", [(3, 5), (2, 3, 4)], ids=["2d", "3d"])
def test_keeps_channels_last(spec: str, training: bool, spatial: tuple[int, ...]) -> None:
    norm = make(spec, torch.float32, training)
    last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    x = sample(spec, *spatial, dtype=torch.float32)
    y = norm(x.to(memory_format=last))
    assert y.is_contiguous(memory_format=last)
    torch.testing.assert_close(y, norm(x), rtol=1e-4, atol=1e-5)


@every_norm
@modes
def test_one_instance(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5, n=1)
    torch.testing.assert_close(norm(x), expected(norm, x))


@every_plane_norm
@modes
def test_one_pixel_planes(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 1, 1)
    if needs_pixels(spec):
        with pytest.raises(ValueError, match="every statistic needs at least 2 values"):
            norm(x)
    else:
        torch.testing.assert_close(norm(x), expected(norm, x))


@every_norm
@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_in_half_out_float32_inside(spec: str, training: bool, dtype: torch.dtype) -> None:
    norm, x = make(spec, dtype, training), sample(spec, 8, 8, dtype=dtype).requires_grad_()
    y = norm(x)
    assert y.dtype == dtype
    inside = {name: t.dtype for name, t in norm.named_buffers() if t.is_floating_point()}
    assert set(inside.values()) <= {torch.float32}
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected(norm, x), rtol=2 * step, atol=2 * step)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@every_plane_norm
def test_autocast(spec: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3), make(spec, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(4, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@every_norm
def test_state_dict_deepcopy_and_pickle(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    norm(x)
    norm.eval()
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    loaded = build(spec, C, dtype=torch.float64).eval()
    loaded.load_state_dict(torch.load(file), strict=True)
    for other in (loaded, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(other(x), norm(x))
        assert repr(other) == repr(norm)


@every_norm
@modes
def test_compile_as_one_graph(spec: str, training: bool) -> None:
    torch._dynamo.reset()
    norm, x = make(spec, training=training), sample(spec, 3, 5).requires_grad_()
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    theirs, ours = compiled(x), norm(x)
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(gradients(theirs, twin, x), gradients(ours, norm, x))
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@every_plane_norm
def test_mask_compiles_as_one_graph(spec: str) -> None:
    torch._dynamo.reset()
    norm, x = make(spec), sample(spec, 7, n=3)
    twin, mask = copy.deepcopy(norm), lengths(x, 7, 4, 2)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask), norm(x, mask))
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@pytest.mark.parametrize("spec", ["batch", "instance", "group", "layer"])
def test_a_plain_norm_is_one_operator(spec: str) -> None:
    """So that exporters and folding passes know it."""
    program = torch.export.export(make(spec, training=False), (sample(spec, 3, 5),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([name for name in calls if "norm" in name]) == len(calls) == 1


@every_norm
@modes
def test_export(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(copy.deepcopy(norm), (x,), dynamic_shapes=({0: batch},))
    other = sample(spec, 3, 5, n=9)
    torch.testing.assert_close(program.module()(other), norm(other))


@every_plane_norm
@layouts
@pytest.mark.parametrize(
    ("dtype", "ratio"),
    [(torch.float32, ratio) for ratio in (0, 1, 1e2, 1e3, 1e4)] + [(torch.bfloat16, ratio) for ratio in (0, 1e2)],
    ids=str,
)
def test_large_mean(spec: str, layout: torch.memory_format, dtype: torch.dtype, ratio: float) -> None:
    """The mean is `ratio` standard deviations: float32 itself leaves an error of about ratio * 1e-7."""
    norm = make(spec, torch.float32)
    x = (torch.randn(4, C, 16, 16) + ratio).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y, naive = norm(x), expected(norm, x)
    step = torch.finfo(dtype).eps
    scale = max(1.0, float(naive.detach().abs().max()))
    assert float((y - naive).detach().abs().max()) < scale * (step + 4e-7 * (3 + ratio))
    ours, theirs = (gradients(z.double(), norm, x)[0].double() for z in (y, naive))
    assert float((ours - theirs).abs().max()) < float(theirs.abs().max()) * (2 * step + 4e-7 * (10 + ratio))


@every_norm
@modes
def test_an_instance_and_its_neighbours(spec: str, training: bool) -> None:
    """In evaluation no norm looks at the neighbours; in training those that pool over N do."""
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    other = torch.cat([x[:1], sample(spec, 3, 5)[1:]])
    alone = torch.allclose(norm(x)[0], norm(other)[0], rtol=0, atol=1e-12)
    assert alone == (not training or not any("N" in axes.split(",") for axes in AXES[spec]))


@every_norm
@modes
def test_order_of_instances(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    order = torch.randperm(len(x))
    torch.testing.assert_close(norm(x[order]), norm(x)[order])


@every_plane_norm
@modes
def test_order_of_positions(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 7)
    order = torch.randperm(7)
    torch.testing.assert_close(norm(x[..., order]), norm(x)[..., order])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in ("none", "rms-token")])
def test_a_constant_added_everywhere_changes_nothing(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    torch.testing.assert_close(norm(x + 5), norm(x))


def lengths(x: Tensor, *counts: int) -> Tensor:
    """A mask over (N, L): the first `counts[n]` positions are valid."""
    return torch.arange(x.shape[2]) < torch.tensor(counts)[:, None]


@every_plane_norm
@modes
def test_mask_equals_the_unpadded_result(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 7, n=4)
    mask = lengths(x, 7, 4, 2, 0)
    padded = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    ours, theirs = norm(padded, mask), expected(norm, x, mask=mask)
    torch.testing.assert_close(ours, theirs)
    x.requires_grad_()
    theirs = expected(norm, x, mask=mask)
    torch.testing.assert_close(gradients(ours, norm, padded), gradients(theirs, norm, x))


@every_plane_norm
def test_mask_has_first_and_second_derivatives(spec: str) -> None:
    norm, x = make(spec), sample(spec, 4, n=2).requires_grad_()
    mask = lengths(x, 4, 2)
    assert torch.autograd.gradcheck(lambda x: norm(x, mask), (x,))
    assert torch.autograd.gradgradcheck(lambda x: norm(x, mask), (x,), fast_mode=True)


@every_plane_norm
@modes
def test_mask_of_valid_values_only(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    before = copy.deepcopy(norm)
    torch.testing.assert_close(norm(x, torch.ones(3, 5, dtype=torch.bool)), before(x))
    torch.testing.assert_close(norm.state_dict(), before.state_dict())


@every_plane_norm
@pytest.mark.parametrize(
    "mask", [torch.ones(6, 3, 5), torch.ones(6, 4, 5, dtype=torch.bool)], ids=["not bool", "wrong shape"]
)
def test_mask_that_does_not_fit(spec: str, mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask must be bool and broadcast to .* = \(6, 3, 5\)"):
        make(spec)(sample(spec, 3, 5), mask)


@every_plane_norm
def test_wrong_input(spec: str) -> None:
    norm = make(spec)
    with pytest.raises(ValueError, match=r"4 channels on axis 1, got shape \(2, 5, 3\).*num_features=5"):
        norm(torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match="floating point, got torch"):
        norm(torch.ones(2, C, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(N, C, \*spatial\), got \(4,\)"):
        norm(torch.randn(4))


@every_plane_norm
@modes
def test_fx_sees_one_node(spec: str, training: bool) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(make(spec, training=training)))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x = sample(spec, 3, 5)
    torch.testing.assert_close(graph(x), copy.deepcopy(graph)(x))


@every_plane_norm
@modes
def test_keeps_one_activation_for_the_backward_pass(spec: str, training: bool) -> None:
    norm, x = make(spec, torch.float32, training), sample(spec, 32, 32, dtype=torch.float32).requires_grad_()
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        norm(x)
    assert sum(saved.values()) <= 1.05 * x.nbytes


@every_norm
def test_per_sample_gradients(spec: str) -> None:
    norm = make(spec)
    norm.train(not list(norm.buffers()))  # running statistics are written in place: not under vmap, as in PyTorch
    x = sample(spec, 3, 5)
    parameters = dict(norm.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(norm, parameters, x[None]).square().sum()

    ours = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for n in range(len(x)):
        single = torch.autograd.grad(loss(parameters, x[n]), list(parameters.values()))
        torch.testing.assert_close([ours[name][n] for name in parameters], list(single))


@every_norm
@modes
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
def test_forward_mode(spec: str, training: bool) -> None:
    norm = make(spec, training=training, track_running_stats=False if training else None)
    x, direction = sample(spec, 3, 5), sample(spec, 3, 5)
    ours = torch.func.jvp(norm, (x,), (direction,))[1]
    step = 1e-6
    torch.testing.assert_close(
        ours, (norm(x + step * direction) - norm(x - step * direction)) / (2 * step), rtol=1e-5, atol=1e-6
    )
