"""A surrogate as guide: the target is certified by fewer paid queries, soundly whatever the surrogate."""

from certify.guided.calibration import Calibration
from certify.guided.certify import Guide, certify_guided, reachable_radii

__all__ = ["Calibration", "Guide", "certify_guided", "reachable_radii"]
