"""Classifiers of LightGBM, XGBoost and Keras, and ONNX graphs: what they report of their answers is honored."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from surrogates import TargetError, open_target

NAMES = np.array(list("jihgfedcba"))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N, 64), images (N, 1, 8, 8), labels (N,)."""
    rows, labels = load_digits(return_X_y=True)
    rows = (rows / 16).astype(np.float32)
    return rows, rows.reshape(-1, 1, 8, 8), labels


@pytest.fixture(scope="module")
def lightgbm(digits: Any) -> Any:
    library = pytest.importorskip("lightgbm")
    fitted = library.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    return fitted.fit(digits[0][:300], NAMES[digits[2][:300]])


def test_a_lightgbm_classifier_with_names(lightgbm: Any, digits: Any) -> None:
    rows, images, _ = digits
    with pytest.raises(TargetError, match=r"LGBMClassifier has classes 'a', 'b', 'c' ...: give classes="):
        open_target(lightgbm)
    target = open_target(lightgbm, classes=list(NAMES))
    answers = target.query(images[300:400])
    np.testing.assert_array_equal(NAMES[answers.labels], lightgbm.predict(rows[300:400]))
    assert (target.output_kind, target.class_names) == ("probabilities", tuple(NAMES))
    loaded = pickle.loads(pickle.dumps(lightgbm))
    assert open_target(loaded, classes=list(NAMES)).identity == target.identity


def test_a_lightgbm_booster(lightgbm: Any, digits: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("lightgbm")
    rows, images, labels = digits
    booster = lightgbm.booster_
    target = open_target(booster)
    assert (target.num_classes, target.num_features, target.output_kind) == (10, 64, "probabilities")
    np.testing.assert_allclose(
        target.query(images[300:400]).scores, booster.predict(rows[300:400]), rtol=1e-6
    )
    booster.save_model(tmp_path / "model.txt")
    assert open_target(library.Booster(model_file=tmp_path / "model.txt")).identity == target.identity
    two = library.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(rows[:300], labels[:300] > 4)
    answers = open_target(two.booster_).query(images[300:400])
    np.testing.assert_array_equal(answers.labels, two.predict(rows[300:400]))
    regressor = library.LGBMRegressor(n_estimators=2, verbose=-1).fit(rows[:50], labels[:50])
    with pytest.raises(TargetError, match="booster was trained for regression, expected one of binary"):
        open_target(regressor.booster_, num_classes=10)


def test_an_xgboost_classifier(digits: Any) -> None:
    library = pytest.importorskip("xgboost")
    rows, images, labels = digits
    model = library.XGBClassifier(n_estimators=5, n_jobs=1).fit(rows[:300], labels[:300])
    answers = open_target(model).query(images[300:400])
    np.testing.assert_allclose(answers.scores, model.predict_proba(rows[300:400]), rtol=1e-6)
    assert open_target(pickle.loads(pickle.dumps(model))).identity == open_target(model).identity
    with pytest.raises(TargetError, match=r"takes a DMatrix, .*XGBClassifier\(\).load_model"):
        open_target(model.get_booster(), num_classes=10)


def test_an_estimator_of_a_table_gets_a_table(digits: Any) -> None:
    import pandas

    rows, images, labels = digits
    table = pandas.DataFrame(rows, columns=[f"pixel {place}" for place in range(64)])
    model = LogisticRegression(max_iter=300).fit(table[:300], labels[:300])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of an array
        answers = open_target(model).query(images[300:400])
    np.testing.assert_array_equal(answers.labels, model.predict(table[300:400]))


def test_a_look_alike_takes_images_where_its_layout_is_declared(digits: Any) -> None:
    class Net:
        def predict(self, images: np.ndarray) -> np.ndarray:
            assert images.shape[1:] == (8, 8, 1)
            return images.reshape(len(images), -1)[:, :10] - 1

    target = open_target(Net(), num_classes=10, layout="hwc", identity="net")
    np.testing.assert_array_equal(target.query(digits[1][:20]).labels, digits[0][:20, :10].argmax(1))
    assert target.output_kind == "logits"


@pytest.fixture(scope="module")
def keras() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("KERAS_BACKEND", "torch")
    library = pytest.importorskip("keras")
    yield library
    patch.undo()


@pytest.mark.parametrize(
    ("activation", "units", "kind"),
    [("softmax", 10, "probabilities"), (None, 10, "logits"), ("sigmoid", 1, "probabilities")],
)
def test_a_keras_model(
    activation: str | None, units: int, kind: str, keras: Any, digits: Any, tmp_path: Path, capsys: Any
) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(units, activation=activation),
        ]
    )
    target = open_target(model, num_classes=max(2, units))
    assert (target.output_kind, target.kind.is_assumed, target.input_shape) == (kind, False, (1, 8, 8))
    expected = model.predict(digits[1][:20].transpose(0, 2, 3, 1), verbose=0)
    capsys.readouterr()
    np.testing.assert_allclose(
        target.query(digits[1][:20]).scores[:, -units:], expected, rtol=1e-5, atol=1e-6
    )
    assert capsys.readouterr().out == ""  # no bar of progress
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert open_target(loaded, num_classes=max(2, units)).identity == target.identity


def test_a_keras_model_of_two_outputs(keras: Any, digits: Any) -> None:
    pixels = keras.Input((64,))
    heads = [
        keras.layers.Dense(3, name="a")(pixels),
        keras.layers.Dense(10, name="b", activation="softmax")(pixels),
    ]
    model = keras.Model(pixels, heads)
    with pytest.raises(TargetError, match=r"gives outputs a \(3\), b \(10\): give output='one of them'"):
        open_target(model)
    expected = model.predict(digits[0][:5], verbose=0)[1]
    for options in ({"output": "b"}, {"output": 1}, {"num_classes": 10}):
        target = open_target(model, **options)
        assert target.output_kind == "probabilities"
        np.testing.assert_allclose(target.query(digits[1][:5]).scores, expected, rtol=1e-5)
    named = keras.Model(pixels, {"u": heads[0], "v": heads[1]})
    np.testing.assert_allclose(
        open_target(named, output="v").query(digits[1][:5]).scores, expected, rtol=1e-5
    )


# ONNX graphs

LAST = {
    "Softmax": ([("Softmax", "scores", "answer")], "probabilities", False),
    "LogSoftmax": ([("LogSoftmax", "scores", "answer")], "logits", False),
    "product": ([("Identity", "scores", "answer")], "logits", False),
    "Softmax and Identity": (
        [("Softmax", "scores", "soft"), ("Identity", "soft", "answer")],
        "probabilities",
        False,
    ),
    "by hand": ([("Sigmoid", "scores", "answer")], "probabilities", True),
}


@pytest.mark.parametrize(("steps", "kind", "assumed"), LAST.values(), ids=LAST.keys())
def test_an_onnx_graph_says_what_it_ends_in(steps: list, kind: str, assumed: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["scores"]),
    ]
    nodes += [helper.make_node(op, [before], [after]) for op, before, after in steps]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("answer", kinds.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    target = open_target(path)
    assert (target.output_kind, target.kind.is_assumed) == (kind, assumed)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    answers = target.query(images)
    np.testing.assert_array_equal(answers.labels, (images.reshape(5, -1) @ weight).argmax(1))
