"""Compare two versions pair by pair, and stop a release that lost certificates."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import certdef
import certify
from certdef.release.words import as_text

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)
noise = certify.Gaussian(0.25)


def version(noisy: bool) -> nn.Module:
    """A network that was trained under the noise, or one that was not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for rows in torch.randperm(1_000).split(100):
            optimizer.zero_grad()
            shown = images[rows] + noise.sample(images[rows].shape) if noisy else images[rows]
            nn.functional.cross_entropy(model(shown), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def records(name: str, model: nn.Module) -> Path:
    """Certify 60 held-out images of a version and keep the records."""
    smoothed = certify.SmoothedClassifier(model, noise, num_classes=10)
    with certify.RecordLog(name, {"noise": noise.describe(), "seed": 0}) as log:
        smoothed.certify(
            images[1_000:1_060],
            n=1_000,
            on_certificate=lambda index, certificate, seconds: log.append(
                index, int(labels[1_000 + index]), certificate, seconds
            ),
        )
    return log.path


old, new = records("old", version(noisy=True)), records("new", version(noisy=False))
comparison = certdef.compare(old, new, radii=[0.0, 0.25], by_class=False, max_drop=0.02)
print(as_text(comparison))
sys.exit(0 if comparison.passed else 1)
