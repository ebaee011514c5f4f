"""The choice of the headline's noise: which candidates there are, which of them the target pays for, and a small real job."""

import shutil
from dataclasses import replace

import pytest
import scipy.stats
import torch

import certdef
import certify
from certdef.config.candidates import candidate_laws, choice_votes
from certdef.config.checks import check
from certdef.config.job import ConfigError, RunConfig, SigmaLaw
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models.storage import load_model
from certdef.report import page as report
from certdef.report.unused_options import unused_options
from certdef.report.words import law_in_words, sigma_in_words
from certdef.stages.choice import choose_for_target, climb
from certdef.stages.conditions import (
    certifiable,
    certification_queries,
    check_choice_of_noise,
    choice_queries,
    conditions,
    guided_budget,
    target_draws,
)
from certdef.stages.estimates import expected_queries, reaches
from certdef.tracking.legacy import Legacy

NIM, WIDE = SigmaLaw(), SigmaLaw("wide", scale_255=6.0)


def job(*candidates, **options):
    options = {"laws": (NIM, WIDE)} | options
    certify_ = replace(RunConfig().certify, choose=candidates or "off", **options)
    return replace(RunConfig(), certify=certify_)


def constant(level):
    return SigmaLaw(f"gaussian-{level:g}", "constant", (), float(level))


# --- candidates -----------------------------------------------------------------------------------------------


def test_the_main_job_chooses_unless_laws_or_a_target_of_your_own_are_given():
    levels = {45.0, 60.0, 75.0, 90.0, 105.0}
    assert {law.scale_255 for law in candidate_laws(certdef.load_config().certify)} == levels
    assert {law.scale_255 for law in candidate_laws(certdef.load_config("cifar10").certify)} == levels
    assert candidate_laws(certdef.load_config(certify__laws="[{label: own, scale_255: 2}]").certify) == ()
    assert candidate_laws(certdef.load_config(certify__choose="off").certify) == ()
    assert candidate_laws(certdef.load_config(target__uri="model.onnx").certify) == ()
    assert candidate_laws(certdef.load_config("own", target__uri="model.onnx").certify) == ()
    assert candidate_laws(certdef.load_config(data__heldout_images=60).certify) == ()  # none would be left
    assert candidate_laws(certdef.load_config(data__heldout_images=61).certify)
    asked = certdef.load_config(target__uri="model.onnx", certify__choose="[45,60]").certify
    assert [law.scale_255 for law in candidate_laws(asked)] == [45.0, 60.0]


def test_candidates_are_levels_laws_of_the_job_and_parts_of_these():
    found = candidate_laws(job(60.0, "nim", "wide@60-120").certify)
    cut = SigmaLaw("wide-60-120", "truncated_gamma", (25.0, 60.0, 120.0), 6.0)
    assert found == (constant(60), NIM, cut)
    assert candidate_laws(job().certify) == ()
    noise = noise_law(cut)
    assert noise == certify.GaussianScaleMixture(
        certify.truncated(scipy.stats.gamma(25.0, scale=6 / 255), 60 / 255, 120 / 255)
    )
    assert law_in_words(cut) == "gamma(25, scale 6)/255 cut to 60/255 to 120/255"
    assert sigma_in_words(constant(51)) == "σ = 0.200, constant"


def test_constant_laws_of_the_job_are_candidates_under_their_own_label():
    laws = (NIM, SigmaLaw("own", "constant", (), 60.0))
    assert candidate_laws(job(60.0, 90.0, laws=laws).certify) == (laws[1], constant(90))
    assert {each.law for each in conditions(job(30.0, 90.0, laws=laws))} == {"nim", "gaussian-90"}


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ((60.0, 300.0), "300: use 8-bit levels above 0"),
        ((60.0, "nime"), "certify.choose has 'nime'"),
        ((60.0, "nim@90-60"), "the interval is empty"),
        ((60.0,), "at least two candidates"),
    ],
)
def test_candidates_that_are_none_are_refused(candidates, words):
    with pytest.raises(ConfigError, match=words):
        check(job(*candidates))


def test_a_candidate_without_mass_and_a_choice_that_leaves_nothing_are_refused_before_anything_is_paid(store):
    with pytest.raises(ConfigError, match="no mass on"):
        check_choice_of_noise(job(60.0, "nim@1-2"), 400)
    with pytest.raises(ConfigError, match=r"certify.choice_images is 60, and 60 images are held out"):
        certdef.run(
            certdef.load_config(data__heldout_images=60, certify__choose="[45,60]", tracking__uri=store)
        )
    check_choice_of_noise(job(60.0, 90.0), 61)


def test_the_command_line_reads_levels_and_names():
    config = certdef.load_config(certify__choose="[45, 60.5, nim, nim@60-90]")
    assert config.certify.choose == (45.0, 60.5, "nim", "nim@60-90")
    assert certdef.load_config(certify__choose="off").certify.choose == "off"
    with pytest.raises(ConfigError, match="use off, auto, or a list of candidates"):
        certdef.load_config(certify__choose="on")


# --- rows and budgets -----------------------------------------------------------------------------------------


def test_chosen_rows_stand_first_and_no_law_has_two_rows():
    config = job(45.0, 90.0, "nim")
    chosen = {
        "target-de3": constant(90),
        "target-none": constant(45),
        "surrogate-de3": NIM,
        "surrogate-none": constant(45),
    }
    rows = conditions(config, chosen)
    assert [each.key for each in rows if each.subject == "target"] == [
        "target-gaussian-90-de3",
        "target-gaussian-45-none",
        "target-nim-de3",
        "target-nim-none",
        "target-wide-de3",
        "target-wide-none",
    ]
    assert [each.key for each in rows if each.subject == "surrogate"] == [
        "surrogate-nim-de3",
        "surrogate-gaussian-45-none",
        "surrogate-nim-none",
        "surrogate-wide-de3",
        "surrogate-wide-none",
    ]
    assert [each.key for each in rows if each.headline] == ["target-gaussian-90-de3", "surrogate-nim-de3"]
    assert rows[0].noise == certify.Gaussian(90 / 255)


def test_the_choice_is_paid_from_the_budget_before_the_certificates():
    config = job(45.0, 60.0, 90.0)
    votes = choice_queries(config)
    assert votes == choice_votes(config.certify, 2) == 2 * 3 * 60 * 100
    rows, images = 6, config.certify.target_images
    n = (config.ledger.certification - votes) // (rows * images) - config.certify.n0
    assert target_draws(config) == n
    assert certification_queries(config, 400) == votes + rows * images * (config.certify.n0 + n)
    assert certification_queries(config, 400) <= config.ledger.certification
    assert certifiable(config, 400) == 340
    assert certification_queries(config, 70) == votes + rows * 10 * (config.certify.n0 + n)
    budget = replace(config, certify=replace(config.certify, guide="budget"))
    assert guided_budget(budget) == [(config.ledger.certification - votes) // rows]
    small = replace(config, ledger=replace(config.ledger, certification=votes + rows * images * 111 - 1))
    with pytest.raises(
        ConfigError, match=f"beside {votes} for the choice of the noise, at least {votes + 33_300}"
    ):
        target_draws(small)


def test_a_plan_names_the_reach_of_every_candidate():
    config = job(45.0, 90.0)
    assert [each.law for each in reaches(config)] == ["gaussian-45", "gaussian-90", "nim", "wide"]


def test_without_a_choice_nothing_that_exists_has_another_key():
    settings = job().certify.settings
    assert not {"choose", "choice_images", "choice_n"} & settings.keys()
    assert settings == job(45.0, 60.0, choice_n=7).certify.settings
    for name in ("certify", "served"):  # what version 0.1.0 certified is not taken for what was chosen
        assert Legacy(job(), "cpu", "sqlite://").fingerprint(name)
        assert Legacy(job(45.0, 60.0), "cpu", "sqlite://").fingerprint(name) is None
    assert [each.key for each in conditions(job(), {})] == [each.key for each in conditions(job())]


# --- which candidates the target pays for ---------------------------------------------------------------------


def counted(score):
    """The same function, and the arguments that it was called with."""
    calls = []

    def call(argument):
        calls.append(argument)
        return score(argument)

    return call, calls


@pytest.mark.parametrize("start", range(7))
@pytest.mark.parametrize("peak", range(7))
def test_a_climb_finds_the_peak_from_anywhere_and_stops_beside_it(start, peak):
    score, calls = counted(lambda index: -abs(index - peak))
    assert climb(7, start, score) == peak
    assert set(calls) <= set(range(min(start, peak) - 1, max(start, peak) + 2))


def test_of_equal_neighbors_the_smaller_sigma_is_taken():
    assert climb(5, 2, [1, 3, 3, 3, 0].__getitem__) == 1
    assert climb(3, 1, [0, 0, 0].__getitem__) == 0


def test_the_target_pays_for_what_is_near_the_surrogates_choice():
    laws = [constant(30), constant(45), constant(60), NIM, constant(90), constant(120)]
    best = {"gaussian-45": 0.5, "gaussian-60": 0.6, "gaussian-90": 0.4, "nim": 0.9}
    score, calls = counted(lambda law: best.get(law.label, 0.0))
    assert choose_for_target(laws, score, constant(60)) == constant(60)
    assert {law.label for law in calls} == {"gaussian-45", "gaussian-60", "gaussian-90"}
    score, calls = counted(lambda law: best.get(law.label, 0.0))
    assert choose_for_target(laws, score, NIM) == NIM  # random sigma is tried where the surrogate prefers it
    assert choose_for_target(laws, score, None) == NIM  # and where there is no surrogate
    assert choose_for_target([NIM, WIDE], score, None) == NIM


# --- a small real job -----------------------------------------------------------------------------------------

CHOICE = {"choose": (45.0, 75.0, 105.0, "nim@60-90"), "choice_images": 12, "choice_n": 40}


@pytest.fixture
def choosing(copied):
    """The tiny job in a folder of its own, now with a choice; what is trained is there already."""
    laws = copied.certify.laws[:1]
    return replace(copied, certify=replace(copied.certify, laws=laws, n=120, **CHOICE))


def test_a_job_chooses_on_images_and_by_votes_that_no_certificate_has(tiny_job, choosing):
    before = tiny_job[1].bill["certification"].spent
    summary = certdef.certify(choosing, progress=False)
    choice, certified = summary.stages["choice"].result, summary.stages["certify"].result
    heldout = choosing.data.heldout_images
    assert choice.candidates.keys() == {"gaussian-45", "gaussian-75", "gaussian-105", "nim-60-90"}
    assert set(choice.chosen) == {"target-de3", "target-none", "surrogate-de3", "surrogate-none"}
    for place, each in choice.chosen.items():
        assert each.scores[each.law.label] == pytest.approx(max(each.scores.values()))
        assert place.startswith("target") or len(each.expected) == 4  # the surrogate tries all
    tried = sum(len(each.expected) for each in choice.chosen.values() if each.subject == "target")
    assert choice.paid == tried * 12 * 40 <= choice_queries(choosing)

    # none of its images is certified, and none of its votes is one of a certificate: each is paid for by itself
    votes = 0
    for path in sorted(summary.stages["certify"].path.glob("records/*.jsonl")):
        found = certify.read_records(path)
        assert found.idx.max() < heldout - 12
        if path.name.startswith("target"):
            votes += int(found.n0.sum() + found.counts.sum())
    charge = summary.bill["certification"]
    assert (
        charge.spent - before + charge.recalled - tiny_job[1].bill["certification"].recalled
        == votes + choice.paid
    )
    assert choice.paid + votes <= certification_queries(choosing, heldout)
    expected = expected_queries(choosing, load_data(choosing.data, choosing.seed), None, "certify")
    assert expected["certification"] >= choice.paid + votes

    # the headline of each subject is what was chosen for it; the mixture stays a row
    assert certified.chosen == choice.laws
    headline = {each.subject: each for each in certified.curves.values() if each.headline}
    for subject, curve in headline.items():
        assert curve.law == choice.chosen[f"{subject}-de3"].law.label
        assert curve.denoised
    assert "target-nim-de3" in certified.curves
    assert "target-gaussian-de3" not in certified.curves

    # De^3 is still the one of the first law: neither it nor the surrogate was trained again
    assert summary.stages["nim"].reused
    assert summary.stages["surrogate"].reused

    page = report.render(
        choosing,
        load_data(choosing.data, choosing.seed),
        list((tiny_job[1].stages | summary.stages).values()),
        summary.bill,
    )
    assert 'id="choices"' in page
    assert "It is the best of 4 candidates by an estimate from 12 other images" in page
    assert "No noise was searched for" not in page

    again = certdef.certify(choosing, progress=False)
    assert again.reused
    assert again.bill["certification"].spent == charge.spent
    shutil.rmtree(summary.stages["choice"].path)  # as if it had been interrupted after its last vote
    resumed = certdef.certify(choosing, progress=False)
    assert resumed.stages["choice"].result.laws == choice.laws
    assert resumed.bill["certification"].spent == charge.spent


def test_without_a_choice_the_page_says_so(tiny_job):
    page = tiny_job[1].report.read_text()
    assert "No noise was searched for: the first configured law is the headline, and the Gaussian" in page
    assert 'id="choices"' not in page


# --- the denoiser under the chosen noise ----------------------------------------------------------------------


def test_a_denoiser_is_trained_further_under_the_chosen_noise_and_stands_behind_it_alone(choosing):
    choosing = replace(choosing, certify=replace(choosing.certify, choose=(60.0, 75.0)))
    plain = certdef.run(choosing, progress=False)
    tuned = certdef.run(replace(choosing, nim=replace(choosing.nim, finetune_epochs=2)), progress=False)
    assert tuned.stages["nim"].reused, "what was pre-trained is the same"
    assert tuned.stages["choice"].reused, "and so is the choice, which was made before"
    assert tuned.stages["attack"].reused, "De^3 as a defense of its own has the network of the first law"
    chosen = tuned.stages["choice"].result.chosen
    law, bare = (chosen[place].law.label for place in ("surrogate-de3", "surrogate-none"))
    own = tuned.stages[f"nim-finetuned-{law}"]
    assert own.result.params["epochs"] == 2
    assert [len(series) for series in own.result.series.values()] == [2]

    denoiser, first = (load_model(each.path / "model") for each in (own, tuned.stages["nim"]))
    assert any(not torch.equal(a, b) for a, b in zip(denoiser.parameters(), first.parameters(), strict=True))
    served = load_model(tuned.stages["served"].path / "model").denoiser
    noisy = torch.rand(3, 1, 8, 8)
    assert torch.equal(served(noisy), denoiser(noisy))
    assert not torch.equal(served(noisy), first(noisy))

    # what the denoiser does not stand behind is voted on as before, and is not paid for again
    for name in (f"surrogate-{bare}-none", "surrogate-nim-de3"):
        assert _votes(plain, name) == _votes(tuned, name)
    assert _votes(plain, f"surrogate-{law}-de3") != _votes(tuned, f"surrogate-{law}-de3")
    assert certdef.run(replace(choosing, nim=replace(choosing.nim, finetune_epochs=2)), progress=False).reused


def _votes(summary, name):
    return certify.read_records(summary.stages["certify"].path / "records" / f"{name}.jsonl").counts.tolist()


def test_a_chosen_law_of_the_job_keeps_its_own_denoiser(choosing):
    laws = (*choosing.certify.laws, SigmaLaw("gaussian-75", "constant", (), 75.0))
    choosing = replace(
        choosing,
        certify=replace(choosing.certify, laws=laws, choose=(75.0, 75.5)),
        nim=replace(choosing.nim, finetune_epochs=1),
    )
    summary = certdef.certify(choosing, progress=False)
    chosen = {each.law.label for each in summary.stages["choice"].result.chosen.values() if each.purifier}
    further = {name for name in summary.stages if "finetuned" in name}
    assert further == {f"nim-finetuned-{label}" for label in chosen - {"gaussian-75"}}
    assert "nim-gaussian-75" in summary.stages, "that is its own"


def test_further_passes_that_nothing_reads_are_said():
    options = {"nim__finetune_epochs": 3}
    said = [
        unused_options(certdef.load_config(**options, **more))
        for more in ({}, {"certify__choose": "off"}, {"purifier": "gs"})
    ]
    assert [any("nim.finetune_epochs" in line for line in lines) for lines in said] == [False, True, True]
    with pytest.raises(ConfigError, match=r"nim.finetune_epochs is -1: use 0 or more"):
        check(certdef.load_config(nim__finetune_epochs=-1))
