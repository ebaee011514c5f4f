"""A defended classifier as an attacker outside meets it: images go in, answers come out, and each is counted.

Two attacks need no more. Square wants scores, HopSkipJump only labels; the latter is the Adversarial Robustness
Toolbox's (extra `attacks`) and so fits targets that are no torch module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

import surrogates
from certdef.attacks import gradient as attacks
from certdef.config.job import ConfigError

SMALLEST = 1e-12  # of a probability before its logarithm is taken


class Endpoint:
    """Purifier and classifier in one, that can only be asked: (N, C, H, W) in [0, 1] -> labels (N,) and log-scores (N, K).

    Args:
        classifier: A module that returns logits, or an opened target, which pays if it is attached to a ledger.
        purifier: In front of it, on our side; unset, nothing.
        looks: Questions an image. A purifier that draws noise answers differently each time: scores are averaged and
            labels go by majority, so that an attacker is not misled by one lucky draw. Each look is a query.

    `queries` counts what was asked; scores are None where the target keeps them to itself.
    """

    def __init__(
        self,
        classifier: nn.Module | surrogates.Target,
        purifier: nn.Module | None = None,
        *,
        looks: int = 1,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
    ):
        self.classifier, self.purifier, self.looks = classifier, purifier, looks
        self.device, self.batch_size, self.queries = torch.device(device), batch_size, 0

    @property
    def scored(self) -> bool:
        return isinstance(self.classifier, nn.Module) or self.classifier.output_kind != "labels"

    def ask(self, images: Tensor, looks: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Labels and log-scores, fresh tensors of their own, of images that may be asked about several times each."""
        looks = looks or self.looks
        parts = [self._ask(batch) for batch in images.repeat_interleave(looks, 0).split(self.batch_size)]
        labels = torch.cat([label for label, _ in parts]).reshape(-1, looks)  # (N, looks)
        if not self.scored:
            return labels.mode(dim=1).values, None
        scores = torch.cat([score for _, score in parts]).reshape(len(images), looks, -1)  # (N, looks, K)
        mean = scores.exp().mean(dim=1).clamp_min(SMALLEST).log() if looks > 1 else scores[:, 0]
        return (labels[:, 0] if looks == 1 else mean.argmax(1)), mean

    @torch.no_grad()
    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.queries += len(images)
        shown = images.to(self.device)
        if self.purifier is not None:
            shown = self.purifier(shown)
        if isinstance(self.classifier, nn.Module):
            scores = self.classifier(shown).log_softmax(1).cpu()
            return scores.argmax(1), scores
        answers = self.classifier.query(shown.cpu())
        labels = torch.from_numpy(answers.labels.copy())
        if answers.scores is None:
            return labels, None
        scores = torch.from_numpy(answers.scores.copy())
        if self.classifier.output_kind == "logits":
            return labels, scores.log_softmax(1)
        unnamed = scores.isnan()  # top-k: what is left over is shared by the classes that were not named
        rest = (1 - scores.nansum(1, keepdim=True)).clamp_min(0) / unnamed.sum(1, keepdim=True).clamp_min(1)
        return labels, torch.where(unnamed, rest, scores).clamp_min(SMALLEST).log()


def square(
    endpoint: Endpoint, images: Tensor, labels: Tensor, *, eps: float, queries: int, seed: int
) -> Tensor:
    """Square by scores alone, at most `queries` an image; adversarial images (N, C, H, W) within eps.

    Raises:
        ConfigError: The endpoint answers labels alone, or so few queries are allowed that none is left to attack with.
    """
    if not endpoint.scored:
        raise ConfigError("Square needs scores, and the target answers labels alone: use hop_skip_jump")
    steps = queries // endpoint.looks - 3  # it looks at the original, its start and its end
    if steps < 1:
        raise ConfigError(
            f"square_queries is {queries}: Square needs at least {4 * endpoint.looks} an image (looks {endpoint.looks})"
        )
    return attacks.square(_Scores(endpoint), images, labels, eps=eps, steps=steps, seed=seed)


def hop_skip_jump(
    endpoint: Endpoint, images: Tensor, labels: Tensor, *, eps: float, queries: int, seed: int,
    progress: Callable | None = None,
) -> Tensor:  # fmt: skip
    """HopSkipJump (Chen, Jordan, Wainwright, S&P 2020) by labels alone, L-infinity, at most `queries` an image.

    It walks along the boundary towards the original and stops as soon as a wrong label was seen within eps; without one,
    the nearest wrongly labelled image is cut to eps. It starts from the nearest other image of the batch that has another
    label, which costs no further query. The first gradient takes a tenth of the queries (100 in the paper).

    Raises:
        ConfigError: The Adversarial Robustness Toolbox is not installed.
    """
    check_hop_skip_jump()
    answers, _ = endpoint.ask(images)
    right = answers == labels
    rows = range(len(images))
    found = images.clone()
    for row in progress(rows, desc="HopSkipJump") if progress else rows:
        others = (answers != labels[row]).nonzero().flatten()
        if not right[row] or not len(others):  # wrong already, or nowhere to start from
            continue
        nearest = (images[others] - images[row]).flatten(1).norm(dim=1).argmin()
        walk = _Walk(
            endpoint, images[row], labels[row], images[others[nearest]], eps, queries - endpoint.looks
        )
        with _forked_numpy([seed, row]):
            walk.go(max(2, queries // endpoint.looks // 10))
        found[row] = walk.nearest
    return attacks.within(found, images, eps)


def check_hop_skip_jump() -> None:
    """ConfigError where HopSkipJump could not run."""
    try:
        import art  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "hop_skip_jump needs the Adversarial Robustness Toolbox: pip install 'certdef[attacks]', or leave it out with --ladder.decision_queries 0"
        ) from error


class _Enough(Exception):
    """The attack has what it wants, or nothing left to ask with."""


class _Walk:
    """HopSkipJump on one image: keeps the nearest wrongly labelled image that was seen, and the count."""

    def __init__(
        self, endpoint: Endpoint, image: Tensor, label: Tensor, start: Tensor, eps: float, queries: int
    ):
        self.endpoint, self.image, self.label, self.start = endpoint, image, label, start
        self.eps, self.left = eps, queries
        self.nearest, self.distance = image, np.inf

    def go(self, first: int) -> None:
        from art.attacks.evasion import HopSkipJump
        from art.estimators.classification import BlackBoxClassifier

        known = BlackBoxClassifier(self._answer, tuple(self.image.shape), 2, clip_values=(0.0, 1.0))
        attack = HopSkipJump(
            known, norm=np.inf, max_iter=1_000_000, init_eval=first, max_eval=10_000, verbose=False
        )
        try:
            attack.generate(self.image[None].numpy(), x_adv_init=self.start[None].numpy().copy())
        except _Enough:
            return

    def _answer(self, pixels: np.ndarray) -> np.ndarray:
        """One-hot answers (N, 2): the image's label, or any other."""
        shown = torch.from_numpy(pixels.astype(np.float32))
        if len(shown) == 1 and torch.equal(shown[0], self.image):
            wrong = torch.zeros(1, dtype=torch.bool)  # both ends of the walk were asked about before
        elif len(shown) == 1 and torch.equal(shown[0], self.start):
            wrong = torch.ones(1, dtype=torch.bool)
        else:
            wrong = self._ask(shown)
        return np.eye(2, dtype=np.float32)[wrong.long().numpy()]

    def _ask(self, shown: Tensor) -> Tensor:
        looks = self.endpoint.looks
        shown = shown[: self.left // looks]
        if not len(shown):
            raise _Enough
        self.left -= looks * len(shown)
        labels, _ = self.endpoint.ask(shown)
        wrong = labels != self.label
        if wrong.any():
            distances = (shown[wrong] - self.image).flatten(1).abs().amax(dim=1)
            if distances.min() < self.distance:
                self.nearest, self.distance = shown[wrong][distances.argmin()], float(distances.min())
        if self.distance <= self.eps or self.left < looks:
            raise _Enough
        return wrong


class _Scores(nn.Module):
    """An endpoint's log-scores as a module, for torchattacks; the tensors are the caller's own (Square writes into them)."""

    def __init__(self, endpoint: Endpoint):
        super().__init__()
        self.endpoint = endpoint
        self.where = nn.Parameter(torch.zeros(1, device=endpoint.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.endpoint.ask(images.cpu())[1].clone().to(self.where.device)


@contextmanager
def _forked_numpy(seed: list[int]) -> Iterator[None]:
    """numpy's global generator, which ART draws from, starts from `seed` inside and is as it was outside."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
