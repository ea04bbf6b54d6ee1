"""torch.compile with its own compiler: three norms as one graph, forward and backward, equal eager."""

import copy
import shutil

import pytest
import torch

import normwise as nw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),  # PyTorch's own, importing Inductor
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler"),
]


@pytest.mark.parametrize("norm", [nw.BatchNorm2d(8), nw.InstanceNorm2d(8, affine=True), nw.GroupNorm(2, 8)], ids=repr)
def test_inductor_computes_the_same(norm: torch.nn.Module) -> None:
    torch._dynamo.reset()
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, fullgraph=True)
    x = torch.randn(4, 8, 6, 6) * 2 + 3
    g = torch.randn_like(x)
    results = []
    for module, call in ((norm, norm), (twin, compiled)):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *module.parameters()], g), *module.buffers()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
