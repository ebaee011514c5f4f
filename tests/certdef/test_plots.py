"""Figures of what a user holds: what is drawn is what is said, and what has no picture says what has."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import certdef
import certify
import surrogates
from certdef.attacks import threat_ladder
from certdef.attacks.evaluation import Evaluations
from certdef.config.job import ConfigError, LadderConfig
from certdef.stages.budgets import BudgetsResult, Cell
from certdef.stages.ladder import Evaluation, Headline, LadderResult
from certdef.tracking.results import Share
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    model, images, labels = digits_mlp()
    return model, images[:20], labels[:20]


@pytest.fixture(scope="module")
def records(model):
    network, images, labels = model
    smoothed = certify.SmoothedClassifier(network, certify.Gaussian(0.2), 10)
    return certify.Records.of(smoothed.certify(images, n=300), labels)


@pytest.fixture(scope="module")
def evaluations(model):
    settings = LadderConfig(eps=0.2, steps=3, eot=2, square_queries=20, decision_queries=0, images=20)
    return threat_ladder.evaluate(threat_ladder.System(model[0], None), model[1], model[2], settings)


def fidelity(agreement: float, noisy: bool) -> surrogates.Fidelity:
    return surrogates.Fidelity(agreement, agreement - 0.1, agreement + 0.1, 0.3, 100, noisy)


def test_records_are_drawn_as_their_curve(records):
    figure = certdef.plot(records)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "ℓ2 radius of the perturbation (pixel values in [0, 1])"
    radii, shares = axes.lines[0].get_data()
    assert shares[0] == np.mean(records.correct & (records.predict >= 0))
    assert shares[-1] == 0
    assert radii[-1] > records.radius.max()
    curve = certify.curves.certified_accuracy(records, [0, 0.1, 0.2])
    both = certdef.plot({"records": records, "curve": curve}).axes[0]
    assert [line.get_label() for line in both.lines] == ["records", "curve"]
    assert (
        certdef.plot(curve).axes[0].get_xlabel().startswith("radius of the perturbation")
    )  # no norm is known


def test_radii_of_different_norms_are_not_drawn_together(records):
    law = certify.Brightness(0.2).describe()
    light = replace(records, noise=law)
    assert (
        certdef.plot(light).axes[0].get_xlabel() == f"brightness radius of the perturbation ({law['unit']})"
    )
    with pytest.raises(ConfigError, match=r"do not compare \(brightness, l2\): plot each alone"):
        certdef.plot({"light": light, "noise": records})


def test_a_bill_is_drawn_against_its_budgets():
    charges = {
        "training": surrogates.Charge(600, 300, 60, 0, 0),
        "evaluation": surrogates.Charge(0, 0, 0, 0, 0),
        "attack": surrogates.Charge(50, 0, 0, 0, 0),
    }
    (axes,) = certdef.plot(surrogates.Bill("x", charges)).axes
    assert [each.get_text() for each in axes.get_yticklabels()] == ["attack\n0 of 50", "training\n360 of 600"]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths["answered"] == [0, 0.5]
    assert widths["unknown or in flight"] == [0, pytest.approx(0.1)]
    assert widths["left in the budget"] == [1, pytest.approx(0.4)]


def test_agreement_is_drawn_against_queries():
    found = {
        "random": {300: fidelity(0.8, False), 100: fidelity(0.7, False)},
        "kcenter": {100: fidelity(0.6, True)},
    }
    clean, noisy = certdef.plot(found).axes
    assert (clean.get_title(loc="left"), noisy.get_title(loc="left")) == (
        "clean images",
        "under the smoothing noise",
    )
    assert clean.lines[0].get_ydata().tolist() == [0.7, 0.8]  # by queries
    assert noisy.get_xlabel() == "queries"
    cells = (Cell("random", 100, 0, 100, 100, {"clean": Share(0.7, 0.6, 0.8)}),)
    assert certdef.plot(BudgetsResult(cells=cells)).axes[0].lines[0].get_ydata().tolist() == [0.7]


def test_a_ladder_is_drawn_and_tabulated(evaluations):
    assert type(evaluations) is Evaluations
    frame = evaluations.to_frame().set_index("attack")
    worst = frame.loc["worst_case"]
    assert worst.accuracy <= frame.loc["clean"].accuracy
    assert worst.accuracy_lower <= worst.accuracy <= worst.accuracy_upper
    assert f"worst case {100 * worst.accuracy:.1f}% at eps=0.2" in repr(evaluations)
    drawn = certdef.plot({"none": evaluations, "again": evaluations}).axes[0]
    assert next(each.get_text() for each in drawn.get_yticklabels()) == "clean"
    assert drawn.get_xlabel() == "accuracy, ε = 0.2 (L∞)"
    headline = Headline("worst_case", "", Share(*evaluations[-1].accuracy))
    one = Evaluation(tuple(evaluations), headline, (), 20, 0)
    result = LadderResult(systems={"none": {"surrogate": one, "target": one}}, own="none", curve=(), eps=0.2)
    assert len(result.to_frame()) == 2 * len(evaluations)
    assert len(certdef.plot(result).axes) == 2
    assert isinstance(certdef.plot(evaluations), Figure)


def test_a_job_s_summary_is_words_a_table_and_a_picture(tiny_job):
    _, summary, _ = tiny_job
    assert "\n" not in repr(summary)
    assert repr(summary).startswith("Summary(target, surrogate, ")
    assert summary._repr_html_().startswith("<pre>target ")
    assert summary._repr_html_().count("<") == 2
    frame = summary.to_frame()
    certified = frame[frame.stage == "certify"].set_index("metric").value
    assert certified["certify/samples_per_image"] > 0
    stage = summary.stages["certify"]
    rows = stage.result.to_frame()
    assert len(rows) == len(stage.result.curves) * (1 + len(stage.result.radii))
    headline = {key for key, curve in stage.result.curves.items() if curve.headline}
    for value, points in ((summary, 400), (stage, 400), (stage.result, 1 + len(stage.result.radii))):
        (axes,) = certdef.plot(value).axes
        assert {line.get_label() for line in axes.lines} == headline
        assert all(len(line.get_xdata()) == points for line in axes.lines)
    assert certdef.plot(summary.stages["attack"]).axes[0].get_ylabel() == "accuracy"
    for each in summary.stages.values():
        assert len(repr(each.result)) < 300
        assert "done" in repr(each)
        assert len(each.result.to_frame().columns) > 1
    with pytest.raises(ConfigError, match="no stage of target has a picture"):
        certdef.plot(replace(summary, stages={"target": summary.stages["target"]}))


@pytest.mark.parametrize("value", [3, [1, 2], {}, {"a": 1}, {"a": {"b": 1}}, None])
def test_what_has_no_picture_says_what_has(value):
    with pytest.raises(ConfigError, match=r"there is no picture of a .*: give certificates with labels"):
        certdef.plot(value)


def test_a_notebook_shows_a_figure_without_further_setup(records):
    figure = certdef.plot(records)
    content, shown = figure._repr_png_()
    height, width, _ = imread(io.BytesIO(content), format="png").shape
    assert width == 150 * figure.get_figwidth()
    assert shown["width"] < width  # sharp on a fine screen
    assert height > 400
    code = """
import sys, certdef, certify, surrogates
assert not {"matplotlib", "pandas"} & set(sys.modules)
certdef.plot(surrogates.Bill(None, {"attack": surrogates.Charge(9, 1, 0, 0, 0)}))
assert not {"matplotlib.pyplot", "mlflow", "timm", "pandas"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(certdef.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
