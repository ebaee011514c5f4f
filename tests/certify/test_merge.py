"""Shards of records: merged they have the bytes of one run, and what does not go together is refused by name."""

import shutil

import numpy as np
import pytest

from certify import CertifyError, Gaussian, RecordLog, certify_votes, read_records
from certify.records.jsonl import json_line, parse_log
from certify.records.merge import merge_records

CONFIG = {"noise": Gaussian(0.25).describe(), "n0": 100, "n": 500, "alpha": 0.001, "seed": 3}
IMAGES = range(11)


def certificate(index):
    """Votes that are the image's own."""
    labels = np.where(np.arange(500) < 260 + 24 * index, index % 3, (index + 1) % 3)
    return certify_votes(lambda count: labels[:count], Gaussian(0.25), 3, n=500)


def write(stem, images, config=CONFIG):
    with RecordLog(stem, config) as log:
        for index in images:
            if index not in log.done:
                log.append(index, index % 3, certificate(index), 0.25 + index)
    return log.path


@pytest.fixture
def shards(tmp_path):
    return [write(tmp_path / f"shard-{number}" / "records", IMAGES[number::3]) for number in range(3)]


def untimed(path):
    return [line.rpartition("\t")[0] for line in path.with_suffix(".tsv").read_text().splitlines()]


def test_shards_in_any_order_are_one_run(tmp_path, shards):
    whole = write(tmp_path / "whole", IMAGES)
    merged = merge_records([shards[2], shards[0], shards[1]], tmp_path / "merged", IMAGES)
    assert merged.read_bytes() == whole.read_bytes()
    assert merged.with_suffix(".tsv").read_bytes() == whole.with_suffix(".tsv").read_bytes()
    assert read_records(merged).idx.tolist() == list(IMAGES)
    with RecordLog(tmp_path / "merged", CONFIG) as log:
        assert log.done == set(IMAGES), "a run that goes on from it has nothing left to do"


def test_blocks_and_an_empty_shard(tmp_path):
    whole = write(tmp_path / "whole", IMAGES)
    parts = [write(tmp_path / f"{at}", block) for at, block in enumerate([IMAGES[:4], [], IMAGES[4:]])]
    assert merge_records(parts, tmp_path / "merged", IMAGES).read_bytes() == whole.read_bytes()


def test_a_lost_tsv_returns_without_times(tmp_path, shards):
    shards[1].with_suffix(".tsv").unlink()
    merged = merge_records(shards, tmp_path / "merged", IMAGES)
    assert untimed(merged) == untimed(write(tmp_path / "whole", IMAGES))


def test_a_shard_that_is_missing_is_named_by_its_images(tmp_path, shards):
    with pytest.raises(CertifyError, match=r"no shard has images 1, 4, 7, 10: finish"):
        merge_records([shards[0], shards[2]], tmp_path / "merged", IMAGES)
    with pytest.raises(CertifyError, match=r"no shard has image 11: finish"):
        merge_records(shards, tmp_path / "merged", range(12))
    assert not list(tmp_path.glob("merged*"))


def test_a_torn_last_line_is_a_missing_image(tmp_path, shards):
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    with pytest.raises(CertifyError, match="no shard has image 9"):
        merge_records(shards, tmp_path / "merged", IMAGES)


def test_an_image_of_two_shards_names_both(tmp_path, shards):
    write(shards[2].with_suffix(""), [7])
    message = f"shard {shards[2]} has image 7, as {shards[1]} has"
    with pytest.raises(CertifyError, match=message):
        merge_records(shards, tmp_path / "merged", IMAGES)


def test_an_image_of_another_job_is_refused(tmp_path, shards):
    write(shards[1].with_suffix(""), [40, 41])
    with pytest.raises(CertifyError, match=f"shard {shards[1]} has images 40, 41, not of this job"):
        merge_records(shards, tmp_path / "merged", IMAGES)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", 4, "seed 4, not 3"),
        ("versions", {"torch": "1"}, r"versions \{'torch': '1'\}, not unset"),
    ],
)
def test_another_configuration_is_refused_by_what_differs(tmp_path, shards, name, value, words):
    other = write(tmp_path / "other" / "records", IMAGES[1::3], CONFIG | {name: value})
    with pytest.raises(CertifyError, match=rf"shard {other} has another configuration than .*\({words}\)"):
        merge_records([shards[0], other, shards[2]], tmp_path / "merged", IMAGES)


def test_a_changed_vote_is_refused(tmp_path, shards):
    """A planted fault with a checksum that fits: more is claimed than the votes give."""
    header, *lines = shards[1].read_bytes().splitlines(keepends=True)
    row = parse_log(shards[1], header + lines[-1]).rows[0]
    assert row["radius"] > 0
    lines[-1] = json_line(row | {"radius": row["radius"] + 0.1})
    shards[1].write_bytes(header + b"".join(lines))
    with pytest.raises(CertifyError, match=f"{shards[1]} line 5 .* do not follow from its votes"):
        merge_records(shards, tmp_path / "merged", IMAGES)


def test_what_was_merged_before_is_replaced_whole(tmp_path, shards):
    whole = write(tmp_path / "whole", IMAGES)
    for end in (".jsonl", ".tsv"):
        shutil.copy(shards[0].with_suffix(end), tmp_path / f"merged{end}")
    assert merge_records(shards, tmp_path / "merged", IMAGES).read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_no_shard_and_no_file(tmp_path, shards):
    with pytest.raises(CertifyError, match="at least one shard"):
        merge_records([], tmp_path / "merged", IMAGES)
    with pytest.raises(CertifyError, match="no record file at"):
        merge_records([*shards, tmp_path / "none.jsonl"], tmp_path / "merged", IMAGES)
