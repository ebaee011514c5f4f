"""A noise law of a user's own: one class, in this file alone, is drawn, certified and recorded."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import certify


@dataclass(frozen=True)
class Triangular(certify.NoiseLaw):
    """The sum of two uniforms on (-h/2, h/2): l1 radius h (p - 1/2), by total variation.

    A shift of one pixel by d moves it by P(|z| < d / 2) = 1 - (1 - d / 2h)^2 <= d / h in total variation, a shift of
    several by at most the sum, and a class loses no more than that.
    """

    half_width: float
    norm = "l1"

    def describe(self):
        return {"law": "triangular", "norm": self.norm, "half_width": self.half_width}

    def compute_radius(self, p):
        return self.half_width * (p - 0.5)

    def compute_p_required(self, r):
        return 0.5 + r / self.half_width

    def draw(self, shape, generator, device, dtype):
        halves = torch.rand((2, *shape), generator=generator, device=device, dtype=dtype) - 0.5
        return halves.sum(dim=0) * self.half_width


NOISE = Triangular(0.5)


def first_pixel_below(edge):
    return lambda noisy: (noisy[:, 0, 0, 0] >= edge).long()


def test_it_is_certified_and_recorded(tmp_path):
    images = torch.full((3, 1, 4, 4), 0.5)
    smoothed = certify.SmoothedClassifier(first_pixel_below(0.6), NOISE, 2, seed=1)
    with certify.RecordLog(tmp_path / "own", {"noise": NOISE.describe()}) as log:
        found = smoothed.certify(images, n=5000, on_certificate=lambda i, c, s: log.append(i, 0, c, s))
    assert all(0 < each.radius <= 0.1 for each in found)  # the edge is 0.1 away
    assert {(each.prediction, each.norm, each.sound) for each in found} == {(0, "l1", True)}
    records = certify.read_records(log.path)
    assert records.config["noise"] == NOISE.describe()
    assert records.radius.tolist() == [each.radius for each in found]
    assert np.array_equal(certify.recertify(records, NOISE, 0.001).radius, records.radius)


@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
def test_it_can_stop_early_and_change_its_norm(method):
    image = torch.full((1, 1, 4, 4), 0.5)
    smoothed = certify.SmoothedClassifier(first_pixel_below(0.9), certify.Inclusion(NOISE, "linf", 16), 2)
    [found] = smoothed.certify(image, n=5000, method=method, radii=[0.005])
    assert found.norm == "linf"
    assert 0.005 <= found.radius <= 0.4 / 16
    assert found.n < 5000


def test_what_is_checked_and_rounded_for_it():
    p = np.linspace(0.51, 0.99, 20)
    assert np.all(NOISE.radius(p) <= NOISE.compute_radius(p))
    assert NOISE.radius(0.4) == 0
    assert np.allclose(NOISE.radius(NOISE.p_required([0.01, 0.1])), [0.01, 0.1])
    with pytest.raises(certify.CertifyError, match="p_lower"):
        NOISE.radius(1.5)
    with pytest.raises(certify.CertifyError, match="float16"):
        NOISE.sample((2, 3), dtype=torch.float16)
    with pytest.raises(certify.CertifyError, match="or Laplace"):
        certify.certify_votes(None, NOISE, 2, method="two_sided")
