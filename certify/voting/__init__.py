"""How often a classifier answers each class under many noise draws."""

from certify.voting.engine import VoteEngine

__all__ = ["VoteEngine"]
