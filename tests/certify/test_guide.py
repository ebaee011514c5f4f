"""The guide: exact fairness of every bet, realized error with good, useless and wrong guides, savings, errors."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit

import certify
from certify.guided.bets import Bets, GuidedTest, pick_draws, project
from certify.guided.calibration import CUTS, STRATA, Calibration, strata_of
from certify.guided.certify import certify_set
from certify.guided.image import CHOICE, GuidedImage

NOISE = certify.nim_noise()
RADIUS = 0.25
P0 = NOISE.p_required(RADIUS)
STEEP = {"good": 3.0, "useless": 0.0, "wrong": -3.0}


def kl(rates, null):
    return np.sum(rates * np.log(rates / null) + (1 - rates) * np.log((1 - rates) / (1 - null)))


# --- the bets -------------------------------------------------------------------------------------------------


def test_strata_are_log_odds_of_the_class():
    logits = np.log([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    found = strata_of(logits, 0)
    assert found[0] == np.searchsorted(CUTS, np.log(9))
    assert found[1] == np.searchsorted(CUTS, np.log(0.05 / 0.95))


def test_projection_is_the_nearest_null():
    rates, shares = np.array([0.99, 0.8, 0.4]), np.array([0.7, 0.2, 0.1])
    picked, p = np.array([0.5, 0.3, 0.2]), 0.8
    theta, null = project(rates[None], shares, picked, p)
    assert shares @ null[0] == pytest.approx(p, abs=1e-9)
    assert 0 < theta[0] <= 1 / p
    found = minimize(
        lambda x: sum(q * kl(r, v) for q, r, v in zip(picked, rates, x, strict=True)),
        null[0] - 0.01,
        bounds=[(1e-6, 1 - 1e-6)] * 3,
        constraints={"type": "eq", "fun": lambda x: shares @ x - p},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(null[0], found.x, atol=2e-4)


def test_a_belief_in_the_null_does_not_bet():
    theta, null = project(np.array([[0.7, 0.5]]), np.array([0.5, 0.5]), np.array([0.5, 0.5]), 0.8)
    assert theta[0] == 0
    np.testing.assert_array_equal(null, [[0.7, 0.5]])


def expected_factor(test: GuidedTest, bets: Bets, shares, rates, weightless: bool = False) -> np.ndarray:
    """Mean of a round's factor for each belief, over every batch of two draws, pick and vote: exact."""
    total = np.zeros(len(bets.theta))
    kinds = np.flatnonzero(shares)
    for batch in product(kinds, repeat=2):
        odds = bets.tilt[list(batch)]
        for pick, vote in product((0, 1), (0, 1)):
            own = batch[pick]
            chance = shares[batch[0]] * shares[batch[1]] * odds[pick] / odds.sum()
            chance *= rates[own] if vote else 1 - rates[own]
            test.wealth = np.zeros(len(bets.theta))
            played = Bets(np.ones(STRATA), bets.theta, bets.null, 0.0) if weightless else bets
            test.settle(played, np.array([batch]), np.array([pick]), [vote])
            total += chance * np.exp(test.wealth)
    return total


def a_round(random):
    calibration = Calibration()
    test = GuidedTest(P0, 0.05, 1000, calibration, random.integers(0, STRATA, 64))
    kinds = random.choice(STRATA, 4, replace=False)
    shares, rates = np.zeros(STRATA), random.uniform(0, 1, STRATA)
    shares[kinds] = random.dirichlet(np.ones(4))
    tilt = random.uniform(0.2, 1, STRATA)
    wrong_shares = random.dirichlet(np.ones(STRATA))  # what the bets believe need not be true
    picked = wrong_shares * tilt / (wrong_shares @ tilt)
    theta, null = project(test.rates, wrong_shares, picked, P0)
    return test, Bets(tilt, theta, null, 0.0), shares, rates


@pytest.mark.parametrize("seed", range(5))
def test_every_bet_is_fair_whatever_it_believes(seed):
    """E[factor] = 1 + theta (p - p_0) exactly, even with wrong shares, wrong rates and any tilt."""
    test, bets, shares, rates = a_round(np.random.default_rng(seed))
    np.testing.assert_allclose(
        expected_factor(test, bets, shares, rates), 1 + bets.theta * (shares @ rates - P0), rtol=1e-9
    )


def test_leaving_out_the_weight_is_caught():
    test, bets, shares, rates = a_round(np.random.default_rng(0))
    found = expected_factor(test, bets, shares, rates, weightless=True)
    assert np.abs(found - (1 + bets.theta * (shares @ rates - P0))).max() > 0.01


def test_picks_follow_the_odds():
    random = np.random.default_rng(0)
    tilt = np.full(STRATA, 0.25)
    tilt[3] = 1.0
    strata = np.tile([3, 4, 5, 5], (20_000, 1))
    share = np.bincount(pick_draws(strata, tilt, random), minlength=4) / len(strata)
    np.testing.assert_allclose(share, [4 / 7, 1 / 7, 1 / 7, 1 / 7], atol=0.015)


# --- the error and the price, by simulation -------------------------------------------------------------------


def rates_for(kind: str, p: float):
    """The target's rate as a function of the guide's log-odds z ~ N(3, 2), with mean p."""
    z = np.random.default_rng(5).normal(3, 2, 50_000)
    slope = STEEP[kind]
    shift = brentq(lambda u: expit(slope * z + u).mean() - p, -80, 80)
    return lambda found: expit(slope * found + shift)


def image(kind: str, p: float, random, calibration, seed: int, **options):
    rates = rates_for(kind, p)

    def propose(count):
        z = random.normal(3, 2, count)
        votes = np.where(random.random(count) < rates(z), 0, 1)
        return votes, np.stack([z, np.zeros(count)], axis=1)

    guide = certify.Guide(propose, calibration, seed=seed, pilot=64, **options)
    return guide, lambda votes: votes


def realized_error(kind: str, images: int, monkeypatch=None) -> float:
    """Share of images with p = p_0 that are claimed, between others that make the calibration optimistic."""
    random, calibration, wrong = np.random.default_rng(7), Calibration(), 0
    for number in range(images):
        if number % 4 == 0:
            guide, draw = image(kind, 0.98, random, calibration, number, free_draws=8)
            certify.certify_votes_guided(draw, guide, NOISE, 2, n=100, alpha=ALPHA, radii=[RADIUS])
        guide, draw = image(kind, P0, random, calibration, number, free_draws=8)
        found = certify.certify_votes_guided(draw, guide, NOISE, 2, n=200, alpha=ALPHA, radii=[RADIUS])
        wrong += not found.abstained
    return wrong / images


ALPHA = 0.2
IMAGES = 120
SLACK = 2.33 * np.sqrt(ALPHA * (1 - ALPHA) / IMAGES)  # a sound test passes it with probability below 1%


@pytest.mark.parametrize("kind", STEEP)
def test_realized_error_is_at_most_alpha(kind):
    assert realized_error(kind, IMAGES) <= ALPHA + SLACK


def test_a_planted_unsound_test_is_caught(monkeypatch):
    """Picking confident draws and forgetting it: the same simulation shows the error."""
    honest = GuidedTest.bets

    def greedy(self):
        found = honest(self)
        return (
            None if found is None else Bets(np.linspace(0.05, 1, STRATA) ** 3, found.theta, found.null, 0.0)
        )

    settle = GuidedTest.settle

    def forgetful(self, bets, strata, picks, won):
        settle(self, Bets(np.ones(STRATA), bets.theta, bets.null, 0.0), strata, picks, won)

    monkeypatch.setattr(GuidedTest, "bets", greedy)
    monkeypatch.setattr(GuidedTest, "settle", forgetful)
    assert realized_error("good", 100) > ALPHA + 2.33 * np.sqrt(ALPHA * (1 - ALPHA) / 100)


POPULATION = (0.9999, 0.999, 0.98, 0.93, 0.88, 0.6)


def prices(kind: str, rounds: int = 12, n: int = 2000) -> tuple[float, float, float, float]:
    """Mean paid votes and certified share: guided, then unguided (which pays n0 for the class)."""
    random, calibration = np.random.default_rng(3), Calibration()
    guided, direct = [], []
    for number in range(rounds * len(POPULATION)):
        p = POPULATION[number % len(POPULATION)]
        guide, draw = image(kind, p, random, calibration, number)
        found = certify.certify_votes_guided(draw, guide, NOISE, 2, n=n, alpha=0.001, radii=[RADIUS])
        guided.append((found.n0 + found.n, not found.abstained))

        def fresh(count, p=p):
            return np.where(random.random(count) < p, 0, 1)

        plain = certify.certify_votes(
            fresh, NOISE, 2, n=n, n0=CHOICE, alpha=0.001, radii=[RADIUS], method="sequential"
        )
        direct.append((plain.n0 + plain.n, not plain.abstained))
    return (*np.mean(guided, axis=0), *np.mean(direct, axis=0))


def test_a_good_guide_saves_and_a_useless_one_costs_little():
    paid, certified, plain, plainly = prices("good")
    assert paid < 0.6 * plain
    assert certified >= plainly - 0.03
    paid, certified, plain, plainly = prices("useless")
    assert paid <= 1.1 * plain
    assert certified >= plainly - 0.05


def test_a_guide_that_predicts_wrong_classes_is_detected():
    """The guide always predicts class 1; the target says 0. After some failures votes choose the class."""
    random, calibration = np.random.default_rng(0), Calibration()
    kept = []
    for number in range(40):

        def propose(count):
            return np.zeros(count, dtype=int), np.stack([np.zeros(count), random.normal(3, 1, count)], axis=1)

        guide = certify.Guide(propose, calibration, seed=number)
        found = certify.certify_votes_guided(lambda votes: votes, guide, NOISE, 2, n=500, radii=[RADIUS])
        kept.append(found)
    assert not calibration.trusts_class
    # While the guide is trusted, its class is tested first and the target's own after it, by fresh votes.
    assert kept[0].prediction == 0
    assert kept[0].n0 >= 8
    assert kept[-1].prediction == 0
    assert kept[-1].n0 == CHOICE
    assert all(each.n0 + each.n <= 500 for each in kept)


@pytest.mark.parametrize(
    ("n", "radii"), [(12, [0.0]), (34, [0.25]), (40, [0.25]), (60, [0.25]), (120, [0.25, 0.5])]
)
def test_n_is_a_cap_whatever_the_votes_are_paid_for(n, radii):
    """Votes that choose the class, test the guide's class and test the target's own: together at most n."""
    random, calibration, paid, certified = np.random.default_rng(0), Calibration(), [], 0
    for number in range(30):

        def propose(count):
            return np.zeros(count, dtype=int), np.stack([np.zeros(count), random.normal(3, 1, count)], axis=1)

        def draw(inputs):
            paid[-1] += len(inputs)
            return inputs

        paid.append(0)
        guide = certify.Guide(propose, calibration, seed=number)
        found = certify.certify_votes_guided(draw, guide, NOISE, 2, n=n, radii=radii)
        assert found.n0 + found.n == paid[-1]
        certified += not found.abstained
    assert not calibration.trusts_class  # so that the class was chosen by votes in the end
    assert max(paid) <= n
    if n in (60, 120):  # the choice leaves enough of n to certify
        assert certified >= 10


def test_the_second_class_has_its_own_share_of_alpha():
    """The target's class is at p = p_0 and the guide predicts another: both tests together keep alpha."""
    random, wrong, images = np.random.default_rng(2), 0, 150
    for number in range(images):

        def propose(count):
            votes = np.where(random.random(count) < P0, 0, 1)
            return votes, np.stack([np.zeros(count), random.normal(3, 1, count)], axis=1)

        guide = certify.Guide(propose, seed=number, free_draws=4, pilot=32)
        found = certify.certify_votes_guided(
            lambda votes: votes, guide, NOISE, 2, n=200, alpha=ALPHA, radii=[RADIUS]
        )
        wrong += not found.abstained
    assert wrong / images <= ALPHA


# --- certificates ---------------------------------------------------------------------------------------------


def halfspace(offset: float):
    """Class 0 where the first pixel is below `offset`: the true radius is the distance to it."""
    return lambda noisy: (noisy[:, 0, 0, 0] >= offset).long().numpy()


def soft(offset: float):
    return lambda noisy: torch.stack([torch.zeros(len(noisy)), 20 * (noisy[:, 0, 0, 0] - offset)], dim=1)


IMAGES_OF_TWO = torch.zeros(6, 1, 2, 2)
OPTIONS = {"radii": [0.25, 0.5], "n": 2000, "seed": 4}


class WritesIntoItsInput(torch.nn.Module):
    """A guide that predicts class 0 and leaves a batch behind on which the target would agree."""

    def forward(self, noisy):
        noisy.sub_(5)
        return torch.stack([torch.full((len(noisy),), 5.0), torch.zeros(len(noisy))], dim=1)


def sharing_proposals(surrogate, image, noise, seed):
    """A planted fault: surrogate and target get one tensor."""
    generator = torch.Generator().manual_seed(seed)

    def propose(count):
        noisy = image + noise.sample((count, *image.shape), generator=generator)
        return noisy, surrogate(noisy).numpy()

    return propose


def test_a_guide_that_writes_into_its_input_does_not_change_what_the_target_sees(monkeypatch):
    """On the boundary p = 1/2 for every image: at alpha = 0.001 none of 20 may be certified."""
    images, options = torch.zeros(20, 1, 2, 2), {"radii": [0.25], "n": 500}

    def false_certificates():
        found = certify.certify_guided(halfspace(0.0), WritesIntoItsInput(), images, NOISE, 2, **options)
        return sum(not each.abstained for each in found)

    assert false_certificates() == 0
    monkeypatch.setattr("certify.guided.certify._proposals", sharing_proposals)
    assert false_certificates() == 20


def test_certificates_name_their_claim_and_stay_below_the_truth():
    found = certify.certify_guided(halfspace(0.7), soft(0.68), IMAGES_OF_TWO, NOISE, 2, **OPTIONS)
    assert all(each.prediction == 0 and each.radius == 0.5 for each in found)  # the truth is 0.7
    assert {each.method for each in found} == {"guided"}
    assert all(each.sound and each.subject == "target" and each.norm == "l2" for each in found)
    assert all(each.n == sum(each.counts) <= 2000 and each.n0 == 0 for each in found)
    assert found[0].p_lower == NOISE.p_required(0.5)
    near = certify.certify_guided(halfspace(0.3), soft(0.3), IMAGES_OF_TWO, NOISE, 2, **OPTIONS)
    assert {each.radius for each in near} <= {0.25, 0.0}


def test_same_seed_same_votes_and_names_do_not_depend_on_order():
    first = certify.certify_guided(halfspace(0.4), soft(0.4), IMAGES_OF_TWO, NOISE, 2, **OPTIONS)
    again = certify.certify_guided(halfspace(0.4), soft(0.4), IMAGES_OF_TWO, NOISE, 2, **OPTIONS)
    assert first == again
    assert len({each.counts for each in first}) > 1
    one = certify.certify_guided(
        halfspace(0.4), soft(0.4), IMAGES_OF_TWO[:1], NOISE, 2, indices=[0], **OPTIONS
    )
    assert one[0] == first[0]


def test_a_guide_in_half_precision_may_answer_an_output_with_logits():
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(20.0, dtype=torch.bfloat16))

        def forward(self, noisy):
            assert noisy.dtype == torch.bfloat16
            return {"logits": soft(0.7)(noisy) * (self.scale / 20)}

    found = certify.certify_guided(halfspace(0.7), Guide(), IMAGES_OF_TWO[:2], NOISE, 2, **OPTIONS)
    assert [each.radius for each in found] == [0.5, 0.5]


def test_a_budget_is_kept_and_goes_where_it_certifies():
    paid, done = [], []

    def target(noisy):
        paid.append(len(noisy))
        # the first pixel tells the images apart: the even ones are hopeless at the larger radius
        return halfspace(0.6)(noisy)

    images = IMAGES_OF_TWO.clone()
    images[::2, 0, 0, 0] = 0.45
    options = OPTIONS | {"radii": [0.25], "budget": 300}
    found = certify.certify_guided(
        target, soft(0.6), images, NOISE, 2, on_certificate=lambda index, _: done.append(index), **options
    )
    assert sum(paid) <= 300
    assert sum(each.n for each in found) == sum(paid)
    assert sorted(done) == list(range(6))
    assert [each.prediction for each in found[1::2]] == [0, 0, 0]


def test_hopeless_images_cost_little():
    boundary = certify.certify_guided(halfspace(0.0), soft(0.0), IMAGES_OF_TWO, NOISE, 2, radii=[0.25], n=200)
    assert all(each.abstained and each.n < 60 for each in boundary)


def guide_of(logits):
    return certify.Guide(lambda count: (np.zeros(count, dtype=int), logits(count)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"radii": None}, "radii"),
        ({"radii": [-1.0]}, "radii"),
        ({"radii": [1.0], "n": 100}, "n=100 is too small"),
        ({"alpha": 2}, "alpha must be in"),
        ({"guide": guide_of(lambda count: np.zeros((count, 3)))}, "check its number of classes"),
        ({"guide": guide_of(lambda count: np.full((count, 2), np.nan))}, "NaN"),
        ({"guide": guide_of(lambda count: np.full((count, 2), -np.inf))}, "infinite for several classes"),
        ({"draw": lambda inputs: np.zeros((2, 2))}, "one integer label"),
        ({"draw": lambda inputs: np.full(len(inputs), 7)}, "labels must be in"),
    ],
)
def test_bad_input_is_one_clear_error(change, words):
    arguments = {
        "draw": lambda inputs: inputs,
        "guide": guide_of(lambda count: np.tile([5.0, 0.0], (count, 1))),
        "radii": [0.25],
        "n": 1000,
    } | change
    draw, guide = arguments.pop("draw"), arguments.pop("guide")
    with pytest.raises(certify.CertifyError, match=words):
        certify.certify_votes_guided(draw, guide, NOISE, 2, **arguments)


def test_an_unknown_option_is_refused_before_any_vote():
    with pytest.raises(certify.CertifyError, match="'pilots' is not an option: choose from subject, seed"):
        certify.certify_guided(None, None, IMAGES_OF_TWO, NOISE, 2, radii=[0.25], pilots=3)


def test_guided_votes_are_not_certified_again(tmp_path):
    found = certify.certify_guided(halfspace(0.7), soft(0.7), IMAGES_OF_TWO[:1], NOISE, 2, **OPTIONS)
    with certify.RecordLog(tmp_path / "guided", {"noise": NOISE.describe()}) as log:
        log.append(0, 0, found[0], 0.1)
    records = certify.read_records(tmp_path / "guided.jsonl")
    with pytest.raises(certify.CertifyError, match="cannot be certified again"):
        certify.recertify(records, NOISE, 0.01)


def test_a_set_is_certified_in_any_number_of_starts():
    """certify_set starts each image once, in order."""
    started = []

    def start(position):
        started.append(position)
        guide = guide_of(lambda count: np.tile([5.0, 0.0], (count, 1)))
        return GuidedImage(
            lambda inputs: inputs, guide, NOISE, 2, radii=[0.25], n=500, alpha=0.001, subject="target"
        )

    assert len(certify_set(start, 3)) == 3
    assert started == [0, 1, 2]
