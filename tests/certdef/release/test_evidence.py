"""Evidence of a model version: the document and its schema, what is absent in it, its page, its secrets."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pydantic
import pytest
import yaml

import certdef
import certify
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.release import document as documents
from certdef.release.document import Absent, Evidence
from certdef.release.evidence import evidence
from certdef.release.evidence_words import as_markdown
from certdef.release.model_card import as_card
from certdef.release.page import as_html
from certdef.report.statements import DOES_NOT_PROVE, LIMITS, PROVES
from surrogates.ledger.digest import ledger_digest

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "certdef" / "release" / "schemas" / "evidence-1.json"
VOID = {"meta", "link", "br", "img", "hr", "input"}
PARTS = ("clean_accuracy", "subgroups", "attack", "membership", "queries")


class WellFormed(HTMLParser):
    """Fails on a tag that is closed wrongly; keeps the ids, the links within the page, and what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.ids, self.targets, self.loaded = [], set(), set(), []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            assert found["id"] not in self.ids
            self.ids.add(found["id"])
        if found.get("href", "").startswith("#"):
            self.targets.add(found["href"][1:])
        self.loaded += [each for each in (found.get("src"), found.get("href")) if each and "//" in each]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def schema():
    return json.loads(SCHEMA.read_text())


@pytest.fixture(scope="session")
def job_document(own_job):
    """Of the folder of the own job, with its groups."""
    folder, _, _ = own_job
    return evidence(folder / "work", groups=[f"{folder / 'groups.csv'}:camera"])


@pytest.fixture(scope="session")
def run_document(own_job):
    """Of its run."""
    folder, store, _ = own_job
    (jobs,) = (folder / "work" / "jobs").glob("*.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the job had its ledger
        return evidence(json.loads(jobs.read_text())["job"], tracking_uri=store)


def test_the_published_schema_is_that_of_the_document(schema):
    assert schema == documents.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == documents.ID


@pytest.mark.acceptance
@pytest.mark.slow
def test_a_job_becomes_a_document_that_follows_its_schema(job_document, run_document, schema, own_job):
    for found in (job_document, run_document):
        plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
        jsonschema.validate(plain, schema)
        assert Evidence.from_json(json.dumps(plain)) == found
    folder, *_ = own_job
    (path,) = (folder / "work").glob("certify-*/records/target-*.jsonl")
    records = certify.read_records(path)
    headline = job_document.headline
    assert (headline.subject, headline.norm, headline.claim) == ("target", "l2", "sound")
    assert (headline.n0, headline.n, headline.alpha, headline.images) == (30, 150, 0.001, 12)
    for row in headline.radii:
        assert row.certified == int((records.correct & (records.radius >= row.radius)).sum())
        lower, upper = certify.binomial_interval(row.certified, 12)
        assert (row.accuracy.lower, row.accuracy.upper) == (lower, upper)
    cameras = [group for group in job_document.subgroups.groups if group.column == "camera"]
    rows = np.where(records.row % 2, "left", "right")
    assert {group.name: group.images for group in cameras} == {
        name: int((rows == name).sum()) for name in np.unique(rows)
    }
    assert job_document.clean_accuracy == documents.CleanAccuracy(
        images=None, accuracy=run_document.clean_accuracy.accuracy
    )
    assert run_document.clean_accuracy.images == 40


def test_the_model_is_named_by_the_digest_of_its_file(job_document, own_job):
    from hashlib import sha256

    folder, *_ = own_job
    assert job_document.model.digest == sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert job_document.model.name == "model.onnx"
    assert isinstance(job_document.model.version, Absent)


def test_queries_budgets_and_the_hash_of_the_ledger(job_document, run_document, own_job, capsys):
    folder, *_ = own_job
    ledger = folder / "work" / "ledger.db"
    found = run_document.queries
    spent = {each.purpose: each.spent for each in found.purposes}
    assert spent["certification"] == sum(
        each["size"] for each in exported(ledger) if each["purpose"] == "certification"
    )
    assert {each.purpose: each.budget for each in found.purposes}["certification"] == 12 * 180
    assert found.ledger.sha256 == job_document.queries.ledger.sha256 == ledger_digest(ledger).sha256
    assert main(["ledger", str(ledger), "--digest", "--upto", str(found.ledger.upto)]) == 0
    assert f"sha256:{found.ledger.sha256}" in capsys.readouterr().out
    assert all(
        each.budget is None for each in job_document.queries.purposes
    )  # a folder keeps no configuration


def exported(ledger: Path) -> list[dict]:
    import sqlite3

    with sqlite3.connect(ledger) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM batches WHERE state = 'answered'")]


def test_membership_inference_is_in_it(job_document):
    found = job_document.membership
    assert (found.members, found.nonmembers) == (100, 100)
    (loss,) = found.attacks
    assert loss.auc.lower > 0.6  # it knows its training images by heart
    assert [rate.possible for rate in loss.rates] == [True, False]
    assert not found.lists.differ


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("limits"),
        lambda plain: plain.update(schema="certdef-evidence-2"),
        lambda plain: plain.update(extra=1),
        lambda plain: plain["certificates"][0].update(alpha="0.001"),
        lambda plain: plain["certificates"][0].pop("subject"),
        lambda plain: plain["certificates"][0]["radii"][0]["accuracy"].pop("lower"),
        lambda plain: plain["attack"].pop("how"),
        lambda plain: plain["attack"].update(status="measured"),
        lambda plain: plain["queries"]["ledger"].update(sha256=None),
        lambda plain: plain["model"].update(version=None),
    ],
)
def test_an_altered_document_fails(job_document, schema, change):
    plain = json.loads(json.dumps(job_document.to_json()))
    jsonschema.validate(plain, schema)
    altered = copy.deepcopy(plain)
    change(altered)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(altered, schema)
    with pytest.raises(pydantic.ValidationError):
        Evidence.from_json(json.dumps(altered))


def test_a_result_or_a_vote_that_was_changed_is_refused(own_job, tmp_path):
    folder, *_ = own_job
    for pattern, old, new in (
        ("target-*/result.json", b'"accuracy": [', b'"accuracy": [9'),
        ("certify-*/records/*.jsonl", b'"correct": 1', b'"correct": 0'),
    ):
        work = tmp_path / pattern.partition("-")[0]
        shutil.copytree(folder / "work", work)
        (path,) = work.glob(pattern)
        text = re.sub(rb"\n *", b" ", path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new, 1))
        with pytest.raises((ConfigError, certify.CertifyError)):
            evidence(work)


def test_records_alone_say_what_they_do_not_say(versions, schema):
    found = evidence(versions / "float")
    jsonschema.validate(json.loads(json.dumps(found.to_json())), schema)
    for part in ("clean_accuracy", "attack", "membership", "queries", "run"):
        absent = getattr(found, part)
        assert isinstance(absent, Absent)
        assert absent.why
        assert absent.how
    assert isinstance(found.reproduce.command, Absent)
    assert isinstance(found.model.name, Absent)
    mapped = {each.section: each.absent for each in found.requirements}
    assert mapped["11.3.3 membership inference"] == ("membership",)
    assert mapped["11.2.5 formal verification"] == ()
    for text in (as_html(found), as_markdown(found), as_card(found)):
        assert text.count("not known") >= 4
        assert "--membership.members" in text or "RUN_ID" in text


def test_what_was_not_measured_names_its_command(run_document):
    assert run_document.attack.status == "not measured"
    assert "certdef attack --ladder" in run_document.attack.how
    assert "--groups" in run_document.subgroups.columns.how
    for text in (as_html(run_document), as_markdown(run_document)):
        assert "not measured" in text
        assert "certdef attack --ladder" in text


def test_the_whole_job_and_the_registered_surrogate(tiny_job, schema):
    config, summary, _ = tiny_job
    found = evidence("models:/certdef-digits/1", tracking_uri=config.tracking.uri)
    jsonschema.validate(json.loads(json.dumps(found.to_json())), schema)
    assert (found.model.name, found.model.version, found.model.role) == ("certdef-digits", "1", "surrogate")
    assert found.headline.subject == "surrogate"
    assert "says nothing about the target" in as_html(found)
    curves = summary.stages["certify"].result.curves
    assert {each.key for each in found.certificates} == set(curves)
    for each in found.certificates:
        assert tuple(row.accuracy.value for row in each.radii) == tuple(
            s.value for s in curves[each.key].shares
        )
    assert len(found.model.digest) == 64
    assert {each.use for each in found.data.sets} == {"evaluation", "training"}
    bill = {
        name: (charge.spent, charge.budget) for name, charge in summary.bill.charges.items() if charge.spent
    }
    assert {each.purpose: (each.spent, each.budget) for each in found.queries.purposes if each.spent} == bill
    command = found.reproduce.command.split()
    assert command[:2] == ["certdef", "run"]
    assert f"--certify.n={config.certify.n}" in command
    of_run = evidence(summary.run_id, tracking_uri=config.tracking.uri)
    assert of_run.headline.subject == "target"
    assert of_run.clean_accuracy.accuracy.value == summary.results["target"]["accuracy"][0]


@pytest.mark.acceptance
@pytest.mark.slow
def test_the_page_is_well_formed_and_loads_nothing(job_document, run_document):
    for found in (job_document, run_document):
        page = as_html(found)
        parsed = WellFormed(page)
        assert parsed.targets <= parsed.ids
        assert parsed.loaded == []
        for table in re.findall(r"<table.*?</table>", page, re.S):
            widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", table, re.S)}
            assert len(widths) == 1
        assert page.count('class="scroll"') == page.count("<table")


def test_names_from_outside_are_text_on_the_page(job_document):
    import dataclasses

    model = dataclasses.replace(job_document.model, name="<script>alert(1)</script>|x")
    hostile = dataclasses.replace(job_document, model=model)
    assert "<script>" not in as_html(hostile)
    assert "# Evidence: \\<script\\>" in as_markdown(hostile)


def test_markdown_and_card_are_read_by_others(run_document):
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark").enable("table").render(as_markdown(run_document))
    assert html.count("<table>") == 5  # certificates, groups, membership, queries, requirements
    card = as_card(run_document)
    _, front, body = card.split("---\n", 2)
    plain = yaml.safe_load(front)
    (index,) = plain["model-index"]
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    by_radius = {m["args"]["radius"]: m["value"] for m in metrics if m["type"] == "certified_accuracy"}
    headline = run_document.headline
    assert by_radius == {
        row.radius: round(row.accuracy.value, 6) for row in headline.radii if row.radius <= headline.reach
    }
    assert all({"task", "dataset", "metrics"} <= result.keys() for result in index["results"])
    assert all({"name", "type"} <= result["dataset"].keys() for result in index["results"])
    assert "&id" not in front
    assert "## Certified robustness" in body


def test_the_statements_are_those_of_the_docs():
    page = (ROOT / "docs" / "sharp-edges.md").read_text()

    def numbered(title: str) -> list[str]:
        section = page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
        found = re.findall(r"^\d+\. (.*(?:\n   .*)*)", section, re.MULTILINE)
        return [" ".join(each.split()) for each in found]

    assert numbered("What it proves, and what it does not") == [*PROVES, *DOES_NOT_PROVE]
    assert numbered("Sharp edges") == list(LIMITS)
    assert len(LIMITS) == 10


@pytest.mark.acceptance
@pytest.mark.slow
def test_no_secret_of_address_header_or_environment(service, store, tmp_path, monkeypatch, capsys):
    from sklearn.datasets import load_digits

    url, _ = service
    token, password, other = "hush-hush-0815", "hunter2-4711", "tracking-secret-99"
    monkeypatch.setenv("DIGITS_TOKEN", token)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", other)
    digits = load_digits()
    np.savez(
        "images.npz",
        images=(digits.images[1000:1030, None] / 16).astype("float32"),
        labels=digits.target[1000:1030],
    )
    options = [
        f"--target.uri={url.replace('://', f'://user:{password}@')}",
        "--target.num_classes=10",
        "--target.headers={X-Model: v2-planted}",
        "--target.canary_every=0",
        "--data.path=images.npz",
        "--purifier=none",
        "--certify.target_images=2",
        "--certify.n=20",
        "--certify.n0=5",
        f"--tracking.uri={store}",
        "--tracking.system_metrics=false",
        f"--tracking.experiment=of-{token}",
        "--work-dir=work",
    ]
    assert main(["certify", *options, "--quiet"]) == 0
    monkeypatch.setenv(
        "HF_TOKEN", token
    )  # a secret of whoever writes, which stands in the name of the experiment
    (jobs,) = Path("work/jobs").glob("*.json")
    assert main(["evidence", json.loads(jobs.read_text())["job"], "--tracking.uri", store, "--out", "e"]) == 0
    printed = "".join(capsys.readouterr())
    texts = [path.read_text() for path in Path("e").iterdir()]
    assert len(texts) == 4
    command = json.loads(Path("e/evidence.json").read_text())["reproduce"]
    assert "certdef certify" in command["command"]
    assert "left out" in command["note"]
    for text in (*texts, printed.split("evidence    ")[1]):
        for secret in (token, password, other, "v2-planted"):
            assert secret not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN is needed"),
        (["nowhere"], "'nowhere' is not there: give a run id"),
        (["work", "--format", "json,pdf"], "--format has 'pdf'"),
        (["work", "--radii", "a"], "--radii is 'a'"),
        (["work", "--radii=-1"], "--radii is [-1.0]"),
        (["work", "--ledger", "no.db"], "--ledger is 'no.db'"),
        (["work", "--groups", "groups.csv:lens"], "the columns are camera"),
        (["work", "--frmat", "json"], "did you mean '--format'"),
        (["work", "--out", "model.onnx/e"], "--out is 'model.onnx/e'"),
        (["models:/mine/1"], "tracking"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(own_job, arguments, said, capsys, monkeypatch, tmp_path):
    folder, *_ = own_job
    for name in ("work", "groups.csv", "model.onnx"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    assert main(["evidence", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "evidence").exists()


def test_it_writes_what_was_asked_and_says_what_is_absent(own_job, tmp_path, capsys, monkeypatch):
    folder, *_ = own_job
    monkeypatch.chdir(tmp_path)
    assert main(["evidence", str(folder / "work"), "--format", "json,card", "--out", "a/b"]) == 0
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"evidence.json", "card.md"}
    printed = capsys.readouterr().out
    assert "not measured  attack: certdef attack --ladder" in printed
    assert main(["evidence", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == documents.ID
    assert main(["evidence", "--help"]) == 0
    assert "exit codes" in capsys.readouterr().out


def test_from_python(own_job):
    folder, *_ = own_job
    assert certdef.evidence(folder / "work").headline.images == 12
