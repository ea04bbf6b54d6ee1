"""Plans: what a verb says, its dry run, its way back, and that an exception leaves no trace."""

import copy
import json
import random
from collections import Counter
from typing import Any

import pytest
import torch
from models import ZOO, fingerprint, lively, plain, untouched
from torch import nn

import normwise as nw
from normwise.errors import UsageError
from normwise.surgery import fold as fold_module
from normwise.surgery import recalibrate as recalibrate_module
from normwise.surgery import swap as swap_module
from normwise.surgery.accelerate import accelerate
from normwise.surgery.adapt import adapt
from normwise.surgery.fold import fold
from normwise.surgery.forward import call, quiet
from normwise.surgery.freeze import freeze
from normwise.surgery.plan import Plan, operation
from normwise.surgery.recalibrate import recalibrate
from normwise.surgery.snapshot import Snapshot
from normwise.surgery.swap import swap
from normwise.surgery.sync import sync
from normwise.surgery.weights import weight_standardization

VERBS = {
    "swap": lambda model, example, dry_run: swap(model, "group:1", example=example, dry_run=dry_run),
    "blend": lambda model, example, dry_run: swap(model, "batch-instance", dry_run=dry_run),
    "fold": lambda model, example, dry_run: fold(model.eval(), example, dry_run=dry_run),
    "recalibrate": lambda model, example, dry_run: recalibrate(model, [example], call, dry_run=dry_run),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ZOO)
def test_dry_run_and_undo_leave_no_trace(name: str, verb: str) -> None:
    model, example = lively(ZOO[name].make()), ZOO[name].example()
    model.train(verb != "fold")
    with untouched(model):
        dry = VERBS[verb](model, example, True)
        assert not dry.applied
        plan = VERBS[verb](model, example, False)
        assert plan.applied
        assert (plan.changes, plan.left, plan.notes) == (dry.changes, dry.left, dry.notes)
        plan.undo()
        assert not plan.applied
        assert plan.model is model


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that has state, with norms and the rest in groups of their own."""
    norms = [p for n, p in model.named_parameters() if p.dim() == 1]
    rest = [p for n, p in model.named_parameters() if p.dim() > 1]
    optimizer = torch.optim.Adam([{"params": rest}, {"params": norms, "lr": 0.5}])
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    return optimizer


def failing_after(original: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise KeyboardInterrupt

    return run


SWAP_STEPS = """
    norm_layers require_held require_runs build signature carry_state carry_hooks replace follow
    require_swapped _announce
"""


@pytest.mark.parametrize("step", SWAP_STEPS.split())
def test_an_exception_in_swap_restores_everything(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    optimizer = trained(model)
    model[1].register_forward_hook(lambda *_: None)  # pyright: ignore
    monkeypatch.setattr(swap_module, step, failing_after(getattr(swap_module, step)))
    example = torch.randn(2, 3, 9, 9)
    with untouched(model, optimizer), pytest.raises(KeyboardInterrupt):
        swap(model, "batch-instance", optimizer=optimizer, example=example)


FOLD_STEPS = "norm_layers look traced_sources fixed_affine _pair product replace _apply _verify"


@pytest.mark.parametrize("step", FOLD_STEPS.split())
def test_an_exception_in_fold_restores_everything(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(plain()).eval()
    monkeypatch.setattr(fold_module, step, failing_after(getattr(fold_module, step)))
    example = torch.randn(2, 3, 9, 9)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        fold(model, example)


@pytest.mark.parametrize("step", ["_chosen", "_observed", "_pool", "_write", "_measure"])
def test_an_exception_in_recalibrate_restores_everything(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(plain())
    monkeypatch.setattr(recalibrate_module, step, failing_after(getattr(recalibrate_module, step)))
    example = torch.randn(2, 3, 9, 9)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        recalibrate(model, [example] * 2)


def test_undo_restores_optimizer_groups_and_state() -> None:
    model = plain()
    optimizer = trained(model)
    with untouched(model, optimizer):
        plan = swap(model, "batch-instance", optimizer=optimizer)
        assert len(optimizer.param_groups[1]["params"]) == 7  # a bias, two norms of weight, bias and gate
        plan.undo()


def test_undo_after_training_keeps_what_was_learned_and_follows_the_mode() -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    norm = model[1]  # pyright: ignore
    plan = swap(model, "switchable", optimizer=optimizer)
    model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    learned = norm.weight.clone()
    model.eval()
    plan.undo()
    assert model[1] is norm  # pyright: ignore
    assert torch.equal(norm.weight, learned)
    assert not torch.equal(learned, torch.ones(8))
    assert not norm.training
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in model.parameters()} >= {id(p) for p in optimizer.state}
    plan.undo()  # a second time: nothing


def test_plans_can_be_undone_in_turn() -> None:
    model = lively(plain()).eval()
    with untouched(model):
        plans = [swap(model, {"1": "group:2"}), fold(model), swap(model, "instance")]
        assert [len(plan.changes) for plan in plans] == [1, 1, 1]
        for plan in reversed(plans):
            plan.undo()


def test_undo_restores_the_order_of_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with untouched(model):
        weight_standardization(model).undo()


@pytest.mark.parametrize("verb", [freeze, adapt])
def test_what_is_frozen_or_adapted_stays_so_when_an_earlier_acceleration_is_undone(verb: Any) -> None:
    model, x = lively(plain()), torch.randn(4, 3, 9, 9)
    with untouched(model):
        first = accelerate(model)
        if not first.changes:
            pytest.skip("the kernels were not built")
        second = verb(model)
        wanted = model.train(verb is freeze)(x)
        first.undo()
        before = {name: t.clone() for name, t in model.named_buffers()}
        torch.testing.assert_close(model(x), wanted)
        assert all(torch.equal(t, before[name]) for name, t in model.named_buffers())
        model.train()
        second.undo()
        norms: list[Any] = [model.get_submodule(path) for path in ("1", "4")]
        assert {type(norm) for norm in norms} == {nw.BatchNorm2d}  # our class stays, and computes the same
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


def test_repr_and_json_tell_the_whole_story() -> None:
    model = nn.Sequential(plain(), nn.LayerNorm(9))
    plan = swap(model, {"0.1": "group:2", "nowhere": "none"}, dry_run=True)
    assert repr(plan).splitlines() == [
        "swap: 1 layer would change",
        "  0.1: batch -> group:2 (the remembered mean and variance are not used any more)",
        "left: 2",
        "  0.4: batch (no pattern matches its path)",
        "  1: layer-token (no pattern matches its path)",
        "note: pattern 'nowhere' matches no normalization layer; the first is at '0.1'.",
    ]
    content = json.loads(plan.to_json())
    assert (content["schema"], content["verb"], content["applied"]) == (1, "swap", False)
    assert content["changes"][0] == {
        "path": "0.1",
        "before": "batch",
        "after": "group:2",
        "note": "the remembered mean and variance are not used any more",
    }
    assert [row["path"] for row in content["left"]] == ["0.4", "1"]
    assert len(content["notes"]) == 1


def test_a_long_plan_is_cut_short() -> None:
    plan = Plan("swap", nn.Identity())
    for number in range(50):
        plan.change(str(number), "batch", "group:2")
    assert repr(plan).endswith("  29: batch -> group:2\n  ... and 20 more")


class OptimizedModule(nn.Sequential):
    """Stands for what torch.compile returns (making a real one costs seconds)."""


class FSDPModule(nn.Sequential):
    """Stands for what fully_shard makes of a module."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("wrapped", "name"),
    [(OptimizedModule(plain()), "torch.compile"), (nn.Sequential(FSDPModule(plain())), "fully_shard")],
)
def test_wrapped_models_are_refused(wrapped: nn.Module, name: str, verb: str) -> None:
    example = torch.randn(2, 3, 9, 9)
    with (
        untouched(wrapped.eval()),
        pytest.raises(UsageError, match=f"must come before wrapping: .* wrapped by {name}"),
    ):
        VERBS[verb](wrapped, example, False)


def test_distributed_models_are_refused() -> None:
    from torch import distributed
    from torch._C._distributed_c10d import HashStore

    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(plain())
        with pytest.raises(UsageError, match="this model is wrapped by DistributedDataParallel; swap the model inside"):
            swap(model, "group:2")
        with pytest.raises(UsageError, match="wrapped by DistributedDataParallel; sync the model inside"):
            sync(model)
        del model  # before the process group ends: the other order can wait for itself for ever
    finally:
        distributed.destroy_process_group()


def test_models_compiled_in_place_are_refused() -> None:
    model = nn.Sequential(plain())
    model[0]._compiled_call_impl = lambda x: x  # what module.compile() sets
    with pytest.raises(UsageError, match=r"its part '0' is wrapped by module\.compile\(\)"):
        swap(model, "group:2")


def test_only_modules_are_operated_on() -> None:
    model: Any = "resnet"
    for verb in (lambda: swap(model, "batch"), lambda: fold(model), lambda: recalibrate(model, [])):
        with pytest.raises(UsageError, match=r"needs a torch\.nn\.Module, got str"):
            verb()


def test_operation_restores_what_a_forward_did() -> None:
    model: Any = plain()
    model.calls, model.seen, model.tally = 0, [], Counter("a")

    def meddle() -> None:
        model.calls += 1
        model.seen.append(model.calls)
        model.tally["a"] += 1
        model[1].running_mean = torch.ones(8)
        model[4].running_var.fill_(7)
        model.eval()
        model[0].__class__ = nn.Conv3d
        del model[2]
        random.random()

        raise ZeroDivisionError

    before, numbers = fingerprint(model), random.getstate()
    with pytest.raises(ZeroDivisionError), operation("test", model):
        meddle()
    assert fingerprint(model) == before
    assert (model.calls, model.seen, len(model), random.getstate()) == (0, [], 6, numbers)
    assert model.tally == {"a": 1}


def test_quiet_keeps_hook_handles_alive() -> None:
    model, seen = plain(), []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))  # pyright: ignore
    example = torch.randn(2, 3, 9, 9)
    with untouched(model), quiet(model):
        assert not model.training
        model(example)
    handle.remove()
    model(example)
    assert seen == [1]


def test_snapshot_restores_the_order_of_children() -> None:
    model = plain()
    before, order = Snapshot(model), list(model._modules)
    first = model._modules.pop("0")
    model._modules["0"] = first
    before.restore()
    assert list(model._modules) == order


def test_swapped_models_can_be_copied() -> None:
    model = plain().eval()
    swap(model, "batch-instance")
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 9, 9)
    assert torch.equal(twin(x), model(x))
