"""How often a classifier answers each class under many noise draws."""

from certify.voting.engine import VoteEngine
from certify.voting.tuning import Computed, Tuned, fastest_engine

__all__ = ["Computed", "Tuned", "VoteEngine", "fastest_engine"]
