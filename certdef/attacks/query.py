"""HopSkipJump: an attack by labels alone.

It is the Adversarial Robustness Toolbox's (extra `attacks`), and so fits targets that are no torch module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from certdef.attacks import gradient
from certdef.attacks.endpoint import Endpoint
from certdef.config.job import ConfigError


def hop_skip_jump(
    endpoint: Endpoint,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int,
    seed: int,
    progress: Callable | None = None,
) -> Tensor:
    """HopSkipJump (Chen, Jordan, Wainwright, S&P 2020) by labels alone, L-infinity, at most `queries` an image.

    It walks along the boundary towards the original and stops at the first wrong label within eps; without one, the
    nearest wrongly labeled image is cut to eps. It starts from the nearest other image of the batch that has another
    label, which costs no further query. The first gradient takes a tenth of the queries (100 in the paper).

    Args:
        endpoint: What is attacked.
        images: The originals, (N, C, H, W).
        labels: What the attacker wants to leave, (N,).
        eps: Largest distance.
        queries: At most so many an image.
        seed: Of the walk.
        progress: Wraps the images, like tqdm.

    Raises:
        ConfigError: The Adversarial Robustness Toolbox is not installed.
    """
    check_hop_skip_jump()
    answers, _ = endpoint.query(images)
    right = answers == labels
    rows = range(len(images))
    adversarial = images.clone()
    for row in progress(rows, desc="HopSkipJump") if progress else rows:
        others = (answers != labels[row]).nonzero().flatten()
        if not right[row] or not len(others):  # wrong already, or no start
            continue
        nearest = (images[others] - images[row]).flatten(1).norm(dim=1).argmin()
        start, budget = images[others[nearest]], queries - endpoint.repeats
        walk = _Walk(endpoint, images[row], labels[row], start, eps, budget)
        with _forked_numpy([seed, row]):
            walk.go(max(2, queries // endpoint.repeats // 10))
        adversarial[row] = walk.nearest
    return gradient.within(adversarial, images, eps)


def check_hop_skip_jump() -> None:
    """Refuse HopSkipJump where it cannot run.

    Raises:
        ConfigError: The Adversarial Robustness Toolbox is not installed.
    """
    try:
        import art  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "hop_skip_jump needs the Adversarial Robustness Toolbox: pip install 'certdef[attacks]', or leave it out with --ladder.decision_queries 0"
        ) from error


class _Finished(Exception):
    """The attack has succeeded, or its query budget is spent."""


class _Walk:
    """HopSkipJump on one image: keeps the nearest wrongly labeled image, and the query budget."""

    def __init__(
        self, endpoint: Endpoint, image: Tensor, label: Tensor, start: Tensor, eps: float, budget: int
    ):
        self.endpoint, self.image, self.label, self.start = endpoint, image, label, start
        self.eps, self.budget = eps, budget
        self.nearest, self.distance = image, np.inf

    def go(self, first: int) -> None:
        """Walk until the attack succeeds or the budget is spent; the first gradient takes `first` queries."""
        from art.attacks.evasion import HopSkipJump
        from art.estimators.classification import BlackBoxClassifier

        classifier = BlackBoxClassifier(self._answer, tuple(self.image.shape), 2, clip_values=(0.0, 1.0))
        attack = HopSkipJump(
            classifier, norm=np.inf, max_iter=1_000_000, init_eval=first, max_eval=10_000, verbose=False
        )
        try:
            attack.generate(self.image[None].numpy(), x_adv_init=self.start[None].numpy().copy())
        except _Finished:
            return

    def _answer(self, pixels: np.ndarray) -> np.ndarray:
        """One-hot answers (N, 2): the image's label, or any other."""
        images = torch.from_numpy(pixels.astype(np.float32))
        if len(images) == 1 and torch.equal(images[0], self.image):
            wrong = torch.zeros(1, dtype=torch.bool)  # both ends of the walk were queried before
        elif len(images) == 1 and torch.equal(images[0], self.start):
            wrong = torch.ones(1, dtype=torch.bool)
        else:
            wrong = self._query(images)
        return np.eye(2, dtype=np.float32)[wrong.long().numpy()]

    def _query(self, images: Tensor) -> Tensor:
        repeats = self.endpoint.repeats
        images = images[: self.budget // repeats]
        if not len(images):
            raise _Finished
        self.budget -= repeats * len(images)
        labels, _ = self.endpoint.query(images)
        wrong = labels != self.label
        if wrong.any():
            distances = (images[wrong] - self.image).flatten(1).abs().amax(dim=1)
            if distances.min() < self.distance:
                self.nearest, self.distance = images[wrong][distances.argmin()], float(distances.min())
        if self.distance <= self.eps or self.budget < repeats:
            raise _Finished
        return wrong


@contextmanager
def _forked_numpy(seed: list[int]) -> Iterator[None]:
    """numpy's global generator, which ART draws from, starts from `seed` inside and is as it was outside."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
