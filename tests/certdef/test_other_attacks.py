"""Attacks of other kinds on the ladder: own rows with own budgets, no certificate broken, and the ladder beside them as it was."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import certdef
import certify
import surrogates
from certdef.attacks import other_kinds
from certdef.attacks.evaluation import known_by, markdown_table, worst_case
from certdef.attacks.other_kinds import LAWS, OtherAttack
from certdef.attacks.patch import MaskedVote
from certdef.attacks.smoothed import SoftVote
from certdef.attacks.system import System
from certdef.attacks.threat_ladder import evaluate
from certdef.config.attacks import OTHER_ATTACKS, LadderConfig, other_attack
from certdef.config.checks import check
from certdef.config.job import ConfigError
from certdef.config.threats import threat_names
from certdef.stages.other_attacks import share_within
from certdef.stages.threat import find_threat
from certify.threats.fills import gray
from certify.threats.masks import CoveringMasks
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (8, 8)
SETTINGS = LadderConfig(steps=10, eot=2, square_queries=0, decision_queries=0, students=0)
NAMED = ("patch=2x2", "brightness=0.3", "contrast", "translation", "blur-exponential")


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images):
        return images + 0.1 * torch.randn(images.shape, generator=self.generator)


class Cut(nn.Module):
    """A purifier that autograd can't see through."""

    def forward(self, images):
        return images.detach().clone()


def attacks(named=NAMED):
    return [OtherAttack.named(each, SIZE) for each in named]


def test_every_attack_is_one_of_a_threat_that_can_be_certified():
    assert {*OTHER_ATTACKS} <= {*threat_names()}
    assert {*LAWS} == {*OTHER_ATTACKS} - {"patch"}
    for name, (law, _, _) in LAWS.items():
        certified = find_threat(name).law({"strength": 1.0})
        images, parameters = torch.rand(3, 1, *SIZE), 0.3 * torch.ones(3, law.numbers)
        assert torch.equal(law.apply(images, parameters), certified.apply(images, parameters))


@pytest.mark.parametrize("purifier", [None, Noise, Cut])
def test_each_has_a_row_with_its_budget_and_no_part_in_the_worst_case(purifier):
    model, images, labels = digits_mlp()
    images, labels = images[:16], labels[:16]
    system = System(model, purifier and purifier())
    found = other_kinds.evaluate(system, images, labels, attacks(), SETTINGS, seed=0)
    assert [each.name for each in found] == [
        "patch=2x2",
        "brightness=0.3",
        "contrast=0.3",
        "translation=1",
        "blur-exponential=1",
    ]
    assert "2x2" in found[0].knows
    assert "up to 0.3" in found[1].knows
    assert all(each.queries == 16 for each in found)
    assert min(each.robust_accuracy for each in found) < 0.6  # they are attacks
    both = found
    if purifier is None:
        alone = evaluate(system, images, labels, SETTINGS, seed=0)
        both = [*alone, *found]
        assert worst_case(both) == worst_case(alone) == alone[-1]
    assert list(known_by([both]))[-5:] == [each.name for each in found]
    assert "| translation=1 |" in markdown_table({"none": both})
    again = other_kinds.evaluate(
        System(model, purifier and purifier()), images, labels, attacks(), SETTINGS, seed=0
    )
    assert again == found


def test_a_target_is_asked_once_an_image_also_outside_of_0_and_1():
    model, images, labels = digits_mlp()
    seen = []

    def answer(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.copy())
        with torch.no_grad():
            return model(torch.from_numpy(pixels)).argmax(1).numpy()

    target = surrogates.open_target(answer, num_classes=10, output_kind="labels", identity="own")
    seen.clear()
    system = System(target, None, model)
    found = other_kinds.evaluate(system, images[:10], labels[:10], attacks(), SETTINGS, seed=0)
    shown = np.concatenate(seen)
    assert len(shown) == sum(each.queries for each in found) == 50
    assert shown.max() > 1.1
    white = other_kinds.evaluate(System(model), images[:10], labels[:10], attacks(), SETTINGS, seed=0)
    assert [each.right for each in found][1:] == [each.right for each in white][
        1:
    ]  # the surrogate is the target


@pytest.mark.acceptance
@pytest.mark.parametrize("budget", ["brightness=0.15", "contrast=0.2", "blur-exponential=0.7"])
def test_no_attack_breaks_the_vote_within_what_is_certified(budget):
    """The rows' own attacks on the vote: a certified image keeps its answer, and far beyond some lose it."""
    model, images, _ = digits_mlp(0.3)
    images, attack = images[:40], OtherAttack.named(budget, SIZE)
    law = find_threat(attack.threat).law(
        {"strength": {"brightness": 0.2, "contrast": 0.3}.get(attack.threat, 1.0)}
    )
    smoothed = certify.SmoothedClassifier(model, law, 10, seed=1)
    found = smoothed.certify(images, n0=100, n=1_000, alpha=0.001)
    kept = [at for at, each in enumerate(found) if each.radius >= float(attack.budget) and not each.abstained]
    assert len(kept) > 15
    own = torch.tensor([found[at].prediction for at in kept])

    def lost(attack: OtherAttack) -> int:
        """Images that surely have less than half of the votes: 1e-6 of a wrong word for all of them."""
        adversarial = attack.attack(SoftVote(model, law, 16, seed=2), images[kept], own, steps=5, seed=3)
        generator, wrong = torch.Generator().manual_seed(99), 0
        for image, answer in zip(adversarial, own, strict=True):
            with torch.no_grad():
                voted = model(law.perturb(image.expand(1_000, *image.shape), generator)).argmax(1)
            wrong += binom.cdf(int((voted == answer).sum()), 1_000, 0.5) < 1e-6 / len(kept)
        return wrong

    assert lost(attack) == 0
    far = {"brightness": "0.9", "contrast": "0.95"}.get(attack.threat, "6")
    assert lost(OtherAttack(attack.threat, far, SIZE)) >= 3  # it is no blind attack


@pytest.mark.acceptance
def test_no_patch_breaks_the_target_under_masks():
    model, images, labels = digits_mlp()
    masks = CoveringMasks.over(SIZE, (1, 1), 4)
    system = certify.MaskedClassifier(model, masks, 10, fill="gray")
    certified = np.array(
        [not each.abstained for each in system.certify(images[:30], known_class=labels[:30].numpy())]
    )
    assert certified.sum() >= 4
    for victim in (model, MaskedVote(model, masks, gray)):
        attack = OtherAttack.named("patch=1x1", SIZE)
        adversarial = attack.attack(victim, images[:30], labels[:30], steps=10, seed=0)
        right = system.predict(adversarial) == labels[:30].numpy()
        assert right[certified].all()
    larger = OtherAttack.named("patch=4x4", SIZE).attack(
        MaskedVote(model, masks, gray), images[:30], labels[:30], steps=10, seed=0
    )
    assert not (system.predict(larger) == labels[:30].numpy())[certified].all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patch=0%", "rows x columns"),
        ("patch=0.00%", "rows x columns"),
        ("patch=0x3", "rows x columns"),
        ("patch=big", "rows x columns"),
        ("brightness=nan", "as brightness=0.2"),
        ("brightness=-1", "as brightness=0.2"),
        ("brightness=", "as brightness=0.2"),
        ("brightness=1.5", "as brightness=0.2"),
        ("contrast=1", "in (0, 1)"),
        ("translation=inf", "a length in pixels"),
        ("blur-uniform=0", "a standard deviation"),
        ("fog", "no attack of another kind"),
    ],
)
def test_what_is_no_budget_is_one_line(text, says):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        other_attack(text)
    assert repr(text.split("=")[0])[1:-1] in str(error.value)
    assert says in str(error.value)
    with pytest.raises(ConfigError, match=r"ladder\.threats"):
        check(certdef.load_config("digits", ladder__threats=f"[{text}]"))


def test_a_patch_larger_than_the_images_and_an_attack_named_twice_are_refused():
    with pytest.raises(certify.CertifyError, match="larger than the image"):
        OtherAttack.named("patch=9x9", SIZE)
    with pytest.raises(ConfigError, match="name each attack once"):
        check(certdef.load_config("digits", ladder__threats="[patch,patch=5%]"))


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_job_adds_rows_pays_for_these_alone_and_shows_what_is_certified(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "work_dir": str(tmp_path / "work"),
        "tracking__uri": store,
        "tracking__system_metrics": False,
        "purifier": "none",
        "surrogate__epochs": 5,
        "attack__images": 5,
        "certify__target_images": 5,
        "ladder__enabled": True,
        "ladder__images": 12,
        "ladder__target_images": 5,
        "ladder__steps": 5,
        "ladder__square_queries": 0,
        "ladder__decision_queries": 0,
        "ladder__students": 0,
        "ladder__smoothed_images": 0,
    }
    before = certdef.attack(certdef.load_config(**settings), progress=False)
    certdef.certify(
        certdef.load_config(**settings),
        threat="patch",
        threat_options={"patch": "1x1", "masks": 2},
        progress=False,
    )
    more = certdef.load_config(**settings, ladder__threats="[patch=1x1,brightness]")
    after = certdef.attack(more, progress=False)
    old, new = (each.results["ladder"]["systems"]["none"] for each in (before, after))
    assert after.bill["attack"].answered == before.bill["attack"].answered + 2 * 5
    for subject in ("surrogate", "target"):
        assert new[subject]["headline"] == old[subject]["headline"]
        assert new[subject]["rungs"][:-2] == old[subject]["rungs"]
        patch, light = new[subject]["rungs"][-2:]
        assert (patch["name"], light["name"]) == ("patch=1x1", "brightness=0.2")
        assert light["certified"] is None
        assert (patch["certified"] is None) == (subject == "surrogate")  # which is a guide there alone
    shown = str(after)
    assert "attacks of other kinds, no part of the worst case" in shown
    assert "; certified " in next(
        line for line in shown.splitlines() if "certified" in line and "patch" in line
    )
    import mlflow

    logged = mlflow.MlflowClient(store).get_run(after.run_id).data.metrics
    assert logged["attack/target/brightness/0.2/accuracy"] == new["target"]["rungs"][-1]["accuracy"][0]
    assert "attack/patch/1x1/accuracy" in logged


def test_a_certificate_stands_beside_an_attack_only_where_it_reaches_as_far():
    from types import SimpleNamespace as Plain

    curve = Plain(accuracy=["a", "b"])
    light = Plain(grid=(0.1, 0.2), settings={})
    reach = {"0.05": "a", "0.1": "a", "0.15": "b", "0.2": "b", "0.3": None}
    for budget, share in reach.items():
        assert share_within(light, curve, OtherAttack("brightness", budget, SIZE)) == share
    patch = Plain(grid=(6.0,), settings={"patch": [2, 3]})
    for budget, share in {"2x3": "a", "1x1": "a", "3x2": None, "2x4": None}.items():
        assert share_within(patch, curve, OtherAttack("patch", budget, SIZE)) == share
