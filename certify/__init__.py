"""Vote under noise and prove a radius: noise laws, bounds, votes, certificates, records and curves.

noise          what is added to the pixels, and the radius it proves
scale_mixture  the NIM noise: one sigma per image
bounds         exact binomial bounds
votes          the vote engine
smoothing      SmoothedClassifier, certify_votes, Certificate
records        append-only per-image records, resumable
curves         certified accuracy against radius
"""

from certify import curves
from certify.bounds import binomial_interval, binomial_lower_bound, binomial_upper_bound
from certify.errors import CertifyError
from certify.noise import Gaussian, Laplace, NoiseLaw, Uniform
from certify.records import RecordLog, read_records
from certify.scale_mixture import GaussianScaleMixture, nim_noise
from certify.smoothing import ABSTAIN, Certificate, SmoothedClassifier, certify_votes

__all__ = [
    "ABSTAIN",
    "Certificate",
    "CertifyError",
    "Gaussian",
    "GaussianScaleMixture",
    "Laplace",
    "NoiseLaw",
    "RecordLog",
    "SmoothedClassifier",
    "Uniform",
    "binomial_interval",
    "binomial_lower_bound",
    "binomial_upper_bound",
    "certify_votes",
    "curves",
    "nim_noise",
    "read_records",
]
