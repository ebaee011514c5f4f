"""A surrogate or an old version as guide: the target is certified by fewer paid queries, soundly whatever the guide."""

from certify.guided.answers import OldAnswers, record_answers
from certify.guided.calibration import Calibration
from certify.guided.certify import GuidedOptions, certify_guided
from certify.guided.from_old import certify_from_old
from certify.guided.image import Guide, certify_votes_guided, reachable_radii

__all__ = [
    "Calibration",
    "Guide",
    "GuidedOptions",
    "OldAnswers",
    "certify_from_old",
    "certify_guided",
    "certify_votes_guided",
    "reachable_radii",
    "record_answers",
]
