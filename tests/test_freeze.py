"""freeze, unfreeze and adapt: what is frozen does not move, and everything can be taken back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw
from normwise.errors import UsageError
from normwise.surgery.find import norm_layers


def network() -> nn.Sequential:
    """Norms of PyTorch's and ours, tracked and not."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nw.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.SyncBatchNorm(8).eval(), nw.SwitchableNorm(8), nw.BatchInstanceNorm(8), nw.GhostNorm(8, chunk_size=2),
        nw.RenormNorm(8), nw.DomainNorm(8), nw.SyncNorm(8), nw.GroupNorm(2, 8), nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def image() -> Tensor:
    return torch.randn(6, 3, 5, 5) + 1


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(image()).pow(2).mean().backward()
        optimizer.step()


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.named_buffers()}


def affine(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for layer in norm_layers(model) for p in layer.module.parameters()]


def test_frozen_statistics_survive_training_and_the_affine_learns() -> None:
    model = network()
    hooked: list[Any] = []
    model[1].register_forward_hook(lambda *args: hooked.append(1))
    nw.freeze(model)
    before, weights = buffers(model), affine(model)
    train(model)
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in zip(affine(model), weights, strict=True) if a.numel() > 3)
    assert len(hooked) == 3


def test_frozen_layers_compute_the_same_in_both_modes() -> None:
    model, x = network(), image()
    model[9], model[13] = nn.Identity(), nn.Identity()
    train(model.train())
    nw.freeze(model)
    torch.testing.assert_close(model.train()(x), model.eval()(x))


def test_a_frozen_affine_learns_nothing() -> None:
    model = network()
    plan = nw.freeze(model, statistics=True, affine=True)
    before, weights = buffers(model), affine(model)
    train(model)
    torch.testing.assert_close((buffers(model), affine(model)), (before, weights), rtol=0, atol=0)
    assert {change.note for change in plan.changes} >= {"statistics, weight and bias"}


def test_the_affine_alone() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    nw.freeze(model, statistics=False, affine=True)
    train(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].num_batches_tracked == 3
    assert model[1].weight.tolist() == [1, 1, 1, 1]
    assert nw.unfreeze(model).changes[0].note == "weight and bias"
    train(model)
    assert model[1].weight.tolist() != [1, 1, 1, 1]


def test_freeze_says_what_it_left() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Renamed(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.GroupNorm(1, 3), Own(3), Renamed(3), nw.FrozenNorm(3), nn.BatchNorm2d(3))
    plan = nw.freeze(model, dry_run=True)
    assert [change.path for change in plan.changes] == ["4"]
    assert type(model[4]) is nn.BatchNorm2d
    assert [left.note for left in plan.left] == [
        "it remembers no statistics",
        "it has a forward of its own, and a replacement would lose what it does besides",
        "it is a class of its own, whose statistics would go on moving; swap it first",
        "frozen already",
    ]
    with pytest.raises(UsageError, match="nothing to freeze; set statistics=True or affine=True"):
        nw.freeze(model, statistics=False)


def test_undo_of_freeze_puts_everything_back() -> None:
    model: Any = network()
    kinds, learns = [type(m) for m in model], [p.requires_grad for p in model.parameters()]
    plan = nw.freeze(model, affine=True)
    plan.undo()
    assert [type(m) for m in model] == kinds
    assert [p.requires_grad for p in model.parameters()] == learns
    before = buffers(model)
    train(model)
    assert not any(
        torch.equal(t, before[name]) for name, t in buffers(model).items() if name.endswith("1.running_mean")
    )


def test_unfreeze_lets_everything_move_again() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nw.FrozenNorm(4, learn=0), nw.BatchNorm2d(4))
    nw.freeze(model, affine=True)
    plan = nw.unfreeze(model)
    assert [change.path for change in plan.changes] == ["1", "2", "3"]
    assert isinstance(model[2], nw.BatchNorm)
    before = buffers(model)
    train(model)
    assert all(not torch.equal(t, before[name]) for name, t in buffers(model).items())
    assert all(p.requires_grad for p in model.parameters())
    assert nw.unfreeze(model).notes == ("nothing was frozen.",)
    plan.undo()
    assert isinstance(model[2], nw.FrozenNorm)
    assert not model[2].weight.requires_grad


def test_freezing_outlives_copies_and_compiles() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.BatchNorm2d(3))
    nw.freeze(model)
    twin = copy.deepcopy(model)
    before = buffers(twin)
    torch.compile(twin, backend="aot_eager", fullgraph=True)(image()).sum().backward()
    torch.testing.assert_close(buffers(twin), before)


def test_a_recurrent_layer_freezes_its_memory_and_its_norm_and_no_other_weights() -> None:
    lstm: Any = nw.LSTM(3, 4, norm="batch")
    x = torch.randn(5, 6, 3)
    lstm(x)
    plan = nw.freeze(lstm, affine=True)
    assert [change.note for change in plan.changes] == ["statistics, weight and bias"]
    before = buffers(lstm)
    y = lstm.train()(x + 1)[0]
    torch.testing.assert_close(buffers(lstm), before, rtol=0, atol=0)
    torch.testing.assert_close(lstm.eval()(x + 1)[0], y)
    assert lstm(x[:, :1])[0].shape == (5, 1, 4)
    learning = {name for name, p in lstm.named_parameters() if p.requires_grad}
    assert learning == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    assert [left.note for left in nw.recalibrate(lstm, [x]).left] == ["frozen"]
    nw.unfreeze(lstm)
    lstm.train()(x + 1)
    assert not torch.equal(lstm.memory_l0.running_mean, before["memory_l0.running_mean"])
    assert [left.note for left in nw.freeze(nw.GRU(3, 4, norm="layer")).left] == ["it remembers no statistics"]


def test_unfreeze_lets_learn_only_what_freeze_kept_from_it() -> None:
    norm = nw.BatchNorm(3)
    norm.bias.requires_grad_(False)
    nw.freeze(norm, affine=True)
    nw.unfreeze(norm)
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (True, False)


def test_unfreeze_finds_what_was_frozen_before_a_swap() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    nw.freeze(model, affine=True)
    nw.swap(model, "batch-instance")
    assert [p.requires_grad for p in model[1].parameters()].count(False) == 2
    assert nw.unfreeze(model).changes[0].note == "weight and bias"
    assert all(p.requires_grad for p in model.parameters())


def test_recalibrate_leaves_frozen_layers() -> None:
    model = nn.Sequential(nw.BatchNorm2d(3), nw.FrozenNorm(3), nw.DomainNorm(3), nw.BatchNorm2d(3))
    nw.freeze(model[0])
    plan = nw.recalibrate(model, [image()])
    assert [change.path for change in plan.changes] == ["3"]
    assert [left.note for left in plan.left] == ["frozen", "frozen", "it has a memory for each domain; train them"]


@pytest.mark.parametrize("mix", [0, 0.3, 1])
def test_adapt_mixes_the_batch_into_evaluation(mix: float) -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(3), nw.GhostNorm(3)), image()
    nw.adapt(model, mix)
    model.eval()
    before = buffers(model)
    y = model[0](x)
    mean, var = mix * x.mean((0, 2, 3)), mix * x.var((0, 2, 3), correction=0) + (1 - mix)
    torch.testing.assert_close(y, F.batch_norm(x, mean, var))
    torch.testing.assert_close(model[1](x), y)
    torch.testing.assert_close(buffers(model), before)
    torch.testing.assert_close(model.train()[0](x), F.batch_norm(x, None, None, training=True))


def test_adapt_can_be_taken_back_and_says_what_it_left() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nw.GroupNorm(1, 3)).eval(), image()
    wanted = model(x)
    plan = nw.adapt(model)
    assert not torch.allclose(model(x), wanted)
    assert [left.path for left in plan.left] == ["2"]
    assert next(left.note for left in nw.fold(model, dry_run=True).left).startswith("nw.adapt lets it measure")
    plan.undo()
    torch.testing.assert_close(model(x), wanted)
    assert type(model[1]) is nn.BatchNorm2d
    with pytest.raises(UsageError, match=r"mix must be between 0 \(remembered\) and 1 .*, got 2"):
        nw.adapt(model, 2)


def test_adapt_to_a_single_value() -> None:
    norm = nw.BatchNorm(3).eval()
    nw.adapt(norm, 1)
    with pytest.raises(ValueError, match="at least 2 values per channel"):
        norm(torch.randn(1, 3))
