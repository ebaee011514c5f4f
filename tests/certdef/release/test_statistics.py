"""The tests and intervals of a comparison: exact by enumeration, and no false alarm in simulated comparisons of one model."""

import numpy as np
import pytest
from scipy.stats import binom, norm
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

import certify
from certdef.release.compare import compare_rows
from certdef.release.pairing import pair
from certdef.release.statistics import holm, mcnemar, paired_interval
from tests.certdef.release.certified import digit_network, digits, of_flags

COMPARISONS = 200
ALPHA = 0.05
# As many false alarms as 200 comparisons with a chance of 5% each have with probability < 1e-4.
MOST_ALARMS = int(binom.isf(1e-4, COMPARISONS, ALPHA))
NAMES = ("OLD", "NEW")


def test_the_p_value_is_that_of_statsmodels():
    for lost in range(12):
        for won in range(12):
            expected = reference([[5, lost], [won, 7]], exact=True).pvalue
            assert mcnemar(lost, won) == pytest.approx(expected), (lost, won)


def test_holm_is_that_of_statsmodels():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    for seed in range(5):
        p = np.random.default_rng(seed).random(40) ** 4
        p[:6] = p[0]  # ties
        assert holm(p).tolist() == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_an_interval_leaves_zero_out_where_mcnemar_does():
    for lost in range(20):
        for won in range(20):
            lower, upper = paired_interval(lost, won, 60, ALPHA)
            assert lower <= (won - lost) / 60 <= upper
            assert (lower > 0 or upper < 0) == (mcnemar(lost, won) <= 0.9 * ALPHA), (lost, won)


def least_coverage(interval, images: int, alpha: float) -> float:
    """The least probability that an interval holds the true change, over a grid of chances to lose and to win, exactly."""
    from scipy.stats import multinomial

    counts = [(a, b) for a in range(images + 1) for b in range(images + 1 - a)]
    cells = np.array([(a, b, images - a - b) for a, b in counts])
    limits = np.stack(interval(cells[:, 0], cells[:, 1], images, alpha), axis=1)
    least = 1.0
    for lose in (0.01, 0.05, 0.2, 0.5):
        for win in (0.01, 0.05, 0.2, 0.49):
            holds = (limits[:, 0] <= win - lose + 1e-12) & (win - lose <= limits[:, 1] + 1e-12)
            chance = multinomial(images, [lose, win, 1 - lose - win]).pmf(cells)
            least = min(least, float(chance[holds].sum()))
    return least


def wald(lost, won, images: int, alpha: float):
    """The planted fault: the normal interval of textbooks."""
    middle = (won - lost) / images
    reach = norm.isf(alpha / 2) * np.sqrt(np.maximum(lost + won - (won - lost) ** 2 / images, 0)) / images
    return middle - reach, middle + reach


@pytest.mark.parametrize("images", [8, 40])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_an_interval_covers_as_it_says_and_the_normal_one_does_not(images, alpha):
    assert least_coverage(paired_interval, images, alpha) >= 1 - alpha
    assert least_coverage(wald, images, alpha) < 1 - alpha


def uncorrected(rows) -> bool:
    """A planted fault: every row tested by itself."""
    return min(row.p for row in rows) <= ALPHA


def unpaired(rows) -> bool:
    """A planted fault: both taken for independent samples of images, with a correction."""
    z = [
        (row.new - row.old)
        / np.sqrt(max(row.old * (1 - row.old) + row.new * (1 - row.new), 1e-9) / row.images)
        for row in rows
    ]
    return bool(holm([2 * norm.sf(abs(each)) for each in z]).min() <= ALPHA)


def alarms(draw, labels: np.ndarray, groups: dict[str, np.ndarray], radii: list[float]) -> dict[str, int]:
    """In how many comparisons something is called worse or better, by the comparison and by the planted faults."""
    found = {"compare": 0, "intervals": 0, "uncorrected": 0, "unpaired": 0}
    for seed in range(COMPARISONS):
        old, new = draw(np.random.default_rng(seed))
        rows = compare_rows(pair(old, new, NAMES), radii, groups, alpha=ALPHA)
        found["compare"] += any(row.verdict != "unproven" for row in rows)
        found["intervals"] += any(row.lower > 0 or row.upper < 0 for row in rows)
        found["uncorrected"] += uncorrected(rows)
        found["unpaired"] += unpaired(rows)
    return found


@pytest.mark.slow
@pytest.mark.acceptance
def test_no_false_alarm_where_every_certificate_is_a_coin():
    """The hardest unchanged model: each image is certified by exactly one of both, by chance, at each of 3 radii apart."""
    labels = np.arange(300) % 10
    groups = {"camera": np.array(["a", "b", "c"])[np.arange(300) % 3]}
    radii = [0.25, 0.5, 1.0]

    def draw(random):
        # Radius 0.3 or 0.7 or 1.2 where a coin of that step fell: certified at 0.25, at 0.5, at 1 by other images.
        coin, reach = random.random(300) < 0.5, random.choice([0.3, 0.7, 1.2], 300)
        old, new = of_flags(coin, ~coin, labels, 1.0)
        return (
            certify.records.Records(**{**vars(old), "radius": np.where(coin, reach, 0.0)}),
            certify.records.Records(**{**vars(new), "radius": np.where(~coin, reach, 0.0)}),
        )

    found = alarms(draw, labels, groups, radii)
    print(found, MOST_ALARMS)
    assert found["compare"] <= MOST_ALARMS
    assert found["intervals"] <= MOST_ALARMS
    assert found["uncorrected"] > MOST_ALARMS
    assert found["unpaired"] > MOST_ALARMS


@pytest.fixture(scope="module")
def votes() -> tuple[np.ndarray, np.ndarray]:
    """Shares of the votes of a real network for 200 digits under noise, (200, 10), and their labels."""
    import torch

    network, (images, labels) = digit_network(), digits(200)
    smoothed = certify.SmoothedClassifier(network, certify.Gaussian(0.5), 10, seed=5)
    with torch.no_grad():
        found = smoothed.certify(torch.from_numpy(images), n0=1, n=2000, alpha=0.001)
    return np.array([each.counts for each in found]) / 2000, labels


def certified(shares: np.ndarray, labels: np.ndarray, random: np.random.Generator, n: int = 400):
    """Records of a certification with these chances of a vote."""
    noise = certify.Gaussian(0.5)
    counts0, counts = (np.stack([random.multinomial(each, row) for row in shares]) for each in (50, n))
    selected = counts0.argmax(axis=1)
    top = counts[np.arange(len(counts)), selected]
    p_lower = np.asarray(certify.binomial_lower_bound(top, np.full(len(top), n), 0.001))
    proven = p_lower > 0.5
    predict = np.where(proven, selected, -1)
    radius = np.where(proven, noise.radius(p_lower), 0.0)
    seconds = np.full(len(labels), np.nan)
    return certify.records.Records(
        np.arange(len(labels)), labels, predict, radius, predict == labels, seconds, noise=noise.describe()
    )


@pytest.mark.slow
@pytest.mark.acceptance
def test_no_false_alarm_where_a_real_network_is_certified_twice(votes):
    """200 comparisons of one network with itself, with other noise each time; a worse one is found."""
    shares, labels = votes
    groups = {"camera": np.array(["a", "b", "c"])[np.arange(len(labels)) % 3]}
    radii = [0.0, 0.25, 0.5, 0.75, 1.0]

    def draw(random):
        return certified(shares, labels, random), certified(shares, labels, random)

    found = alarms(draw, labels, groups, radii)
    print(found, MOST_ALARMS)
    assert found["compare"] <= MOST_ALARMS

    worse = 0.85 * shares + 0.15 / 10  # each seventh vote is a guess
    seen = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        old, new = certified(shares, labels, random), certified(worse, labels, random)
        rows = compare_rows(pair(old, new, NAMES), radii, groups, alpha=ALPHA)
        assert not any(row.verdict == "better" for row in rows)
        seen += any(row.verdict == "worse" for row in rows)
    assert seen == 20
