"""Vote under noise and prove a radius: noise laws, bounds, votes, certificates, records and curves.

What is where:

    core          the theorem: CERTIFY and PREDICT of Cohen et al. 2019, from counts
    smoothing     SmoothedClassifier, certify_votes: draw, count, call core
    sampling      how many votes, by which method and bound
    certificate   Certificate: what is claimed, and of whom
    noise/        what is added to the pixels, and the radius it proves
    bounds/       exact binomial bounds, also randomized; the runner-up too; stopping early; scores instead of votes
    voting/       the vote engine, alone or on many workers
    guided/       a surrogate or an old version as guide: fewer paid votes for the same certificate
    threats/      brightness, contrast, blur, translation; patches; strata of sigma; deterministic noise with exact votes; the
                  bare target under corruptions, average case
    records/      append-only records, other certificates from the same votes, curves
    selection     choose a law on held-out images; what a few votes promise
"""

from certify.bounds.binomial import (
    binomial_interval,
    binomial_lower_bound,
    binomial_upper_bound,
    randomized_lower_bound,
)
from certify.bounds.incremental import incremental_lower_bound
from certify.bounds.scores import score_lower_bound, score_radius, score_upper_bound
from certify.bounds.two_sided import top_k_radius
from certify.certificate import ABSTAIN, Certificate, Certificates
from certify.errors import CertifyError
from certify.guided import (
    Calibration,
    Guide,
    GuidedOptions,
    OldAnswers,
    certify_from_old,
    certify_guided,
    certify_votes_guided,
    record_answers,
)
from certify.noise import (
    IID,
    Gaussian,
    GaussianScaleMixture,
    Inclusion,
    Laplace,
    NoiseLaw,
    Uniform,
    UniformLinf,
    generalized_normal,
    nim_noise,
    truncated,
)
from certify.records import RecordLog, Records, curves, read_records
from certify.records.recertify import recertify, recover_successes
from certify.selection import NoiseChoice, choose_noise, expected_accuracy
from certify.smoothing import SmoothedClassifier, certify_votes
from certify.threats.blur import BlurExponential, BlurFolded, BlurUniform
from certify.threats.light import Brightness, BrightnessContrast, Contrast
from certify.threats.masks import CoveringMasks
from certify.threats.patches import MaskedClassifier
from certify.threats.population import PopulationBound, certify_population
from certify.threats.splitting import certify_splitting
from certify.threats.stratified import certify_stratified
from certify.threats.transformation import Transformation
from certify.threats.translation import Translation, certify_pixel_shifts
from certify.voting.engine import VoteEngine
from certify.voting.parallel import certify_parallel
from certify.voting.tuning import fastest_engine

generalised_normal = generalized_normal  # its name in the first versions

__all__ = [
    "ABSTAIN",
    "IID",
    "BlurExponential",
    "BlurFolded",
    "BlurUniform",
    "Brightness",
    "BrightnessContrast",
    "Calibration",
    "Certificate",
    "Certificates",
    "CertifyError",
    "Contrast",
    "CoveringMasks",
    "Gaussian",
    "GaussianScaleMixture",
    "Guide",
    "GuidedOptions",
    "Inclusion",
    "Laplace",
    "MaskedClassifier",
    "NoiseChoice",
    "NoiseLaw",
    "OldAnswers",
    "PopulationBound",
    "RecordLog",
    "Records",
    "SmoothedClassifier",
    "Transformation",
    "Translation",
    "Uniform",
    "UniformLinf",
    "VoteEngine",
    "binomial_interval",
    "binomial_lower_bound",
    "binomial_upper_bound",
    "certify_from_old",
    "certify_guided",
    "certify_parallel",
    "certify_pixel_shifts",
    "certify_population",
    "certify_splitting",
    "certify_stratified",
    "certify_votes",
    "certify_votes_guided",
    "choose_noise",
    "curves",
    "expected_accuracy",
    "fastest_engine",
    "generalized_normal",
    "incremental_lower_bound",
    "nim_noise",
    "randomized_lower_bound",
    "read_records",
    "recertify",
    "record_answers",
    "recover_successes",
    "score_lower_bound",
    "score_radius",
    "score_upper_bound",
    "top_k_radius",
    "truncated",
]
