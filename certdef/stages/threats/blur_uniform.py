"""Gaussian blur, votes under the uniform law of the variance (TSS, arXiv 2002.12398)."""

import certify
from certdef.stages.threat_votes import smoothing_threat

THREAT = smoothing_threat(
    "blur-uniform",
    certify.BlurUniform,
    title="Gaussian blur, uniform law of the variance",
    statement="The smoothed classifier keeps its answer when the image is blurred by a Gaussian of standard deviation up to s.",
    limits="The blur reflects the image at its borders and is not rounded or clipped; motion and out-of-focus blur are others.",
    strength=2.0,
    grid=(0.5, 0.75, 0.95),
    parameter="standard deviation s of the blur",
    unit="pixels",
)
