"""Translation by whole pixels, rolled around the borders (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "translation",
    certify.Translation,
    title="translation, rolled around the borders",
    statement="The smoothed classifier keeps its answer when the image is moved by whole pixels, a displacement of length up to d.",
    limits="What leaves on one side must enter on the other, as it does where the border is of one color. Other paddings do not compose and are not covered: pixel-shift covers them.",
    strength=0.6,
    grid=(1.0, 1.4),
    parameter="length d of the displacement",
    unit="pixels",
)
