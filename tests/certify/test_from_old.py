"""A new version from an old one's answers: exact bounds, realized error with good, wrong and adversarial ones, the same draws."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest

import certify
from certify.guided import from_old
from certify.guided.answers import Redrawn
from certify.guided.from_old import METHOD, Audited, audited_certificate, audited_image
from certify.records import RecordLog

NOISE, RADIUS = certify.Gaussian(0.5), 0.25
P0 = NOISE.p_required(RADIUS)  # 0.69
ALPHA = 0.2


# --- the binomial part: exact ---------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.0, 0.02, 0.25])
@pytest.mark.parametrize("draws", [40, 1000])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_one_share_of_alpha_pays_for_every_class(radius, draws, classes):
    """The probability that any class without p > p_0 has k of N votes, for every split that could be the worst."""
    p = NOISE.p_required(radius)
    law = Audited(NOISE, draws, 0.03)
    k = law.required(p)
    assert law.p_required(radius) == (k - 1) / draws

    def misled(k):
        splits = [np.full(classes, 1 / classes), np.r_[p, np.full(classes - 1, (1 - p) / (classes - 1))]]
        splits.append(np.r_[p, 1 - p, np.zeros(classes - 2)])
        return max(sum(binom.sf(k - 1, draws, each[each <= p])) for each in splits)

    assert misled(k) <= 0.03
    # it is not wasteful, and the bound of a class that was named before would not do where two may win
    assert misled(k - 3) > 0.03 * p / 2
    alone = certify.bounds.binomial.required_successes(p, draws, 0.03)
    assert alone <= k
    if radius == 0 and draws == 1000:
        assert misled(alone) > 0.03


# --- the error, by simulation ---------------------------------------------------------------------------------


def old_answers(kind: str, new, random):
    """What an old version, or an adversary who knows the draws and the new version, may have written."""
    unlike = np.where(random.random(len(new)) < 0.05, 1 - new, new)
    return {
        "same": new,
        "close": unlike,
        "opposite": 1 - new,
        "unrelated": random.integers(0, 2, len(new)),
        "unanimous": np.zeros_like(new),
        # right where it says the class, silent about the draws that are lost
        "flattering": np.where((new == 1) & (random.random(len(new)) < 0.5), 0, new),
    }[kind]


def certificates(kind: str, p: float, images: int, *, draws=400, n=200, seed=0):
    """Certificates of images whose new version answers class 0 with probability p exactly; alpha is 0.2.

    Every fourth image is an easy one that is not returned: it makes the bets optimistic.
    """
    random, calibration, found = np.random.default_rng(seed), certify.Calibration(), []
    for number in range(images + images // 3):
        easy = number % 4 == 0
        new = (random.random(draws) >= (0.98 if easy else p)).astype(np.int64)
        image = audited_image(
            lambda which, new=new: new[which],
            old_answers(kind, new, random),
            NOISE,
            2,
            radii=[RADIUS],
            n=n,
            alpha=ALPHA,
            calibration=calibration,
            free_draws=8,
            seed=number,
        )
        while not image.done:
            image.pay()
        image.update_calibration()
        if not easy:
            found.append(audited_certificate(image.certificate(), NOISE, ALPHA))
    return found


def exceeds(wrong: int, images: int, level: float = ALPHA) -> bool:
    """Whether that many errors contradict ``level``; a sound method does so with probability at most 1%."""
    return bool(binomtest(wrong, images, level, alternative="greater").pvalue < 0.01)


@pytest.mark.parametrize("kind", ["close", "flattering"])
def test_realized_error_of_a_few_images(kind):
    found = certificates(kind, P0, 30)
    assert not exceeds(sum(each.prediction == 0 for each in found), len(found))


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["same", "close", "opposite", "unrelated", "unanimous", "flattering"])
def test_realized_error_is_at_most_alpha_whatever_the_old_answers(kind):
    found = certificates(kind, P0, 150)
    wrong = sum(each.prediction == 0 for each in found)
    assert not exceeds(wrong, len(found))
    assert all(each.alpha == ALPHA and each.method == METHOD for each in found)


@pytest.mark.slow
@pytest.mark.acceptance
def test_draws_taken_for_the_law_itself_are_caught(monkeypatch):
    """Planted: the share of 16 recorded draws is taken for the probability, without the binomial part of alpha."""
    monkeypatch.setattr(Audited, "p_required", lambda self, radius: self.law.p_required(radius))
    found = certificates("same", P0, 90, draws=16, n=400)
    assert exceeds(sum(each.prediction == 0 for each in found), len(found))


def test_an_estimate_from_the_old_answers_is_caught():
    """Planted: the old version's own votes certify the new one, as if it had not changed."""
    random = np.random.default_rng(0)
    new = (random.random((60, 400)) >= P0).astype(np.int64)
    old = np.stack([old_answers("flattering", row, random) for row in new])
    k = Audited(NOISE, 400, ALPHA).required(P0)
    assert exceeds(int(np.sum((old == 0).sum(axis=1) >= k)), 60)


@pytest.mark.slow
@pytest.mark.acceptance
def test_good_old_answers_save_votes_and_unrelated_ones_cost_little():
    def paid(kind):
        found = certificates(kind, 0.8, 30, draws=4000, n=1000)
        return np.mean([each.n0 + each.n for each in found]), np.mean(
            [each.prediction == 0 for each in found]
        )

    random = np.random.default_rng(1)
    plain = [
        certify.certify_votes(
            lambda count: (random.random(count) >= 0.8).astype(int),
            NOISE,
            2,
            n=1000,
            alpha=ALPHA,
            radii=[RADIUS],
            method="sequential",
        )
        for _ in range(30)
    ]
    votes, certified = (
        np.mean([each.n0 + each.n for each in plain]),
        np.mean([not each.abstained for each in plain]),
    )
    close, found = paid("close")
    assert close < 0.5 * votes
    assert found >= certified - 0.15
    assert paid("unrelated")[0] <= 1.1 * votes


# --- incremental randomized smoothing -------------------------------------------------------------------------


def errors_of_irs(bound, rounds=20_000, p_old=0.75, zeta=0.05, trials=1000, pairs=60):
    """Share of bounds above p_new = p_old - zeta, the least that it can be, in exact simulation."""
    random = np.random.default_rng(3)
    successes = random.binomial(trials, p_old, rounds)
    lost = random.binomial(pairs, zeta, rounds)
    return np.mean(bound(successes, trials, lost, pairs) > p_old - zeta), rounds


def test_the_zeta_bound_covers():
    share, rounds = errors_of_irs(lambda *counts: certify.incremental_lower_bound(*counts, ALPHA))
    assert not exceeds(round(share * rounds), rounds)
    assert share > 0.005  # it is a bound, not a refusal


def test_an_estimate_of_zeta_in_the_place_of_its_bound_is_caught():
    def planted(successes, trials, lost, pairs):
        return certify.binomial_lower_bound(successes, trials, ALPHA) - lost / pairs

    share, rounds = errors_of_irs(planted)
    assert exceeds(round(share * rounds), rounds)


def test_a_zeta_of_all_images_is_caught():
    """Planted: zeta bounded over a set in which one image in ten changed a lot; the bound is wrong for that image."""
    random, rounds = np.random.default_rng(4), 2000
    successes = random.binomial(1000, 0.75, rounds)
    lost = random.binomial(600, 0.9 * 0.01 + 0.1 * 0.4, rounds)  # 60 pairs of each of ten images
    bound = certify.incremental_lower_bound(successes, 1000, lost, 600, ALPHA)
    assert exceeds(int(np.sum(bound > 0.75 - 0.4)), rounds)


@pytest.mark.parametrize("counts", [(5, 4, 0, 9), (4, 9, 5, 4), (4, 9, -1, 4)])
def test_counts_out_of_range_are_refused(counts):
    with pytest.raises(certify.CertifyError):
        certify.incremental_lower_bound(*counts, 0.05)


def test_the_zeta_bound_is_never_negative():
    assert certify.incremental_lower_bound(50, 100, 90, 100, 0.01) == 0


# --- the same draws -------------------------------------------------------------------------------------------


class Halfspace(torch.nn.Module):
    """Class 1 where the first pixel is at least ``offset``: the true radius is the distance to it."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, noisy):
        return (noisy[:, 0, 0, 0] >= self.offset).long()


IMAGES = torch.linspace(0, 0.2, 4)[:, None, None, None].expand(4, 1, 2, 3).contiguous()
OPTIONS = {"n": 600, "seed": 5, "chunk_size": 256}


def answers(old=None, **options):
    return certify.record_answers(old or Halfspace(0.6), IMAGES, NOISE, 2, **OPTIONS | options)


def test_recorded_answers_are_on_the_draws_of_the_certificates(tmp_path):
    old = Halfspace(0.6)
    smoothed = certify.SmoothedClassifier(old, NOISE, 2, seed=5, chunk_size=256)
    with RecordLog(tmp_path / "old", {"seed": 5, "chunk_size": 256, "noise": NOISE.describe()}) as log:
        for index, each in enumerate(smoothed.certify(IMAGES, n=600)):
            log.append(index, 0, each, 0.0)
    records = certify.read_records(log.path)
    kept = certify.record_answers(old, IMAGES, NOISE, 2, records=records)
    np.testing.assert_array_equal(kept.counts, records.counts)
    np.testing.assert_array_equal(kept.labels, answers().labels)
    which = np.array([599, 3, 256, 3])
    again = old(Redrawn(kept, NOISE)(2, which, IMAGES[2])).numpy()
    np.testing.assert_array_equal(again, kept.labels[2][which])
    with pytest.raises(certify.CertifyError, match="not the model that was certified"):
        certify.record_answers(Halfspace(0.5), IMAGES, NOISE, 2, records=records)
    with pytest.raises(certify.CertifyError, match="give that law"):
        certify.record_answers(old, IMAGES, certify.Gaussian(0.4), 2, records=records)


def test_records_whose_votes_followed_the_answers_are_refused(tmp_path):
    smoothed = certify.SmoothedClassifier(Halfspace(0.6), NOISE, 2, seed=5)
    with RecordLog(tmp_path / "old", {"seed": 5, "noise": NOISE.describe()}) as log:
        log.append(0, 0, smoothed.certify(IMAGES[:1], n=600, method="group_sequential", radii=[0.25])[0], 0.0)
    with pytest.raises(certify.CertifyError, match="follows the answers"):
        certify.record_answers(Halfspace(0.6), IMAGES[:1], NOISE, 2, records=certify.read_records(log.path))


def test_answers_come_back_from_their_file(tmp_path):
    kept = answers()
    kept.save(tmp_path / "old.npz")
    back = certify.OldAnswers.load(tmp_path / "old.npz")
    np.testing.assert_array_equal(back.labels, kept.labels)
    assert (back.indices, back.noise, back.seed, back.chunk_size) == (kept.indices, kept.noise, 5, 256)
    (tmp_path / "other.npz").write_bytes(b"no answers")
    with pytest.raises(certify.CertifyError, match="holds no answers"):
        certify.OldAnswers.load(tmp_path / "other.npz")


class Counting(Halfspace):
    """Counts its queries, and those that it has had before."""

    def __init__(self, offset: float) -> None:
        super().__init__(offset)
        self.asked = 0
        self.known = set()
        self.again = 0

    def forward(self, noisy):
        self.asked += len(noisy)
        rows = {row.numpy().tobytes() for row in noisy}
        self.again += len(noisy) - len(rows - self.known)
        self.known |= rows
        return super().forward(noisy)


RUN = {"radii": [0.25], "n": 500, "alpha": 0.01}


def test_a_new_version_is_certified_by_few_queries_on_the_old_draws():
    kept, new = answers(n=5000), Counting(0.61)
    found = certify.certify_from_old(new, kept, IMAGES, NOISE, 2, **RUN)
    assert [each.radius for each in found] == [0.25] * 4  # the truth is 0.61 - 0.2 or more
    assert all(each.p_lower == P0 and each.method == METHOD and each.sound for each in found)
    assert found[0].noise == NOISE.describe()
    assert new.again == 0
    assert new.asked <= sum(each.n0 + each.n for each in found) < 4 * 100
    again = Redrawn(kept, NOISE)
    drawn = np.concatenate([again(row, np.arange(5000), IMAGES[row]) for row in range(4)])
    assert new.known <= {row.tobytes() for row in drawn}


def test_same_seed_same_votes_in_any_selection_of_images():
    kept = answers(n=2000)
    first = certify.certify_from_old(Halfspace(0.5), kept, IMAGES, NOISE, 2, **RUN)
    assert first == certify.certify_from_old(Halfspace(0.5), kept, IMAGES, NOISE, 2, **RUN)
    one = certify.certify_from_old(Halfspace(0.5), kept, IMAGES[:1], NOISE, 2, indices=[0], **RUN)
    assert one == first[:1]


def test_a_version_that_changed_its_mind_is_not_certified_by_the_old_one():
    """The old version is sure of class 0, the new one of class 1."""
    kept, new = answers(Halfspace(3.0), n=2000), Halfspace(-3.0)
    found = certify.certify_from_old(new, kept, IMAGES, NOISE, 2, **RUN)
    assert {each.prediction for each in found} == {1}


def test_certificates_are_kept_on_record_and_not_certified_again(tmp_path):
    found = certify.certify_from_old(Halfspace(0.61), answers(n=2000), IMAGES, NOISE, 2, **RUN)
    with RecordLog(tmp_path / "new", {"noise": NOISE.describe(), "alpha": 0.01}) as log:
        for index, each in enumerate(found):
            log.append(index, 0, each, 0.0)
    records = certify.read_records(log.path)
    assert records.method == METHOD
    with pytest.raises(certify.CertifyError, match="cannot be certified again"):
        certify.recertify(records, NOISE, 0.001)


def test_a_budget_is_kept():
    new = Counting(0.61)
    found = certify.certify_from_old(new, answers(n=2000), IMAGES, NOISE, 2, budget=30, **RUN)
    assert new.asked <= 30
    assert sum(each.n0 + each.n for each in found) <= 30


@pytest.mark.parametrize("labels", [True, False])
def test_an_old_version_that_is_free_is_asked_itself(labels):
    def scores(noisy):
        return torch.stack([torch.zeros(len(noisy)), 20 * (noisy[:, 0, 0, 0] - 0.6)], dim=1)

    old = Halfspace(0.6) if labels else scores
    found = certify.certify_from_old(Halfspace(0.61), old, IMAGES, NOISE, 2, **RUN)
    assert [each.radius for each in found] == [0.25] * 4
    assert {each.method for each in found} == {"guided"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 3}, "certified from scratch"),
        ({"noise": certify.Gaussian(0.4)}, "give that law"),
        ({"indices": [0, 1, 2, 9]}, "image 9 has no old answers"),
        ({"n": 5}, "n=5 is too small"),
        ({"radii": None}, "radii"),
        ({"pilots": 3}, "'pilots' is not an option"),
        ({"alpha": 0.7}, "alpha must be in"),
        ({"budget": 0}, "budget must be"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_vote(change, words):
    arguments = {"num_classes": 2, "noise": NOISE} | RUN | change
    noise, num_classes = arguments.pop("noise"), arguments.pop("num_classes")
    new = Counting(0.6)
    with pytest.raises(certify.CertifyError, match=words):
        certify.certify_from_old(new, answers(), IMAGES, noise, num_classes, **arguments)
    assert new.asked == 0


def test_too_few_recorded_draws_are_refused():
    with pytest.raises(certify.CertifyError, match="20 recorded draws are too few to certify"):
        certify.certify_from_old(
            Halfspace(0.6), answers(n=20), IMAGES, NOISE, 2, radii=[0.5], n=500, alpha=0.001
        )


@pytest.mark.parametrize("labels", [np.zeros(4), np.zeros((2, 0)), np.full((2, 3), 7)])
def test_answers_that_are_no_classes_are_refused(labels):
    with pytest.raises(certify.CertifyError):
        certify.OldAnswers(labels.astype(int), 2, (0, 1), NOISE.describe())


def test_the_level_split_is_whole():
    assert 0 < from_old.DRAWS < 1
