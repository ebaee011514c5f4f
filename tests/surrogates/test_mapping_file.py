"""Mapping files: names as they are written, identities as ever, and nothing but one line for what is no mapping."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from surrogates import TargetError, open_target
from surrogates.targets.classes import ClassNames
from surrogates.targets.mapping import Mapping, read_mapping

HEAD = "url: http://127.0.0.1:9/x\nrequest: {i: $images}\n"


def written(path: Path, text: str) -> Path:
    file = path / "mapping.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("[cat, dog]", "dog"),
        ("[no, yes]", "yes"),
        ("[no, yes]", True),
        ("[off, on]", "on"),
        ("[007, 010]", "010"),
        ("[007, 010]", 10),
        ("[1.10, 1.20]", "1.20"),
        ("[1.10, 1.20]", 1.2),
        ("[other, null]", "null"),
        ("[2024-01-01, 2024-01-02]", "2024-01-02"),
        ("[0, 1]", 1),
        ("[0, 1]", 1.0),
        ("[0, 1]", "1"),
        ("['0', '1']", 1),
        ("[false, true]", True),
        ("{no: 0, off: 0, yes: 1}", "yes"),
        ("{LABEL_0: 0, LABEL_1: 1}", "LABEL_1"),
        ("[0, 1]", True),
        ("{cat: 0, 1: 1}", 1),
        ("{cat: 0, null: 1, '': 0}", "null"),
    ],
)
def test_class_names_are_what_the_file_says(classes: str, said: Any, tmp_path: Path) -> None:
    mapping = read_mapping(written(tmp_path, f"{HEAD}labels: l\nclasses: {classes}\n"))
    assert mapping.names is not None
    assert mapping.names.index(said) == 1
    for other in ("nothing like it", None, 7.5, [1]):
        with pytest.raises(TargetError, match="which classes does not list"):
            mapping.names.index(other)


def test_keys_of_several_types_have_an_identity_of_their_own(tmp_path: Path) -> None:
    texts = ["{cat: 0, 1: 1}", "{cat: 0, '1': 1}", "{cat: 1, 1: 0}"]
    requests = ["{1: a, i: $images}", "{'1': a, i: $images}", "{null: a, 1: b, true: c, i: $images}"]
    names = [f"{HEAD}labels: l\nclasses: {text}\n" for text in texts]
    bodies = [f"url: http://127.0.0.1:9/x\nrequest: {text}\nlabels: l\nnum_classes: 2\n" for text in requests]
    found = [open_target(written(tmp_path, text)).identity for text in names + bodies]
    assert len(set(found)) == len(found)
    assert (
        found[0] == open_target(written(tmp_path, names[0].replace("cat: 0, 1: 1", "1: 1, cat: 0"))).identity
    )


def test_a_truth_value_is_a_number_of_two_classes_called_by_numbers_alone() -> None:
    for names, said in ((["yes", "other"], False), (["a", "b"], True), (["0", "1", "2"], True)):
        with pytest.raises(TargetError, match="which classes does not list"):
            ClassNames.of(names).index(said)


def test_a_number_that_two_names_may_mean_is_no_label() -> None:
    with pytest.raises(TargetError, match="which classes does not list"):
        ClassNames.of(["1", "1.0"]).index(1)


IDENTITIES = {  # as earlier versions made them; ledgers belong to them
    "labels: label\nclasses: [cat, dog]\n": "5b4b972d804954af",
    "labels: label\nclasses: [0, 1, 2]\n": "ecb79b034ece2c9c",
    "labels: ''\nclasses: {LABEL_0: 0, LABEL_1: 1}\n": "00fb7fa632e72e57",
    "scores: ''\nnum_classes: 3\nlayout: hwc\npixel_range: [0, 255]\n": "460b4dfc47ef1f69",
    "labels: l\nclasses: [false, true]\n": "f7836f0510e3d4d3",
}


@pytest.mark.parametrize(("text", "digest"), IDENTITIES.items(), ids=range(len(IDENTITIES)))
def test_identities_of_ledgers_that_are_there_hold(text: str, digest: str, tmp_path: Path) -> None:
    assert open_target(written(tmp_path, HEAD + text)).identity == f"http://127.0.0.1:9/x#{digest}"
    normalized = HEAD + text + "mean: [0.5]\n"
    assert not open_target(written(tmp_path, normalized)).identity.endswith(digest)


BAD_FILES = {
    "a bomb": ("a: &a [1, 1]\nb: &b [*a, *a]\nurl: *b\n", r"has the alias \*a"),
    "a key twice": (HEAD + "labels: a\nlabels: b\n", r"has 'labels' twice"),
    "a class twice": (HEAD + "labels: a\nclasses: {cat: 0, cat: 1}\n", r"has 'cat' twice"),
    "a name twice": (HEAD + "labels: a\nclasses: [no, 'no']\n", r"classes is \['no', 'no'\]: list the label"),
    "a map as a name": (HEAD + "labels: a\nclasses: [null, {'': null, 0: null}]\n", r"list the label names"),
    "maps as names": (HEAD + "labels: a\nclasses: [cat: 0, dog: 1]\n", r"or map each name to its index"),
    "lists as names": (HEAD + "labels: a\nclasses: [[a], [b]]\n", r"list the label names"),
    "counts": (
        HEAD + "labels: a\nclasses: [a, b]\nnum_classes: 3\n",
        r"num_classes is 3, but classes lists 2",
    ),
    "shape": (HEAD + "labels: a\nclasses: [a, b]\ninput_shape: 5\n", r"input_shape must be \(channels"),
    "token": (HEAD + "labels: a\nclasses: [a, b]\ntoken_env: 5\n", r"token_env is 5: give the name"),
    "mean of a PNG": (HEAD + "labels: a\nclasses: [a, b]\nimages: png\nmean: 0.5\n", r"mean makes fractions"),
    "deep": ("[" * 50_000, r"is nested more than 32 levels"),
    "large": ("a" * (2**20 + 1), r"expected at most 1,048,576"),
    "bytes": ("\x00", r"is no YAML"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_are_no_mapping_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        open_target(written(tmp_path, text))
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("$images"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*Mapping.__dataclass_fields__, "imges"])
FORM = ["layout", "dtype", "pixel_range", "mean", "std", "color", "resize", "pixels"]
GOOD = {"url": "http://127.0.0.1:9/x", "request": {"i": "$images"}, "labels": "l", "classes": ["a", "b"]}


def read(text: str) -> None:
    """Read a file as a stranger may have written it: a mapping, or a line for each key that is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            open_target(written(Path(folder), text))
        except TargetError as error:
            lines = str(error).splitlines()  # several keys of the pixel format may be wrong at once
            assert len(lines) == 1 or {line.split()[0] for line in lines} <= set(FORM)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    read(yaml.safe_dump(GOOD | changes))


@given(st.text(max_size=60) | st.text("[]{}&*:-!|>'\" \n\tab01", max_size=60))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_any_text_is_taken_or_refused_in_one_line(text: str) -> None:
    read(text)


@pytest.mark.slow
@given(st.dictionaries(KEYS, VALUES, max_size=6), st.text(max_size=200))
@settings(max_examples=1500, deadline=None)
def test_many_mappings_are_taken_or_refused_in_one_line(changes: dict[str, Any], text: str) -> None:
    read(yaml.safe_dump(GOOD | changes))
    read(text)
