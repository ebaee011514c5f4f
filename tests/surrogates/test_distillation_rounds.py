"""Rounds, averaged weights, early stopping and un-queried images: each does what it says, to the same bits."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import nn

from surrogates import QueryLedger, Selection, SurrogateError, distill, fidelity, open_target
from surrogates.distillation.selection import STRATEGIES
from surrogates.distillation.student import Examples, Recipe, train_student

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return (load_digits().images / 16).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def black_box(images: np.ndarray) -> Any:
    regression = LogisticRegression(C=0.1, max_iter=1000)
    return regression.fit(images[:900].reshape(900, -1), load_digits().target[:900])


def answering(black_box: Any, events: list[str] | None = None) -> Any:
    def answer(batch: np.ndarray) -> np.ndarray:
        if events is not None:
            events.append(f"ask {len(batch)}")
        return black_box.predict_proba(batch.reshape(len(batch), -1))

    return open_target(answer, num_classes=10, output_kind="probabilities", identity="regression")


def student(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(48, 10),
        )


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


FAST: dict[str, Any] = {"epochs": 4, "batch_size": 32, "learning_rate": 3e-3}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_pays_for_its_budget_and_repeats_itself(
    strategy: str, images: np.ndarray, black_box: Any, tmp_path: Path
) -> None:
    with QueryLedger(tmp_path / "ledger.db", 120) as ledger:
        paid = ledger.attach(answering(black_box))
        runs = [
            distill(paid, images[:900], student(), budget=120, query_batch=50, selection=strategy, **FAST)
            for _ in range(2)
        ]
        assert ledger.bill()["training"].spent == 120  # the second run chose the same images
    assert runs[0].pool_indices == runs[1].pool_indices
    assert weights(runs[0].model) == weights(runs[1].model)
    assert len(set(runs[0].pool_indices)) == 120
    assert runs[0].strategy == strategy
    assert sum(runs[0].rounds) == 120
    assert len(runs[0].rounds) == (1 if strategy == "random" else 5)


def test_all_images_of_a_round_are_chosen_before_its_first_query(images: np.ndarray, black_box: Any) -> None:
    events: list[str] = []

    def features(part: torch.Tensor) -> torch.Tensor:
        events.append("look")
        return part.flatten(1)

    selection = Selection("kcenter", rounds=3, start=0.4, features=features)
    surrogate = distill(
        answering(black_box, events),
        images[:900],
        student(),
        budget=100,
        query_batch=20,
        selection=selection,
        **FAST,
    )
    assert surrogate.rounds == (40, 30, 30)
    runs = [(kind, len(list(group))) for kind, group in itertools.groupby(event[:4] for event in events)]
    assert [kind for kind, _ in runs] == ["ask ", "look", "ask ", "look", "ask "]
    assert [queries for kind, queries in runs if kind == "ask "] == [2, 2, 2]
    assert events[-2:] == ["ask 20", "ask 10"]


def test_rounds_train_anew_or_go_on(images: np.ndarray, black_box: Any) -> None:
    def loss_of_second(continued: bool) -> float:
        selection = Selection("margin", rounds=2, start=0.9, continued=continued, round_epochs=40)
        return distill(
            answering(black_box), images[:900], student(), budget=300, selection=selection, **FAST
        ).history[0]

    assert loss_of_second(True) < loss_of_second(False) - 0.3


def committee() -> list[nn.Module]:
    return [student(11), student(12)]


class Interrupt:
    """A progress bar that stops the n-th training after two epochs."""

    def __init__(self, training: int) -> None:
        self.left = training

    def __call__(self, epochs: range, desc: str = "") -> Iterator[int]:
        self.left -= 1
        yield from epochs if self.left else itertools.islice(epochs, 2)
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("training", [1, 2, 3, 4, 5])  # two rounds, two members, the last
def test_an_interruption_in_any_round_resumes_to_the_same_bits(
    training: int, images: np.ndarray, black_box: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = FAST | {
        "budget": 90,
        "query_batch": 30,
        "selection": Selection("margin", rounds=3, start=0.5),
        "ema": 0.9,
        "patience": 3,
        "validation": 0.2,
        "unlabelled_ratio": 2,
        "shift": 1,
    }
    whole = distill(answering(black_box), images[:300], student(), committee=committee(), **options)
    assert len(whole.history) == 4

    calls: list[str] = []
    with QueryLedger(tmp_path / "ledger.db", 90) as ledger:
        paid = ledger.attach(answering(black_box, calls))
        options["checkpoint"] = tmp_path / "student.pt"
        with pytest.raises(KeyboardInterrupt):
            distill(
                paid, images[:300], student(), committee=committee(), progress=Interrupt(training), **options
            )
        before = len(calls)
        epochs: list[int] = []

        def counted(remaining: range, desc: str = "") -> range:
            epochs.append(len(remaining))
            return remaining

        resumed = distill(paid, images[:300], student(), committee=committee(), progress=counted, **options)
        assert ledger.bill()["training"].spent == 90
        assert sum(int(call.split()[1]) for call in calls) == 90
    assert before > 0
    # Finished rounds are not trained again, the interrupted one goes on; the last epoch is not saved yet.
    assert epochs[: training - 1] == [0] * (training - 1)
    assert epochs[training - 1] == 3 - 1
    assert weights(resumed.model) == weights(whole.model)
    assert resumed.pool_indices == whole.pool_indices
    assert resumed.history == whole.history
    assert resumed.held_out_agreement == whole.held_out_agreement


def test_averaged_weights_are_the_average(images: np.ndarray) -> None:
    """Against the definition, with the weights of every step written down."""
    seen: list[dict[str, torch.Tensor]] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model.register_forward_pre_hook(
        lambda module, _: seen.append({k: v.clone() for k, v in module.state_dict().items()})
    )
    goals = torch.full((64, 10), 0.1)
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05, ema=0.6)
    train_student(model, Examples(torch.from_numpy(images[:64]), goals, "soft_cross_entropy"), recipe, seed=0)
    # What the forward pass of step n + 1 saw is what step n left; the last state is lost, hence recomputed.
    expected = start["1.weight"]
    for step, state in enumerate(seen[1:]):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state["1.weight"]
    decay = min(0.6, 12 / 21)
    last = (model.state_dict()["1.weight"] - decay * expected) / (1 - decay)
    # The cosine ends near 0: the last step moves less than one at the peak rate would.
    assert (last - seen[-1]["1.weight"]).abs().max() < 0.05 * 0.05
    assert not torch.equal(model.state_dict()["1.weight"], seen[-1]["1.weight"])


def test_patience_returns_the_best_epoch(images: np.ndarray) -> None:
    """Goals that contradict what is held out: every epoch after the first is worse."""
    data = torch.from_numpy(images[:200])
    truth = load_digits().target[:200]
    model = student()
    good = Examples(data, torch.from_numpy(truth), "cross_entropy")
    train_student(model, good, Recipe(epochs=30, learning_rate=3e-3), seed=0)
    before = weights(model)
    examples = Examples(
        data[100:],
        torch.from_numpy((truth[100:] + 1) % 10),
        "cross_entropy",
        held_out=(data[:100], truth[:100]),
    )
    recipe = Recipe(epochs=50, batch_size=32, learning_rate=1e-3, patience=4)
    history = train_student(model, examples, recipe, seed=0)
    assert len(history) <= 10
    assert len(history) < 50
    model.eval()
    with torch.no_grad():
        agreement = float((model(data[:100]).argmax(1).numpy() == truth[:100]).mean())
    assert agreement > 0.9
    assert weights(model) != before
    longer = student()
    train_student(longer, examples, Recipe(epochs=50, batch_size=32, learning_rate=1e-3), seed=0)
    with torch.no_grad():
        assert float((longer.eval()(data[:100]).argmax(1).numpy() == truth[:100]).mean()) < 0.3


def test_a_committee_gives_goals_to_images_without_an_answer(images: np.ndarray, tmp_path: Path) -> None:
    """Against the same students without it: better with each of three seeds, for no query more."""
    classifier = SVC(C=10, probability=True, random_state=0)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        classifier.fit(images[:900].reshape(900, -1), load_digits().target[:900])
    target = open_target(
        lambda batch: classifier.predict_proba(batch.reshape(len(batch), -1)),
        num_classes=10,
        output_kind="probabilities",
        identity="classifier",
    )

    def agreement(members: int) -> list[float]:
        found = []
        for seed in range(3):
            with QueryLedger(tmp_path / f"{members}-{seed}.db", 60) as ledger:
                surrogate = distill(
                    ledger.attach(target),
                    images[:900],
                    student(seed),
                    budget=60,
                    query_batch=60,
                    seed=seed,
                    committee=[student(100 * (seed + 1) + member) for member in range(members)],
                    epochs=60,
                    batch_size=20,
                    learning_rate=5e-3,
                    ema=0.97,
                )
                assert ledger.bill()["training"].largest == 60
            found.append(fidelity(surrogate, target, images[900:]).agreement)
        return found

    gained = np.array(agreement(3)) - np.array(agreement(0))
    assert gained.mean() > 0.01
    assert (gained > 0).all()


def test_bfloat16_trains(images: np.ndarray, black_box: Any) -> None:
    options = {"budget": 300, "epochs": 20, "batch_size": 32, "learning_rate": 3e-3}
    surrogate = distill(answering(black_box), images[:900], student(), precision="bfloat16", **options)
    exact = distill(answering(black_box), images[:900], student(), **options)
    assert weights(surrogate.model) != weights(exact.model)
    assert next(surrogate.model.parameters()).dtype == torch.float32
    assert fidelity(surrogate, answering(black_box), images[900:]).agreement > 0.85


def test_a_recipe_is_overridden_by_options(images: np.ndarray, black_box: Any) -> None:
    recipe = Recipe(epochs=7, batch_size=32)
    assert len(distill(answering(black_box), images, student(), budget=64, recipe=recipe).history) == 7
    assert (
        len(distill(answering(black_box), images, student(), budget=64, recipe=recipe, epochs=2).history) == 2
    )
    with pytest.raises(TypeError, match="epoch"):
        distill(answering(black_box), images, student(), budget=64, epoch=2)


def test_the_former_spelling_of_unlabeled_is_accepted() -> None:
    former = Recipe(unlabelled_weight=0.5, unlabelled_ratio=2)
    assert former == Recipe(unlabeled_weight=0.5, unlabeled_ratio=2)
    assert replace(former, epochs=3).unlabeled_ratio == 2


def test_a_student_learns_from_the_best_k(images: np.ndarray, black_box: Any) -> None:
    def best_two(batch: np.ndarray) -> np.ndarray:
        scores = black_box.predict_proba(batch.reshape(len(batch), -1))
        scores[scores < np.sort(scores, axis=1)[:, -2:-1]] = np.nan
        return scores

    target = open_target(best_two, num_classes=10, output_kind="top_k", identity="best-two")
    surrogate = distill(
        target, images[:900], student(), budget=400, epochs=30, learning_rate=3e-3, batch_size=32
    )
    assert surrogate.loss == "partial"
    assert fidelity(surrogate, target, images[900:]).agreement > 0.88
    with pytest.raises(
        SurrogateError, match=r"loss must be 'auto' or one of partial, cross_entropy .* got 'kl'"
    ):
        distill(target, images[:900], student(), budget=400, loss="kl")
