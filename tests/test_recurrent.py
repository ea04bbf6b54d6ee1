"""The recurrent layers: what the papers say, what PyTorch's layers do, and padding without influence."""

import copy
from typing import Any

import pytest
import torch
from recurrent_references import run
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence

import normwise as nw
from normwise.layers.recurrent import Recurrent

KINDS = {"LSTM": (nw.LSTM, nn.LSTM), "GRU": (nw.GRU, nn.GRU)}
LENGTHS = torch.tensor([3, 5, 1, 4])
each_kind = pytest.mark.parametrize("kind", KINDS)
each_norm = pytest.mark.parametrize("norm", ["batch", "layer"])


def made(kind: str, norm: str, **options: Any) -> Recurrent:
    """A layer with weights far from their start, float64."""
    layer = KINDS[kind][0](3, 6, norm=norm, dtype=torch.float64, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def batch(steps: int = 5, size: int = 4) -> Tensor:
    return torch.randn(steps, size, 3, dtype=torch.float64)


def weights(layer: Recurrent, suffix: str = "l0") -> dict[str, Tensor]:
    return {n.removesuffix(f"_{suffix}"): p for n, p in layer.named_parameters() if n.endswith(f"_{suffix}")}


def gradients(output: Tensor, layer: Recurrent) -> list[Tensor]:
    return list(torch.autograd.grad((output**2).sum(), list(layer.parameters())))


class TestAgainstThePapers:
    @each_kind
    @each_norm
    def test_training_and_gradient(self, kind: str, norm: str) -> None:
        layer, x = made(kind, norm), batch()
        sequences = [x[:length, i] for i, length in enumerate(LENGTHS)]
        expected, states = run(kind, norm, weights(layer), sequences)
        output, end = layer(x, lengths=LENGTHS)
        for i, rows in enumerate(expected):
            torch.testing.assert_close(output[: len(rows), i], rows)
        torch.testing.assert_close((end[0] if kind == "LSTM" else end)[0], torch.stack(states))
        torch.testing.assert_close(gradients(output, layer), gradients(torch.cat(expected), layer))

    @each_kind
    @each_norm
    def test_evaluation_beyond_the_longest_sequence_seen(self, kind: str, norm: str) -> None:
        layer: Any = made(kind, norm)
        for _ in range(3):
            layer(batch(4), lengths=torch.tensor([4, 2, 3, 3]))
        layer.eval()
        x, remembered = batch(7), None
        if norm == "batch":
            memory: Any = layer.memory_l0
            assert memory.num_batches_tracked.tolist() == [3, 3, 3, 0]  # one sequence says nothing of step 4
            gates, places = layer.weight_hh_l0.shape[0], {"ih": 0, "hh": 1, "c": 2}
            remembered = [
                {p: (mean[k * gates :][:gates], var[k * gates :][:gates]) for p, k in places.items()}
                for mean, var in zip(memory.running_mean[:3], memory.running_var[:3], strict=True)
            ]
        expected, _ = run(kind, norm, weights(layer), list(x.unbind(1)), remembered=remembered)
        torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1))

    def test_two_layers_and_directions(self) -> None:
        layer, x = made("LSTM", "layer", num_layers=2, bidirectional=True), batch()
        sequences = [x[:length, i] for i, length in enumerate(LENGTHS)]
        for number in range(2):
            forth, _ = run("LSTM", "layer", weights(layer, f"l{number}"), sequences)
            back, _ = run("LSTM", "layer", weights(layer, f"l{number}_reverse"), [s.flip(0) for s in sequences])
            sequences = [torch.cat([a, b.flip(0)], 1) for a, b in zip(forth, back, strict=True)]
        output, (h, _) = layer(x, lengths=LENGTHS)
        for i, rows in enumerate(sequences):
            torch.testing.assert_close(output[: len(rows), i], rows)
            torch.testing.assert_close(h[2:, i].flatten(), torch.cat([rows[-1, :6], rows[0, 6:]]))


class TestAgainstPyTorch:
    @each_kind
    @pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
    def test_without_a_norm_it_is_the_very_same(self, kind: str, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("normwise.ops.tracing", lambda: traced)
        options: Any = dict(num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
        ours, theirs = KINDS[kind][0](3, 6, **options), KINDS[kind][1](3, 6, **options)
        theirs.load_state_dict(ours.state_dict())
        x = batch().transpose(0, 1)
        start = tuple(torch.randn(4, len(x), 6, dtype=torch.float64) for _ in range(1 + (kind == "LSTM")))
        for hx in (None, start if kind == "LSTM" else start[0]):
            torch.testing.assert_close(ours(x, hx), theirs(x, hx))
        packed = pack_sequence([x[0, :2], x[1, :5], x[2, :4]], enforce_sorted=False)
        torch.testing.assert_close(ours(packed)[0].data, theirs(packed)[0].data)
        torch.testing.assert_close(ours(packed)[1], theirs(packed)[1])
        single: Any = KINDS[kind][0](3, 6, dtype=torch.float64)
        plain = KINDS[kind][1](3, 6, dtype=torch.float64)
        plain.load_state_dict(single.state_dict())
        torch.testing.assert_close(single(x[0]), plain(x[0]))

    @each_kind
    def test_lengths_without_a_norm_are_those_of_packing(self, kind: str) -> None:
        ours, x = KINDS[kind][0](3, 6, dtype=torch.float64), batch()
        output, end = ours(x, lengths=LENGTHS)
        packed, expected = ours(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
        torch.testing.assert_close(output, pad_packed_sequence(packed)[0])
        torch.testing.assert_close(end, expected)

    @each_kind
    def test_pytorchs_weights_load(self, kind: str) -> None:
        plain = KINDS[kind][1](3, 6)
        missing = KINDS[kind][0](3, 6, norm="layer").load_state_dict(plain.state_dict(), strict=False)
        assert not missing.unexpected_keys
        assert all(key.startswith("norm_") for key in missing.missing_keys)

    @each_norm
    @each_kind
    def test_packed_padded_and_batch_first_agree(self, kind: str, norm: str) -> None:
        layer, x = made(kind, norm, bidirectional=True), batch()
        output, end = layer(x, lengths=LENGTHS)
        packed, packed_end = copy.deepcopy(layer)(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
        assert packed.batch_sizes.tolist() == [4, 3, 3, 2, 1]
        for i, rows in enumerate(unpack_sequence(packed)):
            torch.testing.assert_close(rows, output[: len(rows), i])
        torch.testing.assert_close(packed_end, end)
        first = copy.deepcopy(layer)
        first.batch_first = True
        torch.testing.assert_close(first(x.transpose(0, 1), lengths=LENGTHS)[0].transpose(0, 1), output)

    def test_dropout_acts_between_layers_in_training(self) -> None:
        layer, x = made("LSTM", "layer", num_layers=2, dropout=1.0), batch()
        without, _ = run("LSTM", "layer", weights(layer, "l1"), [torch.zeros(5, 6, dtype=torch.float64)])
        torch.testing.assert_close(layer(x)[0][:, 0], without[0])
        assert not torch.equal(layer.eval()(x)[0][:, 0], without[0])

    def test_a_first_state(self) -> None:
        layer, x = made("LSTM", "layer"), batch()
        _, middle = layer(x[:2])
        torch.testing.assert_close(layer(x[2:], middle)[0], layer(x)[0][2:])
