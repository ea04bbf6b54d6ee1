"""swap: what is carried over, what is left, and what is refused, over a zoo of awkward models."""

import copy
from typing import Any

import pytest
import torch
from models import (
    ZOO,
    Hiding,
    Named,
    Tied,
    WithActivation,
    instances,
    lively,
    perceptron,
    plain,
    pooled,
    untouched,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normwise as nw
from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.spec import parse, read
from normwise.surgery.forward import call
from normwise.surgery.swap import swap

PLANE = [name for name, entry in NORMS.items() if entry.kind == "plane" and entry.axes != ("C",)]
OWN_AFFINE = "grn"  # its weight is no scale, so it takes none over


def batch_to_back(to: str, x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    model: Any = nn.Sequential(copy.deepcopy(norm))
    before = model(x)
    swap(model, to)
    assert isinstance(model[0], NORMS[to].cls)
    swap(model, "batch")
    return before, model(x)


@pytest.mark.parametrize("to", [name for name in PLANE if name not in ("batch", OWN_AFFINE)])
def test_there_and_back_gives_the_same_function(to: str) -> None:
    norm = lively(nn.BatchNorm2d(8, eps=1e-2))
    torch.testing.assert_close(*batch_to_back(to, torch.randn(4, 8, 5, 5), norm))


@pytest.mark.parametrize("to", ["batch-instance", "switchable"])
def test_there_and_back_keeps_running_statistics_where_both_have_them(to: str) -> None:
    norm = lively(nn.BatchNorm2d(8, momentum=0.3)).eval()
    norm.num_batches_tracked.fill_(5)  # pyright: ignore
    before, after = batch_to_back(to, torch.randn(4, 8, 5, 5), norm)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("to", PLANE)
@pytest.mark.parametrize("name", ZOO)
def test_every_model_runs_after_every_swap(name: str, to: str) -> None:
    specimen = ZOO[name]
    model, example = specimen.make(), specimen.example()
    if to in ("instance", "group", "ibn") and name == "perceptron":  # (N, C): six groups of one value
        with (
            untouched(model),
            pytest.raises(UsageError, match=r"the layer '1' would take each statistic from"),
        ):
            swap(model, to, example=example)
        return
    plan = swap(model, to, example=example)
    for change in plan.changes:
        state = read(plan.model.get_submodule(change.path))
        assert state is not None
        assert (str(state.spec), state.spec.name if to != "layer" else "layer") == (change.after, to)
    call(plan.model, example)


def test_a_plane_spec_leaves_per_position_norms() -> None:
    model = ZOO["transformer"].make()
    plan = swap(model, "group:2")
    assert [change.path for change in plan.changes] == ["stem.1"]
    assert {(left.path, left.before) for left in plan.left} == {
        ("norm1", "layer-token"),
        ("norm2", "rms-token"),
    }
    assert all("only a per-position norm can replace it" in left.note for left in plan.left)


def test_a_position_spec_replaces_per_position_norms_only() -> None:
    model, x = ZOO["transformer"].make(), torch.randn(4, 3, 8, 8)
    plan = swap(model, "rms-token", example=x)
    assert [(c.path, c.before, c.after) for c in plan.changes] == [("norm1", "layer-token", "rms-token")]
    assert isinstance(model.norm1, nn.RMSNorm)
    assert [left.note for left in plan.left] == [
        "its channels are on axis 1, and rms-token works on the last axis; take layer, group or channel-layer",
        "computes the same as rms-token already",
    ]


def test_a_norm_over_several_axes_is_left() -> None:
    plan = swap(nn.Sequential(nn.LayerNorm([3, 4, 4]), nn.BatchNorm2d(3)), "layer-token")
    assert plan.left[0].note == "it normalizes over several axes at once"


def test_everything_is_kept() -> None:
    model: Any = plain()
    model[4].eval()
    model[4].weight.requires_grad_(False)
    old, before = model[4], (model[4].weight, model[4].bias)
    swap(model, "switchable")
    new = model[4]
    assert new is not old
    assert (new.weight, new.bias) == before
    assert (new.eps, new.momentum, new.num_features, new.training) == (1e-3, 0.01, 12, False)
    assert not new.weight.requires_grad
    assert new.running_mean is old.running_mean
    assert model[1].training


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_affine_and_tracking_are_kept(affine: bool, track: bool) -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(4, affine=affine, track_running_stats=track))
    swap(model, "batch-instance")
    assert (model[0].weight is not None, model[0].running_mean is not None) == (affine, track)
    swap(model, "none")
    swap(model, "batch")
    assert (model[0].weight is not None, model[0].running_mean is not None) == (affine, True)


def test_a_missing_bias_is_kept() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(4, bias=False))
    swap(model, "group:2")
    assert model[0].bias is None
    assert model[0].weight is not None


def test_instance_norm_does_not_track_unless_it_did() -> None:
    model: Any = instances()
    plan = swap(model, "batch")
    assert [change.note for change in plan.changes] == [
        "starts with mean 0 and variance 1 remembered; train or recalibrate before eval", "",
    ]  # fmt: skip
    assert model[1].weight is None
    swap(model, "instance")
    assert model[1].running_mean is None


def test_half_precision_is_kept_and_statistics_are_wide() -> None:
    model: Any = lively(plain().bfloat16())
    mean = model[1].running_mean.clone()
    swap(model, "batch-instance")
    assert (model[1].weight.dtype, model[1].gate.dtype) == (torch.bfloat16, torch.bfloat16)
    assert model[1].running_mean.dtype == torch.float32
    assert torch.equal(model[1].running_mean, mean.float())


def test_devices_are_kept() -> None:
    model: Any = nn.ModuleDict({"here": plain(), "there": plain().to("meta"), "bare": nn.Sequential(
        nn.Conv2d(3, 4, 1, device="meta"), nn.InstanceNorm2d(4)
    )})  # fmt: skip
    swap(model, "batch")
    assert model["bare"][1].running_mean.device.type == "meta"
    swap(model, "batch-instance")
    assert (model["here"][1].gate.device.type, model["there"][1].gate.device.type) == ("cpu", "meta")


def test_tied_norms_stay_one_object() -> None:
    model = Tied()
    plan = swap(model, "group:2", example=torch.randn(2, 3, 8, 8))
    assert model.norm is model.again
    assert isinstance(model.norm, nw.GroupNorm)
    assert [(change.path, change.note.split(";")[0]) for change in plan.changes] == [("norm", "also at again")]


def test_tied_norms_need_one_spec() -> None:
    model = Tied()
    with (
        untouched(model),
        pytest.raises(UsageError, match="group:2 at 'norm' and instance at 'again'; give them one spec"),
    ):
        swap(model, {"norm": "group:2", "*": "instance"})
    swap(model, "group:2", where="again")  # one path is enough: the tie holds
    assert model.norm is model.again


def test_tied_parameters_stay_tied() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].weight = model[0].weight
    swap(model, "group:2")
    assert model[1].weight is model[0].weight
    assert len(list(model.parameters())) == 3


def test_norms_in_plain_containers_are_found() -> None:
    model = Named()
    plan = swap(model, {"norms.second": "group:2"}, example=torch.randn(2, 3, 8, 8))
    assert model.pairs[1][1] is model.norms["second"]
    assert type(model.pairs[0][1]) is nn.BatchNorm2d
    pairs = model.pairs
    plan.undo()
    assert model.pairs is not pairs
    assert model.pairs[1][1] is model.norms["second"]


def test_a_hidden_reference_is_an_error_if_an_example_is_given() -> None:
    model = Hiding()
    example = torch.randn(2, 3, 8, 8)
    with (
        untouched(model),
        pytest.raises(UsageError, match="still calls the old layer 'norm', by a reference"),
    ):
        swap(model, "group:1", example=example)


def test_a_norm_that_does_more_is_left() -> None:
    model = nn.Sequential(WithActivation(4), nn.BatchNorm2d(4))
    model[1].forward = lambda x: x  # pyright: ignore
    plan = swap(model, "group:2")
    assert not plan.changes
    assert [(left.before, left.note[:29]) for left in plan.left] == [
        ("WithActivation", "it has a forward of its own, "),
        ("BatchNorm2d", "it has a forward of its own, "),
    ]
    assert plan.notes == (
        "nothing was altered; `left` says why for each layer.",
    )  # fmt: skip


def test_a_subclass_without_a_forward_of_its_own_is_a_norm() -> None:
    class Mine(nn.BatchNorm2d):
        pass

    class Holding(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.act = nn.ReLU()

    plan = swap(nn.Sequential(Mine(4), Holding()), "group:2")
    assert [change.path for change in plan.changes] == ["0"]
    assert plan.left[0].note == "it holds further layers, which a replacement would lose"


def test_computed_weights_are_left() -> None:
    with pytest.warns(FutureWarning):
        old_style = nn.utils.weight_norm(nn.BatchNorm2d(4))
    model = nn.Sequential(parametrizations.weight_norm(nn.BatchNorm2d(4)), old_style)
    assert [left.note for left in swap(model, "group:2").left] == [
        "a parametrization computes its weight; remove it first",
        "weight_norm or spectral_norm computes its weight; remove it first",
    ]


def test_hooks_go_on_working_and_so_do_their_handles() -> None:
    model: Any = plain()
    seen: list[Any] = []
    forward = model[1].register_forward_hook(
        lambda module, args, kwargs, y: seen.append(type(module)), with_kwargs=True
    )
    backward = model[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    before = model[1].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[1].register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    plan = swap(model, "group:2")
    assert "hooks carried over; state_dict_hooks left behind" in plan.changes[0].note
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    model(x).sum().backward()
    assert seen == ["before", nw.GroupNorm, "backward"]
    for handle in (forward, backward, before):
        handle.remove()
    model(x).sum().backward()
    assert len(seen) == 3


def test_new_parameters_without_an_optimizer_are_mentioned() -> None:
    assert "give it as optimizer=" in swap(plain(), "batch-instance").notes[0]
    assert not swap(plain(), "group:2").notes


def test_a_mapping_mixes_and_where_limits() -> None:
    model = nn.Sequential(plain(), plain())
    plan = swap(model, {"0.1": "instance", "0.*": "keep", "*": parse("group")}, where=["0.*", "1.1"])
    assert [(c.path, c.after) for c in plan.changes] == [("0.1", "instance"), ("1.1", "group:8")]
    assert [(left.path, left.note) for left in plan.left] == [
        ("0.4", "to be kept"),
        ("1.4", "its path does not match where=0.*, 1.1"),
    ]


def test_a_swap_that_alters_nothing_says_so() -> None:
    for to, why in (("keep", "to be kept"), ("batch", "computes the same as batch already")):
        model = plain()
        with untouched(model):
            plan = swap(model, to)
        assert not plan.changes
        assert {left.note for left in plan.left} == {why}
        assert plan.notes == ("nothing was altered; `left` says why for each layer.",)
    same = nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(4, 4))
    assert len(swap(same, "group:4").left) == len(swap(same, "instance").left) == 2


def test_a_pattern_that_matches_nothing_is_mentioned() -> None:
    plan = swap(plain(), {"layer1.*": "group:2", "1": "instance"})
    assert plan.notes == ("pattern 'layer1.*' matches no normalization layer; the first is at '1'.",)


def test_the_model_itself_may_be_the_norm() -> None:
    norm = nn.BatchNorm2d(4)
    optimizer = torch.optim.SGD(norm.named_parameters(), lr=0.1)
    plan = swap(norm, "batch-instance", optimizer=optimizer, example=torch.randn(2, 4, 3, 3))
    assert isinstance(plan.model, nw.BatchInstanceNorm)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias", "gate"]
    assert plan.notes == ("the model itself is the norm: go on with plan.model.",)
    plan.undo()
    assert plan.model is norm


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("grop:2", r"unknown norm 'grop', known are: none, batch, .*; did you mean group\?"),
        ({"1": "group:2", "*": "keeep"}, "unknown norm 'keeep'"),
        ("group:5", r"layer '1' \(8 channels\) cannot become group:5: .* got 8 and 5; 1, 2, 4 or 8 would do"),
        ({"4": "group:8"}, r"layer '4' \(12 channels\) .* 1, 2, 3, 4, 6 or 12 would do"),
        ({}, "a norm is given as a spec such as 'group:8', or as a mapping .*, got {}"),
        (8, "a norm is given as a spec such as 'group:8', or as a mapping .*, got 8"),
        ({"*": 8}, "a norm is given as a spec such as 'group:8', or as a mapping .*, got 8"),
    ],
)
def test_bad_specs_change_nothing(to: Any, message: str) -> None:
    model = plain()
    with untouched(model), pytest.raises(UsageError, match=message):
        swap(model, to)


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(UsageError, match="Sequential has no normalization layer, so there is nothing to replace"):
        swap(nn.Sequential(nn.Linear(2, 2)), "group:2")


def test_uninitialized_norms_are_refused() -> None:
    with pytest.raises(UsageError, match="must know its channels; run one batch through the model first"):
        swap(nn.Sequential(nn.LazyBatchNorm2d()), "group:2")


@pytest.mark.parametrize("to", ["instance", "group:8"])
def test_planes_of_one_value_are_named(to: str) -> None:
    model, example = pooled(), torch.randn(2, 3, 8, 8)
    message = rf"as {to} the layer '3' would take each statistic from a single value \(input shape \(2, 8, 1, 1\)\)"
    with untouched(model), pytest.raises(UsageError, match=message):
        swap(model, to, example=example)
    swap(model, {"3": "layer"}, example=example)


def test_instance_norm_in_a_perceptron_is_named() -> None:
    with pytest.raises(
        UsageError,
        match=r"the layer '1' would .*input shape \(2, 6\)\) .* \{'1': 'keep', '\*': 'instance'\}",
    ):
        swap(perceptron(), "instance", example=torch.randn(2, 5))


def test_an_example_that_does_not_fit_is_said_to_be_the_cause() -> None:
    model, example = plain(), torch.randn(2, 1, 9, 9)
    with (
        untouched(model),
        pytest.raises(UsageError, match="before the swap the model does not run on the example: Runtime"),
    ):
        swap(model, "group:2", example=example)


def test_a_model_that_fails_only_after_the_swap_is_restored() -> None:
    class Strict(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self[1], nn.BatchNorm2d):
                raise TypeError("I want batch norm")
            return super().forward(x)

    model, example = Strict(*plain().children()), torch.randn(2, 3, 9, 9)
    with (
        untouched(model),
        pytest.raises(UsageError, match=r"after the swap the model .*: TypeError: I want batch norm"),
    ):
        swap(model, "group:2", example=example)


def test_the_check_leaves_statistics_and_generator() -> None:
    model, example = lively(ZOO["residual"].make()), torch.randn(2, 3, 9, 9)
    model.register_forward_hook(lambda *_: (torch.rand(3), None)[1])
    values, generator = [b.clone() for b in model.buffers()], torch.get_rng_state()
    swap(model, "switchable", example=example)
    assert all(torch.equal(a, b) for a, b in zip(values, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
