"""What targets answer, in every form and by every protocol: the kind is told by the first answer, which is paid once."""

import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import surrogates
from surrogates import LedgerError, QueryLedger, SurrogateError, TargetError, open_target
from surrogates.targets.classes import ClassNames
from surrogates.targets.http import Reply
from surrogates.targets.kinds import kind_of_op
from surrogates.targets.open_inference import OpenInference
from surrogates.targets.records import Expected, unpack
from tests.servers.loopback import Handler, serving
from tests.servers.open_inference import Model, open_inference_server

SHAPE, CLASSES = (1, 4, 4), 4
NAMES = ["cat", "dog", "eel", "fox"]
IMAGES = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(16, CLASSES))


def logits(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) @ WEIGHT


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def probabilities(images: np.ndarray) -> np.ndarray:
    return softmax(logits(images))


TRUTH = logits(IMAGES).argmax(axis=1)
Pair = namedtuple("Pair", "features scores")


@dataclass
class Output:
    """As Hugging Face's models answer."""

    logits: Any
    loss: Any = None


def best(scores: np.ndarray, k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


# What a function or a module makes of its logits (N, K), and the kind that its first answer tells.
FORMS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "logits": (lambda z: z, "logits"),
    "probabilities": (softmax, "probabilities"),
    "rounded": (lambda z: softmax(z).round(2), "probabilities"),
    "log-probabilities": (lambda z: np.log(softmax(z)), "logits"),
    "one-hot": (lambda z: np.eye(CLASSES)[z.argmax(1)], "probabilities"),
    "labels": (lambda z: z.argmax(1), "labels"),
    "labels as floats": (lambda z: z.argmax(1).astype(np.float32), "labels"),
    "labels in a column": (lambda z: z.argmax(1)[:, None], "labels"),
    "list": (lambda z: z.tolist(), "logits"),
    "list of rows": (list, "logits"),
    "list of single answers": (lambda z: [row[None] for row in z], "logits"),
    "list of one output": (lambda z: [z], "logits"),
    "convolution": (lambda z: z[:, :, None, None], "logits"),
    "dictionary": (lambda z: {"logits": z, "features": np.zeros((len(z), 9))}, "logits"),
    "dictionary of other names": (lambda z: {"x": np.zeros((len(z), 9)), "y": z}, "logits"),
    "data class": (lambda z: Output(z), "logits"),
    "named tuple": (lambda z: Pair(np.zeros((len(z), 9)), softmax(z)), "probabilities"),
    "tuple": (lambda z: (z, np.zeros((len(z), 9))), "logits"),
    "labels and scores": (lambda z: (z.argmax(1), softmax(z)), "probabilities"),
    "labels and how sure": (
        lambda z: {"label": z.argmax(1), "scores": softmax(z).max(1)},
        "labels",
    ),
    "best two": (lambda z: best(softmax(z)), "top_k"),
    "best two, scores first": (lambda z: best(softmax(z))[::-1], "top_k"),
    "all, ranked": (
        lambda z: dict(zip(("labels", "scores"), best(softmax(z), CLASSES), strict=True)),
        "top_k",
    ),
}


class Network(torch.nn.Module):
    """The same linear classifier, as a module."""

    def __init__(self, form: Callable[[np.ndarray], Any], tensors: bool) -> None:
        super().__init__()
        self.form, self.tensors = form, tensors

    def forward(self, images: torch.Tensor) -> Any:
        return (
            as_tensors(self.form(logits(images.numpy())))
            if self.tensors
            else self.form(logits(images.numpy()))
        )


def as_tensors(output: Any) -> Any:
    if isinstance(output, np.ndarray):
        return torch.from_numpy(output)
    if isinstance(output, dict):
        return {name: as_tensors(part) for name, part in output.items()}
    if type(output) in (tuple, list):
        return type(output)(as_tensors(part) for part in output)
    return output


@pytest.mark.parametrize("source", ["function", "module", "module of tensors"])
@pytest.mark.parametrize(("form", "kind"), FORMS.values(), ids=FORMS.keys())
def test_every_form_is_the_model_behind_it(form: Any, kind: str, source: str) -> None:
    made = {
        "function": lambda images: form(logits(images)),
        "module": Network(form, tensors=False),
        "module of tensors": Network(form, tensors=True),
    }
    target = open_target(made[source], num_classes=CLASSES, identity="it")
    answers = target.query(IMAGES)
    np.testing.assert_array_equal(answers.labels, TRUTH)
    assert (target.output_kind, target.subject[1]) == (kind, kind)
    if kind == "labels":
        assert answers.scores is None
    elif kind == "logits":
        np.testing.assert_allclose(softmax(answers.scores), probabilities(IMAGES), atol=1e-5)
    else:
        np.testing.assert_allclose(np.nanmax(answers.scores, 1), form_max(form), atol=1e-6)
    # The kind stays what it is, also for a single image.
    np.testing.assert_array_equal(target.query(IMAGES[:1]).labels, TRUTH[:1])


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda z: z.to_sparse(),
    "quantized": lambda z: torch.quantize_per_tensor(z.float(), 0.01, 0, torch.qint32),
    "bfloat16": lambda z: z.bfloat16(),
    "with a gradient": lambda z: z.clone().requires_grad_(),
    "rows with a gradient": lambda z: list(z.clone().requires_grad_()),
    "a row each with a gradient": lambda z: [row[None] for row in z.clone().requires_grad_()],
}


@pytest.mark.parametrize("form", TENSORS.values(), ids=TENSORS.keys())
def test_every_tensor_is_an_array(form: Any) -> None:
    target = open_target(
        lambda images: form(torch.tensor(logits(images))), num_classes=CLASSES, identity="it"
    )
    np.testing.assert_array_equal(target.query(IMAGES).labels, TRUTH)


def form_max(form: Any) -> np.ndarray:
    """The largest score of each image."""
    output = form(logits(IMAGES))
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    return next(
        np.max(part, axis=1)
        for part in parts
        if np.max(part) <= 1 and np.ndim(part) == 2 and np.max(part) > 0
    )


BINARY = {  # one score for two classes
    "sigmoid (N, 1)": (lambda z: 1 / (1 + np.exp(-z[:, None])), "probabilities"),
    "sigmoid (N,)": (lambda z: 1 / (1 + np.exp(-z)), "probabilities"),
    "logit (N,)": (lambda z: z, "logits"),
    "certain": (lambda z: (z > 0).astype(np.float64), "probabilities"),
    "integers": (lambda z: (z > 0).astype(int), "labels"),
    "truth values": (lambda z: z > 0, "labels"),
}


@pytest.mark.parametrize(("form", "kind"), BINARY.values(), ids=BINARY.keys())
def test_one_score_for_two_classes(form: Any, kind: str) -> None:
    score = 3 * logits(IMAGES)[:, 0] - 3 * np.median(logits(IMAGES)[:, 0]) + 0.01
    target = open_target(lambda images: form(score[: len(images)]), num_classes=2, identity="it")
    answers = target.query(IMAGES)
    assert target.output_kind == kind
    assert answers.labels.tolist() == (score > 0).astype(int).tolist()
    if kind != "labels":
        assert answers.scores.shape == (7, 2)


REFUSED: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "two heads": (
        lambda z: (z, z),
        r"a tuple of 2, .* give output, the place of one: 0 \(float64 \(7, 4\)\), 1",
    ),
    "two named": (lambda z: {"a": z, "b": z}, r"answered a \(float64 \(7, 4\)\), b .*: give output"),
    "no scores": (lambda z: {"pooled": z[:, :3], "hidden": z[:, :2]}, r"pooled .* give output"),
    "percentages": (lambda z: softmax(z) * 100, r"sum to 100, as percentages or counts do"),
    "counts": (lambda z: np.zeros_like(z) + np.arange(1, 5), r"sum to 10, as percentages or counts do"),
    "names": (lambda z: [NAMES[k] for k in z.argmax(1)], r"got '\w+': if these are names, give classes"),
    "fractions of labels": (lambda z: z[:, 0], r"label .*, expected an integer in \[0, 4\)"),
    "nothing": (lambda z: None, r"expected numbers"),
    "complex": (lambda z: torch.tensor(z).to(torch.complex64), r"complex64, expected real numbers"),
}


@pytest.mark.parametrize(("form", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_an_answer_does_not_tell_is_refused(form: Any, message: str) -> None:
    target = open_target(lambda images: form(logits(images)), num_classes=CLASSES, identity="it")
    with pytest.raises(TargetError, match=message) as caught:
        target.query(IMAGES)
    assert "\n" not in str(caught.value)
    assert target.kind.is_assumed  # nothing was learned from it


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (
            np.eye(CLASSES)[[1]],
            [[-3.0, 1, 8, 2]],
            r"8, expected probabilities in .*taken as probabilities since",
        ),
        (np.array([2]), [[0.1, 0.2, 0.3, 0.4]], r"shape \(1, 4\), expected \(1,\).*taken as labels since"),
        ([[0.0, 0, 0, 0]], [[0.1, 0.2, 0.3, 0.4]], r"sum to 1 as logits: .*taken as logits since"),
    ],
    ids=["one-hot", "labels", "zeros"],
)
def test_a_later_answer_that_contradicts_is_an_error(first: Any, then: Any, message: str) -> None:
    said = iter([first, then])
    module = Network(lambda z: torch.tensor(np.array(next(said))), tensors=False)
    target = open_target(module, num_classes=CLASSES)
    target.query(IMAGES[:1])
    with pytest.raises(TargetError, match=message):
        target.query(IMAGES[1:2])


def test_a_declared_kind_wins_and_is_checked() -> None:
    target = open_target(logits, num_classes=CLASSES, output_kind="probabilities")
    assert not target.kind.is_assumed
    with pytest.raises(TargetError, match="expected probabilities"):
        target.query(IMAGES)
    with pytest.raises(TargetError, match="output_kind must be one of"):
        open_target(logits, num_classes=CLASSES, output_kind="scores")


def test_the_head_that_is_wanted_of_a_tuple_that_became_json() -> None:
    heads = [[[0.2, 0.8], [0.9, 0.1]], [[1, 2, 3], [3, 2, 1]]]
    for output in (0, "0"):
        assert unpack(heads, None, Expected(2, 2, None, output)) == heads[0]
    assert unpack([[1, 0, 1], [0.9, 0.8, 0.7]], None, Expected(3, 2, None, 0)) == [1, 0, 1]
    with pytest.raises(TargetError, match="the model answers one array: leave it out"):
        unpack([[0.2, 0.8], [0.9, 0.1]], None, Expected(2, 2, None, 0))


def test_the_part_that_is_wanted() -> None:
    def heads(images: np.ndarray) -> Any:
        return {"a": -logits(images), "b": logits(images)}

    for output in ("b", 1, "1"):
        chosen = open_target(heads, num_classes=CLASSES, output=output)
        np.testing.assert_array_equal(chosen.query(IMAGES).labels, TRUTH)
    pair = open_target(lambda images: (-logits(images), logits(images)), num_classes=CLASSES, output=1)
    np.testing.assert_array_equal(pair.query(IMAGES).labels, TRUTH)
    with pytest.raises(TargetError, match=r"output is 'c', but the model answers a \(float64"):
        open_target(heads, num_classes=CLASSES, output="c").query(IMAGES)
    with pytest.raises(TargetError, match=r"output is 0, but the model answers one array: leave it out"):
        open_target(logits, num_classes=CLASSES, output=0).query(IMAGES)
    for wrong in (-1, True, ""):
        with pytest.raises(TargetError, match="output must be the name or the place of a part"):
            open_target(logits, num_classes=CLASSES, output=wrong)


# Names of classes

NAMED: dict[str, tuple[Callable[[np.ndarray], Any], Any]] = {
    "texts": (lambda z: [NAMES[k] for k in z.argmax(1)], NAMES),
    "an array of texts": (lambda z: np.array(NAMES)[z.argmax(1)], NAMES),
    "indices": (lambda z: z.argmax(1), NAMES),
    "scores": (lambda z: z, NAMES),
    "from 1": (lambda z: z.argmax(1) + 1, [1, 2, 3, 4]),
    "from 1, as floats": (lambda z: z.argmax(1) + 1.0, [1, 2, 3, 4]),
    "unordered": (lambda z: np.array([7, 3, 5, 1])[z.argmax(1)], [7, 3, 5, 1]),
    "a map": (lambda z: np.array(["d", "c", "b", "a"])[z.argmax(1)], {"a": 3, "b": 2, "c": 1, "d": 0}),
    "best two": (lambda z: {"label": np.array(NAMES)[best(z)[0]], "scores": best(softmax(z))[1]}, NAMES),
}


@pytest.mark.parametrize(("form", "classes"), NAMED.values(), ids=NAMED.keys())
def test_names_of_classes(form: Any, classes: Any) -> None:
    target = open_target(lambda images: form(logits(images)), classes=classes, identity="it")
    np.testing.assert_array_equal(target.query(IMAGES).labels, TRUTH)
    in_order = sorted(classes, key=classes.get) if isinstance(classes, dict) else classes
    assert target.class_names == tuple(map(str, in_order))
    assert open_target(logits, num_classes=CLASSES).class_names is None


# Paid once


class Service:
    """A function that counts its images."""

    def __init__(self, form: Callable[[np.ndarray], Any]) -> None:
        self.form, self.served = form, 0

    def __call__(self, images: np.ndarray) -> Any:
        self.served += len(images)
        return self.form(logits(images))


@pytest.mark.parametrize("purpose", ["training", "attack"])
@pytest.mark.parametrize("name", ["logits", "probabilities", "labels", "best two"])
def test_a_kind_that_was_told_is_known_again_and_nothing_is_paid_twice(
    name: str, purpose: str, tmp_path: Path
) -> None:
    """Told by the first answer, then known from the kept ones; declared before, or after: always the same receipts."""
    form, kind = FORMS[name]
    for place, (first, then) in enumerate(
        [({}, {}), ({}, {"output_kind": kind}), ({"output_kind": kind}, {})]
    ):
        service = Service(form)
        for number, (options, spent) in enumerate([(first, 4), (then, 7)]):
            with QueryLedger(tmp_path / f"{place}.db", {purpose: 7}) as ledger:
                target = open_target(service, num_classes=CLASSES, identity="it", **options)
                paid = ledger.attach(target, purpose=purpose, experiment="one")
                answers = paid.query(IMAGES if number else IMAGES[:4])
                np.testing.assert_array_equal(answers.labels, TRUTH[: len(answers)])
                assert (answers.scores is None) == (kind == "labels")
                assert (paid.output_kind, target.output_kind) == (kind, kind)
                assert (service.served, ledger.bill()[purpose].answered) == (spent, spent)


def test_kept_answers_of_another_kind_are_not_handed_out(tmp_path: Path) -> None:
    service = Service(FORMS["logits"][0])
    with QueryLedger(tmp_path / "ledger.db", 20) as ledger:
        ledger.attach(open_target(service, num_classes=CLASSES, identity="it")).query(IMAGES)
    with QueryLedger(tmp_path / "ledger.db", 20) as ledger:
        wrong = open_target(service, num_classes=CLASSES, identity="it", output_kind="probabilities")
        with pytest.raises(
            LedgerError, match=r"keeps logits .*output_kind is 'probabilities': leave output_kind out"
        ):
            ledger.attach(wrong).query(IMAGES)
    assert service.served == 7


def test_votes_are_labels_whatever_the_kind(tmp_path: Path) -> None:
    service = Service(FORMS["logits"][0])
    for _ in range(2):
        with QueryLedger(tmp_path / "ledger.db", {"certification": 7}) as ledger:
            target = open_target(service, num_classes=CLASSES, identity="it")
            votes = ledger.attach(target, purpose="certification", experiment="one").query(IMAGES)
            assert votes.scores is None
            np.testing.assert_array_equal(votes.labels, TRUTH)
    assert service.served == 7


def test_a_loss_waits_for_the_kind_and_is_checked_at_the_first_answer() -> None:
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, CLASSES))
    told = Service(FORMS["labels"][0])
    made = surrogates.distill(
        open_target(told, num_classes=CLASSES, identity="it"),
        IMAGES,
        student,
        budget=7,
        epochs=1,
        query_batch=2,
    )
    assert made.loss == "cross_entropy"
    served = told.served
    with pytest.raises(SurrogateError, match="for a target that answers labels, got 'l1'"):
        surrogates.distill(
            open_target(told, num_classes=CLASSES, identity="it"),
            IMAGES,
            student,
            budget=7,
            epochs=1,
            query_batch=2,
            loss="l1",
        )
    assert told.served == served + 2  # and not the whole budget


# Protocols


@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("protocol", ["scoring server", "open inference", "json"])
def test_services_tell_their_kind(protocol: str, kind: str, tmp_path: Path) -> None:
    form = FORMS[kind][0]
    if protocol == "open inference":
        whole = kind == "labels"
        images = {"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}
        output = {
            "name": "y",
            "datatype": "INT64" if whole else "FP32",
            "shape": [-1] if whole else [-1, CLASSES],
        }
        model = Model(lambda pixels: {"y": np.asarray(form(logits(pixels)))}, [images], [output])
        with open_inference_server(model) as url:
            target = open_target(url, num_classes=CLASSES)
            assert model.served == 0
            labels = target.query(IMAGES).labels
    else:

        class Server(Handler):
            def do_POST(self) -> None:
                pixels = np.array(json.loads(self.body())["inputs"], np.float32)
                self.reply({"predictions": np.asarray(form(logits(pixels))).tolist()})

            def do_GET(self) -> None:
                self.reply({})

        with serving(Server) as url:
            if protocol == "json":
                path = "labels" if kind == "labels" else "scores"
                mapping = f'url: {url}/x\nrequest: {{inputs: $images}}\nanswers: predictions\n{path}: ""\n'
                (tmp_path / "map.yaml").write_text(f"{mapping}num_classes: 4\nper_request: 4\n")
                target = open_target(tmp_path / "map.yaml")
            else:
                target = open_target(f"{url}/invocations", num_classes=CLASSES, batch_size=2, concurrency=3)
            labels = target.query(IMAGES).labels
    np.testing.assert_array_equal(labels, TRUTH)
    assert target.output_kind == kind


def test_open_inference_answers_names() -> None:
    images = {"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}
    output = {"name": "animal", "datatype": "BYTES", "shape": [-1]}
    model = Model(lambda pixels: {"animal": np.zeros(len(pixels))}, [images], [output], extensions=())
    said = [NAMES[label] for label in TRUTH]
    model.alter = lambda answer: {"outputs": [output | {"shape": [7], "data": said}]}
    with open_inference_server(model) as url:
        with pytest.raises(
            TargetError, match=r"answers BYTES, expected numbers: if these are names, give classes"
        ):
            open_target(url, num_classes=CLASSES)
        assert model.served == 0
        target = open_target(url, classes=NAMES)
        np.testing.assert_array_equal(target.query(IMAGES).labels, TRUTH)
    assert (target.output_kind, target.class_names) == ("labels", tuple(NAMES))


@pytest.mark.parametrize("cut", [0, 1])
def test_open_inference_answers_names_as_bytes(cut: int) -> None:
    raw = b"".join(len(name).to_bytes(4, "little") + name.encode() for name in ("eel", "cat"))
    raw = raw[: len(raw) - cut]
    tensor = {"name": "animal", "datatype": "BYTES", "shape": [2]}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"outputs": [tensor]}).encode()
    reply = Reply(head + raw, {"Inference-Header-Content-Length": str(len(head))})
    wire = OpenInference("http://x", "image", "FP32", "animal", True, names=ClassNames.of(NAMES))
    if not cut:
        assert wire.decode(reply, 2).tolist() == [2, 0]
        return
    with pytest.raises(TargetError, match="does not fill its shape"):
        wire.decode(reply, 2)


@pytest.mark.parametrize(
    ("op", "columns", "kind"),
    [
        ("Softmax", 10, "probabilities"),
        ("LogSoftmax", 10, "logits"),
        ("Sigmoid", 1, "probabilities"),
        ("Sigmoid", 10, None),
        ("Gemm", 10, "logits"),
        ("FULLY_CONNECTED", 10, "logits"),
        ("LOGISTIC", 1, "probabilities"),
        ("SOFTMAX", 10, "probabilities"),
        ("Mul", 10, None),
    ],
)
def test_the_last_operation_tells_the_kind(op: str, columns: int, kind: str | None) -> None:
    assert kind_of_op(op, columns) == kind


class Fitted:
    """An estimator as people write them: names in classes_, and what its methods answer given."""

    def __init__(
        self, classes: list[str], answer: Callable[[int], Any], shares: list[float] | None = None
    ) -> None:
        self.classes_, self._answer = np.array(classes), answer
        if shares is not None:
            self.predict_proba = lambda rows: np.tile(shares, (len(rows), 1))

    def fit(self, rows: Any) -> "Fitted":
        return self

    def predict(self, rows: np.ndarray) -> Any:
        return self._answer(len(rows))


@pytest.mark.parametrize("label", [1, "cow"])
def test_an_estimator_that_answers_what_is_not_among_its_classes_is_refused(label: Any) -> None:
    """The next class in the alphabet would be a wrong label without a word."""
    model = Fitted(["cat", "dog"], lambda count: np.array([label] * count))
    target = open_target(model, classes=["cat", "dog"], layout="flat", identity="odd")
    with pytest.raises(TargetError, match=f"answered label {label!r}, which is not among its classes_"):
        target.query(IMAGES)


def test_classes_of_one_index_are_added_up() -> None:
    model = Fitted(["cat", "dog", "kitten"], lambda count: np.array(["cat"] * count), [0.4, 0.3, 0.3])
    target = open_target(model, classes={"cat": 0, "kitten": 0, "dog": 1}, layout="flat", identity="two")
    np.testing.assert_allclose(target.query(IMAGES).scores, np.tile([0.7, 0.3], (7, 1)), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_unnamed_classes_in_a_changing_order_are_refused(rows: int) -> None:
    """Services list the best class first; without `classes` the order of the fields is that of the classes."""
    first, second = {"cat": 0.7, "dog": 0.2, "eel": 0.1}, {"dog": 0.6, "cat": 0.3, "eel": 0.1}

    def answer(images: np.ndarray) -> Any:
        return [first, second] if len(images) == 2 else [first if images.mean() < 0.5 else second]

    batches = [IMAGES[:2]] if rows == 2 else [np.zeros_like(IMAGES[:1]), np.ones_like(IMAGES[:1])]
    target = open_target(answer, num_classes=3, identity="ranked")
    *before, last = batches
    for batch in before:
        target.query(batch)
    with pytest.raises(TargetError, match="in more than one order, and they are the classes: give classes"):
        target.query(last)
    named = open_target(answer, classes=["dog", "cat", "eel"], identity="named")
    answers = np.concatenate([named.query(batch).labels for batch in batches])
    np.testing.assert_array_equal(answers, [1, 0])
