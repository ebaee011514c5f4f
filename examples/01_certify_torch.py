"""Certify a torch model whose weights you have: train it under noise, smooth it, read the curve."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import certify

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # (N, 1, 8, 8) in [0, 1]
labels = torch.tensor(digits.target)
noise = certify.Gaussian(0.25)

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(40):
    for rows in torch.randperm(1_000).split(100):
        optimizer.zero_grad()
        noisy = images[rows] + noise.sample(images[rows].shape)  # the noise that is certified
        nn.functional.cross_entropy(model(noisy), labels[rows]).backward()
        optimizer.step()

smoothed = certify.SmoothedClassifier(model, noise, num_classes=10)
held_out = range(1_000, 1_050)
with certify.RecordLog("records", {"noise": noise.describe(), "seed": 0}) as log:
    smoothed.certify(
        images[held_out.start : held_out.stop],
        n=2_000,
        on_certificate=lambda index, certificate, seconds: log.append(
            index, int(labels[held_out[index]]), certificate, seconds
        ),
    )
curve = certify.curves.certified_accuracy(certify.read_records(log.path), [0, 0.25, 0.5])
print(certify.curves.table({"a small network": curve}))
