"""Patches: a part of the image is anything at all, and a vote of masked images still has the same answer.

PatchCleanser (Xiang, Mahloujifar, Mittal, USENIX Security 2022, arXiv 2108.09135), for a classifier that answers labels
alone. Certificate (their theorem 1): if the classifier gives class c under every two masks of a covering set, and under
each alone, then ``predict`` gives c for every image that differs within one patch.

Proof. Some mask m hides the patch whole: under m, and under m and any other mask, the attacked image is the clean one,
and the class c. The first round asks each mask alone, and m says c. If all agree, they say c. Otherwise ``predict`` takes
a mask that disagrees with the majority and is unanimous in its second round, or else the majority. A mask that says
another class is never unanimous, for together with m it says c. If c is not the majority, m disagrees with it, and its
second round is unanimous: c. Every answer is asked for, none is sampled: alpha = 0, for a classifier that always gives
the same answer to the same image.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from certify.certificate import ABSTAIN, Certificate, Certificates
from certify.errors import CertifyError, check_count
from certify.threats.fills import FILLS, Fill, cover
from certify.threats.masks import CoveringMasks
from certify.voting.base_classifier import eval_mode, input_dtype
from certify.voting.checks import check_images, check_indices, check_known, check_labels, resolve_device

Labels = NDArray[np.int64]
PROBES = 4  # masked images that are asked twice
PATCH = "patch"  # the name of the threat
UNIT = "pixels of one rectangle that is no higher and no wider than the patch"


class MaskedClassifier:
    """A classifier asked under masks: double-masking inference, and what is certain of it.

    Args:
        base: (B, C, H, W) float32 images in [0, 1] -> labels (B,) or scores (B, num_classes), of each image by itself and
            always the same. Modules run in eval mode.
        masks: A covering set for the patch.
        num_classes: K.
        fill: "gray", "mean", or a function as for ``fills.cover``.
        fill_name: What the certificates call it; unset, its name.
        subject: Whose answers they are.
        surrogate: (B, C, H, W) -> scores (B, num_classes), free of charge: the pairs of masks that are most likely to
            disagree are asked first. It saves labels where nothing can be certified, and decides nothing.
        batch_size: Images at once, at most. A certificate begins with one and doubles, so that few are asked in vain.
        device: Where a function's images are; a module's own otherwise.

    Raises:
        CertifyError: Bad arguments.
    """

    def __init__(
        self,
        base: Callable[[torch.Tensor], Any],
        masks: CoveringMasks,
        num_classes: int,
        *,
        fill: str | Fill = "gray",
        fill_name: str | None = None,
        subject: str = "model",
        surrogate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(fill, str) and fill not in FILLS:
            raise CertifyError(
                f"fill must be one of {', '.join(FILLS)} or a function, got {fill!r}: try 'mean'"
            )
        self.base, self.masks, self.surrogate = base, masks, surrogate
        self.num_classes = check_count("num_classes", num_classes, 2)
        self.batch_size = check_count("batch_size", batch_size)
        self.fill = FILLS[fill] if isinstance(fill, str) else fill
        given = fill if isinstance(fill, str) else getattr(fill, "__name__", type(fill).__name__)
        self.fill_name, self.subject = fill_name or given, subject
        self.device = resolve_device(base, device)
        self._hidden, self._pairs = masks.hidden.to(self.device), masks.pairs
        self._repeats = False

    def certify(
        self,
        images: Any,
        *,
        known_class: ArrayLike | None = None,
        indices: Sequence[int] | None = None,
        on_certificate: Callable[[int, Certificate, float], None] | None = None,
        progress: Any = None,
    ) -> Certificates:
        """One certificate for each image, in order; each stops at the first pair of masks that disagrees.

        The radius is the number of pixels of the patch, ``counts`` and ``n`` are the answers that were asked for. The
        certificate is about ``predict``, not about the bare classifier.

        Args:
            images: (N, C, H, W) in [0, 1].
            known_class: (N,), the class of each image that is to be certified, such as its label; unset, that of its
                first answer.
            indices: Names of the images for ``on_certificate``.
            on_certificate: on_certificate(index, certificate, seconds), as soon as each is done.
            progress: Anything with ``update(images)``, such as a tqdm bar.

        Raises:
            CertifyError: Images of another size than the masks', bad labels, or a classifier that answers the same image
                differently.
        """
        images = self._checked_images(images)
        names = check_indices(indices, len(images))
        known = None if known_class is None else check_known(known_class, len(images), self.num_classes)
        if not self._repeats:
            self.check_repeats(images[:1])
        certificates = Certificates()
        for position, (name, image) in enumerate(zip(names, images, strict=True)):
            start = time.perf_counter()
            certificate = self._certify(image, None if known is None else int(known[position]))
            certificates.append(certificate)
            if on_certificate is not None:
                on_certificate(name, certificate, time.perf_counter() - start)
            if progress is not None:
                progress.update(1)
        return certificates

    def predict(self, images: Any) -> Labels:
        """Double-masking inference (their algorithm 1): the labels (N,) that the certificates are about."""
        return np.array([self._predict(image) for image in self._checked_images(images)], dtype=np.int64)

    def masked(self, image: torch.Tensor, pairs: NDArray[np.int64]) -> torch.Tensor:
        """An image (C, H, W) under pairs (B, 2) of masks, filled: (B, C, H, W)."""
        hidden = self._hidden[pairs[:, 0]] | self._hidden[pairs[:, 1]]
        with torch.no_grad(), eval_mode(self.fill):
            return cover(image.expand(len(pairs), *image.shape), hidden, self.fill)

    def check_repeats(self, image: Any) -> None:
        """Ask a few masked images twice, once and for all; where answers are paid for, these are too.

        Args:
            image: (1, C, H, W) in [0, 1].

        Raises:
            CertifyError: They got different answers.
        """
        probes = self.masked(self._checked_images(image)[0], self._pairs[:PROBES])
        if not np.array_equal(self._ask(probes), self._ask(probes)):
            raise CertifyError(
                "the classifier answers the same image differently: patches are certified of one that always gives the "
                "same answer, so leave out what draws noise, or certify in L2 (certify.SmoothedClassifier)"
            )
        self._repeats = True

    def _certify(self, image: torch.Tensor, known: int | None) -> Certificate:
        pairs, claimed = self._ordered(image, known), known
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for part in _growing(pairs, self.batch_size):
            labels = self._labels(image, part)
            claimed = int(labels[0]) if claimed is None else claimed
            counts += np.bincount(labels, minlength=self.num_classes)
            if counts[claimed] < counts.sum():
                break
        assert claimed is not None
        proven = counts[claimed] == len(pairs)
        height, width = self.masks.patch
        return Certificate(
            prediction=claimed if proven else ABSTAIN,
            radius=float(height * width) if proven else 0.0,
            norm=PATCH,
            p_lower=float(counts[claimed] / counts.sum()),
            counts=tuple(int(count) for count in counts),
            n0=0,
            n=int(counts.sum()),
            alpha=0.0,
            method="deterministic",
            noise={
                "law": "masks",
                "norm": PATCH,
                "unit": UNIT,
                "fill": self.fill_name,
                **self.masks.describe(),
            },
            subject=self.subject,
            sound=True,
            selected=claimed,
            known_class=known is not None,
            threat=PATCH,
            unit=UNIT,
        )

    def _predict(self, image: torch.Tensor) -> int:
        every = np.arange(len(self.masks.boxes))
        first = self._labels(image, np.stack([every, every], axis=1))
        majority = int(np.bincount(first, minlength=self.num_classes).argmax())
        for mask in np.flatnonzero(first != majority):
            others = every[every != mask]
            second = np.stack([np.full_like(others, mask), others], axis=1)
            if all(
                (self._labels(image, part) == first[mask]).all() for part in _growing(second, self.batch_size)
            ):
                return int(first[mask])
        return majority

    def _ordered(self, image: torch.Tensor, known: int | None) -> NDArray[np.int64]:
        """The pairs of masks, those first for which the surrogate is least sure of the class."""
        if self.surrogate is None:
            return self._pairs
        with torch.no_grad(), eval_mode(self.surrogate):
            parts = [self.masked(image, part) for part in _growing(self._pairs, self.batch_size)]
            scores = torch.cat([self.surrogate(part).detach().double().cpu() for part in parts])
        top = (
            int(scores.argmax(dim=1).bincount(minlength=self.num_classes).argmax())
            if known is None
            else known
        )
        rival = scores.clone()
        rival[:, top] = -torch.inf
        margin = scores[:, top] - rival.max(dim=1).values
        return self._pairs[margin.argsort(stable=True).numpy()]

    def _labels(self, image: torch.Tensor, pairs: NDArray[np.int64]) -> Labels:
        """Labels (B,) under pairs (B, 2) of masks."""
        found = []
        for first in range(0, len(pairs), self.batch_size):
            found.append(self._ask(self.masked(image, pairs[first : first + self.batch_size])))
        return np.concatenate(found)

    def _ask(self, images: torch.Tensor) -> Labels:
        with torch.no_grad(), eval_mode(self.base):
            answers = self.base(images.to(input_dtype(self.base), copy=True))
        if isinstance(answers, torch.Tensor):
            answers = answers.detach().cpu().numpy()
        answers = np.asarray(answers)
        if answers.ndim == 2 and answers.shape[1] == self.num_classes:
            answers = answers.argmax(axis=1)
        return check_labels(answers, len(images), self.num_classes)

    def _checked_images(self, images: Any) -> torch.Tensor:
        images = check_images(images)
        if tuple(images.shape[2:]) != self.masks.size:
            height, width = self.masks.size
            raise CertifyError(
                f"images are {images.shape[2]}x{images.shape[3]} but the masks are for {height}x{width}: make masks for them"
            )
        return images.to(self.device)


def _growing(pairs: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Parts of 1, 2, 4, ... rows, at most so many."""
    first, size = 0, 1
    while first < len(pairs):
        yield pairs[first : first + size]
        first, size = first + size, min(2 * size, most)
