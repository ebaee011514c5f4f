"""The main job and its verbs, on the smallest real job."""

import dataclasses
import os
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

import certdef
import certify
import surrogates
from certdef import stages
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.data.sets import load_data
from certdef.stages import votes
from tests.conftest import TINY


@pytest.fixture
def here(tiny_job, monkeypatch):
    """The shared job's configuration, in its folder; its page is left as it was."""
    config, summary, folder = tiny_job
    monkeypatch.chdir(folder)
    page = summary.report.read_bytes()
    yield config
    summary.report.write_bytes(page)


@pytest.fixture
def copied(here, tmp_path):
    """The job in a folder of its own, for what would change it."""
    work = tmp_path / "copy"
    shutil.copytree(here.workspace, work, ignore=shutil.ignore_patterns("jobs", ".lock"))
    return dataclasses.replace(here, work_dir=str(work))


def test_the_bill_adds_up(tiny_job):
    config, summary, _ = tiny_job
    charges = summary.bill.charges
    cap = config.certify.n0 + summary.results["certify"]["draws_target"]
    folder = summary.stages["certify"].path / "records"
    paid = [certify.read_records(path) for path in folder.glob("target-*.jsonl")]
    votes = sum(int(each.n0.sum() + each.counts.sum()) for each in paid)
    assert charges["training"].answered == 600
    assert (
        charges["evaluation"].answered == 3 * config.data.heldout_images
    )  # clean, noisy, noisy and denoised
    assert charges["certification"].answered == votes <= 5 * config.certify.target_images * cap
    assert charges["attack"].answered == config.attack.images * (2 * len(config.attack.eps) + 1)
    assert all(charge.unknown == charge.in_flight == 0 for charge in charges.values())


def test_the_surrogate_saw_answers_of_pool_images_only(tiny_job):
    """The ledger holds the target's answers to 600 pool images; no held-out image is among the paid training queries."""
    config, summary, _ = tiny_job
    mlflow.set_tracking_uri(config.tracking.uri)  # other tests point it elsewhere
    data = load_data(config.data, config.seed)
    target = surrogates.open_target(
        summary.results["target"]["uri"], identity=summary.results["target"]["identity"]
    )
    with surrogates.QueryLedger(config.ledger_path, {"training": 600}) as ledger:
        paid = ledger.attach(target)
        with pytest.raises(surrogates.BudgetExceeded):
            paid.query(data.target_images[:1])
        found = 0
        for image in data.pool:
            try:
                paid.query(image[None])
                found += 1
            except surrogates.BudgetExceeded:
                pass
        assert found == 600
        assert ledger.bill()["training"].answered == 600


def test_agreement_beats_chance_and_target_reads_digits(tiny_job):
    results = tiny_job[1].results
    assert results["target"]["accuracy"][0] > 0.95
    assert results["surrogate"]["agreement_clean"][0] > 0.9
    share, low, high = results["surrogate"]["agreement_noisy"]
    assert low < share < high


def test_every_condition_is_certified_for_both_subjects(tiny_job):
    config, summary, _ = tiny_job
    curves = summary.results["certify"]["curves"]
    assert set(curves) == {
        f"{subject}-{law}"
        for subject in ("target", "surrogate")
        for law in ("nim-de3", "nim-none", "wide-de3", "wide-none", "gaussian-de3")
    }
    assert all(curve["sound"] for curve in curves.values())
    for curve in curves.values():
        shares = [row[0] for row in [curve["accuracy_at_0"], *curve["accuracy"]]]
        assert shares == sorted(shares, reverse=True)
        assert all(low <= share <= high for share, low, high in curve["accuracy"])
    assert [curve["headline"] for curve in curves.values()].count(True) == 2
    gaussian = next(c.noise for c in stages.conditions(config) if c.law == "gaussian")
    assert gaussian.sigma == pytest.approx(75 / 255)


def test_a_finished_job_is_not_done_again(tiny_job, here):
    again = certdef.run(here, progress=False)
    assert again.reused
    assert not tiny_job[1].reused
    assert again.results == tiny_job[1].results
    assert {name: charge.answered for name, charge in again.bill.charges.items()} == {
        name: charge.answered for name, charge in tiny_job[1].bill.charges.items()
    }
    assert again.run_id == tiny_job[1].run_id


def test_another_seed_in_the_same_folder_is_another_target_with_its_own_ledger(copied):
    """`certdef run`, then `certdef run --seed 1`: neither job sees or pays for what the other has paid."""
    other = dataclasses.replace(copied, seed=1)
    second = certdef.distill(other, progress=False)
    assert second.ledger.parent == copied.workspace
    assert second.ledger != copied.ledger_path
    assert second.bill["training"].answered == 600
    assert certdef.distill(other, progress=False).ledger == second.ledger
    first = certdef.distill(copied, progress=False)
    assert first.reused
    assert first.ledger == copied.ledger_path
    assert first.bill["training"].answered == 600


def test_a_ledger_of_another_target_is_refused_with_the_option_that_helps(copied, tmp_path):
    """A file that the user names is not exchanged: a second target is a second budget."""
    named = dataclasses.replace(copied.ledger, path=str(copied.ledger_path))
    other = dataclasses.replace(copied, seed=1, ledger=named)
    with pytest.raises(ConfigError, match="belongs to another target") as refused:
        certdef.distill(other, progress=False)
    free = str(refused.value).rpartition("--ledger.path ")[2]
    named = dataclasses.replace(named, path=free)
    assert certdef.distill(dataclasses.replace(other, ledger=named), progress=False).ledger == Path(free)


@pytest.mark.parametrize("verb", ["pretrain", "distill", "certify", "attack", "report"])
def test_each_verb_is_a_part_of_run(verb, tiny_job, here):
    summary = getattr(certdef, verb)(here, progress=False)
    assert summary.reused
    assert summary.results.items() <= tiny_job[1].results.items()


def test_a_report_starts_nothing(uncertified):
    with pytest.raises(ConfigError, match=r"certify is not done .* certdef run with the same options"):
        certdef.report(uncertified, progress=False)
    assert not list(uncertified.workspace.glob("certify-*/result.json"))
    with pytest.raises(ConfigError, match="--fresh"):
        certdef.report(uncertified, progress=False, fresh=True)


def test_another_attack_reuses_what_it_does_not_change(copied):
    changed = dataclasses.replace(copied, attack=dataclasses.replace(copied.attack, eps=(0.05,)))
    summary = certdef.attack(changed, progress=False)
    assert not summary.reused
    assert [row["eps"] for row in summary.results["attack"]["rows"]] == [0.0, 0.05]
    assert sum(path.name.startswith("nim-wide") for path in copied.workspace.iterdir()) == 1


@pytest.fixture
def uncertified(copied):
    """A copy of the job without its certificates: only they are made again."""
    for folder in copied.workspace.glob("certify-*"):
        shutil.rmtree(folder)
    return copied


def records(folder):
    return {path.name: path.read_bytes() for path in folder.glob("certify-*/records/*.jsonl")}


def test_workers_give_the_same_records(here, uncertified):
    spread = dataclasses.replace(uncertified.certify, backend="loky", workers=2)
    summary = certdef.certify(dataclasses.replace(uncertified, certify=spread), progress=False)
    assert records(uncertified.workspace) == records(here.workspace)
    assert summary.bill["certification"].recalled > 0, "the same experiment gets its paid answers back"


def test_how_many_images_a_target_is_asked_about_at_once_changes_no_vote_and_no_receipt(
    here, uncertified, monkeypatch
):
    monkeypatch.setattr(votes, "PAID_BATCH", votes.CHUNK)  # one image at a time
    summary = certdef.certify(uncertified, progress=False)
    assert records(uncertified.workspace) == records(here.workspace)
    charge = summary.bill["certification"]
    assert charge.recalled > 0
    assert charge.answered == sum(
        int(found.n0.sum() + found.counts.sum())
        for path in uncertified.workspace.glob("certify-*/records/target-*.jsonl")
        for found in [certify.read_records(path)]
    )


@pytest.mark.slow
def test_the_command_line_uses_a_running_dask_scheduler(here, uncertified):
    distributed = pytest.importorskip("distributed")
    options = {"work_dir": uncertified.work_dir, "tracking.uri": here.tracking.uri} | {
        key.replace("__", "."): value for key, value in TINY.items()
    }
    written = [f"--{key}={value}".replace("=False", "=false") for key, value in options.items()]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        command = [
            "certify",
            "--quiet",
            "--backend",
            "dask",
            "--scheduler",
            cluster.scheduler_address,
            *written,
        ]
        assert main(command) == 0
    assert records(uncertified.workspace) == records(here.workspace)


def test_a_method_that_stops_early_draws_less(tiny_job, uncertified):
    early = dataclasses.replace(uncertified.certify, method="sequential", n=2000)
    config = dataclasses.replace(uncertified, certify=early)
    curves = certdef.certify(config, progress=False).results["certify"]["curves"]
    free = [curve for curve in curves.values() if curve["subject"] == "surrogate"]
    assert all(curve["samples_per_image"] <= 100 + 2000 for curve in free)
    assert np.mean([curve["samples_per_image"] for curve in free]) < 1500
    assert all(curve["sound"] for curve in free)


def guided(job, folder, mode, queries):
    """The job with a guide, paying from a ledger of its own."""
    certify = dataclasses.replace(job.certify, guide=mode, radii=(0.1, 0.25), target_images=6)
    ledger = dataclasses.replace(job.ledger, path=str(folder / f"{mode}.db"), certification=queries)
    return dataclasses.replace(job, certify=certify, ledger=ledger)


def test_a_guide_pays_for_fewer_votes_and_never_twice(uncertified, tmp_path):
    config = guided(uncertified, tmp_path, "decide", 9_000)
    first = certdef.certify(config, progress=False)
    spent = first.bill["certification"].answered
    assert 0 < spent < 5 * 6 * 200
    (folder,) = uncertified.workspace.glob("certify-*")
    found = certify.read_records(folder / "records" / f"target-{config.headline_law}-de3.jsonl")
    assert found.method == "guided"
    assert set(found.radius) <= {0.0, 0.1, 0.25}
    shutil.rmtree(folder)
    again = certdef.certify(config, progress=False)
    assert again.bill["certification"].answered == spent
    assert again.results["certify"]["curves"].keys() == first.results["certify"]["curves"].keys()


def test_a_guide_keeps_the_budget_of_the_set(uncertified, tmp_path):
    small = certdef.certify(guided(uncertified, tmp_path, "budget", 400), progress=False)
    assert 0 < small.bill["certification"].answered <= 400
    large = certdef.certify(guided(uncertified, tmp_path, "budget", 1_000), progress=False)
    charge = large.bill["certification"]
    assert small.bill["certification"].answered < charge.answered <= 1_000  # another budget, another result
    assert charge.recalled == small.bill["certification"].answered


def test_a_known_class_takes_no_selection_votes_and_is_recorded_as_such(uncertified, tmp_path):
    options = dataclasses.replace(uncertified.certify, known_class=True)
    ledger = dataclasses.replace(uncertified.ledger, path=str(tmp_path / "known.db"))
    config = dataclasses.replace(uncertified, certify=options, ledger=ledger)
    summary = certdef.certify(config, progress=False)
    folder = summary.stages["certify"].path / "records"
    votes = 0
    for path in folder.glob("*.jsonl"):
        found = certify.read_records(path)
        assert found.known_class
        assert (found.config["known_class"], found.config["n0"]) == (True, 0)
        assert np.array_equal(found.selected, found.label)
        assert found.n0.sum() == 0
        votes += int(found.counts.sum()) if path.name.startswith("target-") else 0
    assert summary.bill["certification"].answered == votes > 0


def test_two_sided_radii_are_known_for_every_law_of_a_job():
    assert stages.target_draws(certdef.load_config(certify__method="two_sided")) > 1000


def test_the_target_gets_what_its_budget_allows():
    config = certdef.load_config(ledger__certification=240_000)
    choice = 2 * 5 * config.certify.choice_images * config.certify.choice_n  # with and without the denoiser
    each = (config.ledger.certification - choice) // (4 * config.certify.target_images)
    assert stages.target_draws(config) == each - config.certify.n0
    assert stages.target_draws(certdef.load_config(ledger__certification=10**8)) == config.certify.n
    assert stages.target_draws(certdef.load_config()) == config.certify.n  # and no more than it takes
    assert stages.target_draws(certdef.load_config(ledger__certification=479_999)) < config.certify.n
    with pytest.raises(ConfigError, match="at least 82200"):
        stages.target_draws(certdef.load_config(ledger__certification=82_199))
    assert stages.target_draws(certdef.load_config(ledger__certification=82_200)) == 11


def test_python_entry_points_are_documented():
    for name in ("run", "pretrain", "distill", "certify", "attack", "report"):
        assert getattr(certdef, name).__doc__
    assert os.path.basename(certdef.__file__) == "__init__.py"
    assert np.all([isinstance(name, str) for name in certdef.__all__])
