"""What a job keeps on disk: changed, cut or lost files are noticed; --fresh removes what certdef made, and nothing else."""

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certdef
import certify
import surrogates
from certdef import pipeline
from certdef.cli import as_yaml, main
from certdef.config.job import ConfigError
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.stages.conditions import Condition
from certdef.stages.votes import BaseClassifier, certify_condition
from certdef.tracking.checked_json import read_json, write_json
from certdef.tracking.results import StageResult
from certdef.tracking.workspace import Stage, forget
from surrogates.files import replacing
from tests.servers.faulty import faulty_server


class TestReplacing:
    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(TypeError, match="bytes-like"), replacing(path) as file:
            file.writelines([b"half of the ne", "w"])
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
        with replacing(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]


class TestJson:
    def test_it_reads_what_was_written(self, tmp_path):
        value = {"b": {2: 0.1, 10: [1e-300, None]}, "a": "ä"}
        write_json(tmp_path / "x.json", value)
        assert read_json(tmp_path / "x.json") == json.loads(json.dumps(value))

    def test_every_changed_byte_is_noticed_or_changes_nothing(self, tmp_path):
        path = tmp_path / "x.json"
        write_json(path, {"accuracy": [0.25, 0.125], "name": "de3"})
        whole, plain = path.read_bytes(), read_json(path)
        for at in range(len(whole)):
            for change in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
                path.write_bytes(change)
                error = ""
                try:
                    read = read_json(path)
                except ConfigError as refused:
                    error = str(refused)
                if error:
                    assert str(path) in error
                    assert "\n" not in error
                else:
                    assert read == plain or "sha256" not in change.decode(errors="replace"), change

    def test_files_of_version_0_1_have_no_checksum(self, tmp_path):
        for plain in ({"queries": 5}, [1, 2], 7):
            (tmp_path / "old.json").write_text(json.dumps(plain))
            assert read_json(tmp_path / "old.json") == plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(StageResult):
    count: int


def finished(root: Path) -> Stage[Counted]:
    stage = Stage(root, "counting", Counted, "key")
    stage.begin()
    (stage.path / "records").mkdir(exist_ok=True)
    (stage.path / "records" / "a.jsonl").write_text("{}\n")
    (stage.path / "checkpoint.pt").write_bytes(b"weights")
    stage.finish(Counted(count=3))
    return Stage(root, "counting", Counted, "key")


class TestStage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "records" / "a.jsonl").write_text("{ }\n"),
            lambda folder: (folder / "records" / "a.jsonl").unlink(),
            lambda folder: (folder / "result.json").write_text('{"count": 3, "files"'),
            lambda folder: (folder / "result.json").write_bytes(b"\x00" * 300),
            lambda folder: (folder / "result.json").write_text(
                (folder / "result.json").read_text().replace('"count": 3', '"count": 4')
            ),
        ],
        ids=["changed", "lost", "cut", "zeros", "another figure"],
    )
    def test_damage_is_one_line_with_the_remedy(self, tmp_path, damage):
        finished(tmp_path).check()
        damage(finished(tmp_path).path)
        with pytest.raises(ConfigError, match=r"counting-[0-9a-f]+/.*--fresh") as error:
            Stage(tmp_path, "counting", Counted, "key").check()
        assert "\n" not in str(error.value)

    def test_a_result_of_another_type_is_one_line(self, tmp_path):
        stage = finished(tmp_path)
        (stage.path / "result.json").write_text('{"count": "many"}')  # as version 0.1 wrote it: no checksum
        with pytest.raises(ConfigError, match=r"result\.json' is damaged \(count: .*--fresh") as error:
            _ = stage.result
        assert "\n" not in str(error.value)

    def test_a_checkpoint_may_go(self, tmp_path):
        (finished(tmp_path).path / "checkpoint.pt").unlink()
        finished(tmp_path / ".").check()

    def test_a_stage_of_version_0_1_still_opens(self, tmp_path):
        stage = finished(tmp_path)
        (stage.path / "stage.json").unlink()
        (stage.path / "result.json").write_text(json.dumps(Counted(count=5).to_json()))
        again = Stage(tmp_path, "counting", Counted, "key")
        again.check()
        assert again.result.count == 5

    def test_what_a_killed_job_was_writing_is_removed_when_it_goes_on(self, tmp_path):
        stage = Stage(tmp_path, "counting", Counted, "key")
        stage.begin()
        (stage.path / "model").mkdir()
        (stage.path / "model" / "weights.safetensors.123.tmp").write_bytes(b"half")
        stage.begin()
        assert not list(stage.path.rglob("*.tmp"))


class TestFresh:
    def test_only_what_a_stage_wrote_is_removed(self, tmp_path):
        stage = finished(tmp_path)
        (stage.path / "notes.txt").write_text("mine, from after the stage was done")
        write_json(tmp_path / "jobs.json", {})
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / f"{'0' * 16}.json").write_text("{}")
        (tmp_path / "jobs" / "application.pdf").write_text("mine")
        photographs = tmp_path / "photos-0123456789abcdef"
        photographs.mkdir()
        (photographs / "cat.png").write_text("mine")
        (tmp_path / "empty-0123456789abcdef").mkdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "result.json").write_text(json.dumps(Counted(count=1).to_json()))
        (tmp_path / "link-0123456789abcdef").symlink_to(elsewhere)
        (tmp_path / "ledger.db").write_text("paid")
        forget(tmp_path)
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
        assert left == {
            f"{stage.path.name}/notes.txt",
            "jobs.json",
            "jobs/application.pdf",
            "photos-0123456789abcdef/cat.png",
            "elsewhere/result.json",
            "ledger.db",
        }
        assert (tmp_path / "link-0123456789abcdef").is_symlink()
        assert (tmp_path / "empty-0123456789abcdef").is_dir()

    def test_what_was_in_a_folder_before_its_stage_stays_through_the_next(self, tmp_path):
        notes = finished(tmp_path).path / "notes.txt"
        notes.write_text("mine")
        for _ in range(2):
            forget(tmp_path)
            assert notes.read_text() == "mine"
            finished(tmp_path).check()
            notes.write_text("mine")
            finished(tmp_path).check()

    @pytest.mark.parametrize("name", ["result.json", "stage.json"])
    def test_damage_does_not_keep_a_stage(self, tmp_path, name):
        stage = finished(tmp_path)
        (stage.path / name).write_text('{"files"')
        forget(tmp_path)
        assert not stage.path.exists()

    def test_an_unfinished_stage_of_version_0_1_is_removed(self, tmp_path):
        for names in (["checkpoint.pt"], ["records", "model"], ["random-100-0.begun", "random-100-0.pt"]):
            folder = tmp_path / "surrogate-0123456789abcdef"
            folder.mkdir()
            for name in names:
                (folder / name).write_text("")
            forget(tmp_path)
            assert not folder.exists()


def numpy_state() -> np.ndarray:
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the generator of callers that still use it


class TestModels:
    def test_changed_weights_are_refused(self, tmp_path):
        storage.save_classifier(tmp_path / "model", build_classifier("cnn", (1, 8, 8), 10))
        storage.load_model(tmp_path / "model")
        path = tmp_path / "model" / "classifier.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-4000] + b"\0" * 4000)
        for load in (storage.load_model, lambda folder: storage.load_weights(folder, torch.nn.Identity())):
            with pytest.raises(ConfigError, match=r"classifier.safetensors' was changed .*--fresh"):
                load(tmp_path / "model")
        path.unlink()
        with pytest.raises(ConfigError, match=r"classifier.safetensors' is missing"):
            storage.load_model(tmp_path / "model")

    def test_a_changed_description_is_refused(self, tmp_path):
        """The noise that a served model votes under stands there."""
        storage.save_classifier(tmp_path, build_classifier("cnn", (1, 8, 8), 10))
        spec = tmp_path / "model.json"
        spec.write_text(spec.read_text().replace("probabilities", "logits"))
        with pytest.raises(ConfigError, match=r"model\.json' was changed"):
            storage.load_model(tmp_path)

    def test_models_of_version_0_1_still_open_and_damage_is_one_line(self, tmp_path):
        model = build_classifier("cnn", (1, 8, 8), 10).eval()
        storage.save_classifier(tmp_path, model)
        spec = json.loads((tmp_path / "model.json").read_text())
        del spec["sha256"], spec["files"]
        (tmp_path / "model.json").write_text(json.dumps(spec, indent=1))
        image = torch.rand(1, 1, 8, 8)
        assert torch.equal(storage.load_model(tmp_path)(image), model(image))
        path = tmp_path / "classifier.safetensors"
        for content in (path.read_bytes()[:-10], b"", b"\xff" * 100):
            path.write_bytes(content)
            with pytest.raises(ConfigError, match=r"can't be loaded") as error:
                storage.load_model(tmp_path)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["cnn", "mlp", "resnet18"])
    def test_loading_draws_nothing_from_the_callers_generators(self, tmp_path, name):
        """A module is built with random weights: without a fork its caller would go on with other numbers."""
        storage.save_classifier(tmp_path, build_classifier(name, (3, 32, 32), 10))
        torch.manual_seed(1)
        random.seed(1)
        before = (torch.get_rng_state(), numpy_state(), random.getstate())
        build_classifier(name, (3, 32, 32), 10)
        assert not torch.equal(torch.get_rng_state(), before[0]), "building draws"
        torch.set_rng_state(before[0])
        storage.load_model(tmp_path)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(numpy_state(), before[1])
        assert random.getstate() == before[2]


class TestJob:
    """Damage in a finished job: no new table, nothing paid, exit code 2, and --fresh mends it."""

    @pytest.mark.parametrize(
        "pattern",
        [
            "surrogate-*/model/classifier.safetensors",
            "surrogate-*/result.json",
            "nim-*/model/network.safetensors",
            "certify-*/records/target-nim-de3.jsonl",
            "certify-*/records/target-nim-de3.tsv",
            "attack-*/result.json",
            "served-*/model/model.json",
            "purifier-de3-*/model/nim.safetensors",
        ],
    )
    def test_every_file_that_is_read_later_is_checked(self, copied, pattern):
        path = next(copied.workspace.glob(pattern))
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes(data[:half] + bytes(len(data) - half))
        with pytest.raises(ConfigError, match=r"--fresh") as error:
            certdef.run(copied, progress=False)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_zeroed_surrogate_weights_give_no_attack_table(self, copied, capsys, tmp_path):
        path = zeroed(copied)
        (tmp_path / "job.yaml").write_text(as_yaml(copied))
        arguments = ["--quiet", "--config", str(tmp_path / "job.yaml"), "--attack.eps", "[0.07]"]
        assert main(["attack", *arguments]) == 2
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert str(path) in said.err
        assert "--fresh" in said.err
        assert not said.out
        assert len(list(copied.workspace.glob("attack-*"))) == 1

    @pytest.mark.slow
    @pytest.mark.acceptance
    def test_fresh_mends_damage_and_pays_for_nothing(self, tiny_job, copied):
        zeroed(copied)
        after = certdef.run(copied, progress=False, fresh=True)
        assert after.bill.total.spent == tiny_job[1].bill.total.spent
        assert after.stages["attack"].result.rows == tiny_job[1].stages["attack"].result.rows


def zeroed(config) -> Path:
    """Weights of the surrogate, half of them zero."""
    path = next(config.workspace.glob("surrogate-*/model/*.safetensors"))
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    return path


class TestPrivate:
    """With a token the answers are one user's: others may read neither the ledger nor the records."""

    @pytest.mark.parametrize("token", ["TOKEN_OF_MINE", None])
    def test_ledger_and_records(self, store, tmp_path, token, monkeypatch):
        monkeypatch.setenv("TOKEN_OF_MINE", "secret")
        with faulty_server(lambda images: np.eye(10)[np.zeros(len(images), int)]) as (url, _):
            self.check(url, store, tmp_path, token)

    def check(self, url, store, tmp_path, token):
        before = os.umask(0o022)
        try:
            mine: dict[str, Any] = {
                "target__uri": url,
                "target__token_env": token,
                "target__num_classes": 10,
            }
            config = certdef.load_config(
                work_dir=str(tmp_path / "w"),
                tracking__uri=store,
                certify__images=2,
                **(mine if token else {}),
            )
            with pipeline.open_job(config, progress=False) as job:
                target = job.own_target or surrogates.open_target(
                    lambda images: (images[:, 0, 0, 3] > 0.5).astype(int), num_classes=2, output_kind="labels"
                )
                job.ledger.attach(target).query(job.data.pool[:3])
                stage = job.stage("certify", StageResult, "key")
                stage.begin()
                base = BaseClassifier(build_classifier("mlp", (1, 8, 8), 10).eval(), 10, 50)
                condition = Condition("surrogate", "own", None, certify.Gaussian(0.25))
                certify_condition(job, condition, base, stage)
                kept = [*config.workspace.glob("ledger*"), *stage.path.glob("records/*")]
                modes = {path.name: path.stat().st_mode & 0o777 for path in kept}
        finally:
            os.umask(before)
        assert {
            "ledger.db",
            "ledger.db-wal",
            "surrogate-own-none.jsonl",
            "surrogate-own-none.tsv",
        } <= modes.keys()
        assert set(modes.values()) == {0o600 if token else 0o644}
