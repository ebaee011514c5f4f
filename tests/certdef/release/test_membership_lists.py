"""Membership inference on one's own target, by lists: a planted leak is found, lists of two kinds are named, bad ones refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from certdef.cli import main
from surrogates.ledger.reader import read_statement
from tests.certdef.release.memorizing import LISTED, LISTS, write_job


@pytest.fixture
def job(store, tmp_path):
    """The options of the small job without its lists; the test runs in its folder."""
    return [*write_job(tmp_path), f"--tracking.uri={store}"]


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_leak_is_found_and_lists_of_two_kinds_are_named(own_job, tmp_path, capsys, monkeypatch):
    source, _, options = own_job
    shutil.copytree(source, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    capsys.readouterr()
    before = read_statement("work/ledger.db").accounts["evaluation"].answered
    assert main(["certify", *options, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "reused" in printed.out
    assert "membership  loss attack: AUC 0." in printed.out
    assert "told apart" not in printed.out + printed.err
    assert read_statement("work/ledger.db").accounts["evaluation"].answered == before
    others = dict(np.load("others.npz"))
    others["images"] = np.clip(others["images"] + 0.1, 0, 1)  # of another camera
    np.savez("brighter.npz", **others)
    again = [each.replace("others.npz", "brighter.npz") for each in options]
    assert main(["certify", *again, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "told apart without the target" in printed.err
    assert "told apart without the target" in printed.out
    assert (
        read_statement("work/ledger.db").accounts["evaluation"].answered == before + LISTED
    )  # the members are known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--membership.nonmembers": None}, "give --membership.nonmembers as well"),
        ({"--membership.members": "nowhere.npz"}, "membership.members 'nowhere.npz'"),
        ({"--membership.nonmembers": "members.npz"}, "100 images of it are in membership.members too"),
        ({"--membership.nonmembers": "unlabeled.npz"}, "it has no labels"),
        ({"--membership.nonmembers": "few.npz"}, "it has 7 images: give at least 20"),
        ({"--membership.nonmembers": "wide.npz"}, "--data.resize"),
        ({"--membership.nonmembers": "foreign.npz"}, "which is class 1 of the target"),
        ({"--ledger.evaluation": "150"}, "may take 240 queries; raise it"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_before_any_query(job, change, said, capsys):
    whole = dict(np.load("others.npz"))
    np.savez("unlabeled.npz", images=whole["images"])
    np.savez("few.npz", **{name: whole[name][:7] if name != "class_names" else whole[name] for name in whole})
    np.savez("wide.npz", **whole | {"images": np.repeat(whole["images"], 2, axis=3)})
    np.savez("foreign.npz", **whole | {"class_names": np.array(["1", "0", *"2345678", "dog"])})
    options = dict(each.split("=", 1) for each in [*job, *LISTS]) | change
    assert main(["certify", *(f"{name}={value}" for name, value in options.items() if value), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("work/ledger.db").exists()


def test_lists_are_for_a_target_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["certify", *LISTS]) == 2
    assert "give target.uri" in capsys.readouterr().err
