"""The worst parameter of a transformation: found where it is known, and never a certificate broken."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from torch import nn

import certify
from certdef.attacks.smoothed import SoftVote
from certdef.attacks.transformation import worst_parameters
from certdef.config.job import DataConfig
from certdef.data.sets import load_data
from certify.threats.transformation import Transformation

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each law the largest parameter (log of a factor, variance, displacement) that a radius covers.
LAWS = {
    "brightness": (certify.Brightness(0.2), lambda r: r),
    "contrast": (
        certify.Contrast(0.3),
        np.log1p,
    ),  # factors up to 1 + r, and down to 1 / (1 + r), which is above 1 - r
    "blur": (certify.BlurExponential(1.0), np.square),
    "translation": (certify.Translation(1.0, subpixel=True), lambda r: r),
}


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above 0.7: from an image of mean 0.5 a brightness of 0.2 is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height = self.slope * (images.mean((1, 2, 3)) - 0.7)
        return torch.stack([-height, height], dim=1)


@pytest.mark.parametrize(("reach", "broken"), [(0.19, False), (0.21, True)])
def test_a_threshold_is_passed_where_it_can_be(reach, broken):
    images, labels = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    law, model = certify.Brightness(0.1), Threshold()
    found = worst_parameters(model, law, images, labels, torch.full((3,), reach), points=4, seed=0)
    assert torch.allclose(found[:, 0], torch.full((3,), reach), atol=1e-6)  # the end of what is allowed
    with torch.no_grad():
        assert (model(law.apply(images, found)).argmax(1) == 1).all() == broken


def test_blur_goes_one_way_and_two_numbers_stay_in_their_circle():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, reach = torch.zeros(4, dtype=torch.int64), torch.tensor([0.1, 0.5, 1.0, 2.0])
    blur = worst_parameters(Threshold(), certify.BlurExponential(1.0), images, labels, reach, seed=0)
    assert (blur >= 0).all()
    for law in (certify.Translation(1.0), certify.Translation(1.0, subpixel=True)):
        moved = worst_parameters(Threshold(), law, images, labels, reach, points=5, seed=0)
        assert moved.shape == (4, 2)
        assert (moved.norm(dim=1) <= reach * (1 + 1e-6)).all()


def network(law: Transformation) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that was trained under the law on digits, and 25 held-out images with their labels."""
    data = load_data(DataConfig(), 0)
    images, labels = torch.from_numpy(data.target_images), torch.from_numpy(data.target_labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(law.perturb(images[rows])), labels[rows]).backward()
            optimizer.step()
    held_out = torch.from_numpy(data.heldout_images[:25]), torch.from_numpy(data.heldout_labels[:25])
    return model.eval(), *held_out


def contradicted(model, law, images, found, parameters, n=2_000):
    """Certificates whose class has surely less than half of the votes at the transformed images: 1e-6 for all of them."""
    moved, level = law.apply(images, parameters), 1e-6 / len(images)
    generator = torch.Generator().manual_seed(99)
    contradictions = 0
    with torch.no_grad():
        for image, certificate in zip(moved, found, strict=True):
            votes = model(law.perturb(image.expand(n, *image.shape), generator)).argmax(1)
            own = int((votes == certificate.prediction).sum())
            contradictions += st.binom.cdf(own, n, 0.5) < level
    return contradictions


@pytest.mark.acceptance
@pytest.mark.parametrize("name", LAWS)
def test_no_attack_breaks_a_certificate(name):
    law, allowed = LAWS[name]
    model, images, labels = network(law)
    every = certify.SmoothedClassifier(model, law, 10, seed=1).certify(images, n0=100, n=2_000)
    kept = [at for at, each in enumerate(every) if not each.abstained]
    assert len(kept) >= 5
    found, images = [every[at] for at in kept], images[kept]
    labels = torch.tensor([each.prediction for each in found])
    radii = torch.tensor([allowed(each.radius) for each in found], dtype=torch.float32)
    vote = SoftVote(model, law, 32, seed=2)

    def attack(reach: torch.Tensor) -> int:
        worst = worst_parameters(vote, law, images, labels, reach, points=9, steps=5, seed=3)
        return contradicted(model, law, images, found, worst)

    assert attack(radii * (1 - 1e-5)) == 0
    assert attack(radii * 6) > 0  # far outside of them it finds something: it is no blind attack
