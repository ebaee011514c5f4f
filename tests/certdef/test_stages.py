"""The runner: typed results on disk and back, keys that name what decides a result, and work of version 0.1.0."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import certdef
import certify
from certdef import pipeline, stages
from certdef.config.job import ConfigError, SigmaLaw
from certdef.tracking.legacy import NEWER, NEWER_SECTIONS, Legacy, runs_file
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage, fingerprint
from certify.records.jsonl import json_line

STORE = "sqlite:///mlruns/mlflow.db"


@dataclass(frozen=True)
class Row:
    eps: float
    share: Share


@dataclass(frozen=True, kw_only=True)
class Table(StageResult):
    rows: tuple[Row, ...]
    named: dict[str, Share]
    uri: str | None = None


TABLE = Table(
    rows=(Row(0.1, Share(0.5, 0.25, 0.75)),),
    named={"a": Share.of(3, 4)},
    series={"loss": (2.0, 1.0)},
    points={"agreement": ((100, 0.5),)},
)


def test_a_share_has_an_exact_interval():
    share = Share.of(0, 10)
    assert (share.value, share.lower) == (0, 0)
    assert share.upper == pytest.approx(1 - 0.025 ** (1 / 10), rel=1e-9)
    assert json.loads(json.dumps(share)) == [share.value, share.lower, share.upper]


def test_a_result_survives_the_disk(tmp_path):
    stage = Stage(tmp_path, "table", Table, "key")
    stage.path.mkdir()
    stage.finish(TABLE)
    again = Stage(tmp_path, "table", Table, "key")
    assert again.reused
    assert again.result == TABLE
    assert isinstance(again.result.rows[0].share, Share)
    assert "uri" not in json.loads((stage.path / "result.json").read_text())


def test_a_result_of_another_form_is_refused():
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="rows"):
        Table.from_json({"named": {}})
    with pytest.raises(ValidationError, match="share"):
        Table.from_json(TABLE.to_json() | {"rows": [{"eps": 0.1, "share": "much"}]})
    assert Table.from_json(TABLE.to_json() | {"of_a_later_version": 1}) == TABLE


def test_looking_a_stage_up_writes_nothing(tmp_path):
    stage = Stage(tmp_path, "table", Table, "key")
    assert not stage.done
    assert list(tmp_path.iterdir()) == []


def test_every_result_of_a_job_survives_the_disk(tiny_job):
    for name, stage in tiny_job[1].stages.items():
        fresh = stage.result_type.from_json(json.loads((stage.path / "result.json").read_text()))
        assert fresh == stage.result, name
    assert tiny_job[1].stages["certify"].result.curves["target-nim-de3"].accuracy[0].value <= 1


def test_torch_keeps_the_threads_of_its_caller(store, tmp_path):
    before = torch.get_num_threads()
    config = certdef.load_config(
        work_dir=str(tmp_path / "work"), tracking__uri=store, tracking__system_metrics=False, threads=1
    )
    with pipeline.open_job(config):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def votes_of_the_target(summary) -> dict[tuple[str, int], int]:
    """Votes that bound a class, by condition and image."""
    found = {}
    for path in (summary.stages["certify"].path / "records").glob("target-*.jsonl"):
        records = certify.read_records(path)
        votes = records.counts.sum(axis=1).tolist()
        found |= {(path.stem, image): count for image, count in zip(records.idx.tolist(), votes, strict=True)}
    return found


class TestKeys:
    """A stage and a paid receipt depend on what decides them, and on nothing else."""

    def test_the_label_of_a_law_decides_nothing(self, copied):
        laws = (SigmaLaw(label="published"), *copied.certify.laws[1:])
        renamed = dataclasses.replace(copied, certify=dataclasses.replace(copied.certify, laws=laws))
        surrogate = next(copied.workspace.glob("surrogate-*"))
        certdef.distill(renamed, progress=False)
        assert list(copied.workspace.glob("surrogate-*")) == [surrogate]

    def test_the_version_of_the_package_decides_nothing(self, copied, monkeypatch):
        monkeypatch.setattr(certdef, "__version__", "9.9.9")
        assert certdef.run(copied, progress=False).reused

    @pytest.mark.parametrize(
        "change",
        [{"radii": (0.1, 0.2)}, {"alpha": 0.01}, {"batch_size": 512}, {"images": 4}],
        ids=lambda change: next(iter(change)),
    )
    def test_votes_that_are_paid_serve_another_certificate(self, tiny_job, copied, change):
        before = tiny_job[1]
        again = dataclasses.replace(copied, certify=dataclasses.replace(copied.certify, **change))
        summary = certdef.certify(again, progress=False)
        drawn, already = votes_of_the_target(summary), votes_of_the_target(before)
        more = sum(max(0, votes - already[image]) for image, votes in drawn.items())
        assert summary.bill["certification"].spent == before.bill["certification"].spent + more

    def test_another_seed_pays_for_its_own_votes(self, copied):
        """A planted key without the seed would recall the votes of other noise."""
        decides = [(seed, "cpu", {"law": "gaussian"}, "none") for seed in (0, 1)]
        assert fingerprint(*decides[0]) != fingerprint(*decides[1])
        changed = dataclasses.replace(copied.attack, eps=(0.05,))
        before = pipeline.attack(copied, progress=False).bill["attack"].spent
        after = pipeline.attack(dataclasses.replace(copied, attack=changed), progress=False).bill["attack"]
        assert before < after.spent  # other adversarial images are other queries
        assert after.spent == before + 2 * copied.attack.images  # purified clean images are recalled


class TestRecords:
    """Records that a certification left behind are checked before they are counted."""

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda row: row | {"radius": -0.1}, "line 2 is no valid record"),
            (lambda row: row | {"label": row["label"] + 10, "correct": 0}, "images that are not this job's"),
            (lambda row: row | {"idx": 10**6}, "images that are not this job's"),
        ],
        ids=["radius", "label", "idx"],
    )
    def test_what_is_not_this_jobs_is_refused(self, copied, change, word):
        """Written anew, with a checksum that fits."""
        folder = next(copied.workspace.glob("certify-*"))
        (folder / "result.json").unlink()
        path = folder / "records" / "surrogate-nim-de3.jsonl"
        header, first, *rest = path.read_bytes().splitlines(keepends=True)
        row = {name: value for name, value in json.loads(first).items() if name != "crc32"}
        path.write_bytes(header + json_line(change(row)) + b"".join(rest))
        with pytest.raises((ConfigError, certify.CertifyError), match=word) as caught:
            certdef.certify(copied, progress=False)
        assert "\n" not in str(caught.value)


THEN = {  # the default job of version 0.1.0
    "certify__laws": "[{label: nim}, {label: wide, scale_255: 6}]",
    "certify__n": 10_000,
    "ledger__certification": 525_000,
    "nim__epochs": 300,
    "nim__base_learning_rate": 6e-3,
    "ladder__eot": 20,
    "ladder__square_queries": 500,
    "ladder__looks": 1,
    "udc__adaptive_crops": 68,
    "udc__adaptive_eot": 3,
}


class TestLegacy:
    """The names are those that version 0.1.0 gave to the stages of its default job."""

    NAMES: ClassVar = {
        "target": "2b52830c9bc0d0e7",
        "surrogate": "794c2120771b94d0",
        "nim": "0aa28aaed0aba7ac",
        "nim-wide": "6f68cb6b486dbe0d",
        "purifier-de3": "d7eededd2f12ed89",
        "certify": "41aef45ad316c58f",
        "attack": "4f49b9c8ff682f9e",
        "served": "76f6ae928825fdcb",
    }

    def test_the_names_of_the_default_job(self):
        legacy = Legacy(certdef.load_config("digits", certify__method="fixed", **THEN), "cpu", STORE)
        legacy.draws = stages.target_draws(legacy.config)
        assert {name: legacy.fingerprint(name) for name in self.NAMES} == self.NAMES
        assert legacy.fingerprint("some-later-stage") is None

    def test_a_job_of_then_goes_on(self, tiny_job, copied):
        """Folders under their old names are taken over: nothing is trained or paid for again."""
        surrogate = dataclasses.replace(
            copied.surrogate, noise="uniform"
        )  # what is certified was the one that agrees
        copied = dataclasses.replace(copied, surrogate=surrogate)
        legacy = Legacy(copied, "cpu", copied.tracking.uri)
        legacy.draws = stages.target_draws(copied)
        legacy.target = tiny_job[1].stages["target"].result.identity
        for folder in copied.workspace.glob("certify-*"):
            shutil.rmtree(folder)
        before = certdef.run(copied, progress=False)
        for name, stage in before.stages.items():
            old = legacy.fingerprint(name)
            assert old is not None
            folder = copied.workspace / f"{name}-{stage.fingerprint}"
            for path in folder.glob("records/*.jsonl"):
                path.write_text(path.read_text().replace(stage.fingerprint, old, 1))
            folder.rename(copied.workspace / f"{name}-{old}")
        summary = certdef.run(copied, progress=False)
        assert summary.reused
        assert summary.results == before.results
        assert {path.name for path in copied.workspace.glob("certify-*")} == {
            f"certify-{summary.stages['certify'].fingerprint}"
        }
        for path in summary.stages["certify"].path.glob("records/*.jsonl"):
            assert json.loads(path.read_text().splitlines()[0])["config"]["stage"] in path.parts[-3]

    @pytest.mark.parametrize("noise", ["certified", "uniform"])
    def test_certificates_of_then_are_not_those_of_a_surrogate_trained_as_certified(self, tmp_path, noise):
        """What did not rest on a certified surrogate is taken over all the same, and receipts keep their names."""
        config = certdef.load_config("digits", work_dir=str(tmp_path), surrogate__noise=noise, **THEN)
        legacy = Legacy(config, "cpu", STORE)
        names = ["surrogate", "certify", "served", "ladder", "purifier-de3", "ladder-none"]
        adopted = []
        for name in names:
            (tmp_path / f"{name}-{legacy.fingerprint(name)}").mkdir()
            stage = Stage(tmp_path, name, StageResult, "new")
            legacy.adopt(stage)
            adopted += [name] if stage.path.exists() else []
        others = ["surrogate", "purifier-de3", "ladder-none"]
        assert adopted == (others if noise == "certified" else names)
        assert legacy.experiment("certify", "x")[0] == f"{legacy.fingerprint('certify')}/x"

    def test_new_options_that_are_unset_leave_a_job_where_it_was(self):
        """Its MLflow runs are named by its whole configuration: an option that comes later belongs in NEWER."""
        then = certdef.load_config("digits", work_dir="w", certify__method="fixed", **THEN)
        name = runs_file(then, "sqlite:///mlruns/mlflow.db").name
        assert name == "b903308ec846f588.json"
        changed = certdef.load_config(
            "digits", work_dir="w", certify__method="fixed", data__resize=16, **THEN
        )
        assert runs_file(changed, "sqlite:///mlruns/mlflow.db").name != name

    def test_the_runs_of_a_job_of_then_are_taken_over(self, tmp_path):
        config = certdef.load_config("digits", work_dir=str(tmp_path), **THEN)
        plain = config.to_dict()
        plain.pop("udc", None)
        for section in NEWER_SECTIONS:
            del plain[section]
        for section, names in NEWER.items():  # which that version did not have
            for name in names:
                del plain[section][name]
        if "quantize" in plain["target"]:
            plain["target"]["quantise"] = plain["target"].pop("quantize")
        (tmp_path / "jobs").mkdir()
        old = tmp_path / "jobs" / f"{fingerprint(plain, STORE)}.json"
        old.write_text('{"job": "run"}')
        assert json.loads(runs_file(config, STORE).read_text()) == {"job": "run"}
