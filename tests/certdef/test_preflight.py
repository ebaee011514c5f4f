"""The look at a target before a job: each kind of fault is named, on a network that nobody here trained, within its own budget."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import surrogates
from certdef.report.plan import look_warnings
from certdef.stages.faults import is_better, is_poor, label_fault, other_forms
from certdef.stages.preflight import IMAGES, Look, Sample, look
from surrogates.targets.formats import PixelFormat

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
IMAGENET = "--target.mean [0.485,0.456,0.406] --target.std [0.229,0.224,0.225]"
ORDER = np.array([3, 5, 1, 0, 9, 8, 2, 7, 6, 4])


@cache
def resnet8(root: Path) -> Callable[[np.ndarray], np.ndarray]:
    """MLPerf Tiny's ResNet-8 for CIFAR-10: (N, 32, 32, 3) float32, pixels from 0 to 255 -> probabilities (N, 10)."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(
        str(root / "targets/mlperf_tiny/resnet8_cifar10_float.tflite")
    )
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answer(images: np.ndarray) -> np.ndarray:
        rows = []
        for image in images.astype(np.float32):
            interpreter.set_tensor(taken["index"], np.ascontiguousarray(image[None]))
            interpreter.invoke()
            rows.append(interpreter.get_tensor(given["index"])[0].copy())
        return np.array(rows)

    return answer


@pytest.fixture(scope="module")
def sample() -> Sample:
    """The first 60 test images of CIFAR-10."""
    root = _root()
    with np.load(root / "cifar10/cifar10_lossless.npz") as arrays:
        images = arrays["x_test"][:60].transpose(0, 3, 1, 2).astype(np.float32) / 255
        return Sample(images, arrays["y_test"][:60].astype(np.int64), tuple(map(str, arrays["class_names"])))


def _root() -> Path:
    import os

    root = Path(os.environ.get("CERTDEF_DATA_ROOT") or Path(__file__).parents[2] / "../shared/data")
    if not (root / "targets").exists():
        pytest.skip(f"no {root / 'targets'}: set CERTDEF_DATA_ROOT")
    return root


@pytest.fixture
def net() -> Callable[[np.ndarray], np.ndarray]:
    return resnet8(_root())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[surrogates.QueryLedger]:
    with surrogates.QueryLedger(tmp_path / "ledger.db", {"preflight": 1_000, "evaluation": 100}) as opened:
        yield opened


def looked(ledger: surrogates.QueryLedger, sample: Sample, model: Any, **options: Any) -> Look | None:
    """A look at a function of images (N, 3, 32, 32), opened with some options."""

    def opened(**more: Any) -> surrogates.Target:
        return surrogates.open_target(
            model, num_classes=10, identity="net", input_shape=(3, 32, 32), **options | more
        )

    return look(ledger, opened(), opened, sample)


def last(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (N, H, W, C)."""
    return images.transpose(0, 2, 3, 1)


# What the model does to its input, the options that it is opened with, and the words that name the fault.
FAULTS: dict[str, tuple[Callable[[Any], Callable], dict[str, Any], str]] = {
    "pixel range": (
        lambda net: lambda images: net(last(images)),
        {},
        "takes pixels from 0 to 255: --target.pixel_range [0,255]",
    ),
    "missing mean and std": (lambda net: lambda images: net((last(images) * STD + MEAN) * 255), {}, IMAGENET),
    "missing half": (
        lambda net: lambda images: net((last(images) * 0.5 + 0.5) * 255),
        {},
        "--target.mean [0.5] --target.std [0.5]",
    ),
    "mean and std too many": (
        lambda net: lambda images: net(last(images) * 255),
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "without --target.mean and --target.std",
    ),
    "another mean and std": (
        lambda net: lambda images: net((last(images) * STD + MEAN) * 255),
        {"mean": (0.5,), "std": (0.5,)},
        IMAGENET,
    ),
    "channels last in rows": (
        lambda net: lambda rows: net(rows.reshape(-1, 32, 32, 3) * 255),
        {"layout": "flat"},
        "--target.layout flat_hwc",
    ),
    "channels last and the range": (
        lambda net: lambda rows: net(rows.reshape(-1, 32, 32, 3)),
        {"layout": "flat"},
        "--target.layout flat_hwc --target.pixel_range [0,255]",
    ),
    "labels from 1": (
        lambda net: lambda images: np.roll(net(last(images) * 255), 1, axis=1),
        {},
        "it answers one more than your label: map them with --data.labels FILE (airplane: 1, automobile: 2",
    ),
    "labels in another order": (
        lambda net: lambda images: net(last(images) * 255)[:, ORDER],
        {},
        "in another order than your labels: map them with --data.labels FILE (airplane: 3, automobile: 2",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_what_mends_it(
    name: str, net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    wrap, options, words = FAULTS[name]
    seen = looked(ledger, sample, wrap(net), **options)
    assert seen is not None
    assert seen.images == IMAGES
    (line,) = look_warnings(seen)
    assert words in line
    assert seen.fault is not None
    assert seen.fault.right >= 40 > 37 >= seen.fault.instead
    bill = ledger.bill()
    assert bill["preflight"].largest <= 500
    assert bill.total.largest == bill["preflight"].largest  # no other purpose is touched
    again = looked(ledger, sample, wrap(net), **options)
    assert again == seen
    assert ledger.bill().total.largest == bill.total.largest  # nothing is paid twice


def test_what_mends_a_format_is_a_good_target(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    """The options that are named, given, are no fault any more, and their answers are no others' answers."""
    wrap, options, _ = FAULTS["channels last and the range"]
    seen = looked(ledger, sample, wrap(net), **options)
    assert seen is not None
    assert seen.fault is not None
    assert seen.fault.options is not None
    mended = looked(ledger, sample, wrap(net), **options | seen.fault.options)
    assert mended is not None
    assert not mended.poor
    assert mended.share.value == seen.fault.right / IMAGES


def test_channels_in_another_order_are_named(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    """ResNet-8 is right on 74% of images with red and blue exchanged, and that is not taken for its best."""
    seen = looked(ledger, sample, lambda images: net(last(images)[..., ::-1] * 255))
    assert seen is not None
    (line,) = look_warnings(seen)
    assert "likely it takes bgr images: --target.color bgr: 96% of 50 in place of 74%" in line


def test_a_good_target_costs_the_look_alone_and_evaluation_gets_it_for_nothing(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    def answer(images: np.ndarray) -> np.ndarray:
        return net(last(images) * 255)

    seen = looked(ledger, sample, answer)
    assert seen is not None
    assert look_warnings(seen) == []
    assert seen.share.value == 0.96
    assert ledger.bill().total.answered == IMAGES
    target = surrogates.open_target(answer, num_classes=10, identity="net", input_shape=(3, 32, 32))
    ledger.attach(target, purpose="evaluation").query(sample.images)
    assert ledger.bill()["evaluation"].answered == len(sample.images) - IMAGES


def test_a_target_that_fails_on_a_layout_says_which_it_takes(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    def answer(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != (32, 32, 3):
            raise ValueError(f"expected (N, 32, 32, 3), got {images.shape}")
        return net(images * 255)

    with pytest.raises(
        surrogates.TargetError, match=r"expected \(N, 32, 32, 3\).*likely: --target.layout hwc \(48 of 50"
    ):
        looked(ledger, sample, answer)


def test_a_target_that_fails_whatever_it_gets_says_why(
    sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    def answer(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of order")

    with pytest.raises(surrogates.TargetError, match=r"out of order$"):
        looked(ledger, sample, answer)


@pytest.mark.parametrize(("budget", "images"), [(0, None), (30, 30), (60, 50), (75, 50)])
def test_the_budget_is_never_passed(
    budget: int, images: int | None, net: Any, sample: Sample, tmp_path: Path
) -> None:
    budgets = {"preflight": budget, "training": 100}
    with surrogates.QueryLedger(tmp_path / "ledger.db", budgets) as ledger:
        seen = looked(ledger, sample, lambda images: net(last(images)))
        assert (None if seen is None else seen.images) == images
        assert ledger.bill()["preflight"].largest <= budget
        assert ledger.bill()["training"].largest == 0
    if seen is not None and budget < 100:
        assert seen.cut
        assert "ledger.preflight ended before all were tried" in look_warnings(seen)[0]


def test_without_labels_a_format_is_known_by_steady_answers(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    """One answer to everything is steady too, and no sign of a good format: the wrong range gives it."""
    unlabeled = Sample(sample.images, None, sample.names)
    good = looked(ledger, unlabeled, lambda images: net(last(images) * 255))
    assert good is not None
    assert not good.labeled
    assert not good.poor
    assert ledger.bill().total.answered == IMAGES  # 25 images, each twice


def test_without_labels_the_wrong_range_is_named(
    net: Any, sample: Sample, ledger: surrogates.QueryLedger
) -> None:
    unlabeled = Sample(sample.images, None, sample.names)
    seen = looked(ledger, unlabeled, lambda images: net(last(images)))
    assert seen is not None
    (line,) = look_warnings(seen)
    assert line.startswith("steadiness ")
    assert "--target.pixel_range [0,255]" in line


def test_a_constant_answer_and_a_good_one_are_no_other_order_of_labels() -> None:
    labels = np.arange(50) % 5
    assert label_fault(labels, np.zeros(50, np.int64), ("a", "b", "c", "d", "e")) is None
    assert label_fault(labels, labels, ("a", "b", "c", "d", "e")) is None
    random = np.random.default_rng(0).integers(0, 5, 50)
    assert label_fault(labels, random, ("a", "b", "c", "d", "e")) is None
    assert (
        label_fault(np.arange(50), np.arange(50)[::-1], tuple(map(str, range(50)))) is None
    )  # one image each


@pytest.mark.parametrize(
    ("right", "images", "classes", "poor"),
    [(50, 50, 10, False), (41, 50, 10, False), (37, 50, 10, True), (30, 30, 2, False), (2, 3, 2, True)],
)
def test_a_target_is_poor_where_it_cannot_reach_90_percent_or_may_be_guessing(
    right: int, images: int, classes: int, poor: bool
) -> None:
    assert is_poor(right, images, classes) == poor


def test_a_few_images_more_prove_nothing() -> None:
    few, many = np.zeros(50, bool), np.zeros(50, bool)
    few[:20], many[:23] = True, True
    assert not is_better(many, few)
    many[:32] = True
    assert is_better(many, few)
    assert not is_better(few, many)


def test_a_model_that_knows_its_order_is_not_tried_in_another() -> None:
    silent = PixelFormat(layout="hwc")
    assert {form.changes["layout"] for form in other_forms(silent, 3, "layout")} == {
        "chw",
        "flat",
        "flat_hwc",
    }
    assert other_forms(PixelFormat(layout="hwc", order_is_known=True), 3, "layout") == []
    assert other_forms(silent, 1, "color") == []
