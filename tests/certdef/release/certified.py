"""Certifications to compare: of real networks, written as a job writes them, and of votes that are drawn from known ones."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import certify
from certdef.data.sets import digest
from certify.records import Records


def record(
    base, images: np.ndarray, labels: np.ndarray, stem: Path, *, noise=None, seed=0, n=300, n0=50, **header
) -> Path:
    """Certify images (M, C, H, W) and record them as a job does; returns the .jsonl."""
    noise = noise or certify.Gaussian(0.25)
    draws = {"seed": seed, "chunk_size": 256}
    smoothed = certify.SmoothedClassifier(base, noise, 10, subject="target", **draws)
    settings = {"subject": "target", "denoiser": "none", "method": "fixed", **draws}
    config = {"noise": noise.describe(), "n0": n0, "n": n, "alpha": 0.001, **settings, **header}
    with certify.RecordLog(stem, config) as log:

        def keep(index: int, certificate: certify.Certificate, seconds: float) -> None:
            log.append(
                index, int(labels[index]), certificate, seconds, image=digest(images[index]), row=index
            )

        smoothed.certify(torch.from_numpy(images), n0=n0, n=n, alpha=0.001, on_certificate=keep)
    return log.path


def digits(count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Held-out digits (N, 1, 8, 8) in [0, 1] and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[-count:, None] / 16).astype(np.float32), data.target[-count:].astype(np.int64)


def digit_network(seed: int = 0, epochs: int = 40) -> nn.Module:
    """A small network of digits, trained under the noise."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy((data.images[:1200, None] / 16).astype(np.float32))
    labels = torch.from_numpy(data.target[:1200]).long()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(epochs):
            for chosen in torch.randperm(len(images)).split(100):
                noisy = images[chosen] + 0.25 * torch.randn_like(images[chosen])
                loss = nn.functional.cross_entropy(network(noisy), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


def of_flags(old: np.ndarray, new: np.ndarray, labels: np.ndarray, radius: float) -> tuple[Records, Records]:
    """Records in memory: certified to the radius where a flag (M,) is set, abstained elsewhere."""

    def one(flags: np.ndarray) -> Records:
        return Records(
            idx=np.arange(len(flags)),
            label=labels,
            predict=np.where(flags, labels, -1),
            radius=np.where(flags, radius, 0.0),
            correct=flags.copy(),
            seconds=np.full(len(flags), np.nan),
        )

    return one(old), one(new)
