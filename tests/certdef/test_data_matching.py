"""Label k of a job is class k of the target, whatever the data calls it; or one line that shows both."""

import json

import numpy as np
import pytest

from certdef.config.job import ConfigError, DataConfig
from certdef.data.matching import match_labels
from certdef.data.objects import source_of
from certdef.data.sets import split

IMAGES = np.random.default_rng(0).random((12, 5, 5), np.float32)
ANIMALS = ["cat", "dog", "ant"] * 4
TARGET = ("ant", "bee", "dog", "cat")


def data(labels=ANIMALS, names=None, **options):
    config = DataConfig(pool_images=0, heldout_images=12, **options)
    return split(source_of(IMAGES, labels, names, name="zoo"), config, 0, own_target=True)


def names_of(matched):
    return [matched.class_name(label) for label in matched.heldout_labels]


def written(labels=ANIMALS):
    """What the data says of each held-out image."""
    found = data(labels)
    where = [np.flatnonzero((image[0] == IMAGES).all(axis=(1, 2)))[0] for image in found.heldout_images]
    return [labels[index] for index in where]


@pytest.mark.parametrize(
    "target",
    [TARGET, ("Ant", "Bee", "DOG", "Cat"), ("  ant", "bee", "dog", "cat_")],
    ids=["same", "case", "marks"],
)
def test_names_are_found_among_the_targets(target):
    matched = match_labels(data(), target, 4)
    np.testing.assert_array_equal(
        matched.heldout_labels, [("ant", "bee", "dog", "cat").index(name) for name in written()]
    )
    assert matched.classes == target


def test_marks_between_words_do_not_count():
    labels = ["golden_retriever", "tabby cat"] * 6
    matched = match_labels(data(labels), ("tabby-cat", "Golden Retriever"), 2)
    np.testing.assert_array_equal(
        matched.heldout_labels, [int(name.startswith("golden")) for name in written(labels)]
    )


def test_names_that_only_case_tells_apart_are_matched_as_they_are():
    labels = ["A", "a"] * 6
    matched = match_labels(data(labels), ("a", "A"), 2)
    assert names_of(matched) == written(labels)


def test_a_target_without_names_has_the_sorted_order():
    matched = match_labels(data(), None, 3)
    assert matched.classes == ("ant", "cat", "dog")
    assert names_of(matched) == written()


@pytest.mark.parametrize(
    ("target", "count", "said"),
    [
        (
            ("ant", "bee", "wasp"),
            3,
            "it answers the classes ant, bee, wasp, and zoo has the classes ant, cat, dog, among them cat, dog, which",
        ),
        (
            None,
            1000,
            "it answers 1000 classes and does not tell their names, and zoo has the classes ant, cat, dog: give --target.classes",
        ),
        (None, 2, "it answers 2 classes"),
    ],
)
def test_names_that_are_no_classes_show_both_and_the_remedy(target, count, said):
    with pytest.raises(ConfigError) as error:
        match_labels(data(), target, count)
    assert said in str(error.value)
    assert "--data.labels FILE" in str(error.value)
    assert "--data.labels ignore" in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_stand_for_themselves():
    matched = match_labels(data([3, 1, 0] * 4), TARGET, 4)
    assert matched.classes == TARGET
    assert set(names_of(matched)) == {"cat", "bee", "ant"}
    assert match_labels(data([3, 1, 0] * 4), None, 7).class_name(5) == "5"
    with pytest.raises(ConfigError, match="answers 3 classes, but the labels of zoo go up to 3"):
        match_labels(data([3, 1, 0] * 4), None, 3)


def test_numbers_with_names_follow_the_names_where_the_target_has_all_of_them():
    """The data calls class 0 cat, the target class 3: the number alone would be wrong without a word."""
    numbered = data([0, 1, 2] * 4, ["cat", "dog", "ant"])
    assert names_of(match_labels(numbered, TARGET, 4)) == [
        ["cat", "dog", "ant"][k] for k in numbered.heldout_labels
    ]
    other = match_labels(numbered, ("x", "y", "z", "w"), 4)
    np.testing.assert_array_equal(other.heldout_labels, numbered.heldout_labels)
    assert other.classes == ("cat", "dog", "ant")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.yaml", "cat: 3\ndog: 2\nant: 0\n"),
        ("map.yaml", "cat: cat\ndog: dog\nant: ant\nunused: bee\n"),
        ("map.json", json.dumps({"cat": "cat", "dog": 2, "ant": 0})),
        ("order.txt", "ant\nbee\ndog\ncat\n"),
        ("order.yaml", "[ant, bee, dog, cat]"),
    ],
)
def test_a_file_maps_them(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    matched = match_labels(data(), TARGET, 4, str(tmp_path / name))
    np.testing.assert_array_equal(matched.heldout_labels, [TARGET.index(label) for label in written()])


def test_a_file_maps_to_numbers_where_the_target_has_no_names(tmp_path):
    (tmp_path / "map.yaml").write_text("cat: 281\ndog: 207\nant: 310\n")
    matched = match_labels(data(), None, 1000, str(tmp_path / "map.yaml"))
    assert names_of(matched) == written()
    assert (len(matched.classes), matched.classes[281], matched.classes[0]) == (1000, "cat", "0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat: 3\n", "ant is not in it.*; dog is not in it"),
        ("cat: 3\ndog: 2\nant: 4\n", "ant is mapped to 4, which is no class of the target's"),
        ("cat: 3\ndog: 2\nant: wasp\n", "ant is mapped to 'wasp', which is no class"),
        ("catt: 3\ndog: 2\nant: 0\n", r"cat is not in it \(did you mean 'catt'\?\)"),
        ("just a text", "maps no labels: write a line NAME: NUMBER"),
        ("a: [", "can't be read"),
        ("cat: {a: 1}", "maps no labels"),
    ],
)
def test_a_file_that_maps_to_no_class_is_one_line(tmp_path, text, said):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        match_labels(data(), TARGET, 4, str(tmp_path / "map.yaml"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match=r"data.labels 'no.yaml' is no file: give ignore, or"):
        match_labels(data(), TARGET, 4, "no.yaml")


def test_images_without_labels_take_the_targets_classes():
    matched = match_labels(data(None), TARGET, 4)
    assert (matched.classes, matched.labeled) == (TARGET, False)
    assert match_labels(data(None), None, 3).classes == ("0", "1", "2")
    answered = matched.answered(np.arange(12) % 4)
    assert names_of(answered)[:4] == list(TARGET)


def test_what_is_as_it_was_has_the_digest_that_it_had():
    """The keys of stages, and so whatever was paid for, do not change where no label does."""
    numbered = data([0, 1, 2] * 4)
    assert match_labels(numbered, TARGET, 4).heldout_digest == numbered.heldout_digest
    assert match_labels(data(), ("ant", "cat", "dog"), 3).heldout_digest == data().heldout_digest
    assert match_labels(data(), TARGET, 4).heldout_digest != data().heldout_digest


def test_numbered_classes_whose_names_contradict_the_targets_are_refused():
    """Numbers are taken as they are; but not where the data and the target each say which class a number is."""
    labels, ours = [0, 1, 2] * 4, ("cat", "dog", "fox")
    with pytest.raises(ConfigError, match="calls class 0 'cat', which is class 1 of the target: mend"):
        match_labels(data(labels, ours), ("dog", "cat", "wolf"), 3)
    kept = match_labels(data(labels, ours), ("cat", "hound", "fox"), 3)
    np.testing.assert_array_equal(kept.heldout_labels, data(labels, ours).heldout_labels)


def test_a_digit_that_is_no_number_is_one_line(tmp_path):
    (tmp_path / "map.json").write_text('{"cat": "\u00b2", "dog": 1, "ant": 0}')
    with pytest.raises(ConfigError, match="cat is mapped to '\u00b2', which is no class"):
        match_labels(data(), None, 3, str(tmp_path / "map.json"))
