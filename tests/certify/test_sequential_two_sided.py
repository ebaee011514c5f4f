"""Early stopping with the rival's bound: exact error of every level, simulated error of the whole, economy, records."""

import numpy as np
import pytest
import scipy.stats as st
from scipy.special import ndtr, ndtri

import certify
from certify import CertifyError, Gaussian, RecordLog, certify_votes, nim_noise, read_records, recertify
from certify.bounds.sequential import make_plan
from certify.bounds.sequential_two_sided import METHOD, PairPlan, make_pair_plan, pairs_of
from certify.bounds.two_sided import TOP_SHARE
from certify.records.rows import STOPPING
from certify.sampling import METHODS
from tests.certify.test_sequential import realized_error

ALPHA, N, PATHS = 0.05, 800, 20_000
RADII = [0.0, 0.25, 0.5]
LIMIT = st.binom.ppf(1 - 1e-6, PATHS, ALPHA)


@pytest.fixture(scope="module")
def plan() -> PairPlan:
    return make_pair_plan(Gaussian(0.25), RADII, N, ALPHA)


@pytest.mark.acceptance
def test_every_level_keeps_its_share_of_alpha_exactly(plan):
    """Part 1 of the proof: a chain's error is that of its lowest false level, here computed one draw at a time."""
    for chain, share in ((plan.top, TOP_SHARE), (plan.rival, 1 - TOP_SHARE)):
        assert np.all(np.diff(chain.p) > 0)
        errors = [realized_error(up, plan.sizes, p) for p, up in zip(chain.p, chain.upper, strict=True)]
        assert max(errors) <= share * ALPHA
        assert max(errors) > 0.5 * share * ALPHA


def test_every_pair_proves_its_radius():
    for noise in (Gaussian(0.25), nim_noise(), certify.Laplace(0.2)):
        for radius in (0.05, 0.25, 0.5):
            alone, *pairs = pairs_of(noise, radius)
            assert alone == (noise.p_required(radius), 1.0)
            assert len(pairs) >= 3
            for a, b in pairs:
                found = noise.two_sided_radius(a, b)
                assert radius <= found * (1 + 1e-6) <= radius * (1 + 1e-5)


def claims(plan: PairPlan, p: list[float], seed: int = 0) -> np.ndarray:
    """Radii (PATHS,) claimed for class 0 of votes with probabilities p (K,); -1: none."""
    rng = np.random.default_rng(seed)

    def more(images, first, last):
        return rng.multinomial(last - first, p, size=len(images))

    claimed = plan.run(np.zeros(PATHS, dtype=np.int64), more, len(p)).claimed
    return np.array([-1.0, *plan.radii])[claimed]


def tied(margin: float, p_top: float, rivals: int) -> list[float]:
    """A class, rivals that tie with it after a shift by ``margin``, and weak classes that share the rest."""
    rival = ndtr(ndtri(p_top) - 2 * margin / 0.25)
    rest = 1 - p_top - rivals * rival
    assert rest >= -1e-12
    weak = max(1, int(np.ceil(max(rest, 0) / (0.9 * rival))))
    return [p_top, *[rival] * rivals, *[max(rest, 0.0) / weak] * weak]


# Just short of a radius of the plan, so that claiming it is wrong.
TRUTHS = [
    tied(0.2499, ndtr(0.2499 / 0.25), 1),  # one rival has all the rest
    tied(0.2499, 0.8, 1),
    tied(0.2499, 0.7, 2),
    tied(0.4999, 0.93, 1),
    tied(1e-6, 0.3, 2),
    tied(1e-6, 0.49, 1),
]
MARGINS = [0.2499, 0.2499, 0.2499, 0.4999, 1e-6, 1e-6]


@pytest.mark.acceptance
def test_a_radius_is_too_long_at_most_alpha_of_the_time(plan):
    wrong = [
        int(np.sum(claims(plan, p, seed) > margin))
        for seed, (p, margin) in enumerate(zip(TRUTHS, MARGINS, strict=True))
    ]
    print("wrong of", PATHS, wrong)
    assert max(wrong) <= LIMIT
    assert max(wrong) > 0.5 * ALPHA * PATHS  # not vacuous: where one rival has all the rest


class OneRival(PairPlan):
    """A planted fault: the runner-up of the selection votes is bounded, and the others are forgotten."""

    def _analyze(self, analysis, counts, top, state, images):
        seen = counts.copy()
        seen[:, 2:] = 0
        return super()._analyze(analysis, seen, top, state, images)


class Rechecked(PairPlan):
    """A planted fault: a bound for one number of votes, at every analysis."""

    def _analyze(self, analysis, counts, top, state, images):
        size = int(self.sizes[analysis])
        for chain, share in ((self.top, TOP_SHARE), (self.rival, 1 - TOP_SHARE)):
            needed = [certify.bounds.required_successes(p, size, share * ALPHA) or size + 1 for p in chain.p]
            chain.upper[:, analysis] = needed
        return super()._analyze(analysis, counts, top, state, images)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("fault", "p", "margin"),
    [
        (OneRival, [0.4, 0.05, 0.5, 0.05], 0.0 - 1e-9),  # class 2 wins: any claim is wrong
        (Rechecked, TRUTHS[0], MARGINS[0]),
    ],
)
def test_planted_faults_are_caught(plan, fault, p, margin):
    chains = [type(each)(each.p, each.upper.copy(), each.lower) for each in (plan.top, plan.rival)]
    planted = fault(plan.alpha, plan.sizes, plan.radii, *chains, plan.pairs)
    assert np.sum(claims(plan, p) > margin) <= LIMIT
    assert np.sum(claims(planted, p) > margin) > 2 * LIMIT


def test_spread_rivals_are_certified_sooner_and_further_than_by_the_top_class_alone():
    rng = np.random.default_rng(0)
    both = make_pair_plan(Gaussian(0.25), RADII, 2000, 0.001)
    alone = make_plan(Gaussian(0.25), RADII, 2000, 0.001, "group_sequential")
    for p, at in (([0.8, *[0.2 / 9] * 9], 0.25), ([0.45, *[0.55 / 9] * 9], 0.0), ([0.9, 0.1], 0.25)):

        def more(images, first, last, p=p):
            return rng.multinomial(last - first, p, size=len(images))

        start = np.zeros(200, dtype=np.int64)
        found, before = both.run(start, more, len(p)), alone.run(start, more, len(p))
        share = np.mean(np.array([-1.0, *both.radii])[found.claimed] >= at)
        formerly = np.mean(np.array([-1.0, *(level.radius for level in alone.levels)])[before.claimed] >= at)
        if len(p) == 2:
            assert share > formerly - 0.05
            assert found.counts.sum() < 1.15 * before.counts.sum()
        else:
            assert share > 0.75 > 0.05 > formerly


@pytest.mark.parametrize("noise", [Gaussian(0.25), nim_noise()], ids=["gaussian", "nim"])
def test_certificates_are_recorded_and_cannot_be_certified_again(tmp_path, noise):
    rng = np.random.default_rng(1)
    shares = [0.82, *[0.02] * 9]
    options = {"n": 4000, "method": METHOD, "radii": [0.0, 0.2, 0.4]}
    with RecordLog(tmp_path / "run", {"noise": noise.describe(), "n": 4000, "method": METHOD}) as log:
        for index in range(3):
            found = certify_votes(
                lambda count: np.repeat(np.arange(10), rng.multinomial(count, shares)), noise, 10, **options
            )
            assert (found.prediction, found.method, found.alpha) == (0, METHOD, 0.001)
            assert found.radius in (0.2, 0.4)
            assert found.radius > noise.radius(found.p_lower)  # which p alone does not prove
            assert 0 < found.p_lower < 0.82
            assert found.n < 4000
            log.append(index, 0, found, 0.0)
    records = read_records(log.path)
    assert records.method == METHOD
    with pytest.raises(CertifyError, match="cannot be certified again"):
        recertify(records, noise, 0.001)


def test_bad_input_and_names():
    with pytest.raises(CertifyError, match="two-sided radii need"):
        certify_votes(None, certify.Uniform(1), 2, method=METHOD)
    with pytest.raises(
        CertifyError, match=r"n=20 is too small to certify radius 0\.5 at alpha=0\.001: use n >= "
    ):
        certify_votes(None, Gaussian(0.25), 2, n=20, method=METHOD, radii=[0.5])
    with pytest.raises(CertifyError, match="radii must be finite"):
        certify_votes(None, Gaussian(0.25), 2, method=METHOD, radii=[-1])
    assert METHOD in METHODS
    assert METHOD in STOPPING
