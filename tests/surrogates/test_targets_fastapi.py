"""A FastAPI service as most people write it, opened by mappings of a few lines, against the model behind it."""

import io
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from surrogates import QueryLedger, Refused, Target, TargetError, open_target
from tests.servers.processes import ROOT, free_port, running

SHAPE = (3, 8, 8)
NAMES = ["cat", "dog", "bird"]
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(192, 3)), RNG.normal(size=3)
# Off the grid of 8 bits, so that rounding is a part of what is certified.
IMAGES = np.clip(RNG.normal(0.5, 0.3, size=(9, *SHAPE)), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the service, in a process of its own."""
    folder = tmp_path_factory.mktemp("classifier")
    np.savez(folder / "weights.npz", weight=WEIGHT, bias=BIAS, names=np.array(NAMES))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.servers.classifier:app", "--port", str(port)]
    variables = {"CLASSIFIER": str(folder / "weights.npz"), "PYTHONPATH": str(ROOT)}
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/served", folder / "uvicorn.log", variables):
        yield address


def opened(path: Path, text: str, **options: Any) -> Target:
    (path / "service.yaml").write_text(text)
    return open_target(path / "service.yaml", input_shape=SHAPE, **options)


def got(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def truth(images: np.ndarray, quality: int | None = None) -> np.ndarray:
    """The model's probabilities of images as files."""
    pixels = np.rint(images.transpose(0, 2, 3, 1).astype(np.float64) * 255).astype(np.uint8)
    if quality is not None:
        pixels = np.stack([through_jpeg(image, quality) for image in pixels])
    sums = pixels.reshape(len(pixels), -1) / 255 @ WEIGHT + BIAS
    powers = np.exp(sums - sums.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())))


UPLOAD = """
url: {url}/predict
images: png
send: multipart
request: {{file: $images}}
labels: class
scores: confidence
classes: [cat, dog, bird]
"""
CLASS_NAME = """
url: {url}/classify
images: png
request: {{image: $images}}
labels: label
classes: [cat, dog, bird]
"""
DATA_URL = """
url: {url}/url
images: jpeg
quality: 80
request: {{input: {{image_url: {{url: "data:image/jpeg;base64,$images"}}}}, top: 3}}
labels: choices.*.name
scores: choices.*.p
classes: [cat, dog, bird]
output_kind: probabilities
"""
RAW = """
url: {url}/raw?top=1&options={{"soft":true}}
images: png
send: raw
headers: {{X-Model: v2}}
scores: predictions
classes: [cat, dog, bird]
"""
RAW_JPEG = RAW.replace("images: png", "images: jpeg")
FILES = """
url: {url}/batch
images: png
send: multipart
per_request: 4
request: {{files: $images, model: v2}}
answers: results
scores: scores
classes: [cat, dog, bird]
"""
FORM = """
url: {url}/form
images: png
send: form
request: {{image: $images, details: {{soft: true}}}}
scores: probabilities
num_classes: 3
"""


def test_a_file_upload_that_answers_the_best_class_and_its_confidence(service: str, tmp_path: Path) -> None:
    target = opened(tmp_path, UPLOAD.format(url=service))
    assert (target.output_kind, target.num_classes, target.charged_when_sent) == ("top_k", 3, True)
    answers, known = target.query(IMAGES), truth(IMAGES)
    np.testing.assert_array_equal(answers.labels, known.argmax(axis=1))
    assert len(set(answers.labels)) > 1
    np.testing.assert_allclose(np.nanmax(answers.scores, axis=1), known.max(axis=1), rtol=1e-6)


def test_base64_in_and_a_class_name_out(service: str, tmp_path: Path) -> None:
    answers = opened(tmp_path, CLASS_NAME.format(url=service)).query(IMAGES)
    assert answers.scores is None
    np.testing.assert_array_equal(answers.labels, truth(IMAGES).argmax(axis=1))


@pytest.mark.parametrize(
    ("mapping", "quality", "requests"),
    [(DATA_URL, 80, 9), (RAW, None, 9), (RAW_JPEG, 95, 9), (FILES, None, 3), (FORM, None, 9)],
    ids=["data url of a jpeg", "raw png", "raw jpeg", "several files", "form"],
)
def test_all_scores_come_back(
    mapping: str, quality: int | None, requests: int, service: str, tmp_path: Path
) -> None:
    target = opened(tmp_path, mapping.format(url=service))
    before = got(f"{service}/served")
    answers = target.query(IMAGES)
    np.testing.assert_allclose(answers.scores, truth(IMAGES, quality), rtol=1e-5)
    after = got(f"{service}/served")
    assert after["requests"] - before["requests"] == requests
    assert after["pictures"] - before["pictures"] == 9


def test_one_probability_is_that_of_the_positive_class(service: str, tmp_path: Path) -> None:
    mapping = (
        "url: {url}/binary\nimages: png\nsend: multipart\nrequest: {{file: $images}}\nscores: probability\n"
    )
    share = truth(IMAGES)[:, 0]
    for more, positive in (
        ("classes: [cat, other]\npositive: cat\n", 0),
        ("classes: [other, cat]\npositive: cat\n", 1),
        ("num_classes: 2\npositive: 0\n", 0),
        ("num_classes: 2\n", 1),
        ("classes: [off, on]\npositive: off\n", 0),  # what YAML takes for a truth value
    ):
        target = opened(tmp_path, mapping.format(url=service) + more)
        assert target.num_classes == 2
        scores = target.query(IMAGES).scores
        np.testing.assert_allclose(scores[:, positive], share, rtol=1e-6)
        np.testing.assert_allclose(scores[:, 1 - positive], 1 - share, rtol=1e-5)


def test_busy_and_broken_answers_are_on_the_bill_as_they_were(service: str, tmp_path: Path) -> None:
    target = opened(tmp_path, UPLOAD.format(url=service))
    before = got(f"{service}/served")["pictures"]
    got(f"{service}/trouble?statuses=429,0,500,0,429,429,0")
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        paid = ledger.attach(target)
        answers = paid.query(IMAGES)
        np.testing.assert_array_equal(answers.labels, truth(IMAGES).argmax(axis=1))
        bill = ledger.bill()["training"]
        assert (bill.answered, bill.unknown) == (9, 1)  # the 500 came after the work was done
        assert got(f"{service}/served")["pictures"] - before == 10
        paid.query(IMAGES)
        assert ledger.bill()["training"].answered == 9


def test_what_a_service_refuses_is_named_and_free(service: str, tmp_path: Path) -> None:
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        wrong = opened(tmp_path, RAW.replace("v2", "v1").format(url=service))
        with pytest.raises(Refused, match=r"answered 415 .*cannot take image/png with v1"):
            ledger.attach(wrong).query(IMAGES)
        assert (ledger.bill()["training"].answered, ledger.bill()["training"].unknown) == (0, 0)
    named = FILES.replace("files:", "photos:").format(url=service)
    with pytest.raises(Refused, match=r"answered 422 .*files"):
        opened(tmp_path, named).query(IMAGES)


def test_what_changes_an_answer_is_another_target_and_what_does_not_is_not(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    identities = {
        name: opened(tmp_path, text.format(url=url)).identity
        for name, text in {
            "png": RAW,
            "jpeg": RAW_JPEG,
            "quality": RAW_JPEG + "quality: 90\n",
            "header": RAW.replace("v2", "v1"),
            "form": FORM,
            "multipart": FORM.replace("send: form", "send: multipart"),
            "filename": UPLOAD + "filename: photo.png\n",
        }.items()
    }
    assert len(set(identities.values())) == 7
    paced = opened(tmp_path, RAW.format(url=url) + "rate: 5\ntimeout: 3\n")
    assert paced.identity == identities["png"]
    assert opened(tmp_path, RAW.format(url=url)).preprocessing == "8 bits, uint8, 0..255"
    named = DATA_URL + "identity: mine\n"
    kinds = {
        opened(tmp_path, text.format(url=url)).subject
        for text in (named, named.replace("80", "81"), named.replace("jpeg\nq", "png\n#q"))
    }
    assert kinds == {
        ("mine", "probabilities", f"8 bits, uint8, 0..255{lossy}") for lossy in ("", ", jpeg 80", ", jpeg 81")
    }


def test_rate_and_timeout_of_a_mapping_give_way_to_the_callers(service: str, tmp_path: Path) -> None:
    from surrogates.targets.served import HttpTarget

    target = opened(tmp_path, RAW.format(url=service) + "rate: 50\ntimeout: 7\n", timeout=3)
    assert isinstance(target, HttpTarget)
    assert (target.options.rate, target.options.timeout) == (50, 3)
    assert target.options.headers == {"X-Model": "v2"}


def test_a_query_with_braces_reaches_the_service_as_it_stands(service: str, tmp_path: Path) -> None:
    escaped = RAW.replace('{{"soft":true}}', quote('{"soft":true}')).format(url=service)
    np.testing.assert_allclose(opened(tmp_path, escaped).query(IMAGES).scores, truth(IMAGES), rtol=1e-5)


def test_headers_of_the_caller_reach_any_service_and_are_part_of_its_name(
    service: str, tmp_path: Path
) -> None:
    text = RAW.replace("headers: {{X-Model: v2}}\n", "").format(url=service)
    plain = opened(tmp_path, text)
    with pytest.raises(Refused, match="cannot take"):
        plain.query(IMAGES)
    named = opened(tmp_path, text, headers={"X-Model": "v2"})
    np.testing.assert_allclose(named.query(IMAGES).scores, truth(IMAGES), rtol=1e-5)
    assert named.identity != plain.identity
    for headers, message in (
        ({"Authorization": "Bearer hush"}, "header Authorization is a secret"),
        ({"Cookie": "id=1"}, "header Cookie is a secret"),
        ("X-Model: v2", "headers must map"),
    ):
        with pytest.raises(TargetError, match=message) as caught:
            opened(tmp_path, text, headers=headers)
        assert "hush" not in str(caught.value)
    server = f"{service}/invocations"
    marked = open_target(server, num_classes=3, headers={"X-Model": "v2"}).identity
    assert marked.startswith(f"{server}#headers-")
    assert open_target(server, num_classes=3).identity == server


def test_a_bare_address_is_told_a_mapping_to_start_from(service: str, tmp_path: Path) -> None:
    with pytest.raises(
        TargetError, match=r"no protocol for 'http://127.* NAME.yaml that describes the"
    ) as caught:
        open_target(f"{service}/predict", num_classes=3)
    text = str(caught.value)
    assert "\n" not in text
    mapping = text[text.index("{") :].replace("[cat, dog]", "[cat, dog, bird]")
    answers = opened(tmp_path, mapping).query(IMAGES)
    np.testing.assert_array_equal(answers.labels, truth(IMAGES).argmax(axis=1))


CHAT = """
url: {url}/v1/chat/completions
images: png
request:
  model: sees
  messages:
    - role: user
      content:
        - {{type: text, text: "cat, dog or bird? Answer with one word."}}
        - {{type: image_url, image_url: {{url: "data:image/png;base64,$images"}}}}
labels: choices.0.message.content
classes: [cat, dog, bird]
"""


def test_a_chat_that_sees_images_is_a_classifier(service: str, tmp_path: Path) -> None:
    answers = opened(tmp_path, CHAT.format(url=service)).query(IMAGES)
    np.testing.assert_array_equal(answers.labels, truth(IMAGES).argmax(axis=1))
