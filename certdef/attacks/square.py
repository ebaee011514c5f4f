"""Square by averaged scores, for systems that draw noise too (Andriushchenko et al., "Square attack", ECCV 2020).

A random square of each image is set to +eps or -eps and kept if it lowers the margin of the label. Against noise three
things are unlike the paper. Nothing stops at the first wrong answer, which may be the noise's: the margin is driven down as
far as the queries reach. The image that is kept is asked again beside each new one, so that a lucky score does not stay for
ever: what is compared is the mean of all its scores. And a square is no smaller than what shows through the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from certdef.attacks.candidates import Ask, margin
from certdef.attacks.gradient import within

LARGEST = 0.8  # share of the pixels of the first squares, as in the paper
SMALLER_AFTER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the steps; then half as large
PROBES = 8  # squares of each size that are tried against the noise


@torch.no_grad()
def square(
    ask: Ask,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int = 5_000,
    seed: int,
    looks: int = 0,
    steps: int | None = None,
) -> Tensor:
    """Square, L-infinity: adversarial images (N, C, H, W) in [0, 1] within eps, by at most `queries` an image.

    Args:
        ask: Images (N, C, H, W) to logits or log-scores (N, K), one query an image; it gets copies.
        images: The originals in [0, 1].
        labels: What the attacker wants to leave, (N,).
        eps: Largest distance.
        queries: At most so many an image.
        seed: Of the squares.
        looks: Queries whose scores are averaged, of a system that draws noise; 0: it draws none, and an image whose margin
            was lowered is not asked again.
        steps: The name of `queries` in version 0.1.
    """
    queries = queries if steps is None else steps
    search = _Search(ask, images, labels, eps, looks, torch.Generator().manual_seed(seed))
    smallest, spent = 0.0, 0
    if looks and queries >= 20 * PROBES * looks:
        smallest, spent = search.smallest_size()
    rounds = (queries - spent - max(looks, 1)) // max(2 * looks, 1)
    for number in range(rounds):
        search.step(max(size_at(number / rounds), smallest))
        if search.done:
            break
    return within(search.best, images, eps)


def size_at(share: float) -> float:
    """Share of the pixels of a square, once a share of the steps is done."""
    return LARGEST / 2 ** sum(share > each for each in SMALLER_AFTER)


class _Search:
    """The best images so far, and the mean of what they were answered."""

    def __init__(
        self, ask: Ask, images: Tensor, labels: Tensor, eps: float, looks: int, generator: torch.Generator
    ):
        self.ask, self.images, self.labels = ask, images, labels
        self.eps, self.looks, self.generator = eps, looks, generator
        stripes = self._signs(len(images), images.shape[1], 1, images.shape[3])
        self.best = within(images + eps * stripes, images, eps)
        self.total, self.count = self._scores(self.best), torch.ones(len(images))

    @property
    def done(self) -> bool:
        """Whether all is lost for good: no noise will bring it back."""
        return not self.looks and not self._open().any()

    def step(self, size: float) -> None:
        """Try a square that covers this share of each image."""
        candidate = self._with_square(self.best, size)
        rows = self._open()
        scores = self.total.clone()
        scores[rows] = self._scores(candidate[rows])
        if self.looks:
            self.total += self._scores(self.best)
            self.count += 1
        better = self._margins(scores) > self._margins(self.total / self.count[:, None])
        self.best = torch.where(better[:, None, None, None], candidate, self.best)
        self.total = torch.where(better[:, None], scores, self.total)
        self.count = torch.where(better, 1.0, self.count)

    def smallest_size(self) -> tuple[float, int]:
        """The smallest square that moves the margin more than the noise does, for most images, and the queries of that."""
        same = torch.stack([self._margins(self._scores(self.best)) for _ in range(PROBES)])
        noise, spent, size = same.std(dim=0), PROBES * self.looks, LARGEST
        while size * self.images[0, 0].numel() >= 2 and spent < 10 * PROBES * self.looks:
            tried = [self._with_square(self.best, size / 2) for _ in range(PROBES)]
            moved = torch.stack([self._margins(self._scores(each)) for each in tried])
            spent += PROBES * self.looks
            shown = (moved - same.mean(dim=0)).square().mean(dim=0).sqrt()
            if (shown > 2**0.5 * noise).float().mean() < 0.5:
                break
            size /= 2
        return size, spent

    def _open(self) -> Tensor:
        """The images that are still asked: all where noise is drawn, else those that are right."""
        if self.looks:
            return torch.ones(len(self.images), dtype=torch.bool)
        return self.total.argmax(dim=1) == self.labels

    def _with_square(self, images: Tensor, size: float) -> Tensor:
        """A square of each image, at a random place, is eps brighter or darker than the original."""
        count, channels, height, width = images.shape
        side = max(1, min(round((size * height * width) ** 0.5), height - 1, width - 1))
        top = torch.randint(height - side + 1, (count, 1), generator=self.generator)
        left = torch.randint(width - side + 1, (count, 1), generator=self.generator)
        rows, columns = torch.arange(height)[None], torch.arange(width)[None]
        down, across = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
        inside = (down[:, :, None] & across[:, None])[:, None]
        changed = within(self.images + self.eps * self._signs(count, channels, 1, 1), self.images, self.eps)
        return torch.where(inside, changed, images)

    def _scores(self, images: Tensor) -> Tensor:
        """Mean probabilities (N, K)."""
        answers = [self.ask(images.clone()).softmax(dim=1) for _ in range(max(self.looks, 1))]
        return torch.stack(answers).mean(dim=0)

    def _margins(self, scores: Tensor) -> Tensor:
        return margin(scores.clamp_min(1e-12).log(), self.labels)

    def _signs(self, *shape: int) -> Tensor:
        return torch.randint(2, shape, generator=self.generator) * 2.0 - 1
