"""Configuration files from anywhere: one line, at once, whatever they hold."""

import pytest
import yaml

from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.config.load import load_config
from certdef.config.yaml_limits import MOST_NODES, check_yaml, read_config

LISTS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MAPPINGS = "a0: &a0 {k: x}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40))
MERGED = "a0: &a0 {k: x}\n" + "".join(
    f"a{i}: &a{i} {{<<: *a{i - 1}, p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40)
)
BOMBS = {
    "lists": (LISTS, "more than 100,000 values"),
    "mappings": (MAPPINGS, "more than 100,000 values"),
    "merged": (MERGED, "more than 100,000 values"),
    "brackets": ("a: " + "[" * 200_000, "nested more than 50 levels"),
    "itself": ("a: &a [*a]\n", "refers to itself"),
    "large": ("# x\n" * 300_000, "more than 1,048,576 bytes"),
    "zeros": ("\0" * 2_000_000, "more than 1,048,576 bytes"),
    "many": ("x: [" + "1," * 200_000 + "]", "more than 100,000 values"),
}


@pytest.mark.parametrize(("text", "said"), BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("option", ["--config", "--certify", "--surrogate"])
def test_a_bomb_is_one_line_and_exit_2(tmp_path, capsys, text, said, option):
    (tmp_path / "bomb.yaml").write_text(text)
    assert main(["run", "--print-config", option, str(tmp_path / "bomb.yaml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_bomb_that_a_file_names_or_an_option_holds(tmp_path):
    (tmp_path / "bomb.yaml").write_text(LISTS)
    (tmp_path / "named.yaml").write_text("certify: bomb.yaml\n")
    with pytest.raises(ConfigError, match=r"bomb\.yaml' has more than"):
        load_config(file=tmp_path / "named.yaml")
    with pytest.raises(ConfigError, match=r"--certify\.laws has more than"):
        load_config(certify__laws=LISTS)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00\x01", "is no YAML"), (b"a: [", "is no YAML"), (None, "can't be read")],
)
def test_what_is_no_yaml_or_no_file(tmp_path, content, said):
    path = tmp_path / "a.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        read_config(path) if content is None else load_config(file=path)
    assert "\n" not in str(error.value)


def test_anchors_are_counted_as_they_are_written_out():
    small = "a: &a [1, 2, 3]\nb: &b {x: *a, y: *a}\nc: [*b, *b]\n"
    check_yaml(small, "x")
    values = yaml.safe_load(small)
    assert values["c"][1]["y"] == [1, 2, 3]
    line = "b: [" + ",".join(["*a"] * 9) + "]"
    anchor = "a: &a [" + ",".join(["1"] * (MOST_NODES // 10 - 10)) + "]\n"
    check_yaml(anchor + line, "x")
    with pytest.raises(ConfigError, match="more than"):
        check_yaml(anchor + line.replace("]", ",*a]"), "x")


def test_an_ordinary_file_with_anchors_is_read(tmp_path):
    text = "certify:\n  n: &n 777\n  n0: 10\nsurrogate: {epochs: *n}\n"
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(file=tmp_path / "mine.yaml")
    assert (config.certify.n, config.surrogate.epochs) == (777, 777)
