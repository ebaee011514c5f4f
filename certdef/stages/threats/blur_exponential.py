"""Gaussian blur, votes under the exponential law of the variance (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "blur-exponential",
    certify.BlurExponential,
    title="Gaussian blur, exponential law of the variance",
    statement="The smoothed classifier keeps its answer when the image is blurred by a Gaussian of standard deviation up to s.",
    limits="The blur reflects the image at its borders and is not rounded or clipped; motion and out-of-focus blur are others.",
    strength=1.0,
    grid=(0.5, 1.0, 1.5),
    parameter="standard deviation s of the blur",
    unit="pixels",
)
