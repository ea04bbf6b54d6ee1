"""fold: the same function with fewer layers, or a reason why not."""

import copy
import pickle
from typing import Any

import pytest
import torch
from models import ZOO, Branching, FrozenBatchNorm2d, Tokens, lively, perceptron, plain, untouched
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrizations

import normwise as nw
from normwise.errors import UsageError
from normwise.surgery.flow import look, traced_sources
from normwise.surgery.fold import OnlyFlat, fold
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.swap import swap

TWICE, ELSEWHERE = "it is called 2 times in one forward", "the output of conv is used elsewhere too"
# of each specimen: what is folded, and why the others are not
EXPECTED: dict[str, tuple[list[str], dict[str, str]]] = {
    "plain": (["1", "4"], {}),
    "residual": (["norm1", "norm2", "down.1"], {}),
    "tied": ([], {"norm": TWICE}),
    "norm-twice": ([], {"norm": TWICE}),
    "shared-conv": ([], dict.fromkeys(["norm1", "norm2"], "conv is called 2 times in one forward")),
    "crossed": (["norm2", "norm1"], {}),
    "conv-used-elsewhere": ([], {"norm": ELSEWHERE}),
    "returns-conv": ([], {"norm": ELSEWHERE}),
    "uses-weights": ([], {"norm": "the forward also uses its parameters"}),
    "dict-input": (["body.1", "body.4"], {}),
    "whole-dict": (["body.1", "body.4"], {}),
    "optional-gain": ([], {"norm": "its input is mul, not the output"}),
    "branching": (["norm1"], {"norm2": "the output of conv2 is used elsewhere too"}),
    "transformer": (
        ["stem.1"],
        {"norm1": "layer-token measures each input", "norm2": "rms-token measures each input"},
    ),
    "named": (["norms.first", "norms.second"], {}),
    "tokens": ([], {"norm": "its input has 3 axes, so that its channels are not"}),
    "perceptron": (["1", "4"], {}),
    "upsampling": (["1", "4"], {}),
    "grouped": (["1", "3"], {}),
    "norm-first": ([], {"0": "its input is the model's own input, not the output of a convolution or linear "
                        "layer; folding it forward would be wrong at padded borders", "3": "its input is"}),
    "instances": (["3"], {"1": "it remembers no statistics"}),
    "untracked": ([], {"1": "it remembers no statistics", "2": "its input is _1, not the output"}),
    "volumes": (["1"], {"2": "group:2 measures each input, so no fixed weights can hold it"}),
    "sequences": (["1"], {"4": "layer measures each input, so no fixed weights can hold it"}),
    "parametrized": ([], {"1": "a parametrization or the like computes the weight of the layer before it",
                          "3": "a parametrization computes its weight"}),
    "half": (["1", "4"], {}),
    "root": ([], {"": "its input is"}),
}  # fmt: skip


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with quiet(model):
        return [each.float() for each in tensors(call(model, example))]


@pytest.mark.parametrize("name", ZOO)
def test_what_is_folded_and_what_is_left(name: str) -> None:
    model, example = lively(ZOO[name].make()).eval(), ZOO[name].example()
    before = outputs(model, example)
    plan = fold(model, example)
    folded, left = EXPECTED[name]
    assert [change.path for change in plan.changes] == folded
    assert all(type(model.get_submodule(path)) is nn.Identity for path in folded)
    assert {each.path for each in plan.left} == left.keys()
    assert [each.note for each in plan.left if not each.note.startswith(left[each.path])] == []
    tolerance = 0.1 if name == "half" else 1e-4
    torch.testing.assert_close(outputs(model, example), before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ZOO)
def test_tracing_and_watching_agree(name: str) -> None:
    model: Any = lively(ZOO[name].make()).eval()
    example = ZOO[name].example()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    with untouched(model):
        seen = look(model, norms, example).sources
        if name == "branching":
            with pytest.raises(TraceError):
                traced_sources(model, norms)
            return
        traced = traced_sources(model, norms).sources
    if name == "optional-gain":  # the example does not use the option
        assert seen[model.norm] is model.conv
        return
    assert {norm: found if isinstance(found, nn.Module) else None for norm, found in seen.items()} == {
        norm: found if isinstance(found, nn.Module) else None for norm, found in traced.items()
    }


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_convolution_folds(rank: int, transposed: bool, groups: int, bias: bool, affine: bool) -> None:
    make = getattr(nn, f"Conv{'Transpose' if transposed else ''}{rank}d")
    norm = getattr(nn, f"BatchNorm{rank}d")(6, affine=affine)
    model: Any = lively(nn.Sequential(make(4, 6, 2, stride=2, groups=groups, bias=bias), norm)).double().eval()
    x = torch.randn(2, 4, *[4] * rank, dtype=torch.float64)
    expected = model(x)
    plan = fold(model)
    assert len(plan.changes) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_fold(bias: bool, affine: bool) -> None:
    model = lively(nn.Sequential(nn.Linear(5, 6, bias=bias), nn.BatchNorm1d(6, affine=affine))).double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = model(x)
    fold(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "norm",
    [
        nw.BatchNorm(8),
        nw.BatchNorm2d(8),
        nw.InstanceNorm(8, track_running_stats=True),
        nn.InstanceNorm2d(8, track_running_stats=True),
        nn.SyncBatchNorm(8),
        nw.ChannelAffine(8),
        nw.ChannelAffine(8, affine=False),
        FrozenBatchNorm2d(8),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_fixed_scale_folds(norm: nn.Module) -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), copy.deepcopy(norm))).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    assert len(fold(model).changes) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_products_of_half_precision_are_rounded_once() -> None:
    model: Any = lively(plain()).bfloat16().eval()
    conv, norm = copy.deepcopy(model[3]).double(), copy.deepcopy(model[4]).double()
    exact = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    fold(model)
    assert model[3].weight.dtype == torch.bfloat16
    assert torch.equal(model[3].weight, exact.weight.bfloat16())
    assert exact.bias is not None
    assert torch.equal(model[3].bias, exact.bias.bfloat16())


def test_a_large_mean_keeps_its_digits() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.fill_(1000.25)
        model[1].running_mean.fill_(1000)
    fold(model)
    torch.testing.assert_close(model[0].bias, torch.tensor([0.25]) / (1 + 1e-5) ** 0.5)


def test_layout_and_gradient_flags_are_kept() -> None:
    model: Any = plain().eval()
    model[3].weight = nn.Parameter(model[3].weight.to(memory_format=torch.channels_last))
    model[0].weight.requires_grad_(False)
    fold(model)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert (model[0].weight.requires_grad, model[0].bias.requires_grad, model[3].weight.requires_grad) == (
        False,
        False,
        True,
    )


def test_the_largest_error_is_recorded() -> None:
    (note,) = fold(lively(plain()).eval(), torch.randn(2, 3, 9, 9)).notes
    assert note.startswith("outputs of the example moved by at most ")
    assert float(note.split()[8]) < 1e-4


def test_a_norm_in_training_mode_is_not_folded() -> None:
    model = lively(plain())
    with (
        untouched(model),
        pytest.raises(UsageError, match=r"in training mode, where norms follow the batch; call model\.eval"),
    ):
        fold(model)
    model[4].eval()  # pyright: ignore
    plan = fold(model)  # a frozen norm in a training model
    assert [change.path for change in plan.changes] == ["4"]
    assert [left.note for left in plan.left] == ["it is in training mode; call model.eval() first"]
    assert not model[4].training  # pyright: ignore


@pytest.mark.parametrize("to", ["instance", "group:2", "layer", "batch-instance", "switchable"])
@pytest.mark.parametrize("training", [True, False])
def test_norms_that_measure_each_input_are_left(to: str, training: bool) -> None:
    model = plain().train(training)
    swap(model, to)
    with untouched(model):
        plan = fold(model)
    assert not plan.changes
    assert all("measures each input" in left.note for left in plan.left)


def test_without_an_example_a_linear_layer_keeps_a_guard() -> None:
    model = lively(perceptron()).eval()
    x = torch.randn(4, 5)
    expected = model(x)
    fold(model)
    assert [type(m) for m in model.children()] == [nn.Linear, OnlyFlat, nn.ReLU, nn.Linear, OnlyFlat]
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fx.symbolic_trace(model)):
        torch.testing.assert_close(twin(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"holds for inputs of shape \(N, C\) only, got \(4, 6, 6\)"):
        model(torch.randn(4, 6, 5))


def test_without_an_example_tokens_are_refused_when_they_come() -> None:
    model = lively(Tokens()).eval()
    fold(model)
    with pytest.raises(ValueError, match="give fold an example of this shape, and it leaves the norm"):
        model(torch.randn(4, 6, 5))


def test_unbatched_input_is_left() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nw.ChannelAffine(8))).eval()
    plan = fold(model, torch.randn(3, 10, 5))  # (C, H, W): the affine works on H
    assert "its input has 3 axes" in plan.left[0].note


def test_untraceable_models_need_an_example() -> None:
    model = lively(Branching()).eval()
    with untouched(model):
        plan = fold(model)
    assert not plan.changes
    assert {left.note for left in plan.left} == {"the forward cannot be traced, and there is no example to follow"}
    assert plan.notes[0].startswith("the forward cannot be traced (TraceError: symbolically traced variables cannot")
    assert plan.notes[0].endswith("give an example, and its forward is followed instead.")
    plan = fold(model, torch.randn(4, 3, 9, 9))
    assert [change.path for change in plan.changes] == ["norm1"]
    assert plan.notes[0].endswith("the example was followed instead, inputs that take another path are not covered.")


def test_options_that_steer_the_forward_are_mentioned() -> None:
    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor, features: bool = False) -> Any:
            x = self.conv(x)
            return x if features else self.norm(x)

    plan = fold(Steered().eval())
    assert len(plan.changes) == 1
    assert plan.notes == ("followed the forward with features at their defaults only.",)


class Untraceable(nn.Module):
    """Makes any model untraceable without touching its data."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        if x.numel() < 0:
            return x
        return self.model(x)


@pytest.mark.parametrize(
    "name", ["tied", "norm-twice", "shared-conv", "conv-used-elsewhere", "returns-conv", "uses-weights"]
)
def test_watching_sees_every_other_use(name: str) -> None:
    model = Untraceable(lively(ZOO[name].make())).eval()
    plan = fold(model, ZOO[name].example())
    assert not plan.changes
    assert {left.path.removeprefix("model."): left.note.replace("model.", "") for left in plan.left}.keys() == EXPECTED[
        name
    ][1].keys()
    for left in plan.left:
        assert left.note.replace("model.", "").startswith(EXPECTED[name][1][left.path.removeprefix("model.")])


def test_hooks_are_respected() -> None:
    model: Any = lively(plain()).eval()
    model[0].register_forward_hook(lambda *_: None)
    model[4].register_forward_pre_hook(lambda *_: None)
    assert [left.note for left in fold(model).left] == [
        "a hook watches Conv2d, and would see other values",
        "a hook watches BatchNorm2d, and would see other values",
    ]


def test_tied_weights_are_respected() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval()
    model[2].weight = model[0].weight
    assert fold(model).left[0].note == "the layer before it shares its weight with another layer"


def test_a_convolution_with_a_forward_of_its_own_is_respected() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(input, weight, self.bias)

    model = lively(nn.Sequential(Standardized(3, 8, 3), nn.BatchNorm2d(8))).eval()
    plan = fold(model, torch.randn(2, 3, 5, 5))
    assert not plan.changes
    assert "not the output of a convolution or linear layer" in plan.left[0].note


def test_spectral_norm_is_respected() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)).eval()
    assert "computes the weight of the layer before it" in fold(model).left[0].note


def test_identities_in_between_do_not_matter() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.BatchNorm2d(8))).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    assert len(fold(model).changes) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


class Looking(nn.Module):
    """Its forward looks at the norm layer itself."""

    def __init__(self, look: str) -> None:
        super().__init__()
        self.conv, self.norm, self.look = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), look

    def forward(self, x: Tensor) -> Tensor:
        if self.look == "type":
            x = x if isinstance(self.norm, nn.BatchNorm2d) else x + 1
            return self.norm(self.conv(x))
        return self.norm(self.conv(x)) + self.norm.num_features


@pytest.mark.parametrize(("what", "message"), [
    ("type", r"the outputs of the example moved by up to .*, more than rounding explains; nothing was"),
    ("attribute", r"the folded model does not run \(AttributeError: .*'num_features'\); nothing was folded"),
])  # fmt: skip
def test_a_fold_that_changes_the_outputs_is_taken_back(what: str, message: str) -> None:
    model = lively(Looking(what)).eval()
    example = torch.randn(2, 3, 5, 5)
    with untouched(model), pytest.raises(UsageError, match=message):
        fold(model, example)


def test_an_example_that_does_not_run_is_refused() -> None:
    with pytest.raises(UsageError, match="fold: the model does not run on the example: RuntimeError"):
        fold(plain().eval(), torch.randn(2, 1, 9, 9))


def test_a_folded_model_has_nothing_left_to_fold() -> None:
    model = plain().eval()
    fold(model)
    plan = fold(model, torch.randn(2, 3, 9, 9))
    assert (plan.changes, plan.left, plan.notes) == ((), (), ())


def test_a_dry_run_tells_the_error_too() -> None:
    model, example = lively(plain()).eval(), torch.randn(2, 3, 9, 9)
    with untouched(model):
        plan = fold(model, example, dry_run=True)
    assert len(plan.changes) == 2
    assert "moved by at most" in plan.notes[0]
