"""Targets against the real servers: `mlflow models serve`, MLServer and Triton, started here and stopped here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from surrogates import QueryLedger, TargetError, open_target
from tests.servers.processes import mlflow_server, mlserver, triton

# MLflow and SQLAlchemy warn about themselves while they are imported, so warnings cannot all be errors here.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SHAPE = (1, 8, 8)
SERVERS = Path(__file__).parents[1] / "servers"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Digits under noise, so that every float32 has all its digits."""
    pixels = load_digits().data[900:950].reshape(-1, *SHAPE) / 16
    noise = np.random.default_rng(0).normal(size=pixels.shape) / 10
    return np.clip(pixels + noise, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def logistic() -> LogisticRegression:
    pixels, labels = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=300).fit(pixels[:800] / 16, labels[:800])


def rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


def eight_bit(images: np.ndarray) -> np.ndarray:
    return np.rint(images.astype(np.float64) * 255) / 255


@pytest.fixture(scope="module")
def mlflow_models(logistic: LogisticRegression, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models: scikit-learn ones with a signature of rows and of a table, and a function that answers records."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    folder = tmp_path_factory.mktemp("models")
    inputs = {
        "sklearn": Schema([TensorSpec(np.dtype("float64"), (-1, 64))]),
        "table": Schema([ColSpec("double", f"pixel_{place}") for place in range(64)]),
    }
    for name, schema in inputs.items():
        mlflow.sklearn.save_model(
            logistic,
            folder / name,
            pyfunc_predict_fn="predict_proba",
            signature=ModelSignature(schema, Schema([TensorSpec(np.dtype("float64"), (-1, 10))])),
            pip_requirements=["scikit-learn"],
            serialization_format="pickle",
        )

    class Records(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):  # MLflow reads type hints as a schema
            logits = model_input.reshape(len(model_input), -1) @ logistic.coef_.T + logistic.intercept_
            return [{"logits": row.tolist(), "seconds": 0.1} for row in logits]

    mlflow.pyfunc.save_model(
        folder / "records", python_model=Records(), pip_requirements=["numpy", "scikit-learn"]
    )
    return {name: folder / name for name in (*inputs, "records")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("sklearn", marks=pytest.mark.acceptance), "table", "records"])
def test_the_scoring_server_of_mlflow(
    name: str, mlflow_models: dict[str, Path], logistic: Any, images: np.ndarray, tmp_path: Path
) -> None:
    kind = "logits" if name == "records" else "probabilities"
    layout = "chw" if name == "records" else "flat"
    inside = open_target(mlflow_models[name], num_classes=10, output_kind=kind)
    with mlflow_server(mlflow_models[name], tmp_path) as url:
        target = open_target(url, num_classes=10, output_kind=kind, layout=layout, batch_size=20)
        with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
            answers = ledger.attach(target).query(images)
            np.testing.assert_array_equal(answers.labels, logistic.predict(rows(images)))
            np.testing.assert_array_equal(answers.scores, inside.query(images).scores)  # bit by bit
            charge = ledger.bill()["training"]
            assert (charge.answered, charge.unknown) == (50, 0)
        several = open_target(
            url, num_classes=10, output_kind=kind, layout=layout, batch_size=7, concurrency=3
        )
        np.testing.assert_allclose(several.query(images).scores, answers.scores, atol=1e-6)
        if name != "records":
            with pytest.raises(TargetError, match=r"400 Bad Request .*: check input_shape, layout"):
                open_target(url, num_classes=10).query(images)


@pytest.fixture(scope="module")
def mlserver_url(logistic: LogisticRegression, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLServer with scikit-learn's runtime (no metadata) and a runtime of ours for each pixel type."""
    folder = tmp_path_factory.mktemp("mlserver")
    models = folder / "models"
    settings = {"name": "sklearn", "implementation": "mlserver_sklearn.SKLearnModel"}
    _write(models / "sklearn" / "model-settings.json", settings | {"parameters": {"uri": "./model.joblib"}})
    joblib.dump(logistic, models / "sklearn" / "model.joblib")
    for datatype in ("FP32", "FP64", "UINT8"):
        place = models / datatype
        settings = {
            "name": datatype,
            "implementation": "mlserver_runtime.Linear",
            "parameters": {"uri": "./weights.npz", "version": "v7"},
            "inputs": [{"name": "image", "datatype": datatype, "shape": [-1, *SHAPE]}],
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
                {"name": "labels", "datatype": "INT64", "shape": [-1]},
            ],
        }
        _write(place / "model-settings.json", settings)
        shutil.copy(SERVERS / "mlserver_runtime.py", place)
        np.savez(place / "weights.npz", weight=logistic.coef_, bias=logistic.intercept_)
    with mlserver(models, folder) as address:
        yield f"{address}/v2/models"


@pytest.mark.slow
def test_mlserver_with_scikit_learn(mlserver_url: str, logistic: Any, images: np.ndarray) -> None:
    given = {"layout": "flat", "dtype": "float64", "num_classes": 10}
    soft = open_target(f"{mlserver_url}/sklearn", output="predict_proba", **given).query(images)
    np.testing.assert_array_equal(soft.labels, logistic.predict(rows(images)))
    np.testing.assert_array_equal(soft.scores, logistic.predict_proba(rows(images)).astype(np.float32))
    hard = open_target(f"{mlserver_url}/sklearn", output="predict", **given)
    assert hard.output_kind == "labels"
    np.testing.assert_array_equal(hard.query(images).labels, soft.labels)
    with pytest.raises(TargetError, match=r"only supports 'predict'"):
        open_target(f"{mlserver_url}/sklearn", output="scores", **given).query(images)
    with pytest.raises(TargetError, match=r"404 Not Found"):
        open_target(f"{mlserver_url}/nothing")


@pytest.mark.slow
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT8"])
def test_mlserver_with_a_runtime_of_ours(
    datatype: str, mlserver_url: str, logistic: Any, images: np.ndarray
) -> None:
    target = open_target(f"{mlserver_url}/{datatype}", output_kind="logits", batch_size=20, concurrency=2)
    assert (target.num_classes, target.input_shape) == (10, SHAPE)
    _answers_as(target, logistic, eight_bit(images) if datatype == "UINT8" else images, images)
    labels = open_target(f"{mlserver_url}/{datatype}", output="labels", num_classes=10)
    assert labels.output_kind == "labels"


@pytest.fixture(scope="module")
def triton_url(logistic: LogisticRegression, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Triton with a Python model for each pixel type."""
    folder = tmp_path_factory.mktemp("triton")
    for datatype in ("FP32", "UINT8"):
        place = folder / "models" / datatype
        (place / "1").mkdir(parents=True)
        shutil.copy(SERVERS / "triton_model.py", place / "1" / "model.py")
        np.savez(place / "weights.npz", weight=logistic.coef_, bias=logistic.intercept_)
        (place / "config.pbtxt").write_text(
            f'name: "{datatype}" backend: "python" max_batch_size: 32 instance_group [{{ kind: KIND_CPU }}]'
            f'input [{{ name: "image" data_type: TYPE_{datatype} dims: [1, 8, 8] }}]'
            'output [{ name: "logits" data_type: TYPE_FP32 dims: [10] },'
            '{ name: "labels" data_type: TYPE_INT64 dims: [1] reshape: { shape: [] } }]'
        )
    with triton(folder / "models", folder) as address:
        yield f"{address}/v2/models"


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_triton_with_and_without_binary_tensors(
    datatype: str, binary: bool, triton_url: str, logistic: Any, images: np.ndarray, tmp_path: Path
) -> None:
    target = open_target(f"{triton_url}/{datatype}", output_kind="logits", batch_size=20, binary=binary)
    assert target.num_classes == 10
    assert target.identity == f"{triton_url}/{datatype}/versions/1"
    _answers_as(target, logistic, eight_bit(images) if datatype == "UINT8" else images, images)
    if binary:
        assert open_target(f"{triton_url}/{datatype}")._wire.binary  # found in the server's metadata
    labels = open_target(f"{triton_url}/{datatype}", output="labels", num_classes=10, binary=binary)
    assert labels.output_kind == "labels"
    np.testing.assert_array_equal(labels.query(images).labels, target.query(images).labels)
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        large = open_target(f"{triton_url}/{datatype}", output_kind="logits", batch_size=50, binary=binary)
        with pytest.raises(TargetError, match=r"400 Bad Request .*batch-size must be <= 32"):
            ledger.attach(large).query(images)
        assert ledger.bill()["training"].spent == 0


def _answers_as(target: Any, logistic: Any, seen: np.ndarray, images: np.ndarray) -> None:
    answers = target.query(images)
    logits = (rows(seen) @ logistic.coef_.T + logistic.intercept_).astype(np.float32)
    np.testing.assert_array_equal(answers.labels, logits.argmax(axis=1))
    np.testing.assert_allclose(answers.scores, logits, rtol=1e-5, atol=1e-6)


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(settings))


@pytest.mark.slow
@pytest.mark.parametrize("form", [pytest.param("classifier", marks=pytest.mark.acceptance), "booster"])
def test_lightgbm_behind_the_scoring_server_of_mlflow(form: str, images: np.ndarray, tmp_path: Path) -> None:
    """A classifier answers labels there and its booster probabilities: neither is declared."""
    lightgbm = pytest.importorskip("lightgbm")
    import mlflow
    from mlflow.models import infer_signature

    pixels, labels = load_digits(return_X_y=True)
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(pixels[:800] / 16, labels[:800])
    saved = model if form == "classifier" else model.booster_
    signature = infer_signature(pixels[:2] / 16, saved.predict(pixels[:2] / 16))
    mlflow.lightgbm.save_model(saved, tmp_path / "model", signature=signature, pip_requirements=["lightgbm"])
    inside = open_target(tmp_path / "model")
    expected = inside.query(images)
    np.testing.assert_array_equal(expected.labels, model.predict(rows(images)))
    kind = "labels" if form == "classifier" else "probabilities"
    with mlflow_server(tmp_path / "model", tmp_path) as url:
        target = open_target(url, num_classes=10, layout="flat", batch_size=20)
        with QueryLedger(tmp_path / "ledger.db", budget=50) as ledger:
            answers = ledger.attach(target).query(images)
            assert ledger.bill()["training"].answered == 50
    assert (inside.output_kind, target.output_kind) == (kind, kind)
    np.testing.assert_array_equal(answers.labels, expected.labels)
    if form == "booster":
        np.testing.assert_array_equal(answers.scores, expected.scores)
