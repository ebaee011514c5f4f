"""Vote under noise and prove a radius: noise laws, bounds, votes, certificates, records and curves.

noise          what is added to the pixels, and the radius it proves
scale_mixture  the NIM noise: one sigma per image; truncation cuts its law
inclusion      a radius in another norm, from a proven one
numerical      any i.i.d. noise, approximately
stratified     scale mixtures by strata of sigma
splitting      deterministic noise: exact votes
selection      choose a law on held-out images
bounds         exact binomial bounds
two_sided      bounds of the runner-up too; top-k
soft           certified scores instead of votes
sequential     stop drawing as soon as the answer is known
guided_bets    a test that pays for few votes, with a surrogate as guide
calibration    what the guide's confidence says about the target's votes
guide          certify one image or a set with a guide, with or without a budget
votes          the vote engine
certificate    Certificate: what is claimed, and of whom
smoothing      SmoothedClassifier, certify_votes
records        append-only per-image records, resumable
recertify      another alpha, norm or bound from the votes that were kept
curves         certified accuracy against radius
parallel       many workers, the same votes
"""

from certify.bounds.binomial import binomial_interval, binomial_lower_bound, binomial_upper_bound
from certify.bounds.scores import score_lower_bound, score_radius, score_upper_bound
from certify.bounds.two_sided import top_k_radius
from certify.certificate import ABSTAIN, Certificate
from certify.errors import CertifyError
from certify.guided.calibration import Calibration
from certify.guided.certify import Guide, certify_guided
from certify.noise.base import Gaussian, Laplace, NoiseLaw, Uniform, UniformLinf
from certify.noise.inclusion import Inclusion
from certify.noise.numerical import IID, generalised_normal
from certify.noise.scale_mixture import GaussianScaleMixture, nim_noise
from certify.noise.truncation import truncated
from certify.records import curves
from certify.records.log import RecordLog, read_records
from certify.records.recertify import recertify, recover_successes
from certify.selection import NoiseChoice, choose_noise
from certify.smoothing import SmoothedClassifier, certify_votes
from certify.threats.splitting import certify_splitting
from certify.threats.stratified import certify_stratified
from certify.voting.parallel import certify_parallel

__all__ = [
    "ABSTAIN",
    "IID",
    "Calibration",
    "Certificate",
    "CertifyError",
    "Gaussian",
    "GaussianScaleMixture",
    "Guide",
    "Inclusion",
    "Laplace",
    "NoiseChoice",
    "NoiseLaw",
    "RecordLog",
    "SmoothedClassifier",
    "Uniform",
    "UniformLinf",
    "binomial_interval",
    "binomial_lower_bound",
    "binomial_upper_bound",
    "certify_guided",
    "certify_parallel",
    "certify_splitting",
    "certify_stratified",
    "certify_votes",
    "choose_noise",
    "curves",
    "generalised_normal",
    "nim_noise",
    "read_records",
    "recertify",
    "recover_successes",
    "score_lower_bound",
    "score_radius",
    "score_upper_bound",
    "top_k_radius",
    "truncated",
]
