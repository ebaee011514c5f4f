"""Distill a surrogate of a black box from 300 of its answers, and see where the two agree."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import certify
import surrogates

digits = load_digits()
images = (digits.images / 16).astype("float32")[:, None]
model = LogisticRegression(max_iter=2000).fit(images[:800].reshape(800, -1), digits.target[:800])

ledger = surrogates.QueryLedger("distill.db", {"training": 300, "evaluation": 1_000})
opened = surrogates.open_target(model)
student = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
surrogate = surrogates.distill(
    ledger.attach(opened, purpose="training", experiment="300 answers"),
    images[800:1400],  # an unlabeled pool
    student,
    budget=300,
    selection="kcenter",
    epochs=60,
)

asked = ledger.attach(opened, purpose="evaluation", experiment="fidelity")
for name, noise in {"clean": None, "under Gaussian noise of sigma 0.2": certify.Gaussian(0.2)}.items():
    found = surrogates.fidelity(surrogate, asked, images[1400:1700], noise=noise)
    print(f"agreement {name}: {found.agreement:.3f}, 95% interval {found.lower:.3f} to {found.upper:.3f}")
print(ledger.bill()["training"])
