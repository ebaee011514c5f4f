"""Brightness: all pixels lighter or darker by the same amount (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "brightness",
    certify.Brightness,
    title="brightness",
    statement="The smoothed classifier keeps its answer when every pixel becomes lighter or darker by the same amount, up to b.",
    limits="Pixels that leave [0, 1] must arrive as they are: a camera that clips them, at black or white, is not covered.",
    strength=0.2,
    grid=(0.05, 0.1, 0.2, 0.3),
    parameter="brightness shift b",
    unit="pixel values in [0, 1]",
)
