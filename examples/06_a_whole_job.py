"""One call for a model and images of yours: budget, denoiser, certificates, a page, a run in MLflow."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import certdef
from certdef.report.plan import render

digits = load_digits()
images = (digits.images / 16).astype("float32")[:, None]
model = LogisticRegression(max_iter=2000).fit(images[:1000].reshape(1000, -1), digits.target[:1000])

job = {"target": model, "images": images[1000:1200], "labels": digits.target[1000:1200]}
print(render(certdef.plan(**job, surrogate__model="none")))  # what it would cost and reach; 50 queries

summary = certdef.certify(
    **job,
    certify__target_images=10,
    certify__n=500,
    certify__radii=[0.1, 0.25],
    progress=False,
)
print(summary)
print("page:", summary.report)
