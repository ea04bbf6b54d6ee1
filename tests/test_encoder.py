"""A swapped norm of PyTorch's encoder layer is used in evaluation too."""

import torch

from normwise.surgery.swap import swap


def test_swapped_encoder_layer_leaves_pytorchs_fast_path() -> None:
    """In evaluation that path computes LayerNorm by itself, whatever stands in for it."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8)
    before = layer.eval()(x)
    plan = swap(layer, "rms-token")
    with torch.no_grad():
        evaluated = layer.eval()(x)
    torch.testing.assert_close(evaluated, layer.train()(x).detach())
    assert not torch.allclose(evaluated, before, atol=1e-3)
    plan.undo()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), before, atol=1e-5, rtol=1e-5)
