"""Membership inference: known scores give the known figures, intervals cover, a planted leak is found."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from surrogates import SurrogateError, open_target
from surrogates.intervals import auc_difference_interval, auc_interval, placements
from surrogates.membership import (
    MembershipAudit,
    auc_difference,
    evaluate,
    label_logits,
    rmia_ratio,
    rmia_score,
)

pytestmark = pytest.mark.filterwarnings("error")


def normal_scores(random, shift, members, nonmembers):
    return random.normal(shift, 1, members), random.normal(0, 1, nonmembers)


# --- known scores -------------------------------------------------------------------------------------------


def test_auc_and_rates_by_hand():
    found = evaluate("loss", np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 1.0]))
    assert found.auc == pytest.approx((2 + 1.5 + 1.5 + 0) / 8)
    assert [rate.tpr for rate in found.rates] == [0.25, 0.25], "ties with the threshold do not pass"
    assert [rate.attained for rate in found.rates] == [0.0, 0.0]


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auc_and_curve_equal_those_of_scikit_learn(decimals):
    scores = [part.round(decimals) for part in normal_scores(np.random.default_rng(0), 1, 300, 170)]
    truth = np.repeat([1, 0], [300, 170])
    found = evaluate("loss", *scores)
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate(scores)), abs=1e-12)
    expected = roc_curve(truth, np.concatenate(scores), drop_intermediate=False)
    assert np.allclose(found.roc(), expected[:2])


def test_rate_is_that_of_the_threshold_that_few_nonmembers_pass():
    random = np.random.default_rng(1)
    members, nonmembers = normal_scores(random, 2, 4000, 3000)
    found = evaluate("loss", members, nonmembers)
    for rate, allowed in zip(found.rates, (30, 3), strict=True):
        threshold = np.sort(nonmembers)[-allowed - 1]
        assert rate.attained == allowed / 3000 <= rate.fpr
        assert rate.tpr == (members > threshold).mean()
        assert rate.lower < rate.tpr < rate.upper
        assert rate.tpr == pytest.approx(norm.sf(norm.isf(rate.fpr) - 2), abs=0.12)


def test_placements_are_the_pairs():
    random = np.random.default_rng(2)
    positives, negatives = random.integers(0, 5, 30) * 1.0, random.integers(0, 5, 20) * 1.0
    pairs = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    by_positive, by_negative = placements(positives, negatives)
    assert np.allclose(by_positive, pairs.mean(axis=1))
    assert np.allclose(by_negative, pairs.mean(axis=0))


# --- intervals, by simulation -------------------------------------------------------------------------------

TRIALS = 2000
# A 95% interval may miss more often than this in a simulation only with probability 1e-4.
MISSES = 0.05 + 3.72 * np.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("auc", [0.5, 0.7, 0.95])
def test_auc_interval_covers(auc):
    random, shift, missed = np.random.default_rng(3), np.sqrt(2) * norm.ppf(auc), 0
    for _ in range(TRIALS):
        _, lower, upper = auc_interval(*normal_scores(random, shift, 120, 100), 0.025)
        missed += not lower <= auc <= upper
    # DeLong's interval is asymptotic: with a hundred a side it may miss a little more than it says
    assert missed / TRIALS <= MISSES + 0.01


def test_the_coverage_test_sees_intervals_of_unpaired_halves():
    """Taking all pairs for independent, the interval is far too short."""
    random, missed = np.random.default_rng(4), 0
    for _ in range(200):
        scores = normal_scores(random, 1, 120, 100)
        auc = placements(*scores)[0].mean()
        reach = 1.96 * np.sqrt(auc * (1 - auc) / (120 * 100))
        missed += abs(auc - norm.cdf(1 / np.sqrt(2))) > reach
    assert missed / 200 > 3 * MISSES


def test_difference_interval_covers_and_uses_the_pairing():
    random, missed, paired, apart = np.random.default_rng(5), 0, [], []
    shifts = np.sqrt(2) * norm.ppf([0.8, 0.7])
    for _ in range(TRIALS):
        common = [random.normal(0, 0.9, count) for count in (120, 100)]
        own = [[part + random.normal(0, np.sqrt(0.19), len(part)) for part in common] for _ in range(2)]
        first, second = ((scores[0] + shift, scores[1]) for scores, shift in zip(own, shifts, strict=True))
        _, lower, upper = auc_difference_interval(first, second, 0.025)
        missed += not lower <= 0.1 <= upper
        paired.append(upper - lower)
        apart.append(auc_interval(*first, 0.025)[2] - auc_interval(*first, 0.025)[1])
    assert missed / TRIALS <= MISSES + 0.01
    assert np.mean(paired) < 0.6 * np.sqrt(2) * np.mean(apart)


@pytest.mark.parametrize(("positives", "expected"), [([2, 3], 1.0), ([-2, -3], 0.0), ([0, 0], 0.5)])
def test_no_interval_of_no_width(positives, expected):
    auc, lower, upper = auc_interval(np.tile(positives, 10) * 1.0, np.zeros(20), 0.025)
    assert auc == expected
    assert upper - lower >= 1 - 0.025 ** (1 / 20)
    assert lower <= auc <= upper


# --- the signal and the attacks -----------------------------------------------------------------------------


class Table:
    """A model that knows its images by their first pixel, an index times 1e-3, and answers rows of a table."""

    def __init__(self, label_logit):
        self.label_logit = label_logit  # of class 1, of two

    def __call__(self, images):
        rows = torch.from_numpy(self.label_logit)[(images[:, 0, 0, 0] * 1000).round().long()]
        return torch.stack([torch.sigmoid(-rows), torch.sigmoid(rows)], dim=1)


def numbered(first, count):
    images = np.zeros((count, 1, 2, 2), np.float32)
    images[:, 0, 0, 0] = np.arange(first, first + count) / 1000
    return images, np.ones(count, np.int64)


GROUPS = [numbered(0, 300), numbered(300, 300), numbered(600, 200)]


def audited(leak, seed=0, references=4, **options):
    """An audit where each image has its own difficulty, and members are more confident by `leak`."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(1, 2, 800)

    def trained(members):
        return Table(difficulty + leak * members + random.normal(0, 0.5, 800))

    audit = MembershipAudit(
        *GROUPS[:2],
        references=[trained(np.zeros(800)) for _ in range(references)],
        population=GROUPS[2],
        **options,
    )
    return audit(trained((np.arange(800) < 300).astype(float)))


def test_label_logits_of_probabilities_logits_and_labels_agree():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 8
    images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = np.arange(40) % 5
    index = {image.numpy().tobytes(): row for row, image in enumerate(images)}

    def answer(batch):
        return logits[[index[np.asarray(image).tobytes()] for image in batch]]

    p = logits.double().softmax(1).numpy()[np.arange(40), labels]
    expected = np.log(p) - np.log1p(-p)
    calm = np.abs(expected) < 15  # beyond, log(1 - p) itself has no digits left
    for model in (
        lambda batch: answer(batch).double().softmax(1),
        open_target(lambda batch: answer(batch).numpy(), num_classes=5, output_kind="logits"),
        open_target(
            lambda batch: answer(batch).softmax(1).numpy(), num_classes=5, output_kind="probabilities"
        ),
    ):
        found = label_logits(model, images, labels, batch_size=7)
        assert np.allclose(found[calm], expected[calm], atol=1e-3)
        assert np.isfinite(found).all()
    hard = open_target(lambda batch: answer(batch).argmax(1).numpy(), num_classes=5, output_kind="labels")
    assert ((label_logits(hard, images, labels) > 0) == (logits.argmax(1).numpy() == labels)).all()


def test_rmia_by_the_formula_of_the_paper():
    random = np.random.default_rng(6)
    own, out = random.normal(size=5), random.normal(size=(3, 5))
    z_own, z_out = random.normal(size=7), random.normal(size=(3, 7))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    found = rmia_score(rmia_ratio(own, out, 0.3), rmia_ratio(z_own, z_out, 0.3), 1.1)
    for x in range(5):
        won = 0
        p_x = 0.5 * (1.3 * sigmoid(out[:, x]).mean() + 0.7)
        for z in range(7):
            p_z = 0.5 * (1.3 * sigmoid(z_out[:, z]).mean() + 0.7)
            won += (sigmoid(own[x]) / p_x) / (sigmoid(z_own[z]) / p_z) >= 1.1
        assert found[x] == pytest.approx(won / 7)


@pytest.mark.parametrize("attack", ["loss", "rmia", "lira"])
def test_without_a_leak_the_interval_covers_a_coin(attack):
    found = [audited(0, seed)[attack] for seed in range(100)]
    missed = np.mean([not each.lower <= 0.5 <= each.upper for each in found])
    assert missed <= 0.05 + 3.72 * np.sqrt(0.05 * 0.95 / 100)
    false = np.mean([each.rates[0].tpr for each in found])
    assert false <= 0.02, "non-members set the threshold, and members without a leak pass it no more often"


def test_a_planted_leak_is_detected_and_better_with_references():
    found = audited(1)
    assert set(found) == {"loss", "rmia", "lira"}
    assert all(each.lower > 0.5 for each in found.values())
    assert min(found["rmia"].lower, found["lira"].lower) > found["loss"].upper
    # by hand: the difference from the mean of 4 references has sd 0.5 sqrt(1 + 1/4)
    assert found["lira"].auc == pytest.approx(norm.cdf(1 / (0.5 * np.sqrt(1.25) * np.sqrt(2))), abs=0.04)


def test_a_smaller_leak_is_a_smaller_auc_by_the_paired_interval():
    difference, lower, upper = auc_difference(audited(1)["lira"], audited(0.3)["lira"])
    assert 0 < lower < difference < upper
    assert auc_difference(audited(1)["lira"], audited(1)["lira"])[0] == 0


def test_attacks_that_lack_what_they_need_are_not_run():
    assert set(audited(1, references=0)) == {"loss"}
    assert set(audited(1, references=1)) == {"loss", "rmia"}
    assert set(MembershipAudit(*GROUPS[:2], references=[Table(np.zeros(800))] * 2).attacks) == {
        "loss",
        "lira",
    }


def test_a_paid_target_is_queried_once_an_image(tmp_path):
    import surrogates

    table = Table(np.linspace(-3, 3, 800).astype(np.float32))
    target = open_target(
        lambda images: table(torch.from_numpy(images)).numpy(), num_classes=2, identity="table"
    )
    audit = MembershipAudit(*GROUPS[:2], references=[table, table], population=GROUPS[2])
    with surrogates.QueryLedger(tmp_path / "ledger.db", {"evaluation": 800}) as ledger:
        audited = audit(ledger.attach(target, purpose="evaluation"))
        again = audit(ledger.attach(target, purpose="evaluation"))
        assert ledger.bill()["evaluation"].answered == 800
    assert {name: each.auc for name, each in audited.items()} == {
        name: each.auc for name, each in again.items()
    }
    assert audited["loss"].auc == audit(table)["loss"].auc


BAD = [
    (lambda: MembershipAudit(*GROUPS[:2], a=2), "a must be in"),
    (lambda: MembershipAudit(*GROUPS[:2], gamma=0), "gamma must be positive"),
    (lambda: MembershipAudit(*GROUPS[:2], confidence=95), "try 0.95"),
    (lambda: MembershipAudit((GROUPS[0][0], np.ones(3, int)), GROUPS[1]), "members: labels"),
    (lambda: MembershipAudit(GROUPS[0], (GROUPS[1][0], np.ones(300))), "one class index"),
    (lambda: label_logits(lambda x: 3 * torch.ones(len(x), 2), *GROUPS[0]), "apply softmax"),
    (lambda: label_logits(lambda x: torch.ones(len(x)), *GROUPS[0]), "expected (300, classes)"),
    (lambda: label_logits(lambda x: torch.ones(len(x), 1), *GROUPS[0]), "label 1"),
    (lambda: auc_difference(evaluate("loss", np.ones(3), np.ones(3)), audited(1)["loss"]), "one audit"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=[case[1] for case in BAD])
def test_bad_input_is_one_line_with_a_remedy(call, words):
    with pytest.raises(SurrogateError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
