"""TFLite files: those of a benchmark that nobody here made against the bare interpreter, and every form of input and end."""

import hashlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from surrogates import ClassesUnknown, QueryLedger, TargetError, open_target
from surrogates.targets.tflite_files import last_operator, normalization
from tests.surrogates.tflite_models import linear

SHAPE = (3, 4, 5)
VALUES = 60
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, VALUES)).astype(np.float32)
IMAGES = RNG.uniform(size=(7, *SHAPE)).astype(np.float32)
HWC = (-1, 4, 5, 3)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write


def rows(images: np.ndarray) -> np.ndarray:
    """Images as rows, the channels last."""
    return images.transpose(0, 2, 3, 1).reshape(len(images), -1).astype(np.float64)


def softmax(sums: np.ndarray) -> np.ndarray:
    powers = np.exp(sums - sums.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# Files that nobody here made


@pytest.fixture
def tiny(data_root: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The folder of MLPerf Tiny's models, and CIFAR-10's test images as they are, with their labels."""
    if not (data_root / "targets/mlperf_tiny").exists():
        pytest.skip("no targets/mlperf_tiny in the data")
    with np.load(data_root / "cifar10/cifar10_lossless.npz") as file:
        return data_root / "targets/mlperf_tiny", file["x_test"], file["y_test"]


def bare(path: Path, images: np.ndarray) -> np.ndarray:
    """What the interpreter itself answers to images as the file takes them."""
    model = Interpreter(str(path), num_threads=1)
    model.allocate_tensors()
    first, last = model.get_input_details()[0], model.get_output_details()[0]
    answers = []
    for image in images:
        model.set_tensor(first["index"], image[None])
        model.invoke()
        answers.append(model.get_tensor(last["index"])[0])
    return np.array(answers)


@pytest.mark.acceptance
def test_the_int8_network_of_mlperf_tiny_is_right_as_published_without_an_option(tiny: Any) -> None:
    folder, pixels, labels = tiny
    path = folder / "resnet8_cifar10_int8.tflite"
    target = open_target(path)
    assert target.input_shape == (3, 32, 32)
    assert (target.num_classes, target.output_kind) == (10, "probabilities")
    assert target.identity == f"tflite:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    answers = target.query(pixels.transpose(0, 3, 1, 2) / np.float32(255))
    assert (answers.labels == labels).sum() == 892  # of 1,017: 87.7%
    raw = bare(path, (pixels.astype(np.int16) - 128).astype(np.int8))
    np.testing.assert_array_equal(answers.labels, raw.argmax(axis=1))
    np.testing.assert_array_equal(answers.scores, (raw.astype(np.float32) + 128) / 256)


@pytest.mark.acceptance
def test_the_float_network_of_mlperf_tiny_needs_its_range(tiny: Any) -> None:
    folder, pixels, labels = tiny
    pixels, labels = pixels[:200], labels[:200]
    images = pixels.transpose(0, 3, 1, 2) / np.float32(255)
    path = folder / "resnet8_cifar10_float.tflite"
    target = open_target(path, pixel_range=(0, 255))
    np.testing.assert_allclose(
        target.query(images).scores, bare(path, pixels.astype(np.float32)), rtol=1e-4, atol=1e-6
    )
    assert (target.query(images).labels == labels).mean() > 0.8
    assert (open_target(path).query(images).labels == labels).mean() < 0.3
    noisy = images + np.random.default_rng(0).normal(size=images.shape).astype(np.float32) / 4
    taken = noisy.transpose(0, 2, 3, 1) * np.float32(255)  # what lies outside of [0, 1] is not cut
    answers = target.query(noisy, bounded=False)
    np.testing.assert_allclose(answers.scores, bare(path, taken), rtol=1e-4, atol=1e-6)


# Every form of input


def normalized(values: np.ndarray) -> np.ndarray:
    """Rows, the channels last, after ImageNet's mean and std."""
    pixels = values.reshape(-1, 20, 3)
    return ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).reshape(len(values), -1)


INPUTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "float": ({}, {}, lambda p: p),
    "float, 0 to 255": ({}, {"pixel_range": (0, 255)}, lambda p: p * 255),
    "int8 of 0 to 255": ({"dtype": "int8", "scale": (1.0, -128)}, {}, lambda p: np.rint(p * 255)),
    "int8 of 0 to 1": ({"dtype": "int8", "scale": (1 / 255, -128)}, {}, lambda p: np.rint(p * 255) / 255),
    "uint8 of 0 to 1": ({"dtype": "uint8", "scale": (1 / 255, 0)}, {}, lambda p: np.rint(p * 255) / 255),
    "uint8 of 0 to 255": ({"dtype": "uint8", "scale": (1.0, 0)}, {}, lambda p: np.rint(p * 255)),
    "uint8 of -1 to 1": (
        {"dtype": "uint8", "scale": (1 / 128, 128)},
        {},
        lambda p: (np.rint(p * 255) - 128) / 128,
    ),
    "uint8 of no scale": ({"dtype": "uint8", "plain": True}, {}, lambda p: np.rint(p * 255)),
    "int8 behind mean and std": (
        {"dtype": "int8", "scale": (0.0187, -14)},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        lambda p: np.rint(normalized(p) / 0.0187) * 0.0187,
    ),
    "int8, declared": (
        {"dtype": "int8", "scale": (0.5, 3)},
        {"pixel_range": (-20, 30)},
        lambda p: np.rint((p * 50 - 20) / 0.5) * 0.5,
    ),
}


@pytest.mark.parametrize("batch", [-1, 1, 3])
@pytest.mark.parametrize(("form", "options", "seen"), INPUTS.values(), ids=INPUTS.keys())
def test_pixels_become_what_the_file_says(
    form: dict, options: dict, seen: Any, batch: int, written: Any
) -> None:
    path = written(linear(WEIGHT, (batch, 4, 5, 3), **form))
    target = open_target(path, **options)
    assert (target.input_shape, target.output_kind, target.num_classes) == (SHAPE, "logits", 6)
    truth = seen(rows(IMAGES)) @ WEIGHT.T.astype(np.float64)
    answers = target.query(IMAGES)
    np.testing.assert_allclose(answers.scores, truth, rtol=1e-4, atol=1e-4)
    for count in (1, 2, 5):  # whatever the batch
        np.testing.assert_array_equal(target.query(IMAGES[:count]).scores, answers.scores[:count])


def test_rows_and_images_of_any_size(written: Any) -> None:
    flat = open_target(written(linear(WEIGHT, (-1, VALUES))), input_shape=SHAPE)
    truth = IMAGES.reshape(7, -1).astype(np.float64) @ WEIGHT.T
    np.testing.assert_allclose(flat.query(IMAGES).scores, truth, rtol=1e-4, atol=1e-4)
    free = written(linear(WEIGHT, (-1, -1, -1, 3)))
    with pytest.raises(TargetError, match=r"takes images of any size: give input_shape"):
        open_target(free)
    target = open_target(free, input_shape=SHAPE)
    np.testing.assert_allclose(target.query(IMAGES).scores, rows(IMAGES) @ WEIGHT.T, rtol=1e-4, atol=1e-4)


NORMALIZED: dict[
    str, tuple[dict[str, Any], tuple[list[float], list[float]], Callable[[np.ndarray], np.ndarray]]
] = {
    "one number": ({}, ([127.5], [127.5]), lambda p: 2 * p - 1),
    "none": ({}, ([0.0], [1.0]), lambda p: 255 * p),
    "each channel": (
        {},
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        lambda p: normalized(p),
    ),
    "of a quantized model": (
        {"dtype": "int8", "scale": (0.0187, -14)},
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        lambda p: np.rint(normalized(p) / 0.0187) * 0.0187,
    ),
}


@pytest.mark.parametrize(("form", "numbers", "seen"), NORMALIZED.values(), ids=NORMALIZED.keys())
def test_metadata_say_how_pixels_are_normalized(form: dict, numbers: Any, seen: Any, written: Any) -> None:
    path = written(linear(WEIGHT, HWC, normalization=numbers, **form))
    truth = seen(rows(IMAGES)) @ WEIGHT.T.astype(np.float64)
    np.testing.assert_allclose(open_target(path).query(IMAGES).scores, truth, rtol=1e-4, atol=2e-3)
    own = open_target(path, pixel_range=(0, 1)).query(IMAGES).scores  # what the caller says wins
    assert np.abs(own - truth).max() > 0.5


@pytest.mark.parametrize(
    "numbers", [([127.5], [0.0]), ([float("nan")], [1.0]), ([1.0, 2.0], [1.0]), ([], [])]
)
def test_metadata_that_make_no_sense_say_nothing(numbers: Any, written: Any) -> None:
    target = open_target(written(linear(WEIGHT, HWC, normalization=numbers)))
    assert target.preprocessing == ""


@pytest.mark.parametrize("sides", [(4, 5, 3), (1, 4, 5), (1, VALUES, 1), (-1, 4, 15)])
def test_sides_of_any_rank(sides: tuple[int, ...], written: Any) -> None:
    values = int(np.prod(np.abs(sides)))
    weight, shape = WEIGHT[:, :values], (1, 4, 5) if values == 20 else SHAPE
    images = IMAGES[:, : shape[0]]
    target = open_target(written(linear(weight, sides)), input_shape=shape)
    flat = rows(images) if sides in ((-1, 4, 15), (4, 5, 3)) else images.reshape(7, -1)
    np.testing.assert_allclose(target.query(images).scores, flat @ weight.T, rtol=1e-4, atol=1e-4)


def test_color_and_size_are_brought_to_what_the_file_takes(written: Any) -> None:
    path = written(linear(WEIGHT, HWC))
    gray = np.random.default_rng(1).uniform(size=(3, 1, 8, 10)).astype(np.float32)
    with pytest.raises(TargetError, match=r"give resize=\(4, 5\).*, and give color='rgb' or 'bgr'"):
        open_target(path, input_shape=(1, 8, 10))
    target = open_target(path, input_shape=(1, 8, 10), color="rgb", resize=(4, 5))
    halves = gray.astype(np.float64)  # what a resize by half does, antialiased, has its own tests
    small = open_target(path, input_shape=SHAPE, color="rgb")
    colored = np.repeat(halves.reshape(3, 1, 4, 2, 5, 2).mean(axis=(3, 5)), 3, axis=1).astype(np.float32)
    assert np.abs(target.query(gray).scores - small.query(colored).scores).max() < 3
    swapped = open_target(path, color="bgr", input_shape=SHAPE).query(IMAGES[:, ::-1].copy())
    np.testing.assert_allclose(swapped.scores, rows(IMAGES) @ WEIGHT.T, rtol=1e-4, atol=1e-4)


# Every end


def test_the_last_operator_says_what_the_answers_are(written: Any) -> None:
    sums = rows(IMAGES) @ WEIGHT.T.astype(np.float64)
    soft = open_target(written(linear(WEIGHT, HWC, end="SOFTMAX")))
    assert (soft.output_kind, soft.num_classes) == ("probabilities", 6)
    np.testing.assert_allclose(soft.query(IMAGES).scores, softmax(sums), rtol=1e-3, atol=1e-6)
    hard = open_target(written(linear(WEIGHT, HWC, end="ARG_MAX")), num_classes=6)
    assert hard.output_kind == "labels"
    answers = hard.query(IMAGES)
    assert answers.scores is None
    np.testing.assert_array_equal(answers.labels, sums.argmax(axis=1))
    one = open_target(written(linear(WEIGHT[:1], HWC, end="LOGISTIC")))
    assert (one.output_kind, one.num_classes) == ("probabilities", 2)
    share = 1 / (1 + np.exp(-sums[:, 0]))
    np.testing.assert_allclose(
        one.query(IMAGES).scores, np.stack([1 - share, share], 1), rtol=1e-3, atol=1e-5
    )
    many = open_target(written(linear(WEIGHT, HWC, end="LOGISTIC")))
    assert many.output_kind == "logits"
    np.testing.assert_array_equal(many.query(IMAGES).labels, sums.argmax(axis=1))


def test_one_of_several_outputs_is_read(written: Any) -> None:
    path = written(linear(WEIGHT, HWC, end="SOFTMAX", also=True))
    with pytest.raises(
        TargetError, match=r"gives outputs sums, out: give output='one of them', or its position"
    ):
        open_target(path)
    with pytest.raises(TargetError, match=r"output is 'logits', but .* gives sums, out: choose one of them"):
        open_target(path, output="logits")
    assert open_target(path, output="sums").output_kind == "logits"
    assert open_target(path, output=1).output_kind == "probabilities"
    assert open_target(path, output="sums").identity == open_target(path, output=1).identity


def test_names_of_classes_are_taken(written: Any) -> None:
    path = written(linear(WEIGHT, HWC, end="SOFTMAX"))
    names = ["a", "b", "c", "d", "e", "f"]
    assert open_target(path, classes=names).num_classes == 6
    with pytest.raises(TargetError, match="num_classes is 2, but the target says 6"):
        open_target(path, classes=["a", "b"])


# Refusals


REFUSALS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "no range": (
        linear(WEIGHT, HWC, dtype="int8", scale=(0.0187, -14)),
        {},
        r"takes int8 that stand for -2\.13.* to 2\.63.*: give pixel_range, what 0 and 1 become, or mean and std",
    ),
    "dtype": (
        linear(WEIGHT, HWC),
        {"dtype": "uint8"},
        r"dtype is 'uint8', but the target says 'float32': leave dtype out",
    ),
    "shape": (linear(WEIGHT, HWC), {"input_shape": (1, 28, 28)}, r"takes images of shape"),
    "rows": (linear(WEIGHT, (-1, VALUES)), {"input_shape": (1, 28, 28)}, r"takes 60 values per image"),
    "classes": (linear(WEIGHT, HWC), {"num_classes": 7}, r"num_classes is 7, but the target says 6"),
    "no classes": (linear(WEIGHT, HWC, end="ARG_MAX"), {}, r"does not tell its number of classes"),
    "threads": (linear(WEIGHT, HWC), {"threads": 0}, r"threads must be a whole number of at least 1, got 0"),
    "option": (
        linear(WEIGHT, HWC),
        {"thread": 1},
        r"unknown option 'thread' of a TFLite model: did you mean",
    ),
    "no tflite": (b"PK\3\4" * 50, {}, r"cannot load the TFLite model .*: check the file"),
    "empty": (b"", {}, r"cannot load the TFLite model .*: check the file"),
    "cut": (linear(WEIGHT, HWC)[:700], {}, r"cannot load the TFLite model .*: check the file"),
}


@pytest.mark.parametrize(("content", "options", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_honored_is_refused_in_one_line(
    content: bytes, options: dict, message: str, written: Any
) -> None:
    with pytest.raises((TargetError, ClassesUnknown), match=message) as caught:
        open_target(written(content), **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.tflite").mkdir()
    os.mkfifo(tmp_path / "pipe.tflite")
    for name, message in (("nowhere", "No such file"), ("folder", "no regular"), ("pipe", "no regular")):
        with pytest.raises(TargetError, match=rf"cannot read the TFLite model .*{message}"):
            open_target(tmp_path / f"{name}.tflite")


@pytest.mark.slow
def test_a_damaged_file_ends_no_process(written: Any) -> None:
    """Of files like these, some end the interpreter's process by a signal."""
    good = linear(WEIGHT, (1, 4, 5, 3), end="SOFTMAX")
    opened = 0
    for seed in range(25):
        rng, bad = random.Random(seed), bytearray(good)
        for _ in range(4):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            open_target(written(bytes(bad)))
            opened += 1
        except TargetError as error:
            assert "\n" not in str(error)  # noqa: PT017 (it may also open)
    assert 0 < opened < 25


def test_the_reader_of_operators_stops_at_anything() -> None:
    good = linear(WEIGHT, HWC, end="SOFTMAX", normalization=([127.5], [127.5]))
    assert normalization(good) == ((127.5,), (127.5,))
    assert last_operator(good, 0) is None
    known = 0
    for seed in range(3_000):
        rng, bad = random.Random(seed), bytearray(good)
        for _ in range(1 + seed % 8):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            normalization(bytes(bad))
            last_operator(bytes(bad[: rng.randrange(len(bad))] if seed % 2 else bad), 3)
            known += 1
        except ValueError:
            pass
    assert 0 < known < 3_000


# One model, several users


def test_threads_and_forked_children_get_the_same_answers(written: Any) -> None:
    target = open_target(written(linear(WEIGHT, HWC, end="SOFTMAX")), threads=2)
    truth = target.query(IMAGES).scores
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: target.query(IMAGES).scores, range(8)):
            np.testing.assert_array_equal(scores, truth)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if np.array_equal(target.query(IMAGES).scores, truth) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_ledger_pays_for_each_image_once(written: Any, tmp_path: Path) -> None:
    target = open_target(written(linear(WEIGHT, HWC, dtype="int8", scale=(1 / 255, -128))))
    with QueryLedger(tmp_path / "ledger.db", budget=10) as ledger:
        paid = ledger.attach(target)
        levels = np.rint(IMAGES * 250) / np.float32(255)
        first = paid.query(levels)
        again = paid.query(levels + np.float32(1e-3))  # the same integers
        np.testing.assert_array_equal(again.scores, first.scores)
        assert ledger.bill()["training"].answered == 7
