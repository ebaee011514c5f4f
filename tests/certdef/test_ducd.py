"""The DUCD job end to end on digits, its figures against its records and scores, and its page."""

import dataclasses
import json
import re
import shutil
from html import unescape

import numpy as np
import pytest
import torch

import certdef
import certify
import surrogates
from certdef.config.job import ConfigError
from certdef.data.sets import load_data
from certdef.models.storage import load_model
from certdef.report import ducd_page
from certdef.stages.ducd.certificates import candidate_noises
from certdef.stages.ducd.membership import draw_candidates
from certdef.stages.ducd.surrogates import query_pool
from tests.conftest import run_once

TINY_DUCD = {
    "ducd__enabled": True,
    "ducd__gaussians_255": [40],
    "ducd__choice_images": 10,
    "ducd__choice_n": 100,
    "ducd__candidates": 200,
    "ducd__population": 100,
    "ducd__references": 2,
    "data__target_images": 500,
    "data__pool_images": 300,
    "data__heldout_images": 300,
    "data__audit_images": 650,
    "target__kind": "cnn",
    "target__epochs": 20,
    "target__output_kind": "logits",
    "ledger__training": 600,
    "ledger__evaluation": 1100,
    "ledger__certification": 2000,
    "surrogate__epochs": 30,
    "certify__laws": "[{label: nim}, {label: wide, scale_255: 6}]",
    "certify__images": 8,
    "certify__target_images": 4,
    "certify__n": 600,
    "certify__method": "fixed",
    "certify__radii": [0.1, 0.25, 0.5],
    "tracking__system_metrics": False,
}


@pytest.fixture(scope="module")
def job(migrated_store, tmp_path_factory):
    """The job, run once: (configuration, summary, folder)."""
    return run_once(tmp_path_factory.mktemp("ducd"), migrated_store, **TINY_DUCD)


@pytest.fixture
def results(job):
    return job[1].results


@pytest.fixture(scope="module")
def data(job):
    return load_data(job[0].data, job[0].seed)


def stage_folder(job, name):
    (path,) = (file.parent for file in job[0].workspace.glob(f"{name}-{'[0-9a-f]' * 16}/result.json"))
    return path


def change(config, **sections):
    """The configuration with some fields of some sections changed."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()
    }
    return dataclasses.replace(config, **changed)


# --- the split ----------------------------------------------------------------------------------------------


def test_pools_hold_their_share_of_the_targets_images(data):
    theirs = {image.tobytes() for image in data.target_images}
    for overlap in (0, 0.25, 1):
        pool = query_pool(data, overlap)
        assert len(pool) == len(data.pool)
        assert sum(image.tobytes() in theirs for image in pool) >= overlap * len(pool)
    assert not {image.tobytes() for image in query_pool(data, 0)} & theirs


def test_no_model_under_attack_or_reference_saw_what_it_must_not(job, data):
    """By images, not by indices: digits has no two equal ones but within a class, which is allowed for."""
    found = draw_candidates(job[0], data)
    groups = {name: {image.tobytes() for image in getattr(found, name)[0]} for name in vars(found)}
    groups |= {"pool": {image.tobytes() for image in data.pool}}
    groups |= {"held out": {image.tobytes() for image in data.heldout_images}}
    assert groups["members"] <= {image.tobytes() for image in data.target_images}
    assert len(found.members[0]) == len(found.nonmembers[0]) == 200
    names = list(groups)
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            assert not groups[name] & groups[other], (name, other)
    pixels, labels = (
        {image.tobytes(): label for image, label in zip(data.target_images, data.target_labels, strict=True)},
        found.members,
    )
    assert all(pixels[image.tobytes()] == label for image, label in zip(*labels, strict=True))


# --- the job ------------------------------------------------------------------------------------------------


def test_surrogates_learn_logits_and_agree(results):
    for name in ("surrogate-overlap-0", "surrogate-overlap-100"):
        assert results[name]["loss"] == "soft_cross_entropy"  # of logits, beside consistency
        assert results[name]["queries"] == 300
        for kind in ("clean", "noisy"):
            found = results["comparison"]["agreement"][name][kind]
            share, low, high = found["agreement"]
            assert 0.6 < low < share < high
            assert 1 - share < found["disagreement_upper"] < 1 - low


def test_the_noise_is_the_best_candidate_on_images_that_are_not_certified(job, results):
    noise = results["noise"]
    means = {name: np.mean(each["accuracy"]) for name, each in noise["candidates"].items()}
    assert set(means) == {"gaussian-40", "nim", "wide"}
    assert means[noise["chosen"]] == max(means.values()) > 0
    folder = stage_folder(job, "comparison")
    for key in results["comparison"]["conditions"].values():
        records = certify.read_records(folder / "records" / f"{key}.jsonl")
        assert records.idx.max() < job[0].data.heldout_images - job[0].ducd.choice_images
        assert records.config["noise"] == noise["candidates"][noise["chosen"]]["noise"]


def test_the_target_says_the_same_by_its_weights_and_by_queries(job, results):
    """The same noise draws: what the paid target answered is what its weights say."""
    folder = stage_folder(job, "comparison")
    conditions = results["comparison"]["conditions"]
    assert list(conditions) == ["surrogate", "target_white_box", "target"]
    records = {
        name: certify.read_records(folder / "records" / f"{key}.jsonl") for name, key in conditions.items()
    }
    paid, free = records["target"], records["target_white_box"]
    assert len(paid) == 4
    assert len(free) == len(records["surrogate"]) == 8
    assert paid.config["n"] == results["comparison"]["draws_target"] == 400
    assert free.config["n"] == 600
    config = job[0]
    model = load_model(stage_folder(job, "target") / "model")
    data = load_data(config.data, config.seed)
    noise = candidate_noises(config)[results["noise"]["chosen"]]
    smoothed = certify.SmoothedClassifier(model, noise, 10, seed=config.seed, batch_size=256, chunk_size=256)
    again = smoothed.certify(torch.from_numpy(data.heldout_images[:4]), n0=100, n=400)
    assert [each.counts for each in again] == [tuple(row) for row in paid.counts.tolist()]


def test_verdicts_are_counted_from_the_records(job, results, data):
    folder = stage_folder(job, "comparison")
    found = results["comparison"]
    records = {
        name: certify.read_records(folder / "records" / f"{key}.jsonl")
        for name, key in found["conditions"].items()
    }
    ours = records["surrogate"]
    for name, carried in found["verdicts"]["carried"].items():
        theirs = records[name]
        assert carried["images"] == len(theirs)
        for radius, (both, alone) in zip(found["radii"], carried["rows"], strict=True):
            here = (ours.correct & (ours.radius >= radius))[: len(theirs)]
            assert alone == here.sum()
            assert both == (here & theirs.correct & (theirs.radius >= radius)).sum()
    model = load_model(stage_folder(job, "target") / "model")
    with torch.inference_mode():
        answers = model(torch.from_numpy(data.heldout_images[:8])).argmax(1).numpy()
    certified = ours.predict != certify.ABSTAIN
    assert found["verdicts"]["certified"] == certified.sum() > 0
    assert found["verdicts"]["against_target"] == (certified & (answers != ours.predict)).sum()


def test_only_the_ledger_asked_and_no_image_was_paid_for_twice(job, results):
    config, summary, _ = job
    charges = summary.bill.charges
    assert charges["training"].answered == 600  # pools of 300, nothing in common
    assert charges["certification"].answered == 4 * (100 + 400)
    assert charges["attack"].answered == 0
    asked = charges["evaluation"]
    candidates = draw_candidates(config, load_data(config.data, config.seed))
    pool = {image.tobytes() for image in load_data(config.data, config.seed).target_images[:300]}
    known = sum(image.tobytes() in pool for image in candidates.members[0])
    assert asked.answered == 2 * 300 + 2 * 200 + 100 - known
    assert 0 < known < 200
    assert (
        asked.recalled >= 300 + known
    )  # clean agreement after clean accuracy, and members of the second pool


def test_membership_figures_follow_from_the_scores(job, results):
    found = results["membership"]
    with np.load(stage_folder(job, "membership") / "scores.npz") as scores:
        assert len(scores.files) == 3 * 3 * 2
        for name, row in found["attacks"].items():
            assert set(row) == {"loss", "rmia", "lira"}
            for attack, each in row.items():
                members, others = (scores[f"{name}/{attack}/{group}"] for group in ("member", "nonmember"))
                pairs = (members[:, None] > others) + 0.5 * (members[:, None] == others)
                assert each["auc"][0] == pytest.approx(pairs.mean())
                assert each["auc"][1] < each["auc"][0] < each["auc"][2]
                assert [rate["fpr"] for rate in each["rates"]] == [0.01, 0.001]
                if name != "target":
                    gain = found["attacks"]["target"][attack]["auc"][0] - pairs.mean()
                    assert found["benefit"][name][attack][0] == pytest.approx(gain)
        for attack, (lost, low, high) in found["shrinkage"].items():
            gains = [row[attack][0] for row in found["benefit"].values()]
            assert lost == pytest.approx(gains[0] - gains[-1])
            assert low < lost < high


def test_an_overfitted_target_gives_its_training_set_away(job, data):
    """The audit on two models of one kind: trained on the members for long, and not on them at all."""
    from certdef.models.classifiers import build_classifier, train_classifier

    candidates = draw_candidates(job[0], data)
    members, labels = candidates.members
    noisy = np.where(
        np.arange(len(labels)) % 3 == 0, (labels + 1) % 10, labels
    )  # a third can only be memorised
    others = np.where(np.arange(200) % 3 == 0, (candidates.nonmembers[1] + 1) % 10, candidates.nonmembers[1])
    audit = surrogates.MembershipAudit((members, noisy), (candidates.nonmembers[0], others))

    def trained(images, labels):
        torch.manual_seed(0)
        model = build_classifier("mlp", data.image_shape, 10)
        train_classifier(model, images, labels, epochs=60, seed=0, device=torch.device("cpu"))
        return lambda batch: model(batch).double().softmax(1)

    assert audit(trained(members, noisy))["loss"].lower > 0.6
    innocent = audit(trained(*candidates.shadow))["loss"]
    assert innocent.lower < 0.5 < innocent.upper


def test_every_stage_is_a_run_with_its_metrics(job, results):
    import mlflow

    config, summary, _ = job
    client = mlflow.MlflowClient(tracking_uri=config.tracking.uri)
    parent = client.get_run(summary.run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{summary.run_id}'"
    )
    assert {run.info.run_name for run in children} == set(results)
    metrics = parent.data.metrics
    assert (
        metrics["membership/rmia/target/auc"] == results["membership"]["attacks"]["target"]["rmia"]["auc"][0]
    )
    curve = results["comparison"]["curves"][results["comparison"]["conditions"]["surrogate"]]
    assert metrics["surrogate/certified_accuracy_at_0.25"] == curve["accuracy"][1][0]
    assert {"target/certified_accuracy_at_0.25", "target_white_box/certified_accuracy_at_0.25"} <= set(
        metrics
    )
    assert metrics["queries/spent"] == summary.bill.total.spent


def test_done_again_it_pays_and_trains_nothing(job, monkeypatch):
    config, summary, folder = job
    monkeypatch.chdir(folder)
    again = certdef.run(config, progress=False)
    assert again.reused
    assert again.results == summary.results
    assert again.bill.total.answered == summary.bill.total.answered


def test_interrupted_it_goes_on(job, monkeypatch, tmp_path):
    """Without the last stages it does them again, to the same figures, from answers that it has paid for."""
    config, summary, folder = job
    monkeypatch.chdir(folder)
    work = tmp_path / "copy"
    shutil.copytree(config.workspace, work, ignore=shutil.ignore_patterns("jobs", ".lock"))
    for name in ("comparison", "membership", "references"):
        for found in work.glob(f"{name}-*"):
            (found / "result.json").unlink()
            shutil.rmtree(found / "reference-1", ignore_errors=True)  # one of two references is left
    records = next(work.glob("comparison-*")) / "records"
    for file in records.glob("surrogate-*"):
        file.unlink()
    again = certdef.run(dataclasses.replace(config, work_dir=str(work)), progress=False)
    assert not again.reused
    for name in ("comparison", "membership"):
        expected, found = summary.results[name], again.results[name]
        drop = lambda text: re.sub(r'"[^"]*seconds[^"]*": [\d.e-]+', "", text)  # noqa: E731
        assert drop(json.dumps(found)) == drop(json.dumps(expected))
    assert again.bill.total.answered == summary.bill.total.answered


def test_a_target_of_ones_own_is_asked_but_never_opened(job, monkeypatch, tmp_path):
    """No weights and no training set are known: certificates by queries alone, and no membership inference."""
    config, summary, folder = job
    monkeypatch.chdir(folder)
    own = change(
        dataclasses.replace(config, work_dir=str(tmp_path / "own")),
        target={"uri": summary.results["target"]["uri"]},
        ducd={"overlaps": (0.0,)},
        data={"audit_images": 0},
    )
    found = certdef.run(own, progress=False)
    assert list(found.results) == ["target", "surrogate-overlap-0", "pilot", "noise", "comparison"]
    assert list(found.results["comparison"]["conditions"]) == ["surrogate", "target"]
    text = found.report.read_text(encoding="utf-8")
    assert 'id="membership"' not in text
    assert len(cells(text, "subjects")) == 2


def test_the_terminal_says_what_was_found(job):
    text = str(job[1])
    for words in ("certified", "by its weights", "by paid queries", "membership", "AUC"):
        assert words in text


def test_the_papers_are_those_of_the_job(job):
    from certdef.report.citations import cite

    text = cite(job[0])
    for words in ("2408.10647", "2312.03262", "2112.03570", "1709.01604", "DeLong", "2 surrogates"):
        assert words in text
    assert "2302.01056" not in text, "there is no De^3 in it"


# --- what is refused, before anything is spent --------------------------------------------------------------

BAD = [
    ({"ducd": {"overlaps": (0, 2)}}, "ducd.overlaps", "[0, 1]"),
    ({"ducd": {"overlaps": ()}}, "ducd.overlaps", "[0, 1]"),
    ({"ducd": {"gaussians_255": (0,)}}, "ducd.gaussians_255", "60"),
    ({"ducd": {"rmia_a": 2}}, "ducd.rmia_a", "0.3"),
    ({"ducd": {"references": 0}}, "ducd.references", "at least 1"),
    ({"ducd": {"choice_images": 295}}, "data.heldout_images is 300", "need 303"),
    ({"ducd": {"candidates": 501}}, "ducd.candidates is 501", "lower it"),
    ({"ducd": {"population": 450}}, "data.audit_images is 650", "at least 660"),
    ({"ledger": {"training": 599}}, "ledger.training is 599", "need 600"),
    ({"ledger": {"evaluation": 1099}}, "ledger.evaluation is 1099", "1100"),
    ({"ledger": {"certification": 439}}, "ledger.certification is 439", "at least 440"),
    ({"data": {"target_images": 250}}, "ducd.overlaps", "lower data.pool_images"),
    ({"target": {"uri": "models:/x/1"}}, "ducd.overlaps", "use [0]"),
    ({"certify": {"guide": "decide"}}, "certify.guide is 'decide'", "use off"),
    ({"certify": {"known_class": True}}, "certify.known_class is True", "use false"),
    ({"surrogate": {"model": "nim"}}, "surrogate.model", "use cnn, mlp"),
    ({"target": {"kind": "svc"}}, "target.output_kind", "a network also logits"),
]


@pytest.mark.parametrize(("changes", "name", "remedy"), BAD, ids=[str(case[0]) for case in BAD])
def test_what_can_not_be_done_is_refused(job, changes, name, remedy, tmp_path):
    config = change(dataclasses.replace(job[0], work_dir=str(tmp_path / "work")), **changes)
    with pytest.raises(ConfigError) as error:
        certdef.run(config, progress=False)
    assert name in str(error.value)
    assert remedy in str(error.value)
    assert all(name in line or "models:/x/1" in line for line in str(error.value).splitlines())
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("verb", ["pretrain", "distill", "certify", "attack"])
def test_the_verbs_of_the_main_job_are_refused(verb, job):
    with pytest.raises(ConfigError, match="use certdef run"):
        getattr(certdef, verb)(job[0], progress=False)


# --- the page -----------------------------------------------------------------------------------------------


@pytest.fixture
def page(job):
    return job[1].report.read_text(encoding="utf-8")


def cells(page, table):
    """The text of a table's body cells, row by row."""
    body = re.search(rf'<table id="{table}".*?<tbody>(.*?)</tbody>', page, re.S)[1]
    rows = re.findall(r"<tr.*?</tr>", body, re.S)
    text = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows]
    return [[" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in row] for row in text]


def shown(figure):
    return f"{100 * figure[0]:.1f}% {100 * figure[1]:.1f}–{100 * figure[2]:.1f}"


def shown_auc(figure):
    return f"{figure[0]:.3f} {figure[1]:.3f}–{figure[2]:.3f}"


def test_page_has_the_figures_of_the_stages(page, job, results):
    compared = results["comparison"]
    noise = candidate_noises(job[0])[compared["noise"]]
    found = cells(page, "subjects")
    assert len(found) == 3
    for row, key in zip(found, compared["conditions"].values(), strict=True):
        curve = compared["curves"][key]
        ceiling = noise.radius(0.001 ** (1 / curve["n"]))
        assert row[1:3] == [str(curve["images"]), str(curve["n"])]
        figures = zip([0, *compared["radii"]], [curve["accuracy_at_0"], *curve["accuracy"]], strict=True)
        for cell, (radius, figure) in zip(row[3:-2], figures, strict=True):
            assert cell == (shown(figure) if radius <= ceiling else "– n too small")
    found = cells(page, "agreement-table")
    for row, each in zip(found, compared["agreement"].values(), strict=True):
        assert row[2] == shown(each["clean"]["agreement"])
        assert row[4] == shown(each["noisy"]["agreement"])
        assert 0 <= float(row[3].rstrip("%")) - 100 * each["clean"]["disagreement_upper"] < 0.1001
    audited = [(name, attack) for name, row in results["membership"]["attacks"].items() for attack in row]
    for row, (name, attack) in zip(cells(page, "audit"), audited, strict=True):
        each = results["membership"]["attacks"][name][attack]
        assert row[1] == ducd_page.ATTACKS[attack]
        assert row[2] == shown_auc(each["auc"])
        assert row[3:5] == [shown([rate["tpr"], rate["lower"], rate["upper"]]) for rate in each["rates"]]
        gain = "–" if name == "target" else shown_auc(results["membership"]["benefit"][name][attack])
        assert row[5] == gain
    for row, each in zip(cells(page, "carried"), compared["verdicts"]["carried"].values(), strict=True):
        assert row[2:] == [f"{both} of {ours}" for both, ours in each["rows"]]
    chosen = [row[0] for row in cells(page, "candidates") if "chosen" in row[0]]
    assert len(chosen) == 1
    assert chosen[0].startswith(results["noise"]["chosen"])


def test_page_says_what_the_certificate_does_not_mean(page):
    text = " ".join(unescape(re.sub(r"<[^>]+>", "", page)).split())
    for words in (
        "about the target itself it proves nothing",
        "Nothing is proven of the target inside the radius",
        "No bound on an average excludes that point",
        "An AUC near 0.5 is no proof of privacy",
    ):
        assert words in text


def test_page_without_membership_is_whole(job, data):
    """As for a target of one's own: nobody here knows what it was trained on."""
    every = job[1].stages
    done = [stage for name, stage in every.items() if name not in ("membership", "references")]
    text = ducd_page.render(job[0], data, done, job[1].bill)
    assert 'id="membership"' not in text
    assert "#membership" not in text
    assert 'id="subjects"' in text
    hostile = dataclasses.replace(data, name="<script>alert(1)</script>")
    assert "<script" not in ducd_page.render(job[0], hostile, done, job[1].bill)


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_page_fits_the_screen_and_loads_nothing(browser, job, width):
    browser.get(job[1].report.resolve().as_uri())
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        cut = browser.execute_script(
            "return [...document.querySelectorAll('p, dd, li, figcaption, h1, h2, caption, figure, .card')]"
            ".filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.innerText)"
        )
        assert cut == []
        shown = browser.execute_script(
            "return [...document.images].map(each => [each.complete, each.naturalWidth, each.alt, each.src])"
        )
        assert len(shown) == 2
        assert all(done and size > 0 and len(alt) > 10 for done, size, alt, _ in shown)
        assert all(source.startswith("data:") for *_, source in shown)
        missing = browser.execute_script(
            "return [...document.querySelectorAll('a')].map(a => a.hash)"
            ".filter(hash => hash && !document.querySelector(hash))"
        )
        assert missing == []
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_the_first_sheet_of_paper_has_the_result_what_it_does_not_prove_and_the_queries(browser, job):
    """A4 within margins of a centimeter, at 96 pixels an inch, has 718 x 1046."""
    browser.get(job[1].report.resolve().as_uri())
    sheet = browser.find_element("css selector", ".sheet")
    assert "For how many queries" not in sheet.text  # on the screen the bill has a section of its own
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    metrics = {"width": 718, "height": 1046, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        bottom, breaks = browser.execute_script(
            "return [arguments[0].getBoundingClientRect().bottom + scrollY, getComputedStyle(arguments[0]).breakAfter]",
            sheet,
        )
        shown = sheet.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert 200 < bottom < 1046
    assert breaks == "page"
    assert all(words in shown for words in ("What is not proven", "For how many queries", "Certification"))
