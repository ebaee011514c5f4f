"""Two certifications are compared only if they are of the same images, law, norm and preparation."""

import dataclasses

import numpy as np
import pytest

import certify
from certdef.config.job import ConfigError
from certdef.release.pairing import pair
from tests.certdef.release.certified import of_flags

NAMES = ("OLD", "NEW")


def records(count: int = 20, **changes):
    flags = np.arange(count) % 3 > 0
    first, _ = of_flags(flags, flags, np.arange(count) % 5, 0.5)
    config = {"seed": 0, "stage": "x", "chunk_size": 256, "n": 1000}
    images = np.array([f"{each:04x}" for each in range(count)])
    known = {"noise": certify.Gaussian(0.25).describe(), "config": config, "image": images}
    return dataclasses.replace(first, **{**known, **changes})


def test_images_are_matched_by_their_pixels_in_any_order():
    order = np.random.default_rng(0).permutation(20)
    new = dataclasses.replace(records().take(order), idx=np.arange(20))
    found = pair(records(), new, NAMES)
    assert found.by == "image"
    assert found.new.image.tolist() == found.old.image.tolist()
    assert found.same_noise is False  # another number, other draws
    assert pair(records(), records(), NAMES).same_noise is True


def test_the_same_pixels_twice_are_two_images():
    images = np.array(["aa"] * 20)
    found = pair(records(image=images), records(image=images), NAMES)
    assert found.old.idx.tolist() == found.new.idx.tolist() == list(range(20))


def test_without_digests_idx_and_label_decide():
    found = pair(records(image=None), records(), NAMES)
    assert found.by == "idx"
    assert any("paired by idx" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise": certify.Gaussian(0.5).describe()}, "noise gaussian sigma 0.25 and gaussian sigma 0.5"),
        ({"noise": certify.Laplace(0.25).describe()}, "norm l2 and l1"),
        ({"image": np.array([f"z{each}" for each in range(20)])}, "no image in common"),
        ({"label": np.zeros(20, dtype=np.int64)}, "other labels of 16 images"),
        ({"config": {"prepared": "resized to 64"}}, "resized to 64"),
        ({"image": None, "config": {"seed": 1, "stage": "y"}}, "seed 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        pair(records(), records(**changes), NAMES)
    assert len(str(caught.value).splitlines()) == 1


def test_all_that_differs_is_said_at_once():
    new = records(
        noise=certify.Laplace(0.25).describe(), config={"prepared": "x"}, image=np.array(["z"] * 20)
    )
    with pytest.raises(ConfigError) as caught:
        pair(records(), new, NAMES)
    assert len(str(caught.value).splitlines()) == 3


def test_an_unfinished_certification_needs_a_word():
    new = records().take(np.arange(15))
    with pytest.raises(ConfigError, match="5 images only in OLD: finish both, or use --common for the 15"):
        pair(records(), new, NAMES)
    found = pair(records(), new, NAMES, common=True)
    assert len(found.old) == len(found.new) == 15
    assert any("left out" in note for note in found.notes)


def test_what_differs_beside_the_model_is_noted():
    new = records(config={**records().config, "n": 2000, "subject": "surrogate"})
    notes = " ".join(pair(records(), new, NAMES).notes)
    assert "n is 1000 in OLD and 2000 in NEW" in notes
    assert "subject is None in OLD and surrogate in NEW" in notes


def test_own_answers_as_labels_may_differ_where_pixels_say_which_image_it_is():
    config = {**records().config, "right": "the target's own clean answer"}
    new = records(label=np.zeros(20, dtype=np.int64), config=config)
    assert "own clean answer" in " ".join(pair(records(config=config), new, NAMES).notes)
