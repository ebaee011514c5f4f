import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import certdef
import certify
import surrogates
from certdef.attacks import threat_ladder as ladder
from certdef.attacks.evaluation import (
    THREAT_MODELS,
    AttackEvaluation,
    markdown_table,
    single_attacks,
    strongest_attack,
    worst_case,
)
from certdef.attacks.gradient_masking import check_gradient_masking
from certdef.config.checks import check
from certdef.config.job import ConfigError, LadderConfig
from certdef.config.verbs import with_ladder
from certdef.report.terminal import headline as headline_of
from tests.conftest import TINY, run_once
from tests.trained import adversarial_mlp, digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = LadderConfig(
    eps=0.2, steps=15, eot=5, square_queries=300, decision_queries=200, resubmissions=8, images=40
)


@pytest.fixture(scope="module")
def victim():
    model, images, labels = digits_mlp()
    return model, images[:40], labels[:40]


class Noise(nn.Module):
    """An honest purifier: Gaussian noise, cut to [0, 1]."""

    def __init__(self, sigma=0.15):
        super().__init__()
        self.sigma, self.generator = sigma, torch.Generator().manual_seed(0)

    def forward(self, images):
        return (images + self.sigma * torch.randn(images.shape, generator=self.generator)).clamp(0, 1)


class Rounding(nn.Module):
    """A purifier whose gradient is zero wherever there is one."""

    def forward(self, images):
        return (4 * images).round() / 4


class Cut(nn.Module):
    """A purifier that autograd can't see through."""

    def forward(self, images):
        return images.detach().clone()


class HeavyTails(nn.Module):
    """Hardly any noise, and a gradient that one draw in ten turns round and blows up: means over draws mislead."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images):
        noise = 1e-3 * torch.randn(images.shape, generator=self.generator)
        scale = 1.0 if torch.rand(1, generator=self.generator) > 0.1 else -1e3
        return images.detach() + scale * (images - images.detach()) + noise


class Saturated(nn.Module):
    """A classifier so sure of itself that its loss has no gradient in floats."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return 1e4 * self.inner(images)


def evaluated(victim, purifier=None, classifier=None, **changes):
    model, images, labels = victim
    system = ladder.System(classifier or model, purifier)
    return {
        each.name: each
        for each in ladder.evaluate(system, images, labels, replace(SETTINGS, **changes), seed=0)
    }


@pytest.fixture(scope="module")
def bare(victim):
    return evaluated(victim)


@pytest.fixture(scope="module")
def noisy(victim):
    return evaluated(victim, Noise())


def test_every_evaluation_has_a_name_an_interval_and_a_threat_model(bare, noisy):
    assert list(bare) == [
        "clean",
        "blind",
        "square",
        "hop_skip_jump",
        "low_frequency",
        "full_eot",
        "autoattack",
        "apgd",
        "large_eps",
        "queries_large_eps",
        "worst_case",
    ]
    assert list(noisy) == [
        "clean",
        "blind",
        "square",
        "nes",
        "hop_skip_jump",
        "low_frequency",
        "bpda_eot",
        "full_eot",
        "autoattack",
        "proxy",
        "apgd",
        "dw_box",
        "one_draw",
        "large_eps",
        "queries_large_eps",
        "resubmission",
        "resubmission_clean",
        "worst_case_clean",
        "worst_case",
    ]
    for each in [*bare.values(), *noisy.values()]:
        share, low, high = each.accuracy
        assert 0 <= low <= share <= high <= 1
        assert share == pytest.approx(sum(each.right) / 40)
        assert each.knows == THREAT_MODELS[each.name]
        assert each.queries >= 40 * (each.name not in ("worst_case", "dw_box"))
    assert bare["clean"].accuracy[0] > 0.9
    assert bare["square"].queries <= 40 * 301
    assert bare["hop_skip_jump"].queries <= 40 * 201
    assert noisy["resubmission"].queries == 8 * 40
    assert bare["full_eot"].gradients == 15 * sum(bare["clean"].right)
    attacked = noisy["full_eot"].gradients / (5 * 15)
    assert attacked >= sum(noisy["clean"].right)  # all but those that are always wrong
    assert noisy["proxy"].gradients == 3 * 16 * attacked
    assert noisy["square"].gradients == noisy["nes"].gradients == noisy["resubmission"].gradients == 0


def test_the_worst_case_is_taken_image_by_image_over_the_attacks_of_one_pass(bare, noisy):
    attacks = {"blind", "square", "hop_skip_jump", "low_frequency", "full_eot", "autoattack", "apgd"}
    for found, expected in ((bare, attacks), (noisy, attacks | {"nes", "bpda_eot", "proxy", "one_draw"})):
        assert {each.name for each in single_attacks(list(found.values()))} == expected
        least = found["worst_case"]
        assert least == worst_case(list(found.values()))
        assert least.eps == 0.2
        assert least.right == tuple(all(found[name].right[image] for name in expected) for image in range(40))
        assert least.accuracy[0] <= strongest_attack(list(found.values())).accuracy[0]
    assert noisy["worst_case_clean"].queries == 11 * 40
    assert noisy["worst_case"].accuracy[0] < noisy["worst_case_clean"].accuracy[0]
    with pytest.raises(ValueError, match="no attack was tried"):
        worst_case([bare["clean"]])


def test_attacks_that_break_different_images_leave_less_together_than_the_strongest_alone():
    def attack(name, broken):
        right = tuple(image not in broken for image in range(100))
        low, high = (float(each) for each in certify.binomial_interval(sum(right), 100))
        return AttackEvaluation(name, THREAT_MODELS[name], 0.1, [sum(right) / 100, low, high], right)

    every = [attack("blind", range(30)), attack("square", range(20, 60)), attack("clean", range(2))]
    every.append(attack("resubmission", range(90)))  # another threat model, with a control of its own
    alone, together = strongest_attack(every), worst_case(every)
    assert (alone.name, alone.accuracy[0], together.accuracy[0]) == ("square", 0.6, 0.4)
    wider = worst_case(every, systems=8)
    low, high = certify.binomial_interval(40, 100, alpha=0.05 / 8)
    assert wider.accuracy == [0.4, float(low), float(high)]
    assert wider.accuracy[1] < together.accuracy[1] < together.accuracy[2] < wider.accuracy[2]


def test_resubmission_finds_what_one_evaluation_missed(victim):
    found = evaluated(victim, Noise(), eps=0.1, square_queries=0, decision_queries=0)
    assert found["resubmission"].accuracy[0] < found["full_eot"].accuracy[0] - 0.1
    assert found["resubmission"].accuracy[0] < found["resubmission_clean"].accuracy[0] - 0.2
    assert found["resubmission_clean"].accuracy[0] <= found["clean"].accuracy[0]


def test_honest_systems_raise_no_alarm(bare, noisy):
    assert check_gradient_masking(list(bare.values())) == []
    assert check_gradient_masking(list(noisy.values())) == []


def test_masked_gradients_raise_alarms(victim):
    model = victim[0]
    evaluations = evaluated(victim, classifier=nn.Sequential(Rounding(), model))
    found = " ".join(check_gradient_masking(list(evaluations.values())))
    assert "square" in found
    assert "knows more" in found
    assert "eps 0.5" in found
    evaluations = evaluated(victim, classifier=Saturated(model))
    found = " ".join(check_gradient_masking(list(evaluations.values())))
    assert "eps 0.5" in found
    assert (
        evaluations["apgd"].robust_accuracy < evaluations["full_eot"].robust_accuracy - 0.3
    )  # another loss sees


# --- alarms of a target, whose weights nobody has --------------------------------------------------------------


class OneHot(nn.Module):
    """Answers that are all or nothing: no query tells which way the boundary is."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        logits = self.inner(images)
        return 40.0 * torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])


class Nearest(nn.Module):
    """A purifier that only looks as if it purified: the nearest of the images that it will be tested on."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, images):
        return self.known[torch.cdist(images.flatten(1), self.known.flatten(1)).argmin(1)]


class Remembers(nn.Module):
    """Answers a query as the first image that it looks like, as services do that watch for attacks."""

    def __init__(self, first, inner):
        super().__init__()
        self.first, self.inner = first, inner

    def forward(self, images):
        apart = torch.cdist(images.flatten(1), self.first.flatten(1), p=math.inf)
        return self.inner(self.first[apart.argmin(1)])


def alarms_of_a_target(victim, classifier, purifier=None, surrogate=None, alike=(), **changes):
    model, images, labels = victim

    def answer(pixels):
        with torch.no_grad():
            return classifier(torch.from_numpy(pixels)).softmax(1).numpy()

    target = surrogates.open_target(answer, num_classes=10, output_kind="probabilities", identity="a target")
    system = ladder.System(target, purifier, surrogate or model)
    settings = replace(SETTINGS, **{"decision_queries": 0} | changes)
    return check_gradient_masking(ladder.evaluate(system, images, labels, settings), alike)


def test_a_target_that_hides_its_scores_raises_alarms(victim):
    found = alarms_of_a_target(victim, OneHot(victim[0]), eps=0.15)
    assert any("surrogate_transfer" in each and "beats square" in each for each in found)
    assert any("leave as much as no attack" in each for each in found)


def test_a_target_that_queries_cannot_break_from_afar_as_they_break_the_surrogate_raises_an_alarm(victim):
    model, images, labels = victim
    surrogate = ladder.evaluate(ladder.System(model), images, labels, replace(SETTINGS, decision_queries=0))
    found = alarms_of_a_target(victim, Remembers(images, model), alike=surrogate)
    assert any("of the surrogate: the target's answers are masked" in each for each in found)
    honest = alarms_of_a_target(victim, model, alike=surrogate)
    assert not any("masked" in each for each in honest)


def test_a_target_that_no_distance_breaks_raises_an_alarm(victim):
    assert any("eps 0.5" in each for each in alarms_of_a_target(victim, victim[0], Nearest(victim[1])))


def test_adversarial_training_raises_no_alarm(victim):
    robust = adversarial_mlp(0.15)
    student = adversarial_mlp(0.1)  # another network, as a distilled one is
    settings = {"eps": 0.15, "square_queries": 1_000}
    assert check_gradient_masking(list(evaluated(victim, classifier=robust, **settings).values())) == []
    alike = list(evaluated(victim, classifier=student, **settings).values())
    settings["decision_queries"] = 500
    assert alarms_of_a_target(victim, robust, surrogate=student, alike=alike, **settings) == []


def test_averaging_that_misleads_raises_an_alarm(victim):
    found = evaluated(victim, HeavyTails(), square_queries=0, decision_queries=0)
    assert found["one_draw"].accuracy[0] < found["full_eot"].accuracy[0]
    assert any("averaging over the noise" in alarm for alarm in check_gradient_masking(list(found.values())))


def test_a_purifier_without_a_gradient_is_attacked_past_it(victim):
    found = evaluated(victim, Rounding(), eps=0.15, square_queries=0, decision_queries=0)
    assert strongest_attack(list(found.values())).name == "bpda_eot"
    assert found["bpda_eot"].accuracy[0] < found["full_eot"].accuracy[0] - 0.5
    assert found["large_eps"].accuracy[0] < 0.1  # it follows the better of the two gradients
    found = evaluated(victim, Cut(), square_queries=0, decision_queries=0)
    assert found["full_eot"].accuracy is None
    assert "no gradient" in found["full_eot"].skipped
    assert found["bpda_eot"].accuracy[0] < 0.2
    assert found["large_eps"].accuracy[0] < 0.1


def test_a_purifier_that_writes_into_its_input_gets_copies(victim):
    class Blackens(nn.Module):
        def forward(self, images):
            purified = 0.9 * images
            images.zero_()
            return purified

    class Dims(nn.Module):
        def forward(self, images):
            return 0.9 * images

    model, images, labels = (victim[0], *(each[:10] for each in victim[1:]))
    settings = replace(SETTINGS, steps=2, square_queries=20, decision_queries=20)
    before = images.clone()
    found, expected = (
        ladder.evaluate(ladder.System(model, purifier), images, labels, settings)
        for purifier in (Blackens(), Dims())
    )
    assert torch.equal(images, before)
    assert found == expected


def test_an_attack_with_no_queries_is_left_out(victim):
    assert not {"square", "hop_skip_jump"} & set(evaluated(victim, square_queries=0, decision_queries=0))


def test_the_same_seed_gives_the_same_evaluations_and_training_modes_stay(victim):
    model, images, labels = (victim[0], *(each[:10] for each in victim[1:]))
    settings = replace(SETTINGS, steps=3, eot=2, square_queries=40, decision_queries=40)
    state = torch.random.get_rng_state()
    first, again = (
        ladder.evaluate(ladder.System(model, Noise()), images, labels, settings, seed=1) for _ in range(2)
    )
    assert first == again
    assert first != ladder.evaluate(ladder.System(model, Noise()), images, labels, settings, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize("kind", ["probabilities", "labels"])
def test_a_target_is_attacked_by_queries_that_the_ledger_pays(victim, tmp_path, kind):
    model, images, labels = victim

    def answer(pixels):
        with torch.no_grad():
            probabilities = model(torch.from_numpy(pixels)).softmax(1).numpy()
        return probabilities if kind == "probabilities" else probabilities.argmax(1)

    settings = replace(SETTINGS, square_queries=60, decision_queries=60)
    target = surrogates.open_target(answer, num_classes=10, output_kind=kind, identity=kind)
    with surrogates.QueryLedger(tmp_path / "ledger.db", {"attack": 20_000}) as ledger:
        asked = ledger.attach(target, purpose="attack", experiment="a test")
        images, labels = images[:15], labels[:15]
        system = ladder.System(asked, Noise(), surrogate=model, students=[adversarial_mlp(0.1)])
        found = ladder.evaluate(system, images, labels, settings, seed=0)
        spent = ledger.bill()["attack"].answered
    named = {each.name: each for each in found}
    assert list(named) == [
        "clean",
        "surrogate_transfer",
        "surrogate_transfer_eot",
        "ensemble_transfer",
        "square",
        "nes",
        "hop_skip_jump",
        "large_eps",
        "queries_large_eps",
        "resubmission",
        "resubmission_clean",
        "worst_case_clean",
        "worst_case",
    ]
    assert sum(each.queries for each in found) == spent
    assert (named["square"].accuracy is None) == (kind == "labels")
    assert ("labels alone" in named["square"].skipped) == (kind == "labels")
    most = ladder.most_queries(settings, 15, noisy=True, purified=True)
    assert spent <= most
    text = markdown_table({"noise": found})
    assert f"| square | {'(the target answers labels alone)' if kind == 'labels' else ''}" in text
    assert text.count("**") == 2


def test_evaluations_go_through_json(bare):
    found = list(bare.values())
    assert [AttackEvaluation.from_json(json.loads(json.dumps(each.to_json()))) for each in found] == found


# --- in the job ---------------------------------------------------------------------------------------------

TINY_LADDER = {
    "purifier": "gs",  # nothing to train
    "ladder__enabled": True,
    "ladder__images": 12,
    "ladder__target_images": 5,
    "ladder__steps": 5,
    "ladder__eot": 2,
    "ladder__square_queries": 30,
    "ladder__decision_queries": 30,
    "ladder__smoothed_images": 4,
    "ladder__smoothed_draws": 4,
}


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_job_evaluates_the_ladder_pays_reports_and_does_nothing_twice(
    migrated_store, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.mktemp("climbed")
    config, summary, _ = run_once(folder, migrated_store, **TINY | TINY_LADDER)
    found = summary.results["ladder"]
    assert list(found["systems"]) == ["none", "gs"]
    for shown in found["systems"].values():
        for subject, images in (("surrogate", 12), ("target", 5)):
            assert shown[subject]["images"] == images
            tried = {each["name"]: each["accuracy"] for each in shown[subject]["rungs"] if each["accuracy"]}
            assert {"clean", "square", "hop_skip_jump"} <= set(tried)
            least = shown[subject]["headline"]
            assert list(least["accuracy"]) == tried[least["rung"]]
            assert least["accuracy"][0] <= least["alone"][0] == tried[least["strongest"]][0]
    assert "surrogate_transfer_eot" in {each["name"] for each in found["systems"]["gs"]["target"]["rungs"]}
    asked = sum(shown["target"]["queries"] for shown in found["systems"].values())
    attack = 20 * (2 * len(config.attack.eps) + 1)
    assert summary.bill["attack"].answered == asked + attack
    assert [row["radius"] for row in found["curve"]] == [0, *config.certify.radii]

    monkeypatch.chdir(folder)
    import mlflow

    logged = mlflow.MlflowClient(config.tracking.uri).get_run(summary.run_id).data.metrics
    for each in found["systems"]["gs"]["surrogate"]["rungs"]:
        assert logged[f"attack/{each['name']}/accuracy"] == each["accuracy"][0]
    for each in found["systems"]["none"]["target"]["rungs"]:
        assert logged[f"attack/target/none/{each['name']}/accuracy"] == each["accuracy"][0]

    text = summary.report.read_text()
    for subject in ("target", "surrogate"):
        section = text[text.index(f'<table id="ladder-{subject}"') :].split("</table>")[0]
        assert section.count("<tr>") == 1 + len(
            {each["name"] for shown in found["systems"].values() for each in shown[subject]["rungs"]}
        )
        assert section.count('class="figure worst"') == 2
    assert headline_of(config, summary).count("ladder      ") == 4

    assert sorted(path.name[:8] for path in config.workspace.glob("fellow-*")) == [
        f"fellow-{number}" for number in (1, 2, 3)
    ]
    assert (
        summary.bill["training"].answered == config.ledger.training
    )  # the fellows have learned from paid answers

    again = certdef.run(config, progress=False)
    assert again.reused
    assert again.bill["attack"].answered == asked + attack
    (whole,) = config.workspace.glob("ladder-" + "[0-9a-f]" * 16)
    shutil.rmtree(whole)  # interrupted after the systems
    resumed = certdef.attack(config, progress=False)
    assert resumed.results["ladder"]["systems"] == found["systems"]
    assert resumed.bill["attack"].answered == asked + attack


def test_a_ladder_that_the_budget_does_not_cover_is_refused_before_anything_is_spent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = certdef.load_config(ladder__enabled=True, ledger__attack=3_000)
    with pytest.raises(ConfigError, match=r"ledger\.attack is 3000.*raise it to 283640"):
        certdef.attack(config, progress=False)
    assert not (config.workspace / "ledger.db").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ladder__systems": ("gs", "magic")}, "magic is no purifier"),
        ({"ladder__eps": 8.0}, r"\[0,1\] pixel units"),
        ({"ladder__square_queries": 3}, "0 for off, or at least 16"),
        ({"ladder__eot": 0}, "at least 1"),
    ],
)
def test_what_the_ladder_cannot_use_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        check(certdef.load_config(**settings))


def test_a_bare_ladder_is_short_for_enabled():
    assert with_ladder(["--ladder", "--quiet"]) == ["--ladder.enabled=true", "--quiet"]
    assert with_ladder(["--ladder"]) == ["--ladder.enabled=true"]
    assert with_ladder(["--ladder", "my.yaml"]) == ["--ladder", "my.yaml"]
    assert with_ladder([]) == []
