"""Gaussian blur, votes under the folded Gaussian law of the variance (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "blur-folded",
    certify.BlurFolded,
    title="Gaussian blur, folded Gaussian law of the variance",
    statement="The smoothed classifier keeps its answer when the image is blurred by a Gaussian of standard deviation up to s.",
    limits="The blur reflects the image at its borders and is not rounded or clipped; motion and out-of-focus blur are others.",
    strength=1.0,
    grid=(0.5, 1.0, 1.3),
    parameter="standard deviation s of the blur",
    unit="pixels",
)
