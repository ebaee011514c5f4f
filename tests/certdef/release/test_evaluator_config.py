"""What the evaluator refuses before it asks a model anything: keys, values, shapes, pixel ranges; one line for each."""

import configparser
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from certdef.config.job import ConfigError, SigmaLaw
from certdef.release.evaluator import CertdefEvaluator
from certdef.release.evaluator_config import in_own_words, is_meant, read_config
from certdef.release.rows import images_of, values_of
from surrogates.targets.formats import PixelFormat

GOOD = {"image_shape": (8, 8)}
# Every key that MLflow 3.17's own evaluators read.
OF_MLFLOW = (
    "average",
    "col_mapping",
    "eval_results_mode",
    "eval_results_path",
    "explainability_algorithm",
    "explainability_kernel_link",
    "explainability_nsamples",
    "ignore_exceptions",
    "label_list",
    "log_explainer",
    "log_model_explainability",
    "max_classes_for_multiclass_roc_pr",
    "metric_prefix",
    "pos_label",
    "retriever_k",
    "sample_weights",
)


def test_the_entry_point_of_the_package_is_the_evaluator() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg")
    name, value = setup["options.entry_points"]["mlflow.model_evaluator"].strip().split(" = ")
    assert name == "certdef"
    assert EntryPoint(name, value, "mlflow.model_evaluator").load() is CertdefEvaluator


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        {"certdef": GOOD},
        {"image_shap": (8, 8)},
        {"imageshape": (8, 8)},
        {"sigma": 0.25},
        {"metric_prefix": "x_", "ledger": "a.db"},
    ],
)
def test_a_configuration_with_a_key_of_its_own_is_meant(config: dict) -> None:
    evaluator = CertdefEvaluator()
    assert evaluator.can_evaluate(model_type="classifier", evaluator_config=config)
    assert not evaluator.can_evaluate(model_type="regressor", evaluator_config=config)


@pytest.mark.parametrize("config", [None, {}, *({key: 1} for key in OF_MLFLOW), {"default": GOOD}])
def test_it_keeps_out_of_evaluations_that_are_not_its_own(config: dict | None) -> None:
    """MLflow asks every evaluator that is installed where its user names none."""
    assert not is_meant(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "image_shape is not set: give the sides of an image"),
        ({"image_shap": (8, 8)}, r"unknown key 'image_shap' .*did you mean 'image_shape'"),
        ({"image_shape": 64}, r"image_shape is 64: give the sides of an image, \(H, W\)"),
        ({"image_shape": (8, 8, 8, 8)}, "image_shape is"),
        ({"image_shape": (0, 8)}, "image_shape is"),
        (GOOD | {"pixel_range": (255, 0)}, r"pixel_range is \(255, 0\): give what black and white are"),
        (GOOD | {"pixel_range": 255}, "pixel_range is 255"),
        (GOOD | {"std": [0.5, 0]}, "std is"),
        (GOOD | {"layout": "rows"}, "layout is 'rows': use one of flat"),
        (GOOD | {"sigma": 64}, r"sigma is 64: use \[0, 1\] pixel units"),
        (GOOD | {"sigma": 0.2, "law": {"family": "gamma"}}, "sigma and law are both set"),
        (GOOD | {"law": {"famly": "gamma"}}, "law is"),
        (
            GOOD | {"law": {"family": "gamma", "shape": [25], "scale_255": -3}},
            "scale_255 of law 'gamma' is -3",
        ),
        (GOOD | {"n": 2.5}, "n is 2.5"),
        (GOOD | {"n": True}, "n is True"),
        (GOOD | {"alpha": 0.9}, r"^alpha is 0.9: use a value in \(0, 0.5\)"),
        (GOOD | {"n": 3}, "^n is 3: alpha 0.001 certifies nothing below n=10"),
        (GOOD | {"radii": [-1]}, r"^radii is \(-1.0,\): use radii of 0 or more"),
        (GOOD | {"method": "guess"}, "^method is 'guess': use one of fixed"),
        (GOOD | {"bound": "randomized"}, "^bound is 'randomized': .* add --?method fixed|^bound is"),
        (GOOD | {"budget": {"training": 5}}, "budget is"),
        (GOOD | {"budget": 0}, "budget is 0"),
        (GOOD | {"seed": -1}, "seed is -1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(config: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(config)


def test_all_that_is_wrong_is_said_at_once_in_lines_of_their_own() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"image_shape": "8x8", "sigm": 0.2, "alpha": 0.9, "n0": 0, "layout": 1})
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["unknown", "image_shape", "n0", "layout", "alpha"]
    assert not any("certify." in line for line in lines)


def test_what_is_not_set_follows_the_images_as_for_a_target_of_ones_own() -> None:
    small, color = (read_config({"image_shape": shape}).job(400).certify for shape in ((8, 8), (3, 32, 32)))
    assert (small.laws[0].scale_255, color.laws[0].scale_255) == (60.0, 30.0)
    assert (small.radii, color.radii) == ((0.1, 0.25, 0.5), (0.1, 0.25))
    assert small.target_images == 50
    given = read_config(
        {
            "image_shape": np.array([8, 8]).tolist(),
            "sigma": np.float64(0.12),
            "n": np.int64(300),
            "images": 7,
            "radii": np.array([0.1]),
        }
    )
    job = given.job(400).certify
    assert (job.n, job.target_images, job.radii, job.laws[0].family) == (300, 7, (0.1,), "constant")
    law = read_config(GOOD | {"law": {"family": "gamma", "shape": [25], "scale_255": 3}})
    assert law.job(400).certify.laws == (SigmaLaw("gamma", "gamma", (25.0,), 3.0),)
    assert read_config(GOOD).job(5).certify.target_images == 5


def test_messages_of_jobs_are_said_in_the_names_of_the_keys() -> None:
    said = in_own_words(
        "give --target.classes, or target.mean; the data. raise ledger.certification to 5, --ledger.path x.db"
    )
    assert said == "give classes, or mean; the data. raise budget, of certification, to 5, ledger x.db"


# --- rows of a table as images --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "flat_hwc", "chw", "hwc"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"pixel_range": (0, 255)},
        {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)},
        {"pixel_range": (-1, 1), "mean": 0.1},
    ],
)
def test_images_of_rows_are_what_a_target_of_that_form_makes_rows_of(layout: str, form: dict) -> None:
    config = read_config({"image_shape": (3, 4, 5), "layout": layout} | form)
    images = np.random.default_rng(0).random((6, 3, 4, 5)).astype(np.float32)
    pixels = PixelFormat(layout=layout, **{name: getattr(config, name) for name in form})
    rows = pixels.encode(images).reshape(6, -1)
    np.testing.assert_allclose(images_of(values_of(rows, None), config), images, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "rows", "said"),
    [
        (
            {"image_shape": (8, 9)},
            np.ones((2, 64)),
            r"image_shape is \(8, 9\), 72 values .* data has 64 columns",
        ),
        (
            {},
            np.linspace(0, 16, 128).reshape(2, 64),
            r"pixel_range is \(0.0, 1.0\), but data holds values from 0 to 16",
        ),
        (
            {"pixel_range": (0, 255)},
            np.linspace(0, 1, 128).reshape(2, 64),
            r"pixel_range is \(0.0, 255.0\), but data holds values from 0 to 1, 0.39% of it",
        ),
        ({}, np.linspace(-1, 1, 128).reshape(2, 64), "pixel_range is .* from -1 to 1"),
        (
            {"mean": 0.5, "std": 0.5},
            np.linspace(0, 255, 128).reshape(2, 64),
            r"pixel_range is .*, mean \(0.5,\), std \(0.5,\), but data holds values from 0 to 255",
        ),
        ({"mean": (0.5, 0.5)}, np.ones((2, 64)), "mean has 2 values, but images have 1 channels"),
        ({}, np.full((2, 64), np.nan), "no finite number"),
        ({}, np.full((2, 64), "dark"), "no numbers"),
        ({}, np.empty((0, 64)), "no rows"),
    ],
)
def test_rows_that_are_no_such_images_are_refused(config: dict, rows: np.ndarray, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        images_of(values_of(rows, None), read_config(GOOD | config))


def test_columns_are_taken_in_the_order_of_the_model() -> None:
    table = pd.DataFrame({"b": [2.0], "other": [9.0], "a": [1.0]})
    np.testing.assert_array_equal(values_of(table, ["a", "b"]), [[1, 2]])
    with pytest.raises(ConfigError, match="data lacks the column 'c' that the model takes"):
        values_of(table, ["a", "c"])
