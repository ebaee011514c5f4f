"""A table of paths and labels: its columns are found or named, and every bad line is named at once."""

import numpy as np
import pytest

from certdef.config.job import ConfigError, DataConfig
from certdef.data.sets import load_data, load_source
from tests.certdef.test_data_folders import picture


@pytest.fixture
def folder(tmp_path):
    """Pictures p0 to p5 of levels 0, 40, ... beside the table, in a folder."""
    for number in range(6):
        picture(tmp_path / "pictures" / f"p{number}.png", 40 * number)
    return tmp_path


def load(path, **options):
    config = DataConfig(path=str(path), pool_images=2, heldout_images=4, **options)
    return load_data(config, 0, own_target=True)


def numbers(data):
    return np.rint(data.heldout_images[:, 0, 0, 0] * 255 / 40).astype(int)


ROWS = [(f"pictures/p{number}.png", "cat" if number % 2 else "ant") for number in range(6)]
TABLES = {
    "path, label": ("t.csv", "path,label\n" + "".join(f"{a},{b}\n" for a, b in ROWS)),
    "label first": ("t.csv", "label,path\n" + "".join(f"{b},{a}\n" for a, b in ROWS)),
    "other names": ("t.csv", "file_name,class\n" + "".join(f"{a},{b}\n" for a, b in ROWS)),
    "more columns": ("t.csv", "id,Image,Label,who\n" + "".join(f"1,{a},{b},me\n" for a, b in ROWS)),
    "tabs": ("t.tsv", "path\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS)),
    "semicolons": ("t.csv", "path;label\n" + "".join(f"{a};{b}\n" for a, b in ROWS)),
    "no header": ("t.csv", "".join(f"{a},{b}\n" for a, b in ROWS)),
    "no header, label first": ("t.csv", "".join(f"{b},{a}\n" for a, b in ROWS)),
    "from a spreadsheet": (
        "t.csv",
        "\ufeffpath,label\r\n" + "".join(f'"{a}", {b}\r\n' for a, b in ROWS) + "\r\n",
    ),
}


@pytest.mark.parametrize(("name", "text"), TABLES.values(), ids=TABLES.keys())
def test_columns_are_found(folder, name, text):
    (folder / name).write_text(text, newline="")
    data = load(folder / name)
    assert (data.name, data.classes, data.by_name) == ("t", ("ant", "cat"), True)
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) % 2)


def test_columns_are_named(folder):
    (folder / "t.csv").write_text("a,b,c\n" + "".join(f"{b},{a},x\n" for a, b in ROWS))
    with pytest.raises(ConfigError, match=r"has the columns a, b, c: name them with --data.columns"):
        load(folder / "t.csv")
    data = load(folder / "t.csv", columns=("b", "a"))
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) % 2)
    assert not load(folder / "t.csv", columns=("b",)).labeled
    with pytest.raises(ConfigError, match=r"data.columns is \['b', 'z'\], but .* has a, b, c"):
        load(folder / "t.csv", columns=("b", "z"))


def test_labels_that_are_numbers_stand_for_themselves(folder):
    (folder / "t.csv").write_text(
        "path,label\n" + "".join(f"{a},{number + 4}\n" for number, (a, _) in enumerate(ROWS))
    )
    data = load(folder / "t.csv")
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) + 4)
    assert not data.by_name


def test_paths_alone_have_no_labels(folder):
    (folder / "t.csv").write_text("path\n" + "".join(f"{a}\n" for a, _ in ROWS))
    assert load_source(DataConfig(path=str(folder / "t.csv"))).labels is None


def test_every_bad_line_is_named_at_once(folder):
    (folder / "t.csv").write_text(
        "path,label\npictures/p0.png,cat\npictures/q.png,cat\npictures/p1.png,\nnone.png,dog\n"
    )
    with pytest.raises(ConfigError) as error:
        load(folder / "t.csv")
    lines = str(error.value).splitlines()
    assert ["line 3 names 'pictures/q.png'" in lines[0], "line 5 names 'none.png'" in lines[1]] == [
        True,
        True,
    ]
    assert "line 4 has no label" in lines[2]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 rows"),
        ("path,label\n", "has a header and no rows"),
        ("path,label\na.png,b,c\n", r"line 2 has 3 columns, the first one 2"),
        ('path,label\n"a.png,b\n', "is no table"),
        ("path,width\na.png,3\n", "has the columns path, width: name them"),
    ],
)
def test_another_table_is_one_line(folder, text, said):
    (folder / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load(folder / "t.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_no_text_is_one_line(folder):
    (folder / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match="give a table in UTF-8"):
        load(folder / "t.csv")


def test_numbers_that_a_spreadsheet_wrote_as_fractions_are_numbers(folder):
    """As texts 10.0 sorts before 2.0, and would be the first class."""
    rows = [(f"pictures/p{number}.png", f"{label}.0") for number, label in enumerate([10, 2, 2, 10, 3, 2])]
    (folder / "t.csv").write_text("path,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    found = load(folder / "t.csv")
    assert [found.heldout_labels[at] for at in range(4)] == [
        int(float(rows[number][1])) for number in numbers(found)
    ]
