"""A student trained as it is certified: consistency of noisy views, denoised views, and agreement measured behind a denoiser."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certify
from surrogates import QueryLedger, Recipe, SurrogateError, distill, fidelity, open_target
from surrogates.distillation import views as denoised
from surrogates.distillation.distill import _fingerprint
from surrogates.distillation.losses import consistency
from surrogates.distillation.student import Examples, step_loss

pytestmark = pytest.mark.usefixtures("one_thread")

K, SHAPE = 3, (1, 4, 4)
NOISE = certify.Gaussian(0.3)


def pool(count: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)


def black_box() -> Any:
    """Linear, and so the easiest to learn."""
    weights = np.random.default_rng(1).normal(size=(16, K))
    return open_target(
        lambda images: (images.reshape(len(images), -1) - 0.5) @ weights,
        num_classes=K,
        output_kind="logits",
        identity="linear",
    )


def student(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, K))


class Inverts(nn.Module):
    """Stands for a denoiser: another image than it is given, in place or on a copy; counts what goes through it."""

    def __init__(self, in_place: bool = False):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.in_place, self.images, self.modes = in_place, 0, set()

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        self.modes.add(self.training)
        return images.mul_(-1).add_(1) if self.in_place else 1 - images * self.scale


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


# --- consistency ---------------------------------------------------------------------------------------------


def test_consistency_by_hand():
    """Two views of two classes: p = (.8, .2) and (.4, .6), so q = (.6, .4)."""
    p = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]], dtype=torch.float64)
    divergence = 0.5 * (
        0.6 * math.log(0.6 / 0.8)
        + 0.4 * math.log(0.4 / 0.2)
        + 0.6 * math.log(0.6 / 0.4)
        + 0.4 * math.log(0.4 / 0.6)
    )
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    found = consistency(p.log() + 7, 5.0, 0.5)  # logits are known up to a constant
    assert found.item() == pytest.approx(5 * divergence + 0.5 * entropy, rel=1e-12)
    assert consistency(p.log(), 5.0, 0.0).item() == pytest.approx(5 * divergence, rel=1e-12)
    same = torch.cat([p[:1], p[:1]])
    assert consistency(same.log(), 5.0, 0.0).item() == pytest.approx(0, abs=1e-12)


def test_consistency_is_the_mean_over_images_and_finite_where_a_class_is_ruled_out():
    logits = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(0))
    each = [consistency(logits[:, at : at + 1], 3.0, 0.5).item() for at in range(5)]
    assert consistency(logits, 3.0, 0.5).item() == pytest.approx(np.mean(each), rel=1e-6)
    sure = torch.tensor([[[300.0, -300.0, 0.0]], [[-300.0, 300.0, 0.0]]], requires_grad=True)
    value = consistency(sure, 5.0, 0.5)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(sure.grad).all()


def test_a_step_against_the_gradient_brings_views_together_and_makes_their_mean_sharper():
    logits = torch.tensor([[[1.0, 0.0, 0.2]], [[-0.5, 0.8, 0.1]]], requires_grad=True)

    def apart(of: Tensor) -> float:
        return (of.softmax(2)[0] - of.softmax(2)[1]).abs().sum().item()

    def entropy(of: Tensor) -> float:
        mean = of.softmax(2).mean(0)
        return -(mean * mean.log()).sum().item()

    (together,) = torch.autograd.grad(consistency(logits, 5.0, 0.0), logits)
    assert apart(logits - 0.05 * together) < apart(logits)
    (sharper,) = torch.autograd.grad(consistency(logits, 0.0, 0.5), logits)
    assert entropy(logits - 0.05 * sharper) < entropy(logits)


def test_a_step_has_two_views_and_both_are_measured_against_the_answer():
    """The loss of a step is that of its parts, computed from the same views."""
    images, goals = torch.from_numpy(pool(5)), torch.tensor([0, 1, 2, 0, 1])
    recipe, model = Recipe(noise=NOISE, consistency=4.0, entropy=0.25), student()
    examples = Examples(images, goals, "cross_entropy")
    found = step_loss(model, examples, images, goals, recipe, torch.Generator().manual_seed(3))
    noisy = images.repeat(2, 1, 1, 1) + NOISE.sample((10, *SHAPE), generator=torch.Generator().manual_seed(3))
    logits = model(noisy)
    expected = nn.functional.cross_entropy(logits, goals.repeat(2)) + consistency(
        torch.stack([logits[:5], logits[5:]]), 4.0, 0.25
    )
    torch.testing.assert_close(found, expected)


def test_without_it_a_student_and_its_checkpoint_are_what_they_were():
    """The fingerprint is that of the checkpoints that exist."""

    class Same:
        def sample(self, shape: Any, generator: Any = None, device: Any = None) -> Tensor:
            return torch.full(shape, 0.25)

    examples = Examples(torch.zeros(2, *SHAPE), torch.tensor([0, 1]), "cross_entropy")
    known = "e4533fac0baf01d5b5f47b38c2bf3080d40192c2333e800a2fc7b019802b4a3b"
    linear = nn.Linear(16, 2)
    assert _fingerprint(Recipe(epochs=3, noise=Same()), 5, examples, linear) == known
    recipes = [
        Recipe(epochs=3, noise=Same(), consistency=5.0),
        Recipe(epochs=3, noise=Same(), consistency=5.0, entropy=0.1),
        Recipe(epochs=3, noise=Same(), denoiser=Inverts()),
        Recipe(epochs=3, noise=Same(), denoiser=nn.Linear(1, 1)),
    ]
    others = {_fingerprint(recipe, 5, examples, linear) for recipe in recipes}
    assert len(others | {known}) == 5


# --- denoised views ------------------------------------------------------------------------------------------


def test_views_are_made_once_and_bounded(monkeypatch):
    """As many as the training can use, or as fit; never fewer than a step takes."""
    assert denoised.number_of_views(600 * 64, 2, 30) == 60
    assert denoised.number_of_views(600 * 64, 2, 200) == denoised.MOST_VIEWS
    assert denoised.number_of_views(10_000 * 784, 2, 12) == denoised.VIEW_BYTES // (4 * 10_000 * 784)
    assert denoised.number_of_views(10**9, 2, 200) == 2
    monkeypatch.setattr(denoised, "VIEW_BYTES", 4 * 60 * 16 * 5)
    denoiser = Inverts()
    options: dict[str, Any] = {"budget": 60, "query_batch": 60, "noise": NOISE, "consistency": 2.0}
    distill(black_box(), pool(), student(), denoiser=denoiser.train(), epochs=20, **options)
    assert denoiser.images == 1 + 5 * 60  # one to try it
    assert denoiser.modes == {False}
    assert denoiser.training, "it was left in another mode"
    assert denoiser.scale.item() == 1, "it was trained"


def test_a_step_draws_different_views_of_the_same_image():
    made = torch.arange(4 * 5, dtype=torch.float32).reshape(4, 5, 1, 1, 1)  # image 5i..5i+4
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        drawn = denoised.drawn_views(made, 2, generator).flatten().reshape(2, 4)
        assert torch.equal(drawn // 5, torch.arange(4.0).repeat(2, 1))
        assert (drawn[0] != drawn[1]).all()
        seen |= set(drawn.flatten().tolist())
    assert seen == set(range(20))
    drawn = denoised.drawn_views(made, 1, generator)
    drawn.zero_()
    assert made.sum() == 190, "a step was given the views themselves"


def test_views_have_noise_of_their_own_and_the_seed_decides_them():
    images, recipe = torch.from_numpy(pool(7)), Recipe(noise=NOISE, denoiser=Inverts())
    state = torch.random.get_rng_state()
    first = denoised.denoised_views(recipe.augmented, images, 1, 6, seed=4)
    assert first.shape == (7, 6, *SHAPE)
    assert torch.equal(first, denoised.denoised_views(recipe.augmented, images, 1, 6, seed=4))
    assert not torch.equal(first, denoised.denoised_views(recipe.augmented, images, 1, 6, seed=5))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was touched"
    noise = (1 - first) - images[:, None]
    assert noise.std().item() == pytest.approx(0.3, rel=0.1)
    rows = noise.flatten(2)
    assert len({row.numpy().tobytes() for row in rows.flatten(0, 1)}) == 42


def test_a_student_learns_what_stands_behind_the_denoiser():
    """Goals stay the target's answers to the clean images; only a student that saw denoised ones gives them there."""
    options: dict[str, Any] = {"budget": 300, "epochs": 30, "batch_size": 32, "learning_rate": 1e-2}
    noise, held_out = certify.Gaussian(0.05), pool(100, seed=5)
    behind = distill(black_box(), pool(300), student(), noise=noise, denoiser=Inverts(), **options)
    bare = distill(black_box(), pool(300), student(), noise=noise, **options)

    def agreement(surrogate: Any) -> float:
        found = fidelity(surrogate, black_box(), held_out, noise, denoiser=Inverts(), reference="clean")
        return found.agreement

    assert agreement(behind) > 0.8
    assert agreement(bare) < 0.4


def test_a_denoiser_that_writes_into_its_input_gives_the_same_student():
    options: dict[str, Any] = {
        "budget": 30,
        "query_batch": 30,
        "epochs": 3,
        "noise": NOISE,
        "consistency": 2.0,
    }
    images = pool()
    kept = images.copy()
    found = [
        weights(distill(black_box(), images, student(), denoiser=Inverts(in_place), **options).model)
        for in_place in (False, True)
    ]
    assert found[0] == found[1]
    assert np.array_equal(images, kept)


def test_committee_behind_a_denoiser():
    """Images without an answer are denoised too: their goals are met behind the denoiser."""
    options: dict[str, Any] = {"budget": 100, "epochs": 60, "batch_size": 32, "learning_rate": 1e-2}
    noise = certify.Gaussian(0.05)
    surrogate = distill(
        black_box(),
        pool(300),
        student(),
        committee=[student(1)],
        noise=noise,
        denoiser=Inverts(),
        **options,
    )
    found = fidelity(surrogate, black_box(), pool(100, seed=5), noise, denoiser=Inverts(), reference="clean")
    assert found.agreement > 0.6


def test_an_interrupted_training_as_certified_resumes_to_the_same_bits(tmp_path: Path):
    options: dict[str, Any] = {"budget": 60, "query_batch": 60, "epochs": 6, "batch_size": 16, "noise": NOISE}
    options |= {"denoiser": Inverts(), "consistency": 3.0}
    whole = distill(black_box(), pool(), student(), **options)

    def interrupted(epochs: range, desc: str = "") -> Any:
        yield from itertools.islice(epochs, 3)
        raise KeyboardInterrupt

    options["checkpoint"] = tmp_path / "student.pt"
    with pytest.raises(KeyboardInterrupt):
        distill(black_box(), pool(), student(), progress=interrupted, **options)
    resumed = distill(black_box(), pool(), student(seed=8), **options)
    assert weights(resumed.model) == weights(whole.model)
    other = Inverts()
    nn.init.constant_(other.scale, 2.0)
    for change in ({"consistency": 4.0}, {"entropy": 0.1}, {"denoiser": other}, {"denoiser": None}):
        with pytest.raises(SurrogateError, match=r"student.pt belongs to a run with other settings"):
            distill(black_box(), pool(), student(), **options | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency": -1.0}, "consistency must be a weight of 0 or more, got -1.0: try 5"),
        ({"consistency": math.nan}, "consistency must be a weight of 0 or more, got nan"),
        (
            {"consistency": 5.0, "noise": NOISE, "loss": "l1"},
            "loss is 'l1' and consistency is 5, .* on 'auto', or",
        ),
        ({"entropy": math.inf}, "entropy must be a weight of 0 or more, got inf: try 0.5"),
        (
            {"consistency": 5.0},
            "consistency is 5 and compares noisy views, but there is no noise: set noise, or 0",
        ),
        (
            {"denoiser": nn.Flatten()},
            r"denoiser returns \(1, 16\) for images \(1, 1, 4, 4\): .* keeps the shape",
        ),
        ({"denoiser": nn.Conv2d(3, 3, 1)}, r"denoiser cannot take images of shape \(1, 4, 4\)"),
    ],
)
def test_bad_input_spends_nothing(options: dict[str, Any], message: str, tmp_path: Path):
    with QueryLedger(tmp_path / "ledger.db", 60) as ledger:
        with pytest.raises(SurrogateError, match=message):
            distill(
                ledger.attach(black_box()), pool(), student(), budget=60, query_batch=60, epochs=1, **options
            )
        assert ledger.bill().total.spent == 0


# --- agreement -----------------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """Two classes by one pixel."""

    def __init__(self, at: float):
        super().__init__()
        self.at = at

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] > self.at).long(), 2).float()


class Plus(nn.Module):
    """Noise, and denoiser, that are known: a number is added."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def sample(self, shape: Any, generator: Any = None, device: Any = None) -> Tensor:
        return torch.full(shape, self.value)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.value


@pytest.mark.parametrize(
    ("added", "reference", "agreement"),
    [
        (None, "same", 0.7),  # v + .2 > .49 from k = 5 on, v + .2 > .31 from k = 2 on
        (None, "clean", 0.9),  # from k = 5, and v > .31 from k = 6 on
        (0.1, "same", 0.7),  # v + .3: from k = 4, and from k = 1 on
        (0.1, "clean", 0.8),  # from k = 4, and from k = 6 on
        (-0.2, "same", 0.7),  # the noise is undone: from k = 9, and from k = 6 on
        (-0.2, "clean", 0.7),
    ],
)
def test_agreement_with_the_answer_to_the_same_or_to_the_clean_image(
    added: float | None, reference: str, agreement: float
):
    images = np.zeros((100, *SHAPE), np.float32)
    images[:, 0, 0, 0] = 0.06 * (np.arange(100) % 10)  # v = .06 k
    asked = []

    def answer(batch: np.ndarray) -> np.ndarray:
        asked.append(batch.copy())
        return (batch[:, 0, 0, 0] > 0.31).astype(int)

    target = open_target(answer, num_classes=2, output_kind="labels", identity="threshold")
    denoiser = None if added is None else Plus(added)
    options: dict[str, Any] = {"denoiser": denoiser, "reference": reference, "batch_size": 64}
    found = fidelity(Threshold(0.49), target, images, Plus(0.2), **options)
    assert found.agreement == pytest.approx(agreement)
    assert found.noisy
    given = np.concatenate(asked)
    assert len(given) == 100, "an image is a query"
    if reference == "clean":
        assert np.array_equal(given, images)


def test_an_unknown_reference_spends_nothing(tmp_path: Path):
    with QueryLedger(tmp_path / "ledger.db", {"evaluation": 60}) as ledger:
        paid = ledger.attach(black_box(), purpose="evaluation")
        with pytest.raises(SurrogateError, match="reference must be one of same, clean, got 'noisy'"):
            fidelity(student(), paid, pool(), NOISE, reference="noisy")
        assert ledger.bill().total.spent == 0
