"""Confidence bounds: from counts of votes to bounds on probabilities."""

from certify.bounds.binomial import (
    binomial_interval,
    binomial_lower_bound,
    binomial_upper_bound,
    randomized_lower_bound,
    required_successes,
    smallest_n,
)

__all__ = [
    "binomial_interval",
    "binomial_lower_bound",
    "binomial_upper_bound",
    "randomized_lower_bound",
    "required_successes",
    "smallest_n",
]
