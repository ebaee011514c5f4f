"""certdef compare on real networks: what it finds, prints, writes, and its exit codes."""

import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from markdown_it import MarkdownIt

import certdef
import certify
from certdef.cli import main
from certdef.release import results
from certdef.release.compare import compare
from certdef.release.results import Comparison
from tests.certdef.release.certified import record

SCHEMA = Path(results.__file__).parent / "schemas" / "comparison-1.json"


def run(*arguments) -> int:
    return main(["compare", *map(str, arguments)])


def test_the_same_network_under_the_same_noise_is_the_same(versions):
    found = certdef.compare(versions / "float", versions / "same")
    assert (found.images, found.paired_by, found.same_noise) == (100, "image", True)
    assert not found.lost
    assert not found.won
    assert all(row.difference == 0 and row.p == 1 and row.verdict == "unproven" for row in found.rows)
    assert found.tests == 5 * (1 + 10) == len(found.rows)


def test_other_noise_changes_images_and_proves_nothing(versions):
    found = compare(versions / "float", versions / "again")
    assert found.same_noise is False
    assert found.lost or found.won
    assert {row.verdict for row in found.rows} == {"unproven"}


def test_a_quantized_network_changes_little(versions):
    found = compare(versions / "float", versions / "int8")
    assert found.same_noise is True
    assert found.old.mean_radius != found.new.mean_radius  # its votes are others
    assert {row.verdict for row in found.rows} == {"unproven"}
    again = compare(versions / "float", versions / "again")
    assert sum(row.lost + row.won for row in found.overall) <= sum(
        row.lost + row.won for row in again.overall
    )


def test_a_worse_network_is_proven_to_be_worse(versions):
    found = compare(versions / "float", versions / "worse", radii=[0, 0.25, 0.5])
    worst = min(found.overall, key=lambda row: row.difference)
    assert worst.verdict == "worse"
    assert worst.upper < 0
    assert worst.p_holm <= 0.05
    reverse = compare(versions / "worse", versions / "float", radii=[0, 0.25, 0.5])
    assert {row.verdict for row in reverse.overall} >= {"better"}
    assert [each.idx for each in reverse.won] == [each.idx for each in found.lost]


def test_the_images_that_lost_are_those_of_the_records(versions):
    found = compare(versions / "float", versions / "worse", radii=[0.5])
    old, new = (
        certify.read_records(versions / name / "records" / "target-g-none.jsonl")
        for name in ("float", "worse")
    )
    there = [each.correct & (each.radius >= 0.5) for each in (old, new)]
    expected = set(old.idx[there[0] & ~there[1]].tolist())
    assert {each.idx for each in found.lost} == expected
    assert len(expected) == found.overall[0].lost
    for each in found.lost:
        assert each.image == old.image[each.idx]
        assert each.old_radius == old.radius[each.idx] >= 0.5
        assert each.at == (0.5,)


@pytest.mark.acceptance
def test_exit_codes_and_files(versions, tmp_path, capsys):
    files = {name: tmp_path / f"out.{end}" for name, end in (("json", "json"), ("junit", "xml"))}
    files |= {"markdown": tmp_path / "out.md", "picture": tmp_path / "out.png"}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert run(versions / "float", versions / "same", "--max-drop", 0, "--max-proven-drop", 0) == 0
    assert "every gate passed" in capsys.readouterr().out
    gates = ["--fail-if", "certified@0.25 < 0.95", "--fail-if", "abstained > 100%", "--max-drop", "0.02"]
    assert run(versions / "float", versions / "worse", *gates, *options) == 1
    shown = capsys.readouterr().out
    assert "FAILED  fail if certified@0.25 < 0.95" in shown
    assert "passed  fail if abstained > 100%" in shown
    assert "FAILED  observed drop at most 0.02" in shown

    plain = json.loads(files["json"].read_text())
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    jsonschema.validate(plain, json.loads(SCHEMA.read_text()))
    assert plain["passed"] is False
    kept = Comparison.from_json(plain)
    assert kept == compare(
        str(versions / "float"),
        str(versions / "worse"),
        fail_if=["certified@0.25 < 0.95", "abstained > 100%"],
        max_drop=0.02,
    )

    suite = ElementTree.parse(files["junit"]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert len(suite.findall("./testsuite/testcase")) == 3
    assert len(suite.findall("./testsuite/testcase/failure")) == 2
    assert "verdict" in suite.findtext("./testsuite/system-out")

    html = MarkdownIt("commonmark").enable("table").render(files["markdown"].read_text())
    assert html.count("<table>") == 3  # gates, all images, classes
    assert html.count("</details>") == html.count("<details>") >= 2
    assert '<img src="out.png"' in html
    cells = html.split("<tbody>")[2].split("</tbody>")[0]
    assert cells.count("<tr>") == 5
    assert files["picture"].read_bytes().startswith(b"\x89PNG")


def test_the_published_schema_is_that_of_the_results():
    assert json.loads(SCHEMA.read_text()) == results.json_schema()


def test_a_form_that_is_none_is_refused(versions):
    plain = compare(versions / "float", versions / "same").to_json()
    schema = json.loads(SCHEMA.read_text())
    for broken in ({"schema": "certdef-comparison-2"}, {"images": "many"}, {"rows": [{"scope": "all"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(json.dumps({**plain, **broken})), schema)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--fail-if", "certified < 0.6"], "certified@0.25"),
        (["--max-drop", "2"], "--max-drop is 2"),
        (["--alpha", "0.7", "--radii", "-1"], "--alpha is 0.7"),
        (["--radii", "a"], "--radii"),
        (["--junit", "/nowhere/x.xml"], "--junit"),
        (["--condition", "other"], "target-g-none"),
        (["--fial-if", "clean < 1"], "--fail-if"),
        (["--groups", "none.csv:x"], "none.csv"),
        (["third"], "third"),
    ],
)
def test_bad_options_are_one_clear_error(versions, options, named, capsys):
    assert run(versions / "float", versions / "same", *options) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error


def test_no_records_are_one_clear_error(tmp_path, capsys):
    assert run(tmp_path, "nowhere") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2  # both at once
    assert "no records" in error[0]
    assert "'nowhere' is not there" in error[1]
    assert run(tmp_path) == 2
    assert "OLD and NEW are needed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.acceptance
def test_mlperf_tiny_in_float_and_int8(data_root, tmp_path, capsys):
    """ResNet-8 for CIFAR-10, quantized by those who published it: 60 images, 200 votes each, the same noise draws."""
    from surrogates import open_target

    folder = data_root / "targets/mlperf_tiny"
    if not folder.exists():
        pytest.skip("no targets/mlperf_tiny in the data")
    with np.load(data_root / "cifar10/cifar10_lossless.npz") as file:
        images = file["x_test"][:60].transpose(0, 3, 1, 2) / np.float32(255)
        labels = file["y_test"][:60].astype(np.int64)
    targets = {"float": open_target(folder / "resnet8_cifar10_float.tflite", pixel_range=(0, 255))}
    targets["int8"] = open_target(folder / "resnet8_cifar10_int8.tflite")
    for name, target in targets.items():

        def base(noisy, target=target):
            return target.query(noisy, bounded=False).labels

        record(base, images, labels, tmp_path / name, noise=certify.Gaussian(0.03), n=200, n0=20)
    files = [tmp_path / "float.jsonl", tmp_path / "int8.jsonl"]
    found = compare(*files, radii=[0, 0.025, 0.05])
    assert found.same_noise is True
    assert found.lost or found.won  # int8 is another classifier
    assert {row.verdict for row in found.rows} == {"unproven"}
    assert run(*files, "--radii", "0,0.025,0.05", "--max-proven-drop", 0) == 0
    print(capsys.readouterr().out)


def test_groups_by_idx_by_row_and_of_an_npz(versions, tmp_path):
    cameras = np.array(["left", "right|one"])[np.arange(100) % 2]
    by_row = "camera,site\n" + "".join(f"{each},a\n" for each in cameras)
    order = np.random.default_rng(0).permutation(100)
    by_idx = "idx,camera\n" + "".join(f"{idx},{cameras[idx]}\n" for idx in order)
    (tmp_path / "row.csv").write_text(by_row)
    (tmp_path / "idx.csv").write_text(by_idx)
    np.savez(tmp_path / "both.npz", camera=cameras)
    rows = []
    for file in ("row.csv", "idx.csv", "both.npz"):
        found = compare(
            versions / "float", versions / "worse", groups=[f"{tmp_path / file}:camera"], radii=[0.25]
        )
        rows.append([row for row in found.rows if row.scope == "camera"])
        assert found.tests == 1 + 10 + 2
    assert rows[0] == rows[1] == rows[2]
    assert [(row.name, row.images) for row in rows[0]] == [("left", 50), ("right|one", 50)]
    assert sum(row.lost for row in rows[0]) == found.overall[0].lost


def test_groups_that_nobody_can_match_are_refused(versions, tmp_path, capsys):
    (tmp_path / "few.csv").write_text("camera\na\nb\n")
    (tmp_path / "many.csv").write_text("camera\n" + "".join(f"{each}\n" for each in range(120)))
    (tmp_path / "twice.csv").write_text("idx,camera\n1,a\n1,b\n")
    given = [f"{tmp_path / name}:camera" for name in ("few.csv", "many.csv")]
    given += [f"{tmp_path / 'few.csv'}:site", f"{tmp_path / 'twice.csv'}:camera"]
    assert run(versions / "float", versions / "same", *[w for each in given for w in ("--groups", each)]) == 2
    error = capsys.readouterr().err
    for said in ("98 images", "already", "the columns are camera", "twice"):
        assert said in error
