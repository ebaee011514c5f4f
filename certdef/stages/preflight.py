"""A look at the user's own target before the job: how many of a few images are right and, where few are, what may be wrong.

It pays from a budget of its own (ledger.preflight) and from no other. The images are the first held-out ones: what was
answered here is kept, and evaluation gets it for nothing.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import surrogates
from certdef.stages.faults import Fault, Form, as_options, is_better, is_poor, label_fault, other_forms
from certdef.tracking.results import Share

LOG = logging.getLogger("certdef")  # the first lines of a job; the command line shows them
IMAGES = 50
FIRST = 20  # images that another format is tried on; on the rest where it is no worse on these
BLUR = 0.5  # pixels, of the same image seen again where no label says what is right
REFUSED_INPUT = r" answered (400|413|415|422) "  # of a service
FAMILIES = ("normalization", "color", "layout")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """What the first images show.

    Args:
        images: Number of images that were queried.
        share: Those that are right, or, without labels, answered as before after a mild blur, by no constant answer.
        labeled: Which of the two it is.
        poor: Whether a useful target does better.
        fault: What is likely wrong.
        tried: The other formats that were tried, in words, each with the images that were right.
        cut: Whether the budget ended before all were tried.
    """

    images: int
    share: Share
    labeled: bool
    poor: bool = False
    fault: Fault | None = None
    tried: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Sample:
    """The images that are looked at: (N, C, H, W) in [0, 1], their labels (N,) or None, and the names of the classes."""

    images: np.ndarray
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]

    @property
    def queries(self) -> int:
        """Queries an image: without a label it is seen again, blurred."""
        return 1 if self.labels is not None else 2

    def first(self, count: int) -> Sample:
        """The first images alone."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels)

    def answered(self, target: surrogates.Target) -> NDArray[np.int64]:
        """The labels that a target answers: (N,), or (2, N) where each image is seen again."""
        if self.labels is not None:
            return target.query(self.images).labels
        blurred = gaussian_filter(self.images, (0, 0, BLUR, BLUR)).clip(0, 1)
        return target.query(np.concatenate([self.images, blurred])).labels.reshape(2, -1)

    def right(self, answers: NDArray[np.int64]) -> Mask:
        """Which images (N,) are answered well: as labeled, or without labels steadily and not by the most common answer.

        A target that gets pixels which it does not understand often gives one answer to everything: no steadiness.
        """
        if self.labels is not None:
            return answers == self.labels
        once, again = answers
        values, counts = np.unique(once, return_counts=True)
        constant = values[counts.argmax()] if counts.max() > len(once) / 2 else None
        return (once == again) & (once != constant)


@dataclass(frozen=True)
class Found:
    """A target under a pixel format, which images (N,) are right, and how the format differs from the target's own."""

    target: surrogates.Target
    right: Mask
    words: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


class Search:
    """Finds a pixel format under which more images are right, within what the ledger allows.

    Args:
        ask: Queries a target for a sample and returns the labels; BudgetExceeded where nothing is left.
        reopen: Opens the target again with other options.
        sample: The images.
    """

    def __init__(
        self,
        ask: Callable[[surrogates.Target, Sample], NDArray[np.int64]],
        reopen: Callable[..., surrogates.Target],
        sample: Sample,
    ) -> None:
        self.ask, self.reopen, self.sample = ask, reopen, sample
        self.tried: dict[str, str] = {}
        self.cut = False

    def run(self, target: surrogates.Target, right: Mask | None) -> Fault | None:
        """Try family after family, each from the best format so far; twice, because one fault may hide another.

        Args:
            target: As it was opened.
            right: Which images are right then; None where it failed, which another layout may mend.
        """
        now = Found(target, np.zeros(len(self.sample.images), bool) if right is None else right)
        best = self._from(now, ("shape", *FAMILIES) if right is None else FAMILIES * 2)
        if best is now and right is not None:
            best = self._two_at_once(now)
        if best is now:
            return None
        return Fault(
            f"it takes {' and '.join(best.words)}",
            as_options(best.changes, target.pixels),
            int(best.right.sum()),
            0 if right is None else int(right.sum()),
            len(now.right),
            best.changes,
        )

    def _from(self, now: Found, families: Sequence[str]) -> Found:
        """Go from one format to the best of each family in turn, until the target is useful."""
        best, failed = now, families[0] == "shape"
        for family in families:
            best = self._best_of(family, best)
            useful = best is not now and not self._is_poor(best.right)
            if self.cut or useful or (failed and best is now):
                break
        return best

    def _two_at_once(self, now: Found) -> Found:
        """A format that differs in order and in normalization, where neither alone is better."""
        for family in ("layout", "color"):
            for form in other_forms(now.target.pixels, self.sample.images.shape[1], family):
                other = None if self.cut else self._opened(now, form)
                if other is not None:
                    moved = Found(other, now.right, (*now.words, form.words), now.changes | form.changes)
                    best = self._best_of("normalization", moved)
                    if best is not moved:
                        return best
        return now

    def _is_poor(self, right: Mask) -> bool:
        return is_poor(int(right.sum()), len(right), len(self.sample.names))

    def _best_of(self, family: str, now: Found) -> Found:
        """The format of a family that is clearly better than the present one, and best among those."""
        best = now
        for form in other_forms(now.target.pixels, self.sample.images.shape[1], family):
            other = None if self.cut else self._opened(now, form)
            seen = None if other is None else self._right(other, now.right)
            if other is None or seen is None:
                continue
            words = (*now.words, form.words)
            self.tried[" and ".join(words)] = f"{' and '.join(words)} {int(seen.sum())} of {len(seen)}"
            better = len(seen) == len(now.right) and is_better(seen, now.right)
            if better and (best is now or seen.sum() > best.right.sum()):
                best = Found(other, seen, words, now.changes | form.changes)
        return best

    def _right(self, target: surrogates.Target, right: Mask) -> Mask | None:
        """Which images are right; of the first ones alone, where they are worse than before. None where it fails."""
        few = self.sample.first(FIRST)
        try:
            seen = few.right(self.ask(target, few))
            if len(seen) == len(right) or seen.sum() < right[: len(seen)].sum():
                return seen
            return self.sample.right(self.ask(target, self.sample))
        except surrogates.BudgetExceeded:
            self.cut = True
        except surrogates.DriftError:
            raise
        except surrogates.TargetError:
            pass  # it does not take such an array
        return None

    def _opened(self, now: Found, form: Form) -> surrogates.Target | None:
        """The target under another format; None where it can't be opened so."""
        try:
            if not form.changes.keys() <= {
                "pixel_range",
                "mean",
                "std",
            }:  # what a model reports, it refuses otherwise
                return self.reopen(**now.changes | form.changes)
            other = copy.copy(now.target)
            other.pixels = replace(now.target.pixels, **form.changes)
            return other
        except surrogates.TargetError:
            return None


def look(
    ledger: surrogates.QueryLedger,
    target: surrogates.Target,
    reopen: Callable[..., surrogates.Target],
    sample: Sample,
) -> Look | None:
    """Query a few images, and where few are right look for the likely fault. None where no budget is left for any.

    Args:
        ledger: Pays, from the budget of the purpose `preflight`; what it has answers to costs nothing.
        target: The target as it was opened.
        reopen: Opens it again with other options: reopen(layout=...).
        sample: The images; of these as many as the budget allows.

    Raises:
        surrogates.TargetError: The target fails. Where another layout mends that, the error says so.
    """

    def ask(target: surrogates.Target, sample: Sample) -> NDArray[np.int64]:
        return sample.answered(ledger.attach(target, purpose="preflight"))

    sample = sample.first(IMAGES // sample.queries)
    LOG.info("look        %d images are asked of the target", len(sample.images))
    try:
        try:
            answers = ask(target, sample)
        except surrogates.BudgetExceeded:
            sample = sample.first(ledger.remaining("preflight") // sample.queries)
            if not len(sample.images):
                return None
            answers = ask(target, sample)
    except surrogates.TargetError as error:
        search, fault = Search(ask, reopen, sample), None
        if _may_be_the_form(error):
            LOG.info("            it fails: other pixel formats are tried")
            with _unwatched(ledger):
                fault = search.run(target, None)
        if fault is None:
            raise
        raise surrogates.TargetError(
            f"{error}; likely: {fault.mend} ({fault.right} of {fault.images} images are right then)"
        ) from error
    right = sample.right(answers)
    share = Share.of(int(right.sum()), len(right))
    seen = Look(len(right), share, sample.labels is not None)
    if not is_poor(int(right.sum()), len(right), len(sample.names)):
        return seen
    fault = None if sample.labels is None else label_fault(sample.labels, answers, sample.names)
    search = Search(ask, reopen, sample)
    if fault is None:
        LOG.info("            %d of %d are right: other pixel formats are tried", right.sum(), len(right))
        with _unwatched(ledger):
            fault = search.run(target, right)
    return replace(seen, poor=True, fault=fault, tried=tuple(search.tried.values()), cut=search.cut)


@contextmanager
def _unwatched(ledger: surrogates.QueryLedger) -> Iterator[None]:
    """No canaries: under another pixel format they would be others, and on another bill."""
    canaries, ledger.canaries = ledger.canaries, None
    try:
        yield
    finally:
        ledger.canaries = canaries


def _may_be_the_form(error: surrogates.TargetError) -> bool:
    """Whether a target failed because of what it got, and not of who asked it, or when."""
    if isinstance(error, surrogates.DriftError):
        return False
    return not isinstance(error, surrogates.Refused) or re.search(REFUSED_INPUT, str(error)) is not None
