"""What the page warns of, and the images that it names as the weakest."""

from dataclasses import fields, replace

import numpy as np
import pytest

import certify
from certdef.config.load import load_config
from certdef.data.sets import load_data
from certdef.report.certificates import CertificateRow
from certdef.report.findings import warnings, worst_images
from certdef.stages.votes import CertifiedCurve
from certdef.tracking.results import Share
from certify.records.table import Records


def row(share: Share, purifier: str | None, images: int = 200) -> CertificateRow:
    curve = CertifiedCurve(
        subject="target",
        law="nim",
        denoised=purifier is not None,
        headline=purifier is not None,
        noise={},
        sound=True,
        n=1000,
        samples_per_image=1000,
        images=images,
        accuracy_at_0=Share(0.9, 0.85, 0.95),
        accuracy=(share,),
        abstained=0.0,
        seconds_per_image=0.1,
    )
    return CertificateRow(curve, "gamma", 0.2, purifier, 1.0)


BETTER, WORSE = Share(0.8, 0.75, 0.85), Share(0.6, 0.55, 0.65)


@pytest.mark.parametrize(
    ("behind", "bare", "warned"),
    [
        (WORSE, BETTER, ["De^3 harms the target's vote under nim noise: 60.0% are certified at r = 0.5"]),
        (BETTER, WORSE, []),
        (Share(0.7, 0.6, 0.8), BETTER, []),  # intervals that overlap prove no harm
        (
            Share(0.7, 0.5, 0.85),
            BETTER,
            ["The interval of the target's share is 35 points wide, from 200 images"],
        ),
    ],
)
def test_a_purifier_that_harms_and_wide_intervals_are_named(behind, bare, warned):
    found = warnings({"target": [row(behind, "De^3"), row(bare, None)]}, [0.0, 0.5], 1, "De^3")
    assert [each.startswith(words) for each, words in zip(found, warned, strict=True)] == [True] * len(warned)


def test_the_weakest_images_are_wrong_ones_then_abstentions_then_small_radii():
    data = load_data(load_config("digits").data, 0)
    data = replace(data, heldout_rows=np.arange(len(data.heldout_images)) + 1_000)
    radius = np.array([0.5, 0.1, 0.0, 0.7, 0.3])
    predict = np.array([1, 1, certify.ABSTAIN, 1, 1])
    correct = np.array([True, True, False, False, False])
    columns = {"label": np.ones(5, np.int64), "predict": predict, "radius": radius, "correct": correct}
    unused = {each.name: None for each in fields(Records)}
    records = Records(**(unused | columns | {"idx": np.arange(5)}))
    found = worst_images(data, records, certify.ABSTAIN)
    assert [each.number for each in found] == [3, 4, 2, 1, 0]
    assert [each.row for each in found] == [1_003, 1_004, 1_002, 1_001, 1_000]
    assert [each.answer for each in found] == ["1", "1", None, "1", "1"]
