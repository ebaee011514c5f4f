"""Certified accuracy: published logs as oracle, bands, table, picture; and what importing certify loads."""

import subprocess
import sys

import numpy as np
import pytest

from certify import CertifyError, binomial_interval, read_records
from certify.records import Records, curves
from tests.conftest import certification_log


def records(correct, predict, radius):
    count = len(radius)
    index = np.arange(count)
    return Records(
        index,
        index,
        np.array(predict),
        np.array(radius, float),
        np.array(correct, bool),
        np.full(count, np.nan),
    )


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [("0.25", [0.7665, 0.6116, 0.4225, 0.2506])],
)
def test_published_cifar10_log(sigma, expected):
    curve = curves.certified_accuracy(read_records(certification_log(sigma)), [0, 0.25, 0.5, 0.75])
    assert np.allclose(curve.accuracy, expected, atol=5e-5)
    assert curve.total == 10_000


@pytest.mark.parametrize("sigma", ["0.12", "0.25", "0.50", "1.00"])
def test_published_logs_recount(sigma):
    path = certification_log(sigma)
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    radii = np.linspace(0, 4, 81)
    curve = curves.certified_accuracy(read_records(path), radii)
    for radius, accuracy in zip(radii, curve.accuracy, strict=True):
        hits = sum(row[1] == row[2] and float(row[3]) >= radius for row in rows)
        assert accuracy == hits / len(rows)


def test_wrong_and_abstaining_images_count_as_wrong():
    some = records([1, 0, 0, 1, 1], [2, 2, -1, 0, 1], [0.5, 3.0, 0.0, 0.25, 0.0])
    curve = curves.certified_accuracy(some, [0, 0.25, 0.26, 0.5, 0.51])
    assert curve.accuracy.tolist() == [0.6, 0.4, 0.2, 0.2, 0.0]
    lower, upper = binomial_interval([3, 2, 1, 1, 0], 5, 0.05)
    assert np.array_equal(curve.lower, lower)
    assert np.array_equal(curve.upper, upper)


def test_table():
    curve = curves.certified_accuracy(records([1, 1, 0, 1], [0, 0, 0, 0], [1, 0.3, 1, 1]), [0, 0.5])
    text = curves.table({"target": curve, "surrogate": curve})
    lines = text.splitlines()
    assert lines[0] == "| certified accuracy, % | images | r = 0 | r = 0.5 |"
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| target | 4 | 75.0 (19.4–99.4) | 50.0 (6.8–93.2) |")


def test_plot(tmp_path):
    rng = np.random.default_rng(0)
    some = records(rng.random(300) < 0.8, np.zeros(300, int), rng.gamma(2, 0.3, 300))
    grid = np.linspace(0, 1.5, 200)
    both = {
        "target": curves.certified_accuracy(some, grid),
        "surrogate": curves.certified_accuracy(some, grid, alpha=0.01),
    }
    figure = curves.plot(both, tmp_path / "curves.png", title="Two subjects")
    [axes] = figure.axes
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["target", "surrogate"]
    assert "[0, 1]" in axes.get_xlabel()
    assert "ℓ2" in axes.get_xlabel()
    assert axes.get_ylabel()
    assert np.array_equal(axes.lines[0].get_ydata(), both["target"].accuracy)
    assert len(axes.collections) == 2
    assert curves.plot(both).axes


@pytest.mark.parametrize(
    "call",
    [
        lambda: curves.certified_accuracy(records([], [], []), [0]),
        lambda: curves.certified_accuracy(records([1], [0], [1]), [-1]),
        lambda: curves.certified_accuracy(records([1], [0], [1]), []),
        lambda: curves.certified_accuracy(records([1], [0], [np.nan]), [0]),
        lambda: curves.certified_accuracy(records([1], [0], [np.inf]), [0]),
        lambda: curves.certified_accuracy(records([0], [0], [-1]), [0]),
        lambda: curves.table({}),
        lambda: curves.plot({}),
        lambda: curves.table(
            {name: curves.certified_accuracy(records([1], [0], [1]), [r]) for name, r in (("a", 0), ("b", 1))}
        ),
    ],
)
def test_bad_input(call):
    with pytest.raises(CertifyError):
        call()


def test_import_is_light():
    code = (
        "import sys, certify; heavy = {'pandas', 'mlflow', 'timm', 'matplotlib', 'certdef', 'surrogates'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
