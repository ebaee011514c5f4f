"""The surrogate behind a purifier, fine-tuned on purified images: what it learns from, where it stands, and what it costs."""

import dataclasses
import shutil

import pytest
import torch

import certdef
from certdef.attacks import gradient, threat_ladder
from certdef.attacks.evaluation import THREAT_MODELS, AttackEvaluation
from certdef.config.checks import check
from certdef.config.job import ConfigError, SurrogateConfig
from certdef.data.sets import load_data
from certdef.models import storage
from certdef.models.storage import load_model
from certdef.report.unused_options import unused_options
from certdef.stages import durations, finetuning
from surrogates.distillation.inference import predict

EPOCHS = 20


def with_finetuning(config, **changes):
    return dataclasses.replace(
        config, surrogate=dataclasses.replace(config.surrogate, finetune_epochs=EPOCHS), **changes
    )


def weights(model) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.fixture(autouse=True)
def here(tiny_job, monkeypatch):
    monkeypatch.chdir(tiny_job[2])


@pytest.fixture(scope="module")
def tuned(tiny_job, tmp_path_factory):
    """The tiny job done again in a folder of its own, with fine-tuning: (configuration, summary)."""
    config, _, folder = tiny_job
    work = tmp_path_factory.mktemp("finetuned") / "work"
    shutil.copytree(config.workspace, work, ignore=shutil.ignore_patterns("jobs", ".lock"))
    config = with_finetuning(dataclasses.replace(config, work_dir=str(work)))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return config, certdef.run(config, progress=False)


def test_it_costs_no_query_but_the_attacks_and_all_else_stays(tiny_job, tuned):
    config, found = tuned
    before = tiny_job[1]
    for name in ("target", "surrogate", "nim", "purifier-de3", "student-nim-de3", "certify", "served"):
        assert found.stages[name].reused
    for purpose, charge in found.bill.charges.items():
        assert charge.answered == before.bill.charges[purpose].answered
    assert certdef.run(config, progress=False).reused
    old, new = (each.stages["attack"].result.rows for each in (before, found))
    for ours, theirs in zip(new, old, strict=True):
        assert (ours.surrogate, ours.target, ours.target_purified) == (
            theirs.surrogate,
            theirs.target,
            theirs.target_purified,
        )
    assert [row.surrogate_purified for row in new] != [row.surrogate_purified for row in old]


def test_it_learns_what_the_purifier_leaves(tuned):
    result = tuned[1].stages["finetuned-de3"].result
    assert result.queries == 600
    assert result.agreement.value > result.agreement_before.value + 0.02
    assert tuned[1].stages["finetuned-de3"].result.metrics[
        "surrogate/agreement_finetuned_with_clean"
    ] == pytest.approx(result.agreement.value)


def test_the_figure_is_that_of_an_attacker_who_knows_its_weights(tuned):
    """Computed again from what was kept: PGD on the fine-tuned one itself, De^3 once, its answer."""
    config, found = tuned
    data = load_data(config.data, config.seed)
    count = config.attack.images
    images, labels = (torch.from_numpy(each[:count]) for each in (data.heldout_images, data.heldout_labels))
    model = load_model(found.stages["finetuned-de3"].path / "model")
    assert weights(model) != weights(load_model(found.stages["surrogate"].path / "model"))
    defense = load_model(found.stages["purifier-de3"].path / "model")
    defense.generator = torch.Generator().manual_seed(config.seed)
    for row in found.stages["attack"].result.rows:
        attacked = images
        if row.eps:
            attacked = gradient.pgd(
                model, images, labels, eps=row.eps, steps=config.attack.steps, seed=config.seed
            )
        with torch.inference_mode():
            right = predict(model, defense(attacked.clone()), 100).argmax(1) == labels
        assert row.surrogate_purified.value == pytest.approx(float(right.float().mean()))


def test_the_page_says_what_stands_there(tiny_job, tuned):
    said = "was fine-tuned on purified images"
    assert said in tuned[1].report.read_text(encoding="utf-8")
    assert said not in tiny_job[1].report.read_text(encoding="utf-8")


def test_interrupted_it_ends_at_the_same_weights(tuned, monkeypatch):
    config, found = tuned
    stage = found.stages["finetuned-de3"]
    expected = weights(load_model(stage.path / "model"))
    stage.clear()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "save_classifier", killed)
        with pytest.raises(KeyboardInterrupt):
            certdef.attack(config, progress=False)
    assert (stage.path / "checkpoint.pt").is_file()
    again = certdef.attack(config, progress=False)
    assert not again.stages["finetuned-de3"].reused
    assert weights(load_model(again.stages["finetuned-de3"].path / "model")) == expected


def test_in_the_ladder_it_stands_behind_each_purifier_and_the_other_one_attacks_the_target(
    copied, monkeypatch
):
    """Without a purifier the surrogate that agrees is attacked, and it is the one that is transferred from."""
    seen = []

    def evaluate(system, images, labels, settings, **_):
        seen.append(system)
        return [
            AttackEvaluation(name, THREAT_MODELS[name], 0.1, [1.0, 0.9, 1.0], (True,) * len(images))
            for name in ("clean", "blind")
        ]

    monkeypatch.setattr(threat_ladder, "evaluate", evaluate)
    ladder = dataclasses.replace(copied.ladder, enabled=True, systems=("gs",), smoothed_images=0)
    ledger = dataclasses.replace(copied.ledger, attack=10**9)
    config = with_finetuning(copied, ladder=ladder, ledger=ledger)
    found = certdef.attack(config, progress=False)
    agreeing, *own = (
        weights(load_model(found.stages[name].path / "model"))
        for name in ("surrogate", "finetuned-de3", "finetuned-gs")
    )
    assert len({agreeing, *own}) == 3
    assert [weights(system.classifier) for system in seen[::2]] == [agreeing, *own]
    assert {weights(system.surrogate) for system in seen[1::2]} == {agreeing}


def test_without_epochs_or_purifier_the_surrogate_itself_stands_there(copied):
    job, surrogate, purifier = (
        type("Job", (), {"config": copied})(),
        object(),
        type("Purifier", (), {"name": "de3"})(),
    )
    assert finetuning.finetune_surrogate(job, None, surrogate, purifier) is surrogate
    job.config, purifier.name = with_finetuning(copied), "none"
    assert finetuning.finetune_surrogate(job, None, surrogate, purifier) is surrogate


def test_no_other_surrogate_depends_on_it():
    plain = SurrogateConfig()
    tuned = SurrogateConfig(finetune_epochs=EPOCHS)
    assert plain.agreeing == tuned.agreeing
    assert plain.certified == tuned.certified


def test_values_that_cannot_be_used():
    config = certdef.load_config("digits")
    with pytest.raises(ConfigError, match=r"surrogate\.finetune_epochs is -1: use 0"):
        check(dataclasses.replace(config, surrogate=SurrogateConfig(finetune_epochs=-1)))
    given = SurrogateConfig(model="object:surrogate", finetune_epochs=1)
    with pytest.raises(ConfigError, match=r"surrogate\.finetune_epochs is 1: a surrogate that was given"):
        check(dataclasses.replace(config, surrogate=given))


@pytest.mark.parametrize(
    ("options", "verb", "reason"),
    [
        ({}, "run", None),
        ({}, "attack", None),
        ({}, "report", None),
        ({}, "certify", "is attacked by certdef attack and run"),
        ({"purifier": "none"}, "run", "there is no purifier"),
        ({"surrogate__model": "none"}, "run", "there is no surrogate"),
    ],
)
def test_where_nothing_reads_it_that_is_said(options, verb, reason):
    config = certdef.load_config("digits", surrogate__finetune_epochs=EPOCHS, **options)
    lines = [
        line
        for line in unused_options(config, verb, {"surrogate.finetune_epochs"})
        if line.startswith("surrogate.finetune_epochs")
    ]
    assert len(lines) == (reason is not None)
    assert all(reason in line for line in lines)


def test_a_plan_counts_its_time(monkeypatch):
    """A second for each view that is purified, at most 100 an image, and for each image of a pass."""
    monkeypatch.setattr(durations, "seconds_each", lambda run, most: 1.0)

    def seconds(epochs):
        config = certdef.load_config("digits", surrogate__finetune_epochs=epochs)
        data = load_data(config.data, 0)
        parts = durations.Durations(config, data, 10, torch.device("cpu"), None).of({"attack": 1})
        return parts.get("fine-tune the surrogate")

    assert seconds(0) is None
    assert seconds(20) == 600 * (20 + 20)
    assert seconds(2_000) == 600 * (100 + 2_000)
