"""Brightness and contrast at once (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "brightness-contrast",
    lambda strength: certify.BrightnessContrast(strength, strength),
    title="brightness and contrast at once",
    statement="The smoothed classifier keeps its answer under every factor from 1 - r to 1 + r together with every shift up to r.",
    limits="Pixels that leave [0, 1] must arrive as they are: a camera that clips them, at black or white, is not covered.",
    strength=0.3,
    grid=(0.05, 0.1, 0.2, 0.3),
    parameter="change r of both",
    unit="factor, and pixel values in [0, 1]",
)
