"""Shards of a job: how images and budgets are divided, and what a merge refuses, each by the shard's name."""

import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import certdef
from certdef import ConfigError
from certdef.cli import main
from certdef.config.shard import Shard
from certdef.stages.shards import check_shard, read_shards
from certdef.tracking.checked_json import write_json
from certdef.tracking.workspace import locked


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "1/3/3", "-1/3", "1.5/3", " 1/3", "١/٣"])
def test_a_shard_that_there_is_not(text):
    with pytest.raises(
        ConfigError, match=r"give its number, from 1, and how many there are, e.g. --shard 2/3"
    ):
        Shard.parse(text)


@given(st.integers(0, 500), st.integers(1, 40), st.integers(0, 10**9))
def test_images_and_budgets_are_divided_whole(count, of, queries):
    shards = [Shard(number, of) for number in range(1, of + 1)]
    own = [shard.own(count) for shard in shards]
    assert sorted(index for indices in own for index in indices) == list(range(count))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    if count:
        assert sum(shard.share(queries, count) for shard in shards) == queries


@given(st.integers(1, 500), st.integers(1, 40), st.integers(0, 5000), st.integers(0, 10**6))
def test_a_budget_that_is_enough_for_one_process_is_enough_for_each_shard(count, of, votes, spare):
    for number in range(1, of + 1):
        shard = Shard(number, of)
        assert shard.share(count * votes + spare, count) >= len(shard.own(count)) * votes


def test_a_guide_and_too_many_shards_are_refused():
    guided = certdef.load_config(certify__guide="decide")
    with pytest.raises(ConfigError, match=r"certify\.guide is 'decide'.*need --certify.guide off"):
        check_shard(Shard(1, 2), guided, None)
    config = certdef.load_config(certify__images=8, certify__target_images=5)
    check_shard(Shard(8, 8), config, None)
    with pytest.raises(ConfigError, match="shard is 1/9, and 8 images are certified: use at most 8 shards"):
        check_shard(Shard(1, 9), config, None)


def test_a_job_that_is_not_prepared_pays_for_nothing(store, tmp_path, capsys):
    options = ["--work-dir", str(tmp_path / "work"), "--quiet", "--tracking.uri", store]
    assert main(["certify", "--shard", "1/2", *options]) == 2
    said = capsys.readouterr().err
    assert f"target is not done in work_dir '{tmp_path / 'work'}': run certdef certify --prepare" in said
    assert not list(tmp_path.rglob("ledger.db"))


def test_a_shard_prepares_nothing(capsys):
    for more in ("--prepare", "--fresh"):
        assert main(["certify", "--shard", "1/2", more]) == 2
        assert "it reads a job that is prepared" in capsys.readouterr().err


def test_a_running_shard_keeps_others_from_the_prepared_job(tmp_path):
    refused = pytest.raises(ConfigError, match="in use by another certdef")
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True), refused, locked(tmp_path):
        pass
    with locked(tmp_path), pytest.raises(ConfigError, match="in use"), locked(tmp_path, shared=True):
        pass


@pytest.fixture
def folders(tmp_path):
    """What three finished shards say of themselves."""
    config = certdef.load_config(seed=1).public_dict()
    return [shard(tmp_path / f"{number}-of-3", number, config) for number in (1, 2, 3)]


def shard(folder, number, config, of=3, stage="certify-0123456789abcdef", finished=True):
    folder.mkdir(exist_ok=True)
    state = {"number": number, "of": of, "stage": stage, "ledger": "ledger.db", "finished": finished}
    write_json(folder / "shard.json", state)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_shards_in_any_order_are_in_order(folders):
    assert read_shards(folders[::-1]).folders == tuple(folders)


def test_where_shards_worked_makes_no_difference(folders, tmp_path):
    config = certdef.load_config(seed=1, work_dir="elsewhere", threads=3, tracking__experiment="other")
    shard(folders[1], 2, config.public_dict())
    assert read_shards(folders).stage == "certify-0123456789abcdef"


def test_all_that_is_wrong_is_said_at_once(folders, tmp_path):
    other = certdef.load_config(seed=1, certify__alpha=0.01, ledger__certification=1000).public_dict()
    shard(folders[1], 2, other, finished=False)
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    with pytest.raises(ConfigError) as caught:
        read_shards([folders[0], folders[1], copy, tmp_path / "none"])
    lines = str(caught.value).splitlines()
    for words in (
        f"'{tmp_path / 'none'}' is no shard (shard.json is missing)",
        f"shard 1/3 is given twice, '{folders[0]}' and '{copy}'",
        f"shard 2/3 in '{folders[1]}' is not finished: run certdef certify --shard 2/3 again",
        "shard 3/3 is missing: run certdef certify --shard 3/3",
        "shard 2/3 differs from shard 1/3 (certify.alpha 0.01, not 0.001; ledger.certification 1000, not 480000)",
    ):
        assert any(words in line for line in lines), words
    assert len(lines) == 5


def test_shards_of_another_division_or_stage(folders):
    config = certdef.load_config(seed=1).public_dict()
    shard(folders[2], 3, config, of=4)
    with pytest.raises(ConfigError, match="of different divisions, 1/3 and 2/3 and 3/4"):
        read_shards(folders)
    shard(folders[2], 3, config, stage="certify-fedcba9876543210")
    with pytest.raises(ConfigError, match=r"shard 3/3 differs from shard 1/3 \(kind of device"):
        read_shards(folders)


def test_merge_says_what_it_needs(capsys, folders, tmp_path):
    assert main(["merge"]) == 2
    assert "no shard given: certdef merge runs/digits/shards/*" in capsys.readouterr().err
    assert main(["merge", *map(str, folders[:2])]) == 2
    assert "shard 3/3 is missing" in capsys.readouterr().err


def test_a_changed_state_is_refused(folders):
    text = (folders[0] / "shard.json").read_text()
    (folders[0] / "shard.json").write_text(text.replace('"finished": true', '"finished": false'))
    with pytest.raises(ConfigError, match="was changed after it was written: run the shard again"):
        read_shards(folders)


def test_shards_of_another_job_are_refused(copied, folders):
    """Merged into a job whose certificates are others: nothing is written or queried."""
    before = sorted(copied.workspace.rglob("*.jsonl"))
    with pytest.raises(
        ConfigError,
        match="the shards are of certify-0123456789abcdef, and this job's certificates are certify-",
    ):
        certdef.merge(folders, copied, progress=False)
    assert sorted(copied.workspace.rglob("*.jsonl")) == before
