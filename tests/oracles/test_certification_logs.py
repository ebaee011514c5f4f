"""Published certification logs as oracles: every radius on the lattice, and the sequential methods' economy."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from certify import Gaussian, binomial_lower_bound, read_records, recertify, recover_successes
from certify.records import Records
from tests.conftest import certification_log

ROOT = Path(__file__).parents[2]
N, ALPHA = 100_000, 0.001


def misses(sigma: str, alpha: float = ALPHA) -> int:
    """Positive radii of a log that no count of votes gives, to the 3 significant digits they were printed in."""
    records = read_records(certification_log(sigma))
    k = recover_successes(records.radius, Gaussian(float(sigma)), N, alpha)
    radius = Gaussian(float(sigma)).radius(binomial_lower_bound(np.maximum(k, 0), N, alpha))
    logged = records.radius[k >= 0]
    digits = 10.0 ** (np.floor(np.log10(logged)) - 2)
    return int(np.sum(np.abs(radius[k >= 0] - logged) > 0.5 * digits * (1 + 1e-6)))


@pytest.mark.acceptance
@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.50", "1.00"])
def test_every_published_radius_lies_on_the_lattice(sigma):
    assert len(read_records(certification_log(sigma))) == 10_000
    assert misses(sigma) == 0


def test_the_lattice_sees_another_alpha():
    """The largest radius, of an unbroken row of successes, is alpha's own."""
    assert misses("0.25", alpha=0.01) > 0


@pytest.mark.acceptance
def test_recertifying_gives_the_log_back_and_a_stricter_alpha_gives_less():
    records, noise = read_records(certification_log("0.25")), Gaussian(0.25)
    k = recover_successes(records.radius, noise, N, ALPHA)
    counts = np.stack([np.maximum(k, 45_000), N - np.maximum(k, 45_000)], axis=1)
    kept = Records(
        **{**vars(records), "counts": counts, "selected": np.zeros(10_000, dtype=np.int64), "method": "fixed"}
    )
    kept.label[:] = np.where(records.correct, 0, 1)
    again = recertify(kept, noise, ALPHA)
    assert np.array_equal(again.predict >= 0, records.predict >= 0)
    assert np.array_equal(again.correct, records.correct)
    assert np.abs(again.radius - records.radius).max() < 5.1e-4
    strict = recertify(kept, noise, 1e-6)
    assert np.all(strict.radius <= again.radius)
    assert strict.correct.mean() < again.correct.mean()


@pytest.fixture(scope="module")
def samples():
    spec = importlib.util.spec_from_file_location("samples", ROOT / "benchmarks" / "samples.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["samples"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.acceptance
@pytest.mark.parametrize("method", ["sequential", "group_sequential"])
@pytest.mark.parametrize(
    ("radii", "bar"), [([0.25], 2000), ([0.5], 3700), ([0.75], 9500), ([0.0, 0.25, 0.5, 0.75], 12_500)]
)
def test_sequential_methods_stay_below_half_of_the_bar(samples, method, radii, bar):
    p, correct = samples.truths(certification_log("0.25"), 0.25)
    spent, points = samples.measure(method, 0.25, radii, p, correct, repeats=2)
    assert spent < 0.6 * bar
    assert min(points) > -0.4 - 0.05  # points; the simulation's standard deviation is below 0.02
