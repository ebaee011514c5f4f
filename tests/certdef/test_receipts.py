"""A finished certification is not paid again where only the use of its votes changes."""

import importlib.metadata
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import certdef
import certify
import surrogates
from certdef.stages import job as job_module
from certdef.stages.certificates import CertifyResult, certify_stage
from certdef.stages.conditions import conditions
from certdef.tracking.legacy import Legacy
from certdef.tracking.workspace import Stage
from tests.conftest import _copy
from tests.servers.faulty import faulty_server

LAW = "{label: s0.25, family: gamma, shape: [25], scale_255: 3}"
SETTINGS = {
    "certify__images": 3,
    "certify__target_images": 2,
    "certify__n": 300,
    "certify__n0": 50,
    "certify__method": "fixed",
    "certify__laws": f"[{LAW}]",
    "target__num_classes": 10,
    "target__batch_size": 64,
    "target__canary_every": 0,
    "data__heldout_images": 20,
    "surrogate__epochs": 5,
    "ledger__training": 100,
    "purifier": "gs",
    "tracking__system_metrics": False,
}
VOTES = 3 * 2 * (50 + 300)  # of three smoothed targets

Certify = Callable[..., Any]


@pytest.fixture(scope="module")
def service():
    pixels, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=300).fit(pixels[:900] / 16, labels[:900])
    with faulty_server(lambda images: model.predict_proba(images.reshape(len(images), -1))) as (url, _):
        yield url


@pytest.fixture(scope="module")
def finished(service, migrated_store, tmp_path_factory):
    """A finished certification that is queried over a network: its folder, and what options it had."""
    folder = tmp_path_factory.mktemp("finished")
    options = SETTINGS | {"target__uri": service, "tracking__uri": _copy(migrated_store, folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bill = certdef.certify(
            certdef.load_config("digits", work_dir=str(folder / "work"), **options), progress=False
        ).bill
    assert bill["certification"].spent == VOTES
    return folder, options


@pytest.fixture
def certify_again(finished, tmp_path, monkeypatch) -> Certify:
    """Certify a copy of the finished job with other options; returns its charge."""
    folder, options = finished
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "work", tmp_path / "work")

    def certify_again(**changes: Any):
        config = certdef.load_config("digits", work_dir=str(tmp_path / "work"), **options | changes)
        return certdef.certify(config, progress=False).bill["certification"]

    return certify_again


ELSEWHERE = {
    "radii": {"certify__radii": "[0.1, 0.3]"},
    "alpha": {"certify__alpha": 0.01},
    "certify.batch_size": {"certify__batch_size": 100},
    "images": {"certify__images": 4},
    "target.batch_size": {"target__batch_size": 7},
}


def test_nothing_is_paid_again_where_the_draws_are_the_same(certify_again, monkeypatch):
    """Radii, alpha, both batch sizes, images of the surrogate and the version, all at once."""
    known = importlib.metadata.version
    monkeypatch.setattr(job_module, "version", lambda name: "9.9" if name == "certdef" else known(name))
    charge = certify_again(**{key: value for change in ELSEWHERE.values() for key, value in change.items()})
    assert (charge.spent, charge.recalled) == (VOTES, VOTES)


def test_more_images_pay_for_the_new_ones(certify_again):
    charge = certify_again(certify__target_images=3, target__batch_size=32)
    assert (charge.spent, charge.recalled) == (VOTES * 3 // 2, VOTES)


def test_methods_share_their_draws_whatever_the_batches(tmp_path):
    """As a user's own script pays: two_sided after fixed, sequential after group_sequential, on one image more."""
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = surrogates.open_target(
        lambda batch: batch.reshape(len(batch), -1)[:, :4].argmax(axis=1),
        num_classes=4,
        output_kind="labels",
        identity="box",
        batch_size=100,
    )

    def spent(method: str, count: int, batch_size: int) -> int:
        with surrogates.QueryLedger(tmp_path / "ledger.db", {"certification": 10_000}) as ledger:
            paid = ledger.attach(target, purpose="certification", experiment="votes")
            smoothed = certify.SmoothedClassifier(
                lambda noisy: paid.query(noisy, bounded=False).labels,
                certify.Gaussian(0.25),
                4,
                batch_size=batch_size,
            )
            smoothed.certify(images[:count], n0=50, n=600, method=method)
            return ledger.bill()["certification"].spent

    assert spent("fixed", 2, 64) == 2 * 650
    assert spent("two_sided", 2, 1024) == 2 * 650
    assert spent("fixed", 3, 1000) == 3 * 650
    stopped = spent("group_sequential", 2, 1024)
    assert spent("group_sequential", 2, 32) == stopped > 3 * 650
    assert spent("sequential", 2, 1024) <= 3 * 650 + 2 * 600  # none of the 600 draws of an image twice


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_nothing_is_paid_again_after_each_change(certify_again, change):
    assert certify_again(**change).spent == VOTES


@pytest.mark.slow
def test_a_law_beside_the_others_pays_for_itself(certify_again):
    other = "{label: s0.2, family: gamma, shape: [25], scale_255: 2}"
    assert certify_again(certify__laws=f"[{LAW}, {other}]").spent == VOTES + VOTES * 2 // 3


@pytest.mark.slow
def test_a_larger_n_pays_the_last_draws_of_a_mixture_again(certify_again):
    """Noise is drawn 256 at a time. A Gaussian's last draws begin those of a larger n, a scale mixture's do not."""
    mixtures, last = 2 * 2, 300 % 256  # behind the purifier and bare, two images
    assert certify_again(certify__n=400).spent == VOTES + 3 * 2 * 100 + mixtures * last


@pytest.fixture
def guided(service, migrated_store, tmp_path, monkeypatch) -> Certify:
    """Certify with a surrogate as guide, again and again in one folder; returns all that was paid until then."""
    monkeypatch.chdir(tmp_path)
    options = SETTINGS | {"target__uri": service, "tracking__uri": _copy(migrated_store, tmp_path)}

    def guided(**changes: Any) -> int:
        told = options | {"work_dir": str(tmp_path / "work"), "certify__guide": "decide"} | changes
        bill = certdef.certify(certdef.load_config("digits", **told), progress=False).bill
        return bill["certification"].spent

    return guided


@pytest.mark.slow
def test_with_a_guide_only_another_alpha_pays_again(guided):
    first = guided()
    changes: list[dict[str, Any]] = [
        {"target__batch_size": 7},
        {"certify__radii": "[0.1, 0.25]"},
        {"ledger__certification": 900_000},
    ]
    assert [guided(**change) for change in changes] == [first] * 3
    more = guided(certify__target_images=3)
    assert guided(certify__target_images=2) == more > first
    again = guided(certify__alpha=0.002) - more  # from where the bets go another way
    print(f"{first} guided votes; {again} paid again for another alpha")
    assert 0 < again < first / 2


@pytest.mark.slow
def test_both_methods_that_stop_early_share_their_draws(certify_again):
    first = certify_again(certify__method="sequential", certify__n=1000)
    both = certify_again(certify__method="group_sequential", certify__n=1000)
    assert both.recalled > 0
    assert both.spent - first.spent < both.recalled / 10  # those that sequential stopped before


def undecided(noise, votes):
    """What a guide says of an image whose votes, one of them for the selection, did not suffice."""
    selection, rest = np.array([1, 0]), np.array([votes - 1, 0])
    told = {"alpha": 0.001, "method": "guided", "subject": "target"}
    return certify.Certificate.of(0, None, 0.0, selection, rest, noise, **told)


def test_receipts_are_looked_for_under_every_stage_that_version_0_1_left(tmp_path):
    """That version named them by the whole configuration: radii and alpha too."""
    config = certdef.load_config("digits", work_dir=str(tmp_path), certify__choose="off")
    for name in ("certify-" + "1" * 16, "certify-" + "2" * 16, "certify-notes", "attack-" + "3" * 16):
        (tmp_path / name).mkdir()
    (tmp_path / ("certify-" + "2" * 16) / "formerly").write_text("4" * 16)  # renamed since
    legacy = Legacy(config, "cpu", "sqlite://")
    own = legacy.fingerprint("certify")
    assert legacy.experiment("certify", "x") == [f"{own}/x", "1" * 16 + "/x", "4" * 16 + "/x"]


@pytest.mark.parametrize(("votes", "reused"), [((40, 60), True), ((40, 50), False), ((101, 3), False)])
def test_a_guided_stage_without_its_budget_is_found_again(tmp_path, votes, reused):
    """Version 0.1 left the budget out of the key; a result of another budget is not taken for this one's."""
    config = certdef.load_config(
        certify__laws="[{label: nim}, {label: wide, scale_255: 6}]",
        certify__guide="budget",
        ledger__certification=500,  # 100 a smoothed target
    )

    def stage(name, result_type, *key):
        return Stage(tmp_path, name, result_type, *key)

    former = stage("certify", CertifyResult, "key")
    (former.path / "records").mkdir(parents=True)
    for condition in conditions(config)[:2]:
        with certify.RecordLog(former.path / "records" / condition.key, {}) as log:
            for index, count in enumerate(votes):
                log.append(index, 0, undecided(condition.noise, count), 0.0)
    (former.path / "result.json").write_text("{}")
    found = certify_stage(SimpleNamespace(config=config, stage=stage), "key")
    assert (found.done, found.fingerprint != former.fingerprint) == (reused, True)
