"""mlflow.models.evaluate with the evaluator `certdef`: real models, a real store, and every query counted at the model."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import MetricThreshold, infer_signature
from mlflow.models.evaluation import evaluator_registry
from mlflow.pyfunc import PyFuncModel
from sklearn.datasets import load_digits

import certify
import surrogates
from certdef.config.job import ConfigError
from certdef.release.evaluator import CertdefEvaluator
from surrogates.ledger.reader import read_statement

PLAIN: dict[str, Any] = {
    "pip_requirements": ["mlflow"]
}  # else MLflow loads the model in another process to see
AT = "target/certified_accuracy_at_{}"
CONFIG = {
    "image_shape": (8, 8),
    "pixel_range": (0, 16),
    "sigma": 0.25,
    "images": 20,
    "n": 500,
    "radii": [0.25, 0.5],
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the entry point of an installed certdef does it."""
    registry = evaluator_registry._model_evaluation_registry
    monkeypatch.setitem(registry._registry, "certdef", CertdefEvaluator)


@pytest.fixture
def session(store: str) -> Iterator[str]:
    """The caller's store and experiment."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    mlflow.set_experiment("release")
    yield store
    mlflow.set_tracking_uri(before)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows that reach each loaded model, by its id."""
    rows: Counter[str] = Counter()
    predict = PyFuncModel.predict

    def counted(self: Any, data: Any, params: Any = None) -> Any:
        rows[self.model_id] += len(data)
        return predict(self, data, params)

    monkeypatch.setattr(PyFuncModel, "predict", counted)
    return rows


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 64) of pixels from 0 to 16, labels (N,)."""
    rows, labels = load_digits(return_X_y=True)
    return rows, labels


def _svm(rows: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.svm import SVC

    model = SVC().fit(rows, labels)
    return mlflow.sklearn.log_model(
        model, name="svm", signature=infer_signature(rows, labels), **PLAIN
    ), model


def _lightgbm(rows: np.ndarray, labels: np.ndarray) -> Any:
    library = pytest.importorskip("lightgbm")
    # one of a table, whose columns are named: of the others the data's order would decide
    table = pd.DataFrame(rows, columns=[f"pixel_{place}" for place in range(64)])
    model = library.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1).fit(table, labels)
    info = mlflow.lightgbm.log_model(
        model, name="lightgbm", signature=infer_signature(table, model.predict(table)), **PLAIN
    )
    return info, lambda pixels: model.predict(pd.DataFrame(pixels, columns=table.columns))


def _network(rows: np.ndarray, labels: np.ndarray) -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 10)
    )
    images, classes = torch.tensor(rows, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images / 16), classes).backward()
        optimizer.step()
    with torch.no_grad():
        net[0].weight /= 16  # it takes levels from 0 to 16 itself
    signature = infer_signature(images.numpy(), net(images).detach().numpy())
    example = images[:2].numpy()  # MLflow traces the network with it
    info = mlflow.pytorch.log_model(
        net.eval(), name="network", signature=signature, input_example=example, **PLAIN
    )
    return info, lambda pixels: net(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)).argmax(1)


MODELS = {"svm": _svm, "lightgbm": _lightgbm, "network": _network}


def evaluate(uri: str, data: Any, labels: Any, **config: Any) -> Any:
    return mlflow.models.evaluate(
        uri,
        data,
        targets=labels,
        model_type="classifier",
        evaluators="certdef",
        evaluator_config=CONFIG | config,
    )


def logged(model_id: str) -> dict[str, float]:
    """The metrics of a LoggedModel."""
    model = mlflow.MlflowClient().get_logged_model(model_id)
    return {metric.key: metric.value for metric in model.metrics or []}


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_certified_gated_and_every_query_of_it_is_on_its_ledger(
    kind: str, session: str, digits: Any, asked: Counter[str], tmp_path: Path
) -> None:
    rows, labels = digits
    info, predict = MODELS[kind](rows[:900], labels[:900])
    mlflow.register_model(info.model_uri, kind)
    asked.clear()
    if kind == "lightgbm":  # columns in another order than the model has them, and one that it does not know
        names = [f"pixel_{place}" for place in range(64)]
        data = pd.DataFrame(rows[900:], columns=names)[names[::-1]].assign(digit=labels[900:])
        arguments: Any = (data, "digit")
    else:
        arguments = (rows[900:], labels[900:])
    with mlflow.start_run() as run:
        result = evaluate(f"models:/{kind}/1", *arguments)

    # on the run, and on the model
    metrics = mlflow.get_run(run.info.run_id).data.metrics
    assert result.metrics.items() <= metrics.items()
    assert logged(info.model_id).items() >= result.metrics.items()
    assert result.metrics[AT.format(0.25)] > 0.1
    # every query on the ledger, and nothing else
    (ledger,) = tmp_path.glob("runs/evaluations/*/ledger.db")
    spent = read_statement(ledger)
    assert spent.identity.startswith(f"mlflow:{info.model_id}")
    assert spent.total.answered == asked[info.model_id] == result.metrics["queries/paid"] > 20 * 100
    assert spent.accounts["evaluation"].answered == 20
    # the records are those of the same model certified directly, on the same images and noise
    (path,) = tmp_path.glob("runs/evaluations/*/evaluation-*/records/*.jsonl")
    records = certify.read_records(path)
    chosen = np.random.default_rng(0).permutation(len(rows) - 900)[:20]
    images = torch.tensor(rows[900:][chosen] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    function = predict if callable(predict) else predict.predict

    def classify(noisy: torch.Tensor) -> np.ndarray:
        return np.asarray(function(16 * noisy.reshape(len(noisy), -1).numpy().astype(np.float64)))

    direct = certify.SmoothedClassifier(
        classify, certify.Gaussian(0.25), 10, chunk_size=256, batch_size=512, recheck=0
    )
    method = "group_sequential_two_sided"
    expected = direct.certify(images, n0=100, n=500, alpha=0.001, method=method, radii=(0.0, 0.25, 0.5))
    assert records.label.tolist() == labels[900:][chosen].tolist()
    assert records.counts.tolist() == [list(each.counts) for each in expected]
    assert records.radius.tolist() == [each.radius for each in expected]
    right = records.correct & (records.radius >= 0.25)
    assert result.metrics[AT.format(0.25)] == right.mean()
    # files, and the table
    table = mlflow.load_table("certdef_certificates.json", run_ids=[run.info.run_id])
    assert table["radius"].tolist() == records.radius.tolist()
    assert table["row"].tolist() == chosen.tolist()
    assert table["sound"].all()
    assert result.tables["certdef_certificates"].equals(table)
    assert result.artifacts["certdef_records"].content == path.read_text()
    assert result.artifacts["certdef_certified_accuracy"].content.size[0] > 400
    assert f"{metrics[AT.format(0.5)]:.0%}"[:-1] in result.artifacts["certdef_report"].content
    files = {
        each.path for each in mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="certdef")
    }
    assert files == {
        f"certdef/{name}" for name in ("certified_accuracy.png", "records.jsonl", "records.tsv", "report.md")
    }
    # the gate
    good, bad = ({AT.format(0.25): MetricThreshold(bar, greater_is_better=True)} for bar in (0.1, 1.0))
    mlflow.validate_evaluation_results(good, result)
    with pytest.raises(mlflow.MlflowException, match="threshold check failed"):
        mlflow.validate_evaluation_results(bad, result)


@pytest.mark.acceptance
def test_again_it_pays_nothing_and_more_votes_pay_for_what_is_new(
    session: str, digits: Any, asked: Counter[str], tmp_path: Path
) -> None:
    rows, labels = digits
    info, _ = _svm(rows[:900], labels[:900])
    asked.clear()
    held = rows[900:], labels[900:]
    first = evaluate(info.model_uri, *held, method="fixed", n=200)
    paid = asked.copy()
    assert paid.total() == 20 + 20 * 300
    again = evaluate(info.model_uri, *held, method="fixed", n=200)
    assert asked == paid
    assert again.metrics["queries/paid"] == 0
    assert {name: value for name, value in again.metrics.items() if name.startswith("target/")} == {
        name: value for name, value in first.metrics.items() if name.startswith("target/")
    }
    more = evaluate(info.model_uri, *held, method="fixed", n=300, images=22)
    assert more.metrics["queries/paid"] == asked.total() - paid.total() == 2 + 20 * 100 + 2 * 400
    for path in tmp_path.glob("runs/evaluations/*/evaluation-*/records/*"):
        path.unlink()  # the records are gone, the receipts are not
    asked.clear()
    assert (
        evaluate(info.model_uri, *held, method="fixed", n=200).metrics[AT.format(0.25)]
        == first.metrics[AT.format(0.25)]
    )
    assert not asked
    evaluate(info.model_uri, *held, method="fixed", n=200, seed=1)
    assert asked.total() == 20 * 300 + len(set(_sample(1)) - set(_sample(0, 22)))


def test_an_interrupted_evaluation_goes_on_and_pays_for_nothing_twice(
    session: str, digits: Any, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = digits
    info, _ = _svm(rows[:900], labels[:900])
    predict, calls = PyFuncModel.predict, Counter[str]()

    def interrupted(self: Any, data: Any, params: Any = None) -> Any:
        calls["all"] += 1
        if calls["all"] == 5:
            raise KeyboardInterrupt
        return predict(self, data, params)

    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(PyFuncModel, "predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(info.model_uri, rows[900:], labels[900:], method="fixed", n=200)
    assert 20 < asked.total() < 20 + 20 * 300
    result = evaluate(info.model_uri, rows[900:], labels[900:], method="fixed", n=200)
    assert asked.total() == 20 + 20 * 300
    assert result.metrics["queries/spent"] >= asked.total()


def _sample(seed: int, count: int = 20) -> list[int]:
    return np.random.default_rng(seed).permutation(1797 - 900)[:count].tolist()


@pytest.mark.acceptance
def test_a_gate_with_a_baseline_holds_a_better_model_and_stops_a_worse_one(session: str, digits: Any) -> None:
    rows, labels = digits
    good, _ = _svm(rows[:900], labels[:900])
    poor, _ = _svm(rows[:60], labels[:60])
    better, worse = (evaluate(info.model_uri, rows[900:], labels[900:]) for info in (good, poor))
    name = AT.format(0.25)
    gate = {name: MetricThreshold(min_absolute_change=0.05, greater_is_better=True)}
    mlflow.validate_evaluation_results(gate, better, baseline_result=worse)
    with pytest.raises(mlflow.MlflowException, match="minimum absolute change check failed"):
        mlflow.validate_evaluation_results(gate, worse, baseline_result=better)
    # a lower end is a bar that luck in the choice of images does not reach
    assert better.metrics[f"{name}_lower"] < better.metrics[name]


def test_beside_other_evaluators_in_the_callers_run_with_autolog_on(
    session: str, digits: Any, tmp_path: Path
) -> None:
    rows, labels = digits
    mlflow.autolog(log_models=False, silent=True)
    try:
        with mlflow.start_run() as outer:
            info, _ = _svm(rows[:900], labels[:900])
            before = len(mlflow.search_runs(output_format="list"))
            with mlflow.start_run(nested=True) as inner:
                result = mlflow.models.evaluate(
                    info.model_uri,
                    rows[900:1100],
                    targets=labels[900:1100],
                    model_type="classifier",
                    evaluators=["certdef", "default"],
                    evaluator_config={
                        "certdef": CONFIG | {"metric_prefix": "robust_"},
                        "default": {"log_model_explainability": False},
                    },
                )
                assert mlflow.active_run().info.run_id == inner.info.run_id
            mlflow.log_metric("after", 1.0)
            runs = mlflow.search_runs(output_format="list")
    finally:
        mlflow.autolog(disable=True)
    assert len(runs) == before + 1, "the nested run of the caller and no other"
    assert not mlflow.search_traces(return_type="list")
    name = f"robust_{AT.format(0.25)}"
    ours, theirs = (mlflow.get_run(run.info.run_id).data.metrics for run in (inner, outer))
    assert ours[name] == result.metrics[name] == logged(info.model_id)[name]
    assert "accuracy_score" in result.metrics
    assert theirs["after"] == 1.0
    assert not any("certified" in metric for metric in theirs)
    assert result.artifacts["robust_certdef_report"].content


def test_who_names_no_evaluator_does_not_get_it_unasked(
    session: str, digits: Any, asked: Counter[str]
) -> None:
    rows, labels = digits
    info, _ = _svm(rows[:900], labels[:900])
    result = mlflow.models.evaluate(
        info.model_uri,
        rows[900:930],
        targets=labels[900:930],
        model_type="classifier",
        evaluator_config={"log_model_explainability": False},
    )
    assert "accuracy_score" in result.metrics
    assert not any("certified" in name for name in result.metrics)
    asked.clear()
    with pytest.raises(mlflow.MlflowException, match="could not be evaluated"):
        mlflow.models.evaluate(
            info.model_uri,
            rows[900:930],
            targets=labels[900:930],
            model_type="classifier",
            evaluators="certdef",
        )
    assert not asked


def test_what_is_wrong_is_said_at_once_and_before_any_query(
    session: str, digits: Any, asked: Counter[str], tmp_path: Path
) -> None:
    rows, labels = digits
    info, _ = _svm(rows[:900], labels[:900])
    other, _ = _svm(rows[:300], labels[:300])
    evaluate(other.model_uri, rows[900:], labels[900:], images=2, n=100, ledger="mine.db")
    asked.clear()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (
            {"pixel_range": (0, 1), "budget": {"certification": 100, "evaluation": 3}},
            [
                "pixel_range is (0.0, 1.0), but data holds values from 0 to 16",
                "budget, of certification, is 100",
            ],
        ),
        (
            {"image_shape": (8, 9)},
            ["image_shape is (8, 9), 72 values", "the model's signature takes 64 values"],
        ),
        ({"colour": "gray"}, ["unknown key 'colour' of evaluator_config"]),
        ({"num_classes": 7}, ["num_classes is 7, but the target says 10"]),
        ({"ledger": "mine.db"}, ["ledger 'mine.db' belongs to another target"]),
        ({"law": {"family": "gama", "shape": [25]}, "sigma": None}, ["family 'gama'"]),
        ({"method": "fixed", "radii": [0.25], "n": 100, "alpha": 1e-40}, ["alpha 1e-40 certifies nothing"]),
        (
            {"budget": 50_000, "images": 100},
            ["budget, of certification, is 50000, and 100 images x 600 votes"],
        ),
    ]
    for config, said in cases:
        with pytest.raises(ConfigError) as caught:
            evaluate(info.model_uri, rows[900:], labels[900:], **config)
        for words in said:
            assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) == len(said), caught.value
        assert "--" not in str(caught.value)
    with pytest.raises(ConfigError, match="labels of the data go up to 12, but the model has 10 classes"):
        evaluate(info.model_uri, rows[900:], labels[900:] + 3)
    with pytest.raises(ConfigError, match="labels of the data are texts, such as 'digit"):
        evaluate(info.model_uri, rows[900:], np.array([f"digit {label}" for label in labels[900:]]))
    assert not asked
    assert not list(tmp_path.glob(f"runs/evaluations/*{info.model_id}*"))


def test_a_budget_is_a_cap_over_all_evaluations_and_what_was_paid_for_is_kept(
    session: str, digits: Any, asked: Counter[str]
) -> None:
    rows, labels = digits
    info, _ = _svm(rows[:900], labels[:900])
    held, options = (rows[900:], labels[900:]), {"method": "fixed", "n": 100, "budget": 4_000}
    evaluate(info.model_uri, *held, **options)
    asked.clear()
    with pytest.raises(
        surrogates.BudgetExceeded, match=r"raise budget, of certification, to at least 4[0-9]{3}"
    ):
        evaluate(info.model_uri, *held, seed=1, **options)
    assert 0 < asked.total() <= 20
    result = evaluate(info.model_uri, *held, seed=1, **options | {"budget": {"certification": 8_000}})
    assert (
        result.metrics["queries/spent_certification"]
        == result.metrics["queries/budget_certification"]
        == 8_000
    )


def test_names_of_classes_a_normalized_model_and_a_function(
    session: str, digits: Any, asked: Counter[str]
) -> None:
    from sklearn.linear_model import LogisticRegression

    rows, labels = digits
    names = np.array([f"digit {index}" for index in range(10)])
    normalized = (rows / 16 - 0.3) / 0.4
    model = LogisticRegression(max_iter=300).fit(normalized[:900], names[labels[:900]])
    signature = infer_signature(normalized, model.predict(normalized[:900]))
    info = mlflow.sklearn.log_model(model, name="named", signature=signature, **PLAIN)
    form = {"pixel_range": (0, 1), "mean": 0.3, "std": [0.4], "images": 8, "n": 200}
    result = evaluate(info.model_uri, normalized[900:], names[labels[900:]], classes=list(names), **form)
    assert result.metrics["target/clean_accuracy"] > 0.8
    assert set(result.artifacts["certdef_certificates"].content["label"]) <= set(names)

    def function(pixels: np.ndarray) -> np.ndarray:
        assert isinstance(pixels, np.ndarray)
        asked["function"] += len(pixels)
        return model.predict_proba(pixels)

    with pytest.raises(ConfigError, match="model is a function, which has no name"):
        evaluate(function, normalized[900:], labels[900:], **form)
    assert not asked["function"]
    named = evaluate(function, normalized[900:], labels[900:], identity="digits/1", num_classes=10, **form)
    assert named.metrics[AT.format(0.25)] == result.metrics[AT.format(0.25)]
    assert named.metrics["queries/spent"] == asked["function"]


@pytest.mark.acceptance
def test_the_example_of_the_documentation_runs(
    session: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = Path(__file__).parents[3] / "docs" / "evaluator.md"
    example, *_ = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile(example, str(page), "exec"), {})
    assert re.search(r"certified at 0.25: \d+%", capsys.readouterr().out)
