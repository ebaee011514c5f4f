"""The surrogates as they are certified: each behind its own denoiser, from the answers that were paid for already."""

import dataclasses
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

import certdef
import certify
import surrogates
from certdef.config.checks import check
from certdef.config.job import ConfigError, SurrogateConfig
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models.storage import load_model
from certdef.report.terminal import headline
from certdef.report.unused_options import unused_options
from certdef.stages import Students, certificates, conditions, voters
from certdef.stages.engines import Engines
from certdef.stages.students import held_out_queries
from certdef.stages.surrogate import certified_recipe, queried_images, recipe_of
from certdef.tracking.results import Share
from surrogates.distillation.student import Recipe

STUDENTS = ["student-nim-de3", "student-nim-none", "student-wide-de3", "student-wide-none"]


def model_of(summary, name: str) -> nn.Module:
    return load_model(summary.stages[name].path / "model")


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_a_student_for_each_law_with_and_without_the_denoiser(tiny_job):
    summary = tiny_job[1]
    assert [name for name in summary.stages if name.startswith("student")] == STUDENTS
    found = [summary.stages[name].result for name in STUDENTS]
    assert [(each.law, each.purifier) for each in found] == [
        ("nim", "de3"),
        ("nim", None),
        ("wide", "de3"),
        ("wide", None),
    ]
    assert [each.headline for each in found] == [True, False, False, False]
    assert all(each.queries == 600 for each in found)
    assert len({weights(model_of(summary, name)) for name in [*STUDENTS, "surrogate"]}) == 5
    for each in found:
        share, low, high = each.agreement_with_clean
        assert low < share < high
        assert (each.agreement_same_input is not None) == (each.law == "nim")


def test_the_votes_are_the_students(tiny_job):
    """Counts of the record come again from the model that was kept for the condition, behind its denoiser, and from no other."""
    config, summary, _ = tiny_job
    data = load_data(config.data, config.seed)
    images, denoisers = torch.from_numpy(data.heldout_images[:6]), {"nim": "nim", "wide": "nim-wide"}

    def counts(condition, name: str):
        model = model_of(summary, name)
        if condition.denoised:
            model = nn.Sequential(model_of(summary, denoisers.get(condition.law, "nim")), model)
        smoothed = certify.SmoothedClassifier(
            model, condition.noise, 10, seed=config.seed, batch_size=config.certify.batch_size, chunk_size=256
        )
        how = {"method": config.certify.method, "radii": (0.0, *config.certify.radii)}
        return [list(each.counts) for each in smoothed.certify(images, n0=100, n=200, **how)]

    for condition in conditions(config):
        if condition.subject == "surrogate":
            law = (
                condition.law if condition.law != "gaussian" else "nim"
            )  # the Gaussian beside the laws has the first's
            own = f"student-{law}-{condition.purifier or 'none'}"
            path = summary.stages["certify"].path / "records" / f"{condition.key}.jsonl"
            recorded = certify.read_records(path).counts.tolist()
            assert counts(condition, own) == recorded
            assert counts(condition, "surrogate") != recorded


def test_agreement_is_what_the_models_say(tiny_job):
    """With the clean answer, and with that to the same noisy, denoised image: computed again from the weights and the target."""
    config, summary, _ = tiny_job
    data, noise = load_data(config.data, config.seed), noise_law(config.certify.laws[0])
    clean = torch.from_numpy(data.heldout_images)
    generator = torch.Generator().manual_seed(config.seed)
    mlflow.set_tracking_uri(config.tracking.uri)  # other tests point it elsewhere
    noisy = torch.cat([part + noise.sample(tuple(part.shape), generator) for part in clean.split(256)])
    target = surrogates.open_target(
        summary.results["target"]["uri"], identity=summary.results["target"]["identity"]
    )
    for name, denoiser in {
        "student-nim-de3": model_of(summary, "nim"),
        "student-nim-none": nn.Identity(),
    }.items():
        with torch.inference_mode():
            seen = denoiser(noisy)
            ours = model_of(summary, name)(seen).argmax(1).numpy()
        result = summary.stages[name].result
        with_clean = float((ours == target.query(clean).labels).mean())
        same = float((ours == target.query(seen, bounded=False).labels).mean())
        assert result.agreement_with_clean.value == pytest.approx(with_clean, abs=0.003)
        assert result.agreement_same_input.value == pytest.approx(same, abs=0.003)


def test_served_and_headline_are_the_certified_surrogate(tiny_job):
    config, summary, _ = tiny_job
    served = load_model(summary.stages["served"].path / "model")
    assert weights(served.base[-1]) == weights(model_of(summary, "student-nim-de3"))
    text = headline(config, summary)
    assert "as certified agreement under nim noise behind De^3" in text
    page = summary.report.read_text(encoding="utf-8")
    assert "trained again, as it is certified" in page
    assert "Attacks are computed on the surrogate that agrees." in page


def test_uniform_noise_certifies_the_surrogate_that_agrees_and_pays_nothing_again(copied, tiny_job):
    """Its stages are those that were there: options of the students are not among what they depend on."""
    changed = dataclasses.replace(copied.surrogate, noise="uniform", consistency=1.0, entropy=0.1)
    found = certdef.certify(dataclasses.replace(copied, surrogate=changed), progress=False)
    assert not [name for name in found.stages if name.startswith("student")]
    for name in ("target", "surrogate", "nim", "purifier-de3"):
        assert found.stages[name].reused
        assert found.stages[name].fingerprint == tiny_job[1].stages[name].fingerprint
    assert not found.stages["certify"].reused
    assert found.bill.total.answered == tiny_job[1].bill.total.answered
    before, now = (each.results["certify"]["curves"] for each in (tiny_job[1], found))
    for key in before:
        if key.startswith("target"):
            assert now[key]["accuracy"] == before[key]["accuracy"]


def test_which_network_is_certified():
    """A law of its own has its own; the Gaussian beside the laws that of the first; all others the surrogate."""
    laws = "[{label: nim}, {label: wide, scale_255: 6}]"
    config = certdef.load_config("digits", certify__laws=laws)
    every = [each for each in conditions(config) if each.subject == "surrogate"]
    first, others = nn.Identity(), {("nim", True): nn.Identity(), ("wide", True): nn.Identity()}
    students = Students(first, "nim", others)
    found = {each.key.removeprefix("surrogate-"): students.of(each) for each in every}
    assert found["nim-de3"] is found["gaussian-de3"] is others["nim", True]
    assert found["wide-de3"] is others["wide", True]
    assert found["nim-none"] is found["wide-none"] is first
    assert students.headline is others["nim", True]
    assert Students(first, "nim").headline is first
    assert Students(None, "nim").headline is None


def test_recipes():
    """The agreeing one has neither consistency nor patience of less; certified ones have noise, denoiser and weights."""
    config, noise, denoiser = (
        SurrogateConfig(patience=3, consistency=7.0, entropy=0.2),
        certify.Gaussian(0.2),
        nn.Identity(),
    )
    own = certified_recipe(config, noise, denoiser)
    assert (own.noise, own.denoiser, own.consistency, own.entropy, own.patience) == (
        noise,
        denoiser,
        7.0,
        0.2,
        None,
    )
    plain = recipe_of(config)
    assert (plain.consistency, plain.denoiser, plain.patience) == (0.0, None, 3)
    assert plain.noise.mean_sigma == pytest.approx(75 / 255 / 2)
    assert recipe_of(dataclasses.replace(config, noise="none")).noise is None
    assert isinstance(own, Recipe)


def test_options_of_the_students_are_not_the_surrogates():
    plain = SurrogateConfig().agreeing
    assert not {"noise", "consistency", "entropy"} & plain.keys()
    assert SurrogateConfig(noise="uniform", consistency=1.0).agreeing == plain
    assert SurrogateConfig(noise="none").agreeing == SurrogateConfig(noise_255=0.0).agreeing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "gaussian"}, "surrogate.noise is 'gaussian': use certified, uniform or none"),
        ({"consistency": -1.0}, "surrogate.consistency is -1.0: use a weight of 0"),
        ({"loss": "l1"}, "surrogate.consistency is 5.0: beside it loss l1 learns nothing"),
        ({"entropy": float("nan")}, "surrogate.entropy is nan: use a weight of 0"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    config = dataclasses.replace(certdef.load_config("digits"), surrogate=SurrogateConfig(**options))
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_unused_options_are_named():
    def lines(verb="run", **options):
        return unused_options(certdef.load_config("digits", **options), verb)

    assert lines(surrogate__consistency=2.0) == []
    (line,) = lines(surrogate__consistency=2.0, surrogate__noise="uniform")
    assert line.startswith("surrogate.consistency is 2.0, which nothing reads: surrogate.noise is uniform")
    (line,) = lines(surrogate__consistency=2.0, verb="distill")
    assert "certified surrogates are trained by certdef certify and run" in line
    (line,) = lines(surrogate__consistency=0.0, surrogate__entropy=0.1)
    assert line == "surrogate.entropy is 0.1, which nothing reads: surrogate.consistency is 0"


def test_held_out_images_are_queried_once_more_behind_a_denoiser():
    config = certdef.load_config("digits")
    uniform = dataclasses.replace(config, surrogate=SurrogateConfig(noise="uniform"))
    alone = dataclasses.replace(config, surrogate=SurrogateConfig(model="none"))
    assert held_out_queries(config, 100) == 300
    assert held_out_queries(dataclasses.replace(config, purifier="none"), 100) == 200
    assert held_out_queries(uniform, 100) == 200
    assert held_out_queries(alone, 100) == 100


def test_images_of_a_surrogate_of_an_earlier_version(tmp_path):
    """It kept not which images it queried: a random choice is drawn again, another is not to be known."""
    pool = np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1) / 50
    target = surrogates.open_target(
        lambda images: (images[:, 0, 0, 0] > 0.5).astype(int),
        num_classes=2,
        output_kind="labels",
        identity="x",
    )
    student = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    queried = surrogates.distill(
        target, pool, student, budget=20, query_batch=20, epochs=1, seed=7
    ).pool_indices
    config = certdef.load_config("digits", ledger__training=20, surrogate__query_batch=20, seed=7)
    job = SimpleNamespace(config=config, data=SimpleNamespace(pool=pool))
    stage = SimpleNamespace(path=tmp_path)
    assert np.array_equal(queried_images(job, stage), pool[list(queried)])
    job.config = certdef.load_config("digits", surrogate__strategy="margin")
    with pytest.raises(
        ConfigError,
        match=r"strategy is 'margin', and .* does not say .* --fresh .* --surrogate.noise uniform",
    ):
        queried_images(job, stage)
    (tmp_path / "queried.json").write_text('{"pool_indices": [3, 1]}')
    assert np.array_equal(queried_images(job, stage), pool[[3, 1]])


def test_the_guide_is_the_surrogate_that_agrees_and_votes_are_the_students(monkeypatch):
    """Behind the denoiser of the condition both."""
    config = certdef.load_config("digits", certify__guide="decide", certify__choose="off")
    given, share = {}, Share(0.5, 0.4, 0.6)

    def keep(job, condition, classifier, stage, engines):
        given[condition.key] = classifier
        return SimpleNamespace(shares=[share] * 5, samples_per_image=0.0, seconds_per_image=0.0)

    monkeypatch.setattr(certificates, "certify_condition", keep)
    monkeypatch.setattr(voters, "paid_classifier", lambda *_: "paid")
    denoiser, agreeing, own = nn.Flatten(), nn.Identity(), nn.ReLU()
    students = Students(agreeing, "nim", {("nim", True): own})
    purifier = SimpleNamespace(denoiser=lambda law: denoiser, denoiser_key=lambda law: "key")
    job = SimpleNamespace(config=config, data=SimpleNamespace(remarks={}))
    target = SimpleNamespace(num_classes=10)
    certificates._certify_subjects(job, voters.Voters(job, target, students, purifier, Engines()), None, {})
    target, surrogate = given["target-nim-de3"], given["surrogate-nim-de3"]
    assert target.base == "paid"
    assert [*target.guide] == [denoiser, agreeing]
    assert [*surrogate.base] == [denoiser, own]
    assert given["target-nim-none"].guide is given["surrogate-nim-none"].base is agreeing
