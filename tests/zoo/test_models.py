"""Whole models of torchvision and timm, in PyTorch 2.14: accelerate, swap and fold keep what they promise."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import normwise as nw
from normwise.layers.running import Running

REASON = "needs torchvision and timm: run `make test-zoo`"
torchvision = pytest.importorskip("torchvision", reason=REASON)
timm = pytest.importorskip("timm", reason=REASON)

BATCH_MODELS = ("resnet18", "mobilenet_v2")
PACKED = {"efficientnet_lite0": "ReLU6", "regnetx_002": "ReLU", "mobilenetv3_small_100": "Hardswish"}
OWN_NORMS = ("efficientnet_lite0", "convnext_atto")  # timm's BatchNormAct2d and LayerNorm2d have forwards of their own
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def build(name: str, layout: torch.memory_format = torch.contiguous_format) -> tuple[nn.Module, Tensor]:
    """A model in float64 with weights and running statistics that are not those of a new one, and small images."""
    torch.manual_seed(0)
    zoo = torchvision.models if name in ("resnet18", "mobilenet_v2") else timm.models
    model = getattr(zoo, name)(num_classes=10).double().to(memory_format=layout)
    x = torch.randn(4, 3, 128, 128).double().to(memory_format=layout)
    with torch.no_grad():
        model.train()(x)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d) and part.affine:
                part.weight.add_(torch.rand_like(part.weight))
                part.bias.add_(torch.randn_like(part.bias) / 4)
    return model.eval(), x


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output of one training step and the gradients of all parameters."""
    torch.manual_seed(1)  # dropout
    model.train().zero_grad()
    y = model(x)
    y.square().mean().backward()
    model.eval()
    return y.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(found: Tensor, wanted: Tensor, share: float = 1e-8) -> None:
    """Equal up to a share of the size; some gradients are 0 but for rounding."""
    assert (found - wanted).detach().norm() <= share * wanted.detach().norm() + 1e-12


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [*BATCH_MODELS, *PACKED])
def test_an_accelerated_model_computes_the_same(name: str, layout: torch.memory_format) -> None:
    model, x = build(name, layout)
    other = deepcopy(model)
    assert nw.accelerate(other, x).changes
    close(other(x), model(x))
    (trained, gradients), (again, others) = step(model, x), step(other, x)
    close(again, trained)
    for found, wanted in zip(others, gradients, strict=True):
        close(found, wanted, 1e-6)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            close(other.state_dict()[key], value)


@pytest.mark.parametrize("name", BATCH_MODELS)
def test_every_norm_of_a_network_with_batch_norm_is_taken_over(name: str) -> None:
    model, x = build(name)
    kinds = {path: type(part) for path, part in model.named_modules()}
    plan = nw.accelerate(model, x)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, nw.BatchNorm2d) for norm in norms)
    plan.undo()
    assert {path: type(part) for path, part in model.named_modules()} == kinds


@pytest.mark.parametrize("spec", ["instance", "group:size=4", "batch-instance"])
@pytest.mark.parametrize("name", BATCH_MODELS)
def test_a_swapped_model_trains_and_comes_back(name: str, spec: str) -> None:
    model, x = build(name)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    before, keys = model(x), list(model.state_dict())
    plan = nw.swap(model, spec, example=x)
    assert len(plan.changes) == norms
    y, gradients = step(deepcopy(model), x)
    assert all(t.isfinite().all() for t in (y, *gradients))
    plan.undo()
    assert list(model.state_dict()) == keys
    close(model(x), before)


@pytest.mark.parametrize("name", BATCH_MODELS)
def test_a_folded_model_computes_the_same_without_norms(name: str) -> None:
    model, x = build(name)
    with torch.no_grad():
        before = model(x)
        nw.fold(model, example=x)
        close(model(x), before)
    assert not [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", PACKED)
def test_norms_with_an_activation_are_taken_over(name: str) -> None:
    model, x = build(name)
    kinds = {path: type(part) for path, part in model.named_modules()}
    plan = nw.accelerate(model, x)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, Running) for norm in norms)
    assert any(PACKED[name] in change.note for change in plan.changes)
    assert not plan.left
    plan.undo()
    assert {path: type(part) for path, part in model.named_modules()} == kinds


@pytest.mark.parametrize("accelerated", [False, True])
def test_norms_with_an_activation_are_frozen(accelerated: bool) -> None:
    model, x = build("regnetx_002")
    wanted, keys = model(x), list(model.state_dict())
    if accelerated:
        nw.accelerate(model)
    plan = nw.freeze(model)
    assert not plan.left
    before = deepcopy(model.state_dict())
    close(model.train()(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == keys
    plan.undo()
    model(x)
    assert not all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("BatchNormAct2d", {"act_layer": "silu"}, "SiLU in the same pass"),
        ("BatchNormAct2d", {"act_layer": "gelu", "drop_layer": nn.Dropout}, "Dropout and GELU after it"),
        ("GroupNormAct", {"num_groups": 4, "act_layer": "gelu"}, "GELU in the same pass"),
        ("GroupNorm1Act", {"act_layer": "leaky_relu"}, "LeakyReLU in the same pass"),
        ("GroupNorm", {"num_groups": 4}, ""),
        ("GroupNorm1", {}, ""),
    ],
)
def test_timms_layers_one_by_one(name: str, options: dict, note: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(getattr(timm.layers, name)(8, **options)).double(), torch.randn(6, 8, 20, 20).double()
    other = deepcopy(model)
    assert [change.note for change in nw.accelerate(other, x).changes] == [note]
    for _ in range(2):
        (trained, gradients), (again, others) = step(model, x), step(other, x)
        close(again, trained)
        for found, wanted in zip(others, gradients, strict=True):
            close(found, wanted)
    close(other(x), model(x))


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_network_of_timms_goes_on(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Copied, compiled, exported, and with its norms frozen and synchronized by timm."""
    torch._dynamo.reset()
    model, x = build("efficientnet_lite0")
    before = model(x)
    nw.accelerate(model)
    model = copied(model)
    close(model(x), before)
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), before)
    close(torch.export.export(model, (x,)).module()(x), before)
    close(timm.layers.create_feature_extractor(model, ["classifier"])(x)["classifier"], before)
    for convert, kind in (("freeze_batch_norm_2d", "Frozen"), ("convert_sync_batchnorm", "Sync")):
        other = getattr(timm.layers, convert)(deepcopy(model))
        assert {type(part).__name__ for part in other.modules() if "BatchNorm" in type(part).__name__} == {
            f"{kind}BatchNormAct2d" if kind == "Frozen" else "SyncBatchNormAct"
        }
        close(other(x), before)


@pytest.mark.parametrize("name", OWN_NORMS)
def test_norms_with_a_forward_of_their_own_are_left_and_named(name: str) -> None:
    model, x = build(name)
    before = model(x)
    plan = nw.swap(model, "group:4")
    assert not plan.changes
    assert "left" in repr(plan)
    assert torch.equal(model(x), before)


def test_accelerate_leaves_norms_of_each_position() -> None:
    model, x = build("convnext_atto")
    plan = nw.accelerate(model, x)
    assert not plan.changes
    assert {left.note for left in plan.left} == {"it normalizes each position, where PyTorch's own kernel is taken"}
