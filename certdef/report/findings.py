"""What a reader must know before the figures: intervals too wide to read, a purifier that costs certificates, the weakest images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from certdef.data.sets import Splits
from certdef.report.certificates import CertificateRow
from certdef.report.formats import percent
from certify.records import Records

WIDE = 0.3  # an interval of such a width hides every difference that one would look for
WORST = 10


def warnings(
    rows: Mapping[str, Sequence[CertificateRow]], radii: Sequence[float], at: int, purifier: str
) -> list[str]:
    """One sentence each.

    Args:
        rows: Certificates of each subject, the headline's first.
        radii: Of the tables.
        at: Which of them is the headline's.
        purifier: Its title.
    """
    found = []
    for subject, mine in rows.items():
        share = mine[0].curve.shares[at]
        if share.upper - share.lower > WIDE:
            width, images = 100 * (share.upper - share.lower), mine[0].curve.images
            found.append(
                f"The interval of the {subject}'s share is {width:.0f} points wide, from {images} images: too wide to compare. "
                "Certify more images."
            )
        for row in mine:
            bare = next(
                (
                    other
                    for other in mine
                    if other.curve.law == row.curve.law and other.purifier is None and row.purifier
                ),
                None,
            )
            if bare is None:
                continue
            here, there = row.curve.shares[at], bare.curve.shares[at]
            if here.upper < there.lower:
                found.append(
                    f"{purifier} harms the {subject}'s vote under {row.curve.law} noise: {percent(here.value)} are certified at "
                    f"r = {radii[at]:g} behind it and {percent(there.value)} without, by intervals that do not overlap."
                )
    return found


@dataclass(frozen=True)
class WorstImage:
    """A held-out image by number and, where it is known, row of the data set; label and verdict are names of classes."""

    number: int
    row: int | None
    label: str
    answer: str | None
    radius: float


def worst_images(data: Splits, records: Records, abstain: int) -> list[WorstImage]:
    """The ten with the least certificate: another class first, the most certain before; then abstentions; then small radii."""
    wrong = ~records.correct & (records.predict != abstain)
    rank = np.where(wrong, -1 - records.radius, np.where(records.predict == abstain, 0, records.radius))
    found = []
    for at in np.argsort(rank, kind="stable")[:WORST]:
        index, predicted = int(records.idx[at]), int(records.predict[at])
        found.append(
            WorstImage(
                number=index,
                row=None if data.heldout_rows is None else int(data.heldout_rows[index]),
                label=data.class_name(int(records.label[at])),
                answer=None if predicted == abstain else data.class_name(predicted),
                radius=float(records.radius[at]),
            )
        )
    return found
