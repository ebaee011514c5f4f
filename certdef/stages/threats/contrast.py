"""Contrast: all pixels times the same factor (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "contrast",
    certify.Contrast,
    title="contrast",
    statement="The smoothed classifier keeps its answer when every pixel is multiplied by the same factor, from 1 - c to 1 + c.",
    limits="Pixels above 1 must arrive as they are: a camera that clips them is not covered. Black stays black: it is no change of brightness.",
    strength=0.3,
    grid=(0.1, 0.2, 0.3, 0.4),
    parameter="change c of the contrast factor",
    unit="no unit: 0.2 is a factor from 0.8 to 1.2",
)
