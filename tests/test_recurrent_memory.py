"""What recurrent layers with batch norm remember: pooled over micro-batches, and recomputed over a loader."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_recurrent import LENGTHS, batch, each_kind, made
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise.errors import UsageError


def joint(layer: Any, parts: list[Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of what reaches the first gates at a step, over all sequences that have it."""
    rows = torch.cat([x[step] for x in parts if len(x) > step]) @ layer.weight_ih_l0.detach().T
    return rows.mean(0), rows.var(0)


def close(layer: Any, step: int, wanted: tuple[Tensor, Tensor]) -> None:
    memory, width = layer.memory_l0, len(wanted[0])
    torch.testing.assert_close(memory.running_mean[step, :width], wanted[0])
    torch.testing.assert_close(memory.running_var[step, :width], wanted[1])


class TestAccumulate:
    @each_kind
    def test_micro_batches_make_one_update_of_the_joint_batch(self, kind: str) -> None:
        layer: Any = made(kind, "batch", momentum=None)
        parts = [batch(5), batch(3) + 2, batch(4)]
        with nw.accumulate(layer):
            for x in parts:
                layer(x)
        assert layer.memory_l0.num_batches_tracked.tolist() == [1] * 5
        for step in range(5):
            close(layer, step, joint(layer, parts, step))

    def test_one_micro_batch_is_a_plain_step(self) -> None:
        layer, x = made("LSTM", "batch", bidirectional=True), batch()
        other = copy.deepcopy(layer)
        other(x, lengths=LENGTHS)
        with nw.accumulate(layer), nw.accumulate(layer):
            layer(x, lengths=LENGTHS)
        torch.testing.assert_close(layer.state_dict(), other.state_dict())

    def test_an_error_and_evaluation_leave_it_as_it_was(self) -> None:
        layer = made("LSTM", "batch")
        layer(batch())
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ValueError, match="must have shape"), nw.accumulate(layer):
            layer(nn.ReLU()(layer(batch(9) * 3)[0]))
        with nw.accumulate(layer.eval()):
            layer(batch())
        torch.testing.assert_close(layer.state_dict(), before)

    def test_a_copy_goes_on_by_itself(self) -> None:
        layer, x = made("LSTM", "batch", momentum=None), batch()
        with nw.accumulate(layer):
            layer(x)
            twin = copy.deepcopy(layer)
        twin(x)
        torch.testing.assert_close(twin.state_dict(), layer.state_dict())

    def test_compiled(self) -> None:
        torch._dynamo.reset()
        layer, parts = made("GRU", "batch"), [batch(3), batch(3)]
        other = copy.deepcopy(layer)
        compiled = torch.compile(other, backend="aot_eager")
        with nw.accumulate(layer), nw.accumulate(other):
            for x in parts:
                torch.testing.assert_close(compiled(x)[0], layer(x)[0])
        torch.testing.assert_close(other.state_dict(), layer.state_dict())


WAYS = ["plain", "checkpoint", "reentrant", "compiled inside", "compiled inside a reentrant one", "compiled outside"]


def way(layer: nn.Module, kind: str) -> Any:
    """A function that runs the layer under a checkpoint, compiled or not."""

    def output(x: Tensor) -> Any:
        return inner(x)[0]

    inner = torch.compile(layer, backend="aot_eager", fullgraph=True) if "inside" in kind else layer
    if kind == "plain":
        return output
    if kind != "compiled outside":
        return lambda x: checkpoint(output, x, use_reentrant="reentrant" in kind)
    return torch.compile(lambda x: checkpoint(output, x, use_reentrant=False) * 1.0, backend="aot_eager")


class TestOnceAStep:
    @each_kind
    @pytest.mark.parametrize("way_of", WAYS[1:])
    @pytest.mark.parametrize("pooled", [False, True], ids=["", "accumulated"])
    def test_under_a_checkpoint(self, kind: str, way_of: str, pooled: bool) -> None:
        torch._dynamo.reset()
        layer, x = made(kind, "batch"), batch(3)
        if way_of == "compiled outside":
            layer(x)  # here the memory cannot grow
        other = copy.deepcopy(layer)
        run, found = way(other, way_of), []
        with nw.accumulate(layer) if pooled else nullcontext(), nw.accumulate(other) if pooled else nullcontext():
            for function in (way(layer, "plain"), run):
                for part in (x, x + 1):
                    part = part.clone().requires_grad_()
                    function(part).pow(2).sum().backward()
                    found.append(part.grad)
        torch.testing.assert_close(found[2:], found[:2])
        torch.testing.assert_close(other.state_dict(), layer.state_dict())

    def test_under_torch_func(self) -> None:
        layer, x = made("LSTM", "batch"), batch()
        other, parameters = copy.deepcopy(layer), {name: p.detach() for name, p in layer.named_parameters()}
        layer(x)

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(other, parameters, (x,))[0].pow(2).sum()

        torch.func.grad(loss)(parameters)
        torch.testing.assert_close(other.state_dict(), layer.state_dict())


class TestPoison:
    @pytest.mark.parametrize("way_of", WAYS)
    @pytest.mark.parametrize("pooled", [False, True], ids=["", "accumulated"])
    def test_what_is_not_finite_is_counted_for_each_step_and_told(self, way_of: str, pooled: bool) -> None:
        torch._dynamo.reset()
        layer, x = made("LSTM", "batch"), batch(4)
        layer(x)
        before = copy.deepcopy(layer.state_dict())
        x[2, 1] = float("inf")
        memory: Any = layer.memory_l0

        def step() -> None:
            with nw.accumulate(layer) if pooled else nullcontext():
                way(layer, way_of)(x.requires_grad_()).sum().backward()
            layer.eval()

        with pytest.warns(UserWarning, match="a batch with inf or NaN was left out of the running statistics"):
            step()
        assert int(memory.skipped) == 2
        assert memory.num_batches_tracked.tolist() == [2, 2, 1, 1]
        torch.testing.assert_close(memory.running_mean[2:], before["memory_l0.running_mean"][2:])
        torch.testing.assert_close(memory.running_var[2:], before["memory_l0.running_var"][2:])
        assert list(layer.state_dict()) == list(before)


def test_a_half_checkpoint_that_is_assigned_is_remembered_wide() -> None:
    layer: Any = made("LSTM", "batch")
    layer(batch())
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in layer.state_dict().items()}
    layer.load_state_dict(half, assign=True)
    assert {layer.memory_l0.running_mean.dtype, layer.memory_l0.running_var.dtype} == {torch.float32}
    torch.testing.assert_close(layer.memory_l0.running_mean, half["memory_l0.running_mean"].float())


class TestInferenceMode:
    """What was remembered there is written to by training that follows."""

    @each_kind
    @pytest.mark.parametrize("pooled", [False, True], ids=["", "accumulated"])
    def test_longer_sequences(self, kind: str, pooled: bool) -> None:
        layer, x = made(kind, "batch"), batch(5)
        layer(batch(3))
        other = copy.deepcopy(layer)
        for each, mode in ((layer, True), (other, False)):
            with nw.accumulate(each) if pooled else nullcontext():
                with torch.inference_mode(mode):
                    each(x)
                each(x)[0].sum().backward()
        torch.testing.assert_close(layer.state_dict(), other.state_dict())

    def test_recalibrate(self) -> None:
        layer: Any = made("LSTM", "batch")
        x = batch(5)
        for dtype in (torch.float32, torch.float64):
            layer.to(dtype)
            with torch.inference_mode():
                nw.recalibrate(layer, [x.to(dtype)])
            layer(x.to(dtype))[0].sum().backward()
            assert layer.memory_l0.num_batches_tracked.tolist() == [2] * 5


class TestRecalibrate:
    @each_kind
    def test_each_step_over_all_sequences_that_reach_it(self, kind: str) -> None:
        layer, parts = made(kind, "batch", num_layers=2, dropout=0.5, state_noise=1.0), [batch(3), batch(5) + 1]
        layer(batch(9) * 4)
        before = copy.deepcopy(layer.state_dict())
        plan = nw.recalibrate(layer, parts)
        assert [(c.path, c.note) for c in plan.changes] == [(f"memory_l{i}", "5 time steps") for i in range(2)]
        for step in range(5):
            close(layer, step, joint(layer, parts, step))
        assert (layer.training, layer.dropout, layer.state_noise) == (True, 0.5, 1.0)
        plan.undo()
        torch.testing.assert_close(layer.state_dict(), before)

    def test_deeper_sums_are_those_of_training_on_one_batch(self) -> None:
        layer, x = made("LSTM", "batch", bidirectional=True), batch()
        trained = copy.deepcopy(layer)
        trained(x)
        nw.recalibrate(layer.eval(), [x])
        torch.testing.assert_close(layer.state_dict(), trained.state_dict())
        torch.testing.assert_close(layer(x), trained.eval()(x))

    def test_what_is_left_and_skipped(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(3).double()
                self.rnn = made("LSTM", "batch")

            def forward(self, x: Tensor) -> Tensor:
                return self.rnn(self.norm(x.movedim(1, 2)).movedim(1, 2).transpose(0, 1))[0]

        model: Any = Two()
        whole = [batch(4).transpose(0, 1), batch(1).transpose(0, 1)[:1], batch(4).transpose(0, 1)[:1]]
        plan = nw.recalibrate(model, whole)
        assert "2 of 3 batches left out" in str(plan)
        assert model.norm.num_batches_tracked == model.rnn.memory_l0.num_batches_tracked[0] == 1
        with pytest.raises(UsageError, match=r"layer '0.memory_l0' receives values that are not finite"):
            nw.recalibrate(nn.Sequential(model.rnn), [batch() / 0])
        still = nw.recalibrate(nn.Sequential(made("LSTM", "batch", momentum=0.0)), [batch()])
        assert [each.note for each in still.left] == ["frozen: its momentum is 0"]
        model.eval().rnn.frozen = True
        assert [(each.path, each.note) for each in nw.recalibrate(model, whole).left] == [("rnn.memory_l0", "frozen")]
