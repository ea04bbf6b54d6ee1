"""The tasks that bring more than data: what they hold, and that each trains a step."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normwise.data import Arrays, load
from normwise.data.corrupt import CORRUPTIONS, corrupt
from normwise.data.photos import crops, photographs, textures
from normwise.data.sequences import LETTERS, adding, charlm, encode, help_text, sequence_digits, text_digest
from normwise.errors import UsageError
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.tasks import TASKS, stylize
from normwise.experiment.train import train
from normwise.experiment.trial import Trial


@pytest.mark.parametrize(
    ("name", "arm"), [("sequence-digits", "layer"), ("charlm", "rms-token"), ("stylize", "instance")]
)
def test_a_built_in_task_trains(name, arm):
    task = resolve(name)
    result = train(task, Trial(arm, 16, task.lr, seed=1, length=0.5), Setting())
    assert result.status == "ok"
    assert task.delta


def test_an_unknown_task_is_named_with_all_known_ones():
    with pytest.raises(UsageError, match=r"charlm.*did you mean 'stylize'"):
        resolve("stilize")
    assert set(TASKS) == {"fashion-mnist-shift", "sequence-digits", "charlm", "stylize"}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_repeat(kind):
    coarse = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(coarse, size=(14, 14), mode="bilinear")
    changes = [float((corrupt(x, kind, severity) - x).norm()) for severity in (1, 2, 3)]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert torch.equal(corrupt(x, kind, 2), corrupt(x, kind, 2))


def test_an_unknown_corruption_is_refused():
    with pytest.raises(UsageError, match="contrast, brightness, noise, blur"):
        corrupt(torch.zeros(1, 1, 4, 4), "fog", 2)


def test_permuted_digits_hold_the_same_pixels():
    plain, permuted = sequence_digits(permuted=False).train, sequence_digits().train
    digits = load("digits").train
    assert isinstance(plain, Arrays)
    assert isinstance(permuted, Arrays)
    assert isinstance(digits, Arrays)
    assert torch.equal(plain.inputs.flatten(1), digits.inputs.flatten(1))
    assert not torch.equal(plain.inputs, permuted.inputs)
    assert torch.equal(plain.inputs.flatten(1).sort(1).values, permuted.inputs.flatten(1).sort(1).values)


def test_the_adding_problem_marks_one_number_in_each_half():
    data = adding(50, 12, torch.Generator().manual_seed(1))
    marks = data.inputs[..., 1]
    assert torch.equal(marks[:, :6].sum(1), torch.ones(50))
    assert torch.equal(marks[:, 6:].sum(1), torch.ones(50))


def test_characters_are_guessed_from_those_before():
    data = charlm(10)
    assert isinstance(data.train, Arrays)
    assert len(data.train) == 10
    assert torch.equal(data.train.inputs[:, 1:].long(), data.train.targets[:, :-1])
    assert torch.equal(data.train.inputs[1:, 0].long(), data.train.targets[:-1, -1])


def test_the_help_text_is_long_and_mostly_in_the_alphabet():
    codes = encode(help_text())
    assert len(codes) > 300_000
    assert float((codes == 0).float().mean()) < 0.01
    assert codes.max() == len(LETTERS)
    assert len(text_digest()) == 12


def test_photographs_come_with_scikit_learn_where_scikit_image_is_missing(monkeypatch):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "skimage" else find_spec(name))
    for read in (photographs, textures):
        read.cache_clear()
    try:
        assert list(photographs()) == ["china", "flower"]
        assert list(textures()) == ["stripes", "blobs"]
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        photographs.cache_clear()
        with pytest.raises(UsageError, match="scikit-image"):
            photographs()
    finally:
        for read in (photographs, textures):
            read.cache_clear()


def test_crops_are_parts_of_the_images():
    image = torch.arange(36.0).view(1, 6, 6).expand(3, -1, -1)
    for crop in crops([image], 5, 4, torch.Generator().manual_seed(0)):
        start = crop[0, 0, 0]
        assert torch.equal(crop[0], start + torch.arange(4.0) + 6 * torch.arange(4.0)[:, None])


def test_the_style_loss_is_nothing_for_the_texture_itself():
    texture = textures()[stylize.Stylize.texture][None]
    found = stylize.losses(texture, texture, stylize.Stylize.texture)
    assert float(found.style) < 1e-8
    assert float(found.content) < 1e-8
    assert float(found.total) < 1e-8


def test_the_features_say_which_network_they_are_of():
    assert "trained here" in stylize.features().name
    assert not any(parameter.requires_grad for parameter in stylize.features().parameters())


@pytest.mark.parametrize("installed", [True, False])
def test_pretrained_features_are_taken_where_their_weights_lie(monkeypatch, installed):
    def create_model(name, pretrained, features_only):
        if not installed:
            raise OSError("offline and not in the cache")
        return nn.Identity()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "timm" else None)
    found = stylize._pretrained()
    assert (found.name if found else None) == ("efficientnet_lite0" if installed else None)
