"""ONNX: a plain norm is exported as the node that PyTorch's own is, also behind `nw.accelerate`."""

from typing import Any

import pytest
import torch
from torch import nn

import normwise as nw

REASON = "needs onnx and onnxscript: run `make test-zoo`"
pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter itself
X = torch.randn(2, 8, 6, 6)


def nodes(model: nn.Module) -> list[str]:
    program: Any = torch.onnx.export(model.eval(), (X,), dynamo=True, verbose=False)
    return [node.op_type for node in program.model_proto.graph.node]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (nw.BatchNorm2d(8), nn.BatchNorm2d(8)),
        (nw.BatchNorm(8), nn.BatchNorm2d(8)),
        (nw.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, affine=True)),
        (nw.InstanceNorm(8), nn.InstanceNorm2d(8, affine=True)),
        (nw.GroupNorm(2, 8), nn.GroupNorm(2, 8)),  # several nodes, as the exporter spells PyTorch's
    ],
    ids=lambda norm: type(norm).__module__.split(".")[0] + type(norm).__name__,
)
def test_a_plain_norm_is_exported_as_pytorchs(ours: nn.Module, theirs: nn.Module) -> None:
    found = nodes(ours)
    assert found == nodes(theirs)
    assert len(found) == 1 or isinstance(ours, nn.GroupNorm)


def test_an_accelerated_model_is_exported_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
    before = nodes(model)
    assert nw.accelerate(model, X).changes
    assert nodes(model) == before == ["Conv", "InstanceNormalization", "Relu"]
