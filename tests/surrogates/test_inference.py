"""Eval mode that gives every part its own mode back, and features as the last linear layer gets them."""

import pytest
import torch
from torch import nn

from surrogates import SurrogateError
from surrogates.distillation.inference import evaluating, features, predict, predict_with_features

IMAGES = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)
        )


def test_a_frozen_part_stays_frozen() -> None:
    model = network().train()
    model[1].eval()  # its running statistics are those of another training
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model] == [True, False, True, True, True, True]
    assert model.training
    before = model[1].running_mean.clone()
    predict(model, IMAGES, 4)
    model(IMAGES)
    assert torch.equal(model[1].running_mean, before)


def test_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.rand(1, 2, 4, 4))
    assert all(part.training for part in model.modules())


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    model = network().eval()
    expected = model[:-1](IMAGES)
    assert torch.equal(features(model, IMAGES), expected)
    logits, inputs = predict_with_features(model, IMAGES, 3)
    assert torch.allclose(inputs, expected)
    assert torch.allclose(logits, model(IMAGES))
    assert not model[-1]._forward_pre_hooks
    images = IMAGES.clone().requires_grad_()
    features(model, images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_model_without_a_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    with pytest.raises(SurrogateError, match="Sequential has no linear layer to take features from"):
        features(model, IMAGES)
    logits, inputs = predict_with_features(model, IMAGES, 3)
    assert torch.equal(logits, inputs)
