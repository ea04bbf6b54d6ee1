"""The cells of the bench: the fixed lists, what narrows and replaces them, and what is refused before measuring."""

import sys

import pytest

from normwise.bench import run
from normwise.bench.cells import choose
from normwise.cli import main
from normwise.errors import UsageError


def test_the_fixed_lists_hold_what_the_table_promises() -> None:
    every = choose("all")
    assert set(choose("default")) <= set(every)
    assert len(every) == len(set(every)) == 9 * 2 * 2 * 4 + 4 * 2 * 2 * 4
    assert {cell.dtype for cell in every} == {"float32", "bfloat16"}
    assert all(cell.bytes > 2**23 for cell in every if cell.dtype == "bfloat16")


def test_a_norm_narrows_the_list_and_a_shape_replaces_it() -> None:
    assert {cell.norm for cell in choose("default", norms=["layer"])} == {"layer"}
    cells = choose("default", shapes=["2x4x4x4", "2x6X5"])
    assert {cell.shape for cell in cells} == {(2, 4, 4, 4), (2, 6, 5)}
    assert len(cells) == 4 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("norms", "shapes", "said"),
    [
        (["switchable"], [], "batch, instance, group:8 and layer, each also with .*; got 'switchable'"),
        (["group:3"], ["2x4x4x4"], "num_channels must be divisible by num_groups|divisible"),
        ([], ["2x4"], "a shape must be NxCxsizes of positive whole numbers such as 32x256x28x28, got '2x4'"),
        ([], ["2x4x0"], "got '2x4x0'"),
        ([], ["2x4xa"], "got '2x4xa'"),
        ([], ["2x4x\u00b2"], "got '2x4x\u00b2'"),
        (["instance"], ["8x32x1x1"], "instance norm of 8x32x1x1 has one value per statistic, .* is 0; give"),
        (["group:4"], ["8x4x1"], "group:4 norm of 8x4x1 has one value per statistic"),
        (["batch+residual+relu"], ["1x4x1x1"], r"batch\+residual\+relu norm of 1x4x1x1 has one value per statistic"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(norms: list[str], shapes: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose("quick", norms, shapes)


def test_small_planes_are_measured_where_a_norm_has_a_statistic() -> None:
    assert choose("quick", ["batch", "layer", "group:2"], ["8x4x1x1"])


def test_two_lists_at_once_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "bench", lambda *_, **__: pytest.fail("it began to measure"))
    monkeypatch.setattr(sys, "argv", ["normwise", "bench", "--quick", "--all"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "--quick and --all are two lists of cells, got both; give one of them" in capsys.readouterr().err


def test_unknown_peers_and_thread_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="the peers are eager, compile, jax, onnxruntime; got 'tvm'"):
        run.bench("quick", peers=["tvm"])
    with pytest.raises(UsageError, match="--threads must be at least 1, got 0"):
        run.bench("quick", threads=0)
    with pytest.raises(UsageError, match=r"--allocator must be system, .* got 'no_such_malloc'"):
        run.bench("quick", allocator="no_such_malloc")
