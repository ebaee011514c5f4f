import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import certdef
import surrogates
from certdef.attacks import threat_ladder as ladder
from certdef.cli import with_ladder
from certdef.config.checks import check
from certdef.config.job import ConfigError, LadderConfig
from certdef.report.terminal import headline as headline_of
from tests.conftest import TINY, run_once
from tests.trained import digits_mlp

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


def climbed(victim, purifier=None, classifier=None, **changes):
    model, images, labels = victim
    system = ladder.System(classifier or model, purifier)
    return {
        rung.name: rung for rung in ladder.climb(system, images, labels, replace(SETTINGS, **changes), seed=0)
    }


@pytest.fixture(scope="module")
def bare(victim):
    return climbed(victim)


@pytest.fixture(scope="module")
def noisy(victim):
    return climbed(victim, Noise())


def test_every_rung_has_a_name_an_interval_and_says_what_its_attacker_knows(bare, noisy):
    assert list(bare) == ["clean", "blind", "square", "hop_skip_jump", "full_eot", "large_eps"]
    assert list(noisy) == [
        "clean", "blind", "square", "hop_skip_jump", "bpda_eot", "full_eot", "one_draw", "large_eps",
        "resubmission", "resubmission_clean",
    ]  # fmt: skip
    for rung in [*bare.values(), *noisy.values()]:
        share, low, high = rung.accuracy
        assert 0 <= low <= share <= high <= 1
        assert share == pytest.approx(sum(rung.right) / 40)
        assert rung.knows == ladder.KNOWS[rung.name]
        assert rung.queries >= 40
    assert bare["clean"].accuracy[0] > 0.9
    assert bare["square"].queries <= 40 * 301
    assert bare["hop_skip_jump"].queries <= 40 * 201
    assert noisy["resubmission"].queries == 8 * 40


def test_the_headline_is_the_lowest_rung_and_no_control(bare, noisy):
    for rungs in (bare, noisy):
        least = ladder.headline(list(rungs.values()))
        assert least.name not in ladder.CONTROLS
        assert least.eps == 0.2
        for rung in rungs.values():
            assert rung.name in ladder.CONTROLS or least.accuracy[0] <= rung.accuracy[0]
    with pytest.raises(ValueError, match="no rung"):
        ladder.headline([bare["clean"]])


def test_asking_again_finds_what_one_look_missed(victim):
    rungs = climbed(victim, Noise(), eps=0.1, square_queries=0, decision_queries=0)
    assert rungs["resubmission"].accuracy[0] < rungs["full_eot"].accuracy[0] - 0.1
    assert rungs["resubmission"].accuracy[0] < rungs["resubmission_clean"].accuracy[0] - 0.2
    assert rungs["resubmission_clean"].accuracy[0] <= rungs["clean"].accuracy[0]
    assert ladder.headline(list(rungs.values())).name == "resubmission"


def test_honest_systems_raise_no_alarm(bare, noisy):
    assert ladder.alarms(list(bare.values())) == []
    assert ladder.alarms(list(noisy.values())) == []


def test_masked_gradients_raise_alarms(victim):
    model = victim[0]
    for classifier in (Saturated(model), nn.Sequential(Rounding(), model)):
        found = " ".join(ladder.alarms(list(climbed(victim, classifier=classifier).values())))
        assert "square" in found
        assert "knows more" in found
        assert "eps 0.5" in found


def test_averaging_that_misleads_raises_an_alarm(victim):
    rungs = climbed(victim, HeavyTails(), square_queries=0, decision_queries=0)
    assert rungs["one_draw"].accuracy[0] < rungs["full_eot"].accuracy[0]
    assert any("averaging over the noise" in alarm for alarm in ladder.alarms(list(rungs.values())))


def test_a_purifier_without_a_gradient_is_attacked_past_it(victim):
    rungs = climbed(victim, Rounding(), eps=0.15, square_queries=0, decision_queries=0)
    assert ladder.headline(list(rungs.values())).name == "bpda_eot"
    assert rungs["bpda_eot"].accuracy[0] < rungs["full_eot"].accuracy[0] - 0.5
    assert rungs["large_eps"].accuracy[0] < 0.1  # it follows the better of the two gradients
    rungs = climbed(victim, Cut(), square_queries=0, decision_queries=0)
    assert rungs["full_eot"].accuracy is None
    assert "no gradient" in rungs["full_eot"].skipped
    assert rungs["bpda_eot"].accuracy[0] < 0.2
    assert rungs["large_eps"].accuracy[0] < 0.1


def test_a_rung_with_no_queries_is_left_out(victim):
    assert not {"square", "hop_skip_jump"} & set(climbed(victim, square_queries=0, decision_queries=0))


def test_the_same_seed_climbs_to_the_same_rungs_and_training_modes_stay(victim):
    model, images, labels = victim
    settings = replace(SETTINGS, steps=3, eot=2, square_queries=40, decision_queries=40)
    state = torch.random.get_rng_state()
    first, again = (
        ladder.climb(ladder.System(model, Noise()), images, labels, settings, seed=1) for _ in range(2)
    )
    assert first == again
    assert first != ladder.climb(ladder.System(model, Noise()), images, labels, settings, seed=2)
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
        system = ladder.System(asked, Noise(), surrogate=model)
        rungs = ladder.climb(system, images, labels, settings, seed=0)
        spent = ledger.bill()["attack"].answered
    named = {rung.name: rung for rung in rungs}
    assert list(named) == [
        "clean", "surrogate_transfer", "surrogate_transfer_eot", "square", "hop_skip_jump", "resubmission",
        "resubmission_clean",
    ]  # fmt: skip
    assert sum(rung.queries for rung in rungs) == spent
    assert (named["square"].accuracy is None) == (kind == "labels")
    assert ("labels alone" in named["square"].skipped) == (kind == "labels")
    least = ladder.most_queries(settings, 15, noisy=True, purified=True)
    assert spent <= least
    text = ladder.table({"noise": rungs})
    assert f"| square | {'(the target answers labels alone)' if kind == 'labels' else ''}" in text
    assert text.count("**") == 2


def test_rungs_are_plain_values(bare):
    rungs = list(bare.values())
    assert [ladder.Rung(**row | {"right": tuple(row["right"])}) for row in ladder.plain(rungs)] == rungs


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
def test_the_job_climbs_pays_shows_and_never_climbs_twice(migrated_store, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("climbed")
    config, summary, _ = run_once(folder, migrated_store, **TINY | TINY_LADDER)
    found = summary.results["ladder"]
    assert list(found["systems"]) == ["none", "gs"]
    for shown in found["systems"].values():
        for subject, images in (("surrogate", 12), ("target", 5)):
            assert shown[subject]["images"] == images
            tried = {rung["name"]: rung["accuracy"] for rung in shown[subject]["rungs"] if rung["accuracy"]}
            assert {"clean", "square", "hop_skip_jump"} <= set(tried)
            least = shown[subject]["headline"]
            assert least["accuracy"] == tried[least["rung"]]
    assert "surrogate_transfer_eot" in {rung["name"] for rung in found["systems"]["gs"]["target"]["rungs"]}
    asked = sum(shown["target"]["queries"] for shown in found["systems"].values())
    attack = 20 * (2 * len(config.attack.eps) + 1)
    assert summary.bill["attack"].answered == asked + attack
    assert [row["radius"] for row in found["curve"]] == [0, *config.certify.radii]

    monkeypatch.chdir(folder)
    import mlflow

    logged = mlflow.MlflowClient(config.tracking.uri).get_run(summary.run_id).data.metrics
    for rung in found["systems"]["gs"]["surrogate"]["rungs"]:
        assert logged[f"attack/{rung['name']}/accuracy"] == rung["accuracy"][0]
    for rung in found["systems"]["none"]["target"]["rungs"]:
        assert logged[f"attack/target/none/{rung['name']}/accuracy"] == rung["accuracy"][0]

    text = summary.report.read_text()
    for subject in ("target", "surrogate"):
        section = text[text.index(f'<table id="ladder-{subject}"') :].split("</table>")[0]
        assert section.count("<tr>") == 1 + len(
            {rung["name"] for shown in found["systems"].values() for rung in shown[subject]["rungs"]}
        )
        assert section.count(" lowest<") == 2
    assert headline_of(config, summary).count("ladder      ") == 4

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
    with pytest.raises(ConfigError, match=r"ledger\.attack is 3000.*raise it to 4[0-9]{4}"):
        certdef.attack(config, progress=False)
    assert not (config.workspace / "ledger.db").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ladder__systems": ("gs", "magic")}, "magic is no purifier"),
        ({"ladder__eps": 8.0}, r"\[0,1\] pixel units"),
        ({"ladder__square_queries": 3}, "0 for off, or at least 4"),
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
