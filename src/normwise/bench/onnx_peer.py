"""ONNX Runtime as a peer: one operator of ONNX, its memory bound once, as inference servers run it."""

import os
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normwise.bench.cells import Cell
from normwise.bench.inputs import EPS, Inputs
from normwise.bench.peers import Bind, NotOfferedError, Run

TYPES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "FLOAT16"}
NAMES, RUNNING = ("x", "weight", "bias", "residual"), ("running_mean", "running_var")


class OnnxRuntime:
    """The forward alone; ONNX knows no layout but contiguous, and here no gradient."""

    def __init__(self) -> None:
        self.runtime, self.onnx = import_module("onnxruntime"), import_module("onnx")

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self.runtime.__version__}

    def prepare(self, cell: Cell) -> Bind:
        check_offered(cell)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        session = self.runtime.InferenceSession(self.model(cell), options, providers=["CPUExecutionProvider"])

        def bind(inputs: Inputs) -> dict[str, Run]:
            binding = session.io_binding()
            for name, tensor in zip(NAMES, inputs.leaves(False), strict=False):
                binding.bind_cpu_input(name, tensor.numpy())
            binding.bind_output("y")

            def run() -> Any:
                session.run_with_iobinding(binding)
                return binding

            return {"run": run}

        return bind

    def read(self, result: Any) -> list[Tensor]:
        return [torch.from_numpy(np.array(value)) for value in result.copy_outputs_to_cpu()]

    def model(self, cell: Cell) -> bytes:
        """The cell as an ONNX model."""
        make, channels = self.onnx.helper, cell.shape[1]
        kind = getattr(self.onnx.TensorProto, TYPES[cell.dtype])
        sizes = [cell.shape, (channels,), (channels,), *([cell.shape] if cell.fused else [])]
        inputs = [make.make_tensor_value_info(name, kind, size) for name, size in zip(NAMES, sizes, strict=False)]
        output = make.make_tensor_value_info("y", kind, cell.shape)
        running = [make.make_tensor(name, kind, (channels,), [1.0] * channels) for name in RUNNING]
        graph = make.make_graph(self.nodes(cell, channels), "cell", inputs, [output], initializer=running)
        opset = make.make_opsetid("", 21)
        return make.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

    def nodes(self, cell: Cell, channels: int) -> list[Any]:
        """One operator, and the two that follow it where they do."""
        make = self.onnx.helper.make_node
        norm = "norm" if cell.fused else "y"
        if cell.groups == 0:
            outputs = [norm, "mean", "var"]
            first = make("BatchNormalization", [*NAMES[:3], *RUNNING], outputs, epsilon=EPS, training_mode=1)
        elif cell.groups == channels:
            first = make("InstanceNormalization", NAMES[:3], [norm], epsilon=EPS)
        else:
            first = make("GroupNormalization", NAMES[:3], [norm], epsilon=EPS, num_groups=cell.groups)
        return [first, *([make("Add", [norm, NAMES[3]], ["sum"]), make("Relu", ["sum"], ["y"])] if cell.fused else [])]


def check_offered(cell: Cell) -> None:
    """Says what ONNX Runtime does not do.

    >>> check_offered(Cell("instance", (2, 4, 8, 8), passes="forward+backward"))
    Traceback (most recent call last):
    normwise.bench.peers.NotOfferedError: ONNX Runtime has no gradients
    """
    for missing, what in (
        (cell.backward, "gradients"),
        (cell.layout != "contiguous", "channels-last layout"),
        (cell.dtype not in TYPES, f"norms in {cell.dtype} on the CPU"),
    ):
        if missing:
            raise NotOfferedError(f"ONNX Runtime has no {what}")
