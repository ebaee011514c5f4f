"""A surrogate as guide: the target is certified by fewer paid queries, soundly whatever the surrogate."""

from certify.guided.calibration import Calibration
from certify.guided.certify import GuidedOptions, certify_guided
from certify.guided.image import Guide, certify_votes_guided, reachable_radii

__all__ = [
    "Calibration",
    "Guide",
    "GuidedOptions",
    "certify_guided",
    "certify_votes_guided",
    "reachable_radii",
]
