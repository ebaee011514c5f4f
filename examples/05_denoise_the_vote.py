"""Put the shipped denoiser between the noise and a model that was never trained under noise."""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import certify
import surrogates
from certdef.purifiers import build
from certdef.purifiers.networks.shipped import shipped_denoiser

digits = load_digits()
images = (digits.images / 16).astype("float32")[:, None]
labels = digits.target
model = surrogates.open_target(
    SVC(gamma=0.5, random_state=0).fit(images[:1000].reshape(1000, -1), labels[:1000])
)

denoiser = build.denoiser("de3-leaves", {"sigma": 0.25, "keep": 0.05}, {"leaves": shipped_denoiser()})
assert denoiser is not None
held_out = range(1000, 1015)
systems: dict[str, Callable[[torch.Tensor], object]] = {
    "alone": lambda noisy: model.query(noisy, bounded=False).labels,
    "behind the denoiser": lambda noisy: model.query(denoiser(noisy).detach()).labels,
}
for name, system in systems.items():
    smoothed = certify.SmoothedClassifier(system, certify.Gaussian(0.25), 10)
    found = smoothed.certify(images[held_out.start : held_out.stop], n0=50, n=300)
    for radius in (0.0, 0.25, 0.5):
        right = [
            each.prediction == labels[index] and each.radius >= radius
            for index, each in zip(held_out, found, strict=True)
        ]
        print(f"{name}: certified accuracy at {radius}: {sum(right) / len(right):.2f}")
