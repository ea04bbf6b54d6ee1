"""The recurrent layers in use: padding, statistics per step, formats and compilers, errors, swap and compare."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from test_recurrent import KINDS, LENGTHS, batch, each_kind, each_norm, gradients, made
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_sequence
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise.errors import UsageError
from normwise.experiment.arms import survey
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.train import train
from normwise.experiment.trial import Trial
from normwise.probe.record import record
from normwise.surgery.fold import fold


@each_kind
@each_norm
def test_padding_has_no_influence(kind: str, norm: str) -> None:
    layer, x = made(kind, norm, bidirectional=True, num_layers=2), batch()
    dirty = x.clone()
    for i, length in enumerate(LENGTHS):
        dirty[length:, i] = float("nan")
    dirty.requires_grad_()
    other = copy.deepcopy(layer)
    expected, got = layer(x, lengths=LENGTHS)[0], other(dirty, lengths=LENGTHS)[0]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, other), gradients(expected, layer))
    torch.testing.assert_close(other.state_dict(), layer.state_dict())
    (g,) = torch.autograd.grad(other(dirty, lengths=LENGTHS)[0].sum(), dirty)
    assert all((g[length:, i] == 0).all() for i, length in enumerate(LENGTHS))
    longer = torch.cat([x, torch.randn(2, 4, 3, dtype=x.dtype)])
    torch.testing.assert_close(layer.eval()(longer, lengths=LENGTHS)[0][:5], layer(x, lengths=LENGTHS)[0])


@each_norm
def test_lengths_may_be_a_list(norm: str) -> None:
    layer, x = made("LSTM", norm), batch()
    torch.testing.assert_close(layer(x, lengths=LENGTHS.tolist())[0], copy.deepcopy(layer)(x, lengths=LENGTHS)[0])


@each_kind
@each_norm
@pytest.mark.parametrize("lengths", [None, []])
def test_an_empty_batch_passes_and_teaches_nothing(kind: str, norm: str, lengths: Any) -> None:
    layer = made(kind, norm)
    layer(batch())
    before = copy.deepcopy(layer.state_dict())
    output = layer(batch(size=0), lengths=None if lengths is None else torch.tensor([], dtype=torch.long))[0]
    assert output.shape == (5, 0, 6)
    output.sum().backward()
    torch.testing.assert_close(layer.state_dict(), before)


@each_kind
@each_norm
def test_in_evaluation_and_with_layer_norm_neighbours_have_no_influence(kind: str, norm: str) -> None:
    layer, x = made(kind, norm), batch()
    layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x)[0][:, :1], layer(x[:, :1])[0])


class TestMemory:
    def test_first_batches_are_averaged_then_weigh_momentum(self) -> None:
        layer: Any = made("GRU", "batch", momentum=0.4)
        sums, mean = [], torch.zeros(18, dtype=torch.float64)
        for number in range(3):
            layer(x := batch(2))
            sums.append((x @ layer.weight_ih_l0.T)[0])
            rate = max(1 / (number + 1), 0.4)
            mean = mean + rate * (sums[-1].mean(0) - mean)
        torch.testing.assert_close(layer.memory_l0.running_mean[0, :18], mean)
        rates = (1.0, 0.5, 0.4)
        var = torch.zeros(18, dtype=torch.float64)
        for rate, rows in zip(rates, sums, strict=True):
            var += rate * (rows.var(0) - var)
        torch.testing.assert_close(layer.memory_l0.running_var[0, :18], var)

    def test_a_batch_that_is_not_finite_is_left_out(self) -> None:
        layer: Any = made("LSTM", "batch")
        layer(batch())
        before = copy.deepcopy(layer.memory_l0.state_dict())
        with pytest.warns(UserWarning, match="a batch with inf or NaN was left out"):
            layer(batch() * float("inf"))
        torch.testing.assert_close(layer.memory_l0.state_dict(), before)

    def test_checkpoints_count_once_and_give_the_same_gradient(self) -> None:
        layer, x = made("LSTM", "batch"), batch().requires_grad_()
        other = copy.deepcopy(layer)
        expected = gradients(layer(x, lengths=LENGTHS)[0], layer)
        output: Any = checkpoint(lambda x: other(x, lengths=LENGTHS)[0], x, use_reentrant=False)
        torch.testing.assert_close(gradients(output, other), expected)
        torch.testing.assert_close(other.state_dict(), layer.state_dict())

    def test_it_stays_wide_and_saves_as_many_steps_as_it_has_seen(self) -> None:
        layer = nw.LSTM(3, 6, norm="batch").bfloat16()
        output, _ = layer(batch().bfloat16())
        assert (output.dtype, layer.get_buffer("memory_l0.running_mean").dtype) == (torch.bfloat16, torch.float32)
        fresh = nw.LSTM(3, 6, norm="batch").bfloat16()
        fresh.load_state_dict(layer.state_dict())
        x = batch(9).bfloat16()
        assert torch.equal(fresh.eval()(x)[0], layer.eval()(x)[0])

    def test_a_noisy_first_state_in_training_only(self) -> None:
        layer, x = made("LSTM", "batch", state_noise=0.5), torch.zeros(1, 4, 3, dtype=torch.float64)
        assert layer(x)[0].std(1).min() > 0
        assert layer.eval()(x)[0].std(1).max() == 0

    @pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
    def test_without_a_norm_there_is_no_noise(self, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("normwise.ops.tracing", lambda: traced)
        layer, x = made("LSTM", "none", state_noise=0.5), torch.zeros(1, 4, 3, dtype=torch.float64)
        assert layer(x)[0].std(1).max() == 0

    def test_weights_start_small_for_batch_norm(self) -> None:
        for norm, start in (("batch", 0.1), ("layer", 1.0)):
            layer: Any = nw.LSTM(3, 6, norm=norm)
            layer.reset_parameters()
            assert layer.norm_hh_l0.unique().tolist() == pytest.approx([start])
            assert layer.norm_bias_c_l0.abs().max() == 0

    @each_kind
    def test_reset_parameters_forgets(self, kind: str) -> None:
        with torch.device("meta"):
            layer = KINDS[kind][0](3, 6, norm="batch", bidirectional=True)
        layer.to_empty(device="cpu")
        for buffer in layer.buffers():
            buffer.fill_(9)
        for _ in range(2):  # from nothing, and what was learned
            layer.reset_parameters()
            assert {name: b.unique().tolist() for name, b in layer.named_buffers()} == {
                f"memory_{suffix}.{name}": [start]
                for suffix in ("l0", "l0_reverse")
                for name, start in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0))
            }
            with pytest.warns(UserWarning, match="left out"):
                layer(torch.full((5, 4, 3), torch.nan))
            assert int(layer.memory_l0.skipped) == 5
            layer(batch().float() + 3)
        fresh = copy.deepcopy(layer)
        for part in (*fresh.children(), fresh):  # as FSDP resets what it has put in place
            part.reset_parameters()
        assert fresh.memory_l0.num_batches_tracked.tolist() == [0] * 5

    def test_a_memory_that_has_met_the_longest_batch_keeps_its_shape(self) -> None:
        layer = made("LSTM", "batch")
        layer(batch(7))
        averaged: list[Any] = [AveragedModel(layer, use_buffers=use) for use in (False, True)]
        layer(batch(4))
        layer(batch(7))
        for each in averaged:
            each.update_parameters(layer)
            assert each.module.memory_l0.running_mean.shape == (7, 54)
        torch.testing.assert_close(averaged[0].module.state_dict(), layer.state_dict())


class TestGradients:
    @each_kind
    @each_norm
    def test_first_and_second(self, kind: str, norm: str) -> None:
        layer, x = made(kind, norm), batch(3).requires_grad_()
        lengths = torch.tensor([3, 1, 3, 2])

        def function(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            output, end = layer(x, lengths=lengths)
            return output, *(end if kind == "LSTM" else (end,))

        tensors = (x, *layer.parameters())
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors[:2], atol=1e-4)

    def test_frozen_weights_get_none(self) -> None:
        layer, x = made("LSTM", "layer").requires_grad_(False), batch().requires_grad_()
        layer(x)[0].sum().backward()
        assert x.grad is not None
        assert all(parameter.grad is None for parameter in layer.parameters())

    def test_float32_is_close_to_float64(self) -> None:
        layer, x = made("LSTM", "layer"), batch(40)
        single = copy.deepcopy(layer).float()
        torch.testing.assert_close(single(x.float())[0].double(), layer(x)[0], rtol=0, atol=1e-4)


class TestFormats:
    @each_kind
    @each_norm
    def test_copy_pickle_and_state_dict(self, kind: str, norm: str) -> None:
        layer, x = made(kind, norm), batch()
        layer(x)
        stored = io.BytesIO()
        torch.save(layer.state_dict(), stored)
        loaded = KINDS[kind][0](3, 6, norm=norm, dtype=torch.float64)
        loaded.load_state_dict(torch.load(io.BytesIO(stored.getvalue())))
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            torch.testing.assert_close(other.eval()(x), layer.eval()(x))
            layer.train()

    @each_norm
    def test_half_precision_and_autocast(self, norm: str) -> None:
        layer = nw.LSTM(3, 6, norm=norm)
        x = batch().float()
        expected = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(x)[0]
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.05)

    @each_kind
    @each_norm
    def test_half_precision_learns_the_norm_as_float64(self, kind: str, norm: str) -> None:
        """PyTorch's layer norm sums rows in the half type on the CPU: the biases were off by 23 and 59 %."""
        layer, x = made(kind, norm).bfloat16(), batch(2, 4096).bfloat16()
        exact, g = copy.deepcopy(layer).double(), (batch(2, 4096).mean(-1, keepdim=True) * 0.1 + 0.5).bfloat16()
        found = torch.autograd.grad(layer(x)[0], [*layer.parameters()], g.expand(-1, -1, 6))
        wanted = torch.autograd.grad(exact(x.double())[0], [*exact.parameters()], g.double().expand(-1, -1, 6))
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
        assert max(errors) < 0.04, dict(zip(dict(layer.named_parameters()), errors, strict=True))

    @each_kind
    @pytest.mark.parametrize("norm", ["batch", "layer", "none"])
    @pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
    def test_compiles_as_one_graph(self, kind: str, norm: str, train: bool) -> None:
        torch._dynamo.reset()  # each case is a graph of its own, not one more variant of the last
        layer, x = made(kind, norm).train(train), batch(3)
        layer(x)
        other = copy.deepcopy(layer)
        compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(x)[0], layer(x)[0])
        torch.testing.assert_close(other.state_dict(), layer.state_dict())

    @each_norm
    def test_export(self, norm: str) -> None:
        layer, x = made("LSTM", norm).eval(), batch()
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x)[0], layer(x)[0])

    def test_fx_sees_one_node(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = made("LSTM", "layer")

            def forward(self, x: Tensor) -> Tensor:
                return self.rnn(x)[0][-1]

        net, x = Net(), batch()
        traced = fx.symbolic_trace(net)
        assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["rnn"]
        torch.testing.assert_close(traced(x), net(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nw.LSTM(3, 6, proj_size=2), "LSTM: proj_size is not offered, got 2; .* nn.Linear\\(6, 2\\)"),
        (lambda: made("LSTM", "layer")(batch(), lengths=[5, 2]), r"shape \(4,\), got torch.int64 of shape \(2,\)"),
        (lambda: nw.LSTM(3, 6, norm="group"), "norm must be one of none, batch, layer, got 'group'"),
        (lambda: made("LSTM", "batch")(batch(size=1)), "at least 2 values per channel"),
        (lambda: made("LSTM", "layer")(torch.zeros(5, 4, 2).double()), r"shape \(T, N, 3\) .* \(5, 4, 2\)"),
        (lambda: made("GRU", "layer")(torch.zeros(0, 4, 3).double()), "T at least 1"),
        (lambda: made("GRU", "layer")(batch().long()), "must be floating point, got torch.int64"),
        (lambda: made("GRU", "layer")(batch(), torch.zeros(1, 3, 6)), r"shape \(1, 4, 6\), got \(1, 3, 6\)"),
        (
            lambda: made("LSTM", "layer")(batch(), (torch.zeros(1, 4, 6),)),
            r"hx must be the pair \(h, c\), got a tuple of 1",
        ),
        (lambda: made("LSTM", "layer")(batch()[:, 0], torch.zeros(1, 6)), "the pair .*, got a Tensor of 1"),
        (
            lambda: made("GRU", "layer")(batch(), (torch.zeros(1, 4, 6),)),
            "hx must be the tensor h by itself, got a tuple",
        ),
        (lambda: made("LSTM", "layer")(batch(), lengths=torch.tensor([1, 2])), r"whole numbers of shape \(4,\)"),
        (lambda: made("LSTM", "layer")(batch(), lengths=LENGTHS.float()), "got torch.float32"),
        (lambda: made("LSTM", "none")(batch(), lengths=LENGTHS + 1), r"in 1 .. 5, got \[4, 6, 2, 5\]"),
        (lambda: made("LSTM", "none")(batch(), lengths=LENGTHS - 1), r"in 1 .. 5, got \[2, 4, 0, 3\]"),
        (lambda: made("LSTM", "layer")(batch()[0], lengths=LENGTHS), "a single sequence has its length"),
        (lambda: made("LSTM", "layer")(pack_sequence([batch()[:, 0]]), lengths=LENGTHS), "packed sequence has its"),
    ],
)
def test_bad_input(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


class Tagger(nn.Module):
    """A recurrent network over (N, T, 3), with a norm of its own if asked."""

    def __init__(self, rnn: nn.Module | None = None) -> None:
        super().__init__()
        self.rnn = rnn or nw.LSTM(3, 6, batch_first=True, norm="batch")
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class TestSwap:
    def test_there_and_back_keeps_the_weights(self) -> None:
        model, x = Tagger(), torch.randn(4, 5, 3)
        old: Any = model.rnn
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        plan = nw.swap(model, "layer", where="rnn", example=x, optimizer=optimizer)
        new: Any = model.rnn
        assert (plan.changes[0].before, plan.changes[0].after) == ("LSTM batch", "layer")
        assert (new.norm, new.batch_first, new.eps) == ("layer", True, old.eps)
        assert new.weight_hh_l0 is old.weight_hh_l0
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters()}
        plan.undo()
        assert model.rnn is old
        assert nw.swap(model, "batch").left[0].note == "computes the same as batch already"

    @each_kind
    def test_pytorchs_layer_is_taken_by_its_full_path_only(self, kind: str) -> None:
        plain: Any = KINDS[kind][1](3, 6, batch_first=True, bidirectional=False)
        model: Any = nn.Sequential(nn.BatchNorm1d(5), Tagger(plain))
        nw.swap(model, "layer")
        assert model[1].rnn is plain
        plan = nw.swap(model, {"1.rnn": "layer"}, example=torch.randn(4, 5, 3))
        assert [change.before for change in plan.changes] == [f"{kind} none"]
        swapped: Any = model[1].rnn
        assert isinstance(swapped, KINDS[kind][0])
        assert swapped.weight_ih_l0 is plain.weight_ih_l0
        projected = Tagger(nn.LSTM(3, 8, batch_first=True, proj_size=6))
        assert "proj_size" in nw.swap(projected, {"rnn": "layer"}, dry_run=True).left[0].note

    def test_what_a_recurrent_layer_cannot_take(self) -> None:
        with pytest.raises(UsageError, match=r"'rnn' cannot take this norm: .* takes none, batch or layer"):
            nw.swap(Tagger(), "instance")
        mixed = nn.Sequential(nn.BatchNorm1d(5), Tagger())
        assert [left.path for left in nw.swap(mixed, "group:5").left] == ["1.rnn"]

    def test_where_nothing_is_remembered_nothing_is_frozen_or_recomputed(self) -> None:
        forgetful = Tagger()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(forgetful.rnn.memory_l0, name, None)
        for model in (forgetful, Tagger(nw.LSTM(3, 6, batch_first=True, norm="layer"))):
            for plan in (nw.freeze(model), nw.recalibrate(model, [batch()])):
                assert [(each.path, each.note) for each in plan.left] == [("rnn", "it remembers no statistics")]

    def test_other_surgery_leaves_it_and_says_what_to_do(self) -> None:
        model = Tagger()
        assert "recurrent layer" in fold(model.eval()).left[0].note
        assert "recalibrate it on such data instead" in nw.adapt(model).left[0].note
        with pytest.raises(UsageError, match=r"no batch normalization layer: 'rnn' .* norm='layer' needs no others"):
            nw.sync(model)
        plan = nw.sync(nn.Sequential(nn.BatchNorm1d(5), model))
        assert "'1.rnn' pools each time step in its own process" in str(plan)


class TestCompare:
    class Task:
        """Does a noisy sequence rise?"""

        epochs, delta = 5, 0.1

        def model(self) -> nn.Module:
            return Tagger()

        def data(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            y = torch.arange(120) % 2
            x = torch.randn(120, 5, 3, generator=generator) + torch.arange(5.0)[:, None] * y[:, None, None]
            return torch.utils.data.TensorDataset(x, y)

    def test_arms_and_a_trial(self) -> None:
        task = resolve(self.Task())
        arms, left = survey(task, None, [4, 16], Setting())
        assert [(arm.name, arm.aliases) for arm in arms] == [("keep", ("batch",)), ("layer", ()), ("none", ())]
        assert {entry.norm for entry in left} == {"instance", "group"}
        assert arms[0].values == {4: 4, 16: 16}
        results = [train(task, Trial(arm.name, 16, 0.02, seed=1), Setting()) for arm in arms]
        assert {result.status for result in results} == {"ok"}
        assert len({result.measures["last_loss"] for result in results}) == 3

    def test_a_packed_batch_is_recorded(self) -> None:
        layer = made("LSTM", "batch")
        with record(layer) as records:
            layer(pack_sequence([torch.randn(steps, 3).double() for steps in (3, 3, 2)]))
        assert records[0].shape == (3, 6)
