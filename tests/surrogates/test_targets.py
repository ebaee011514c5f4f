"""Every kind of target answers as the model behind it does, and refuses what it cannot take."""

import copy
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from surrogates import ClassesUnknown, SurrogateError, Target, TargetError, open_target

# MLflow and SQLAlchemy warn about themselves while they are imported, so warnings cannot all be errors here.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, *SHAPE), labels


@pytest.fixture(scope="module")
def logistic(digits: tuple[np.ndarray, np.ndarray]) -> LogisticRegression:
    images, labels = digits
    return LogisticRegression(max_iter=300).fit(images[:800].reshape(800, -1), labels[:800])


@pytest.fixture(scope="module")
def linear(logistic: LogisticRegression) -> torch.nn.Module:
    """The logistic regression as a torch module that returns logits."""
    layer = torch.nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(logistic.coef_))
        layer.bias.copy_(torch.from_numpy(logistic.intercept_))
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), layer)


@pytest.fixture(scope="module")
def mlflow_uris(
    logistic: LogisticRegression, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Real logged models: probabilities and labels, with a 2-D tensor signature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DO_NOT_TRACK", "true")
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        folder = tmp_path_factory.mktemp("mlflow")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = mlflow.create_experiment("targets", artifact_location=(folder / "artifacts").as_uri())
        flat = Schema([TensorSpec(np.dtype("float64"), (-1, 64))])
        outputs = {
            "predict_proba": TensorSpec(np.dtype("float64"), (-1, 10)),
            "predict": TensorSpec(np.dtype("int64"), (-1,)),
        }
        uris = {}
        with mlflow.start_run(experiment_id=experiment):
            for method, output in outputs.items():
                uris[method] = mlflow.sklearn.log_model(
                    logistic,
                    name=method,
                    pyfunc_predict_fn=method,
                    signature=ModelSignature(flat, Schema([output])),
                    pip_requirements=["scikit-learn"],
                    serialization_format="pickle",
                ).model_uri
        yield uris
        mlflow.set_tracking_uri(before)


class Counted:
    """A callable target that counts the images that it gets."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.served = 0

    def __call__(self, images: np.ndarray) -> Any:
        self.served += len(images)
        return self.answer(images)


def ten_classes(images: np.ndarray) -> np.ndarray:
    """Probabilities that depend on the mean pixel alone."""
    level = np.clip(images.mean(axis=(1, 2, 3)), 0, 1)
    scores = np.full((len(images), 10), 0.01)
    scores[np.arange(len(images)), np.minimum((level * 10).astype(int), 9)] = 0.91
    return scores


@pytest.mark.parametrize("kind", ["callable", "labels", "torch", "estimator", "pyfunc", "pyfunc-labels"])
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, np.float64], ids=["np", "torch", "f64"])
def test_every_kind_answers_as_the_model_behind_it(
    kind: str, batch_size: int | None, convert: Any, digits: Any, logistic: Any, linear: Any, request: Any
) -> None:
    images = digits[0][900:940]
    rows = images.reshape(len(images), -1)
    by_kind = {
        "callable": (lambda x: logistic.predict_proba(x.reshape(len(x), -1)), {"num_classes": 10}),
        "labels": (
            lambda x: logistic.predict(x.reshape(len(x), -1)),
            {"num_classes": 10, "output_kind": "labels"},
        ),
        "torch": (linear, {"num_classes": 10}),
        "estimator": (logistic, {}),
    }
    if kind.startswith("pyfunc"):
        uris = request.getfixturevalue("mlflow_uris")
        labels = kind == "pyfunc-labels"
        source, options = (
            uris["predict" if labels else "predict_proba"],
            {"num_classes": 10 if labels else None},
        )
    else:
        source, options = by_kind[kind]
    target = open_target(source, batch_size=batch_size, **options)
    answers = target.query(convert(images))
    assert answers.labels.dtype == np.int64
    np.testing.assert_array_equal(answers.labels, logistic.predict(rows))
    if target.output_kind == "labels":
        assert answers.scores is None
    else:
        assert answers.scores.dtype == np.float32
        scores = answers.scores
        if target.output_kind == "logits":
            scores = torch.from_numpy(scores).softmax(dim=1).numpy()
        np.testing.assert_allclose(scores, logistic.predict_proba(rows), atol=1e-5)
    assert target.num_classes == 10


def test_what_may_be_charged(mlflow_uris: Any, logistic: Any, linear: Any) -> None:
    assert open_target(ten_classes, num_classes=10).charged_when_sent
    assert not open_target(linear, num_classes=10).charged_when_sent
    assert not open_target(logistic).charged_when_sent
    assert not open_target(mlflow_uris["predict_proba"]).charged_when_sent


def test_a_pyfunc_target_reads_its_signature(mlflow_uris: Any, digits: Any) -> None:
    target = open_target(mlflow_uris["predict_proba"])
    assert (target.num_classes, target.output_kind) == (10, "probabilities")
    assert target.identity == open_target(mlflow_uris["predict_proba"]).identity
    assert target.identity != open_target(mlflow_uris["predict"], num_classes=10).identity
    with pytest.raises(TargetError, match=r"takes 64 values per image, got 49"):
        target.query(digits[0][:2, :, :7, :7])
    assert open_target(mlflow_uris["predict"]).num_classes == 10  # as its classes_ say


def test_a_pyfunc_model_of_unknown_code_may_charge(mlflow_uris: Any, tmp_path: Path) -> None:
    import mlflow

    class Service(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):  # MLflow reads type hints as a schema
            return [{"scores": row.tolist()} for row in ten_classes(model_input)]

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Service(), pip_requirements=["numpy"])
    target = open_target(tmp_path / "model", num_classes=10)
    assert target.charged_when_sent
    images = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, *SHAPE), np.float32)
    np.testing.assert_allclose(target.query(images).scores, ten_classes(images), atol=1e-6)


def test_an_unknown_uri_is_named(mlflow_uris: Any) -> None:
    for uri, remedy in (
        ("models:/nothing/1", "the URI and MLFLOW_TRACKING_URI"),
        ("/no/such/model", "the path"),
    ):
        with pytest.raises(TargetError, match=rf"{uri}.*check {remedy}") as caught:
            open_target(uri)
        assert "\n" not in str(caught.value)


NAMES = np.array(["cat", "ant", "bee", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"])
OWN_CLASSES = {  # what a digit is called, and the index that it then stands for
    "from 0": (np.arange(10), range(10)),
    "from 1": (np.arange(1, 11), range(1, 11)),
    "with gaps": (np.arange(10) * 3, range(0, 30, 3)),
    "floats": (np.arange(10.0), range(10)),
    "reversed": (9 - np.arange(10), range(9, -1, -1)),
    "as text": (np.array([str(digit + 2) for digit in range(10)]), range(2, 12)),
}


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(("called", "indices"), OWN_CLASSES.values(), ids=OWN_CLASSES.keys())
def test_the_classes_of_an_estimator_are_what_it_calls_them(
    called: np.ndarray, indices: range, soft: bool, digits: Any
) -> None:
    rows, labels = digits[0].reshape(len(digits[0]), -1), digits[1]
    model = LogisticRegression(max_iter=300).fit(rows[:300], called[labels[:300]])
    target = open_target(model, output_kind=None if soft else "labels")
    answers = target.query(digits[0][300:900])
    truth = np.array(indices)[labels[300:900]]
    assert (answers.labels == truth).mean() > 0.8  # by position: 0.05 for classes from 1
    np.testing.assert_array_equal(answers.labels, [int(label) for label in model.predict(rows[300:900])])
    assert target.num_classes == max(indices) + 1
    if soft:
        assert answers.scores.shape[1] == target.num_classes
        np.testing.assert_allclose(answers.scores.sum(axis=1), 1, atol=1e-6)


def test_named_classes_are_refused_or_listed(digits: Any) -> None:
    images, labels = digits
    rows = images.reshape(len(images), -1)
    model = LinearSVC(dual=False).fit(rows[:300], NAMES[labels[:300]])
    with pytest.raises(TargetError, match=r"LinearSVC has classes 'ant', 'bee', 'cat' ...: give classes="):
        open_target(model)
    target = open_target(model, classes=list(NAMES))
    assert (target.output_kind, target.num_classes) == ("labels", 10)
    said = NAMES[target.query(images[300:400]).labels]
    np.testing.assert_array_equal(said, model.predict(rows[300:400]))
    with pytest.raises(TargetError, match=r"label 'jay', which classes does not list"):
        open_target(model, classes=list(NAMES[:9]))
    with pytest.raises(TargetError, match=r"num_classes is 9, but classes lists 10"):
        open_target(model, classes=list(NAMES), num_classes=9)
    signed = LogisticRegression().fit(rows[:300], np.where(labels[:300] > 4, 1, -1))
    with pytest.raises(TargetError, match=r"has classes -1, 1: give classes"):
        open_target(signed)
    both = open_target(signed, classes=[-1, 1]).query(images[300:900]).labels
    assert (both == (labels[300:900] > 4)).mean() > 0.75


def test_identity_follows_the_order_of_the_classes(digits: Any) -> None:
    """Answers that were kept by position are not handed out for classes by name; all others are."""
    images, labels = digits
    rows = images.reshape(len(images), -1)
    model = LogisticRegression(max_iter=300).fit(rows[:300], NAMES[labels[:300]])
    by_position = open_target(model, classes=list(model.classes_))
    assert by_position.identity.count(":") == 1  # as it was before names could be listed
    assert open_target(model, classes=list(NAMES)).identity.startswith(f"{by_position.identity}:")


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_the_classes_of_a_logged_estimator_are_what_it_calls_them(
    method: str, digits: Any, tmp_path: Path, mlflow_uris: Any
) -> None:
    import mlflow
    from mlflow.models import infer_signature

    images, labels = digits
    rows = images.reshape(len(images), -1)
    model = LogisticRegression(max_iter=300).fit(rows[:300], labels[:300] + 1)
    mlflow.sklearn.save_model(
        model,
        tmp_path / "model",
        pyfunc_predict_fn=method,
        signature=infer_signature(rows[:2], getattr(model, method)(rows[:2])),
        pip_requirements=["scikit-learn"],
        serialization_format="pickle",
    )
    target = open_target(tmp_path / "model")
    assert target.num_classes == 11
    assert (target.query(images[300:900]).labels == labels[300:900] + 1).mean() > 0.8


def test_identity_follows_the_weights(digits: Any, logistic: Any, linear: Any) -> None:
    images, labels = digits
    forest = RandomForestClassifier(5, random_state=0).fit(images[:300].reshape(300, -1), labels[:300])
    other = RandomForestClassifier(5, random_state=1).fit(images[:300].reshape(300, -1), labels[:300])
    for model in (forest, logistic):
        again = pickle.loads(pickle.dumps(model))
        assert open_target(again).identity == open_target(model).identity
    assert open_target(other).identity != open_target(forest).identity

    copy = pickle.loads(pickle.dumps(linear))
    assert open_target(copy, num_classes=10).identity == open_target(linear, num_classes=10).identity
    with torch.no_grad():
        copy[2].bias[0] += 1e-3
    assert open_target(copy, num_classes=10).identity != open_target(linear, num_classes=10).identity
    assert open_target(linear, num_classes=10, identity="mine").identity == "mine"
    assert open_target(ten_classes, num_classes=10).identity.endswith("test_targets.ten_classes")


BAD_IMAGES = {
    "uint8": (np.zeros((2, *SHAPE), np.uint8), r"got uint8: divide 8-bit pixels by 255"),
    "half": (torch.zeros(2, *SHAPE, dtype=torch.bfloat16), r"got bfloat16: convert them to float32"),
    "levels": (np.full((2, *SHAPE), 255, np.float32), r"got max 255.0: divide 8-bit pixels by 255"),
    "above": (np.full((2, *SHAPE), np.nextafter(np.float32(1), np.float32(2))), r"must lie in \[0, 1\]"),
    "below": (np.full((2, *SHAPE), -0.5, np.float32), r"got min -0.5: undo the normalization"),
    "nan": (np.full((2, *SHAPE), np.nan, np.float32), r"must be finite, got nan"),
    "inf": (np.full((2, *SHAPE), np.inf, np.float32), r"must be finite, got inf"),
    "overflow": (np.full((2, *SHAPE), 1e300), r"must be finite, got inf"),
    "3-D": (np.zeros(SHAPE, np.float32), r"shape \(N, C, H, W\), got \(1, 8, 8\)"),
    "empty": (np.zeros((0, *SHAPE), np.float32), r"must not be empty"),
    "list": ([[0.0]], r"torch tensor or a numpy array, got list"),
    "shape": (np.zeros((2, 3, 8, 8), np.float32), r"takes images of shape \(1, 8, 8\), got \(3, 8, 8\)"),
}


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_refused_before_any_query(images: Any, message: str) -> None:
    function = Counted(ten_classes)
    target = open_target(function, num_classes=10, input_shape=SHAPE)
    with pytest.raises(TargetError, match=message) as caught:
        target.query(images)
    assert "\n" not in str(caught.value)
    assert function.served == 0


def test_noisy_images_pass_where_they_may() -> None:
    target = open_target(ten_classes, num_classes=10)
    assert len(target.query(np.full((2, *SHAPE), 1.5, np.float32), bounded=False)) == 2
    with pytest.raises(TargetError, match="finite"):
        target.query(np.full((2, *SHAPE), np.nan, np.float32), bounded=False)


BAD_ANSWERS = {
    "too few classes": (lambda x: ten_classes(x)[:, :9], "probabilities", r"answered 9 classes, expected 10"),
    "too few rows": (lambda x: ten_classes(x)[:1], "probabilities", r"answered 1 rows, expected 2"),
    "nan": (lambda x: ten_classes(x) * np.nan, "probabilities", r"answered nan, expected finite"),
    "logits": (lambda x: ten_classes(x) * 9, "probabilities", r"8.19, expected probabilities.*'logits'"),
    "labels": (lambda x: ten_classes(x).argmax(1), "probabilities", r"output_kind='labels'"),
    "scores": (ten_classes, "labels", r"shape \(2, 10\), expected \(2,\).*'probabilities' or 'logits'"),
    "label 10": (lambda x: np.array([10, 0]), "labels", r"label 10, expected an integer in \[0, 10\)"),
    "label -1": (lambda x: np.array([-1, 0]), "labels", r"label -1"),
    "label 0.5": (lambda x: np.array([0.5, 0]), "labels", r"label 0.5"),
    "words": (lambda x: ["cat", "dog"], "labels", r"answered list, expected numbers, got 'cat'"),
    "texts of numbers": (lambda x: ten_classes(x).astype(str).tolist(), "probabilities", r"got '0.91'"),
    "an array of texts": (
        lambda x: ten_classes(x).astype(str),
        "probabilities",
        r"ndarray, expected numbers",
    ),
    "truth values": (
        lambda x: ten_classes(x) > 0.5,
        "probabilities",
        r"truth values, expected probabilities",
    ),
    "some truth values": (lambda x: [[True, *[0.0] * 9]] * 2, "logits", r"expected numbers, got 'True'"),
    "nothing for a score": (lambda x: [[None, *[0.0] * 9]] * 2, "logits", r"answered nan, expected finite"),
    "ragged rows": (lambda x: [[0.5], [0.5, 0.5]], "logits", r"answered list, expected numbers"),
    "rows of 2.7": (lambda x: ten_classes(x) * 0 + 0.27, "probabilities", r"sums to 2.7, expected.*'logits'"),
    "rows of 0": (lambda x: ten_classes(x) * 0, "probabilities", r"sums to 0, expected probabilities"),
    "a top k of 2.7": (lambda x: ten_classes(x) * 0 + 0.27, "top_k", r"sums to 2.7"),
    "a top k of 0": (lambda x: ten_classes(x) * 0, "top_k", r"sums to 0"),
    "two outputs": (
        lambda x: (ten_classes(x), ten_classes(x)),
        "probabilities",
        r"a tuple of 2, expected numbers: open a",
    ),
    "nothing": (lambda x: None, "labels", r"answered"),
    "huge": (lambda x: ten_classes(x) * 1e300, "logits", r"too large for float32"),
    "failing": (lambda x: 1 / 0, "labels", r"failed on a batch of 2: ZeroDivisionError"),
}


@pytest.mark.parametrize(("function", "kind", "message"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_bad_answers_are_named(function: Any, kind: str, message: str) -> None:
    target = open_target(function, num_classes=10, output_kind=kind, identity="bad")
    with pytest.raises(TargetError, match=message) as caught:
        target.query(np.zeros((2, *SHAPE), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (ten_classes, {}, r"give open_target\(..., num_classes=...\)"),
        (torch.nn.Linear(2, 2), {}, r"Linear does not tell its number of classes"),
        (LogisticRegression(), {}, r"fit it"),
        (ten_classes, {"num_classes": 1}, r"at least 2, got 1"),
        (ten_classes, {"num_classes": 10, "output_kind": "soft"}, r"got 'soft'"),
        (ten_classes, {"num_classes": 10, "batch_size": 0}, r"batch_size must be a positive integer, got 0"),
        (ten_classes, {"num_classes": 10, "input_shape": (8, 8)}, r"\(channels, height, width\)"),
        (ten_classes, {"num_classes": 10, "device": "cpu"}, r"device applies to torch modules"),
        ("https://example.com/model", {}, r"no protocol for"),
        (3, {}, r"cannot open a int"),
        ("net.onx", {}, r"'net.onx' is no folder of an MLflow model, and no NAME.onnx"),
        ("net.pt", {}, r"'net.pt' holds weights or a pickle, .*: log the model with MLflow"),
    ],
)
def test_what_cannot_be_opened(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SurrogateError, match=message):
        open_target(source, **options)


@pytest.mark.parametrize("source", [ten_classes, torch.nn.Linear(2, 2), LogisticRegression()])
def test_an_unknown_number_of_classes_is_an_error_of_its_own(source: Any) -> None:
    with pytest.raises(ClassesUnknown):
        open_target(source)
    with pytest.raises(TargetError) as caught:
        open_target(source, num_classes=1, identity="wrong, not missing")
    assert not isinstance(caught.value, ClassesUnknown)


def test_the_former_spelling_of_quantize_is_accepted() -> None:
    former, spelled = (
        open_target(ten_classes, num_classes=10, **{name: 4}) for name in ("quantise", "quantize")
    )
    assert former.pixels == spelled.pixels
    assert former.preprocessing == "4 bits"


def test_an_opened_target_keeps_its_options() -> None:
    target = open_target(ten_classes, num_classes=10)
    assert open_target(target, num_classes=10) is target
    with pytest.raises(TargetError, match="num_classes of an opened target is 10, got 9"):
        open_target(target, num_classes=9)


def test_probabilities_rounded_to_two_decimals_are_probabilities() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3, 10, 40):
        rows = np.round(rng.dirichlet(np.ones(classes), size=200), 2)
        target = open_target(lambda images, rows=rows: rows[: len(images)], num_classes=classes)
        assert len(target.query(np.zeros((200, *SHAPE), np.float32))) == 200


def test_probabilities_are_not_taken_for_logits(linear: Any) -> None:
    """A student would be taught 0.23 where the target says 1.00."""
    soft, images = torch.nn.Sequential(linear, torch.nn.Softmax(1)), np.zeros((2, *SHAPE), np.float32)
    message = "rows in [0, 1] that sum to 1 as logits: open it with output_kind='probabilities'"
    told = open_target(soft, num_classes=10)
    assert told.query(images).scores.sum() == pytest.approx(2)
    assert told.output_kind == "probabilities"
    declared = open_target(soft, num_classes=10, output_kind="logits")
    with pytest.warns(UserWarning, match=re.escape(message)):
        declared.query(images)
    assert len(declared.query(images)) == 2  # said once
    assert len(open_target(linear, num_classes=10).query(images)) == 2


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_one_score_for_two_classes_is_that_of_class_1(kind: str) -> None:
    images = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, *SHAPE), np.float32)
    level = images.mean(axis=(1, 2, 3))[:, None]
    values = level if kind == "probabilities" else 4 * level - 1.9
    answers = open_target(lambda x: values, num_classes=2, output_kind=kind, identity="one").query(images)
    assert (
        answers.labels.tolist()
        == (values[:, 0] > (0.5 if kind == "probabilities" else 0)).astype(int).tolist()
    )
    expected = np.hstack([1 - values, values] if kind == "probabilities" else [0 * values, values])
    np.testing.assert_allclose(answers.scores, expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_gets_its_own_number_type(dtype: torch.dtype, linear: Any, digits: Any) -> None:
    own = copy.deepcopy(linear).to(dtype)
    answers = open_target(own, num_classes=10).query(digits[0][:20])
    with torch.inference_mode():
        expected = own.eval()(torch.from_numpy(digits[0][:20]).to(dtype)).float().numpy()
    np.testing.assert_array_equal(answers.scores, expected)


class Answering(torch.nn.Module):
    """A linear network that hands out its logits in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.layer, self.form = torch.nn.Linear(64, 4), form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(self.layer(images.flatten(1)))


FORMS = {
    "dict": lambda z: {"logits": z},
    "dict of one": lambda z: {"out": z},
    "attribute": lambda z: SimpleNamespace(logits=z),
    "numpy": lambda z: z.numpy(),
    "list": lambda z: z.tolist(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_module_may_hand_out_its_logits_in_many_forms(form: Any) -> None:
    images = torch.rand(3, *SHAPE)
    module = Answering(form)
    expected = module.layer(images.flatten(1)).detach().numpy()
    np.testing.assert_allclose(open_target(module, num_classes=4).query(images).scores, expected, rtol=1e-6)
    with pytest.raises(TargetError, match="a tuple of 2, expected numbers: open a function"):
        open_target(Answering(lambda z: (z, z)), num_classes=4).query(images)


def test_images_and_answers_are_copies() -> None:
    kept = np.zeros((2, 10), np.float32)
    kept[:, 3] = 1

    def careless(images: np.ndarray) -> np.ndarray:
        images[:] = 0.25
        return kept

    target = open_target(careless, num_classes=10)
    images = np.ones((2, *SHAPE), np.float32)
    answers = target.query(images)
    assert (images == 1).all()
    answers.scores[:] = 7
    answers.labels[:] = 7
    assert (target.query(images).labels == 3).all()
    assert kept.max() == 1


def test_a_subclass_is_a_target_like_any_other() -> None:
    class Parity(Target):
        def answer(self, pixels: np.ndarray) -> np.ndarray:
            return np.arange(len(pixels)) % 2

    target = Parity("parity", 2, "labels", charged_when_sent=False, batch_size=4)
    # Split into batches of 4, 4, 2: the pattern starts anew in each.
    assert target.query(np.zeros((10, *SHAPE), np.float32)).labels.tolist() == [0, 1, 0, 1] * 2 + [0, 1]


def test_the_import_is_light() -> None:
    code = (
        "import sys, surrogates\n"
        "heavy = {'mlflow', 'timm', 'pandas', 'sklearn', 'certdef', 'certify', 'matplotlib'}\n"
        "heavy |= {'httpx', 'tenacity', 'yaml', 'PIL', 'onnxruntime'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
