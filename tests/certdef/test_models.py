import numpy as np
import pytest
import timm
import torch

from certdef.config.job import ConfigError, DataConfig
from certdef.data.sets import load_data
from certdef.models.classifiers import build_classifier, train_classifier, train_svc


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet18", "vit_tiny_patch16_224"])
def test_models_by_name(name, image_shape):
    if name.startswith("vit") and image_shape == (1, 8, 8):  # smaller than a patch
        with pytest.raises(ConfigError, match="does not take images"):
            build_classifier(name, image_shape, 7)
        return
    model = build_classifier(name, image_shape, 7).eval()
    assert model(torch.rand(2, *image_shape)).shape == (2, 7)


SIZED = {  # whether timm's model is made for the size of its images, whatever its name says
    "resnet18": False,
    "efficientvit_b0": False,
    "mobilevit_xxs": True,
    "levit_128s": True,
    "vit_tiny_patch16_224": True,
    "deit_tiny_patch16_224": True,
    "swin_tiny_patch4_window7_224": True,
    "pvt_v2_b0": False,
}


@pytest.mark.parametrize("name", SIZED)
def test_a_timm_model_is_made_for_the_images_where_it_can_be(name):
    """And with the weights that timm itself draws from the seed, so that saved ones fit and jobs repeat."""
    torch.manual_seed(0)
    model = build_classifier(name, (3, 64, 64), 10).eval()
    torch.manual_seed(0)
    sized = {"img_size": (64, 64)} if SIZED[name] else {}
    expected = timm.create_model(name, pretrained=False, num_classes=10, **sized).eval().state_dict()
    own = model.network.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 10)


def test_a_size_that_a_timm_model_cannot_take_is_one_line():
    with pytest.raises(
        ConfigError, match=r"'halonet26t' does not take images of shape \(3, 64, 64\)"
    ) as caught:
        build_classifier("halonet26t", (3, 64, 64), 10)
    assert "\n" not in str(caught.value)


def test_normalisation_is_inside_the_model():
    model = build_classifier("mlp", (1, 8, 8), 3)
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()(torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(64).reshape(3, 1, 8, 8))
    assert torch.equal(seen[0][:, 0, 0, 0], torch.tensor([-1.0, 0.0, 1.0]))


def test_unknown_name():
    with pytest.raises(ConfigError, match="unknown model 'resnet1800'"):
        build_classifier("resnet1800", (1, 8, 8), 10)


def test_the_svc_reads_digits_and_gives_probabilities():
    data = load_data(DataConfig(), 0)
    machine = train_svc(data.target_images, data.target_labels, 0)
    scores = machine.predict_proba(data.heldout_images.reshape(400, -1))
    assert (scores.argmax(1) == data.heldout_labels).mean() > 0.95
    assert np.allclose(scores.sum(1), 1)


def test_training_a_classifier_repeats_itself_and_leaves_the_global_generator_alone():
    images = torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    labels = torch.randint(10, (150,), generator=torch.Generator().manual_seed(1)).numpy()

    def trained(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(64, 10))
        return train_classifier(
            model, images, labels, epochs=2, seed=seed, device=torch.device("cpu"), augment=True
        )

    before = torch.get_rng_state()
    one, two, three = (trained(seed)[2].weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())
