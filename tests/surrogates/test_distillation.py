"""Distillation learns the black box from its answers alone, to the same bits, through any interruption."""

import inspect
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import nn

from surrogates import (
    BudgetExceeded,
    Querying,
    QueryLedger,
    Recipe,
    Surrogate,
    SurrogateError,
    TrainingCheckpoint,
    distill,
    fidelity,
    open_target,
)
from surrogates.distillation.augmentation import shifted

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return (load_digits().images / 16).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def black_box(images: np.ndarray) -> Any:
    """A dense network; the students below are convolutional."""
    network = MLPClassifier((64,), alpha=0.1, max_iter=60, random_state=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return network.fit(images[:900].reshape(900, -1), load_digits().target[:900])


class Gaussian:
    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def sample(self, shape: Any, generator: Any = None, device: Any = None) -> torch.Tensor:
        return self.sigma * torch.randn(shape, generator=generator, device=device)


def student(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(256, 10),
        )


def answering(black_box: Any, kind: str) -> Any:
    """The network as a target of each kind; log-probabilities serve as its logits."""

    def answer(images: np.ndarray) -> np.ndarray:
        # In float64 the answers, rounded to float32, are the same whatever the batch.
        rows = images.reshape(len(images), -1).astype(np.float64)
        if kind == "labels":
            return black_box.predict(rows)
        return black_box.predict_log_proba(rows) if kind == "logits" else black_box.predict_proba(rows)

    return open_target(answer, num_classes=10, output_kind=kind, identity=f"mlp-{kind}")


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("kind", "loss", "learning_rate"),
    [
        ("labels", "cross_entropy", 3e-3),
        ("probabilities", "soft_cross_entropy", 3e-3),
        ("logits", "l1", 1e-2),  # these logits reach 9, far from where a student starts
    ],
)
def test_a_student_learns_the_black_box_from_600_answers(
    images: np.ndarray, black_box: Any, kind: str, loss: str, learning_rate: float, tmp_path: Path
) -> None:
    target = answering(black_box, kind)
    untrained = fidelity(student(), target, images[900:])
    assert untrained.agreement < 0.5
    with QueryLedger(tmp_path / "ledger.db", 600) as ledger:
        paid = ledger.attach(target)
        surrogate = distill(
            paid, images[:900], student(), budget=600, epochs=30, batch_size=32, learning_rate=learning_rate
        )
        assert ledger.bill()["training"].spent == surrogate.queries == 600
        assert ledger.remaining() == 0
    assert surrogate.loss == loss
    assert len(surrogate.history) == 30
    assert surrogate.history[-1] < surrogate.history[0]
    assert len(set(surrogate.pool_indices)) == 600
    assert not surrogate.model.training
    held_out = fidelity(surrogate, target, images[900:])
    assert held_out.agreement >= 0.9
    assert held_out.lower <= held_out.agreement <= held_out.upper


def test_noise_in_training_helps_under_noise(images: np.ndarray, black_box: Any) -> None:
    target = answering(black_box, "probabilities")
    options: dict[str, Any] = {"budget": 600, "epochs": 20, "batch_size": 64, "learning_rate": 3e-3}
    clean = distill(target, images[:900], student(), **options)
    noisy = distill(target, images[:900], student(), noise=Gaussian(0.4), **options)
    truth = target.query(images[900:]).labels
    shaken = torch.from_numpy(images[900:]) + Gaussian(0.4).sample(
        images[900:].shape, torch.Generator().manual_seed(0)
    )

    def robust(surrogate: Surrogate) -> float:
        with torch.no_grad():
            return float((surrogate(shaken).argmax(1).numpy() == truth).mean())

    assert robust(noisy) > robust(clean) + 0.05


def test_one_seed_one_student(images: np.ndarray, black_box: Any) -> None:
    target = answering(black_box, "probabilities")
    options: dict[str, Any] = {
        "budget": 150,
        "epochs": 3,
        "batch_size": 64,
        "noise": Gaussian(0.1),
        "shift": 1,
    }
    state = torch.random.get_rng_state()
    runs = [
        distill(target, images[:900], student(dropout=0.3), seed=seed, query_batch=batch, **options)
        for seed, batch in ((5, 64), (5, 50), (6, 64))
    ]
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was touched"
    assert weights(runs[0].model) == weights(runs[1].model)
    assert runs[0].pool_indices == runs[1].pool_indices != runs[2].pool_indices
    assert weights(runs[0].model) != weights(runs[2].model)


def test_an_interrupted_training_resumes_to_the_same_bits(
    images: np.ndarray, black_box: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "budget": 100,
        "epochs": 6,
        "noise": Gaussian(0.1),
        "shift": 1,
        "batch_size": 32,
    }
    target = answering(black_box, "labels")
    whole = distill(target, images, student(dropout=0.3), **options)

    def interrupted(epochs: range, desc: str = "") -> Iterator[int]:
        yield from itertools.islice(epochs, 2)
        raise KeyboardInterrupt

    with QueryLedger(tmp_path / "ledger.db", 100) as ledger:
        paid = ledger.attach(target)
        options["checkpoint"] = tmp_path / "student.pt"
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                distill(paid, images, student(dropout=0.3), progress=interrupted, **options)
        # Another initial student shows that the weights come from the checkpoint.
        resumed = distill(paid, images, student(seed=9, dropout=0.3), **options)
        assert ledger.bill()["training"].spent == 100
    assert weights(resumed.model) == weights(whole.model)
    assert resumed.history == whole.history
    assert len(whole.history) == 6

    for other in ({"learning_rate": 0.1}, {"noise": Gaussian(0.2)}, {"seed": 1}):
        with pytest.raises(SurrogateError, match=r"student.pt belongs to a run with other settings"):
            distill(target, images, student(dropout=0.3), **options | other)
    (tmp_path / "student.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(SurrogateError, match=r"student.pt cannot be read .*: delete it to start again"):
        distill(target, images, student(dropout=0.3), **options)


def test_a_checkpoint_holds_every_state(tmp_path: Path) -> None:
    def parts(seed: int) -> tuple[Any, ...]:
        model = student(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        return model, optimizer, torch.Generator().manual_seed(seed), scheduler

    def epoch(model: nn.Module, optimizer: Any, generator: torch.Generator, scheduler: Any) -> None:
        loss = model(torch.rand((4, 1, 8, 8), generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    first = parts(0)
    checkpoint = TrainingCheckpoint(tmp_path / "c.pt", *first)
    assert checkpoint.load() == 0
    for number in range(3):
        epoch(*first)
        checkpoint.history.append(float(number))
        checkpoint.save(number)
    second = parts(1)
    resumed = TrainingCheckpoint(tmp_path / "c.pt", *second)
    assert resumed.load() == 3
    assert resumed.history == [0.0, 1.0, 2.0]
    for several in (first, second):
        epoch(*several)
    assert weights(first[0]) == weights(second[0])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]

    other = nn.Linear(2, 2)
    with pytest.raises(SurrogateError, match="is of another model"):
        TrainingCheckpoint(tmp_path / "c.pt", other, torch.optim.AdamW(other.parameters()), second[2]).load()
    with pytest.raises(SurrogateError, match="has no directory"):
        TrainingCheckpoint(tmp_path / "no" / "c.pt", *second)
    resumed.delete()
    assert resumed.load() == 0
    resumed.delete()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student()
    checkpoint = TrainingCheckpoint(
        tmp_path / "c.pt", model, torch.optim.AdamW(model.parameters()), torch.Generator()
    )
    checkpoint.save(0)

    def full(state: Any, file: Any) -> None:
        file.write(b"the first bytes")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(1)
    assert checkpoint.load() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_surrogate_is_saved_and_loaded(images: np.ndarray, black_box: Any, tmp_path: Path) -> None:
    surrogate = distill(
        answering(black_box, "labels"),
        images,
        student(),
        budget=100,
        epochs=1,
        query_batch=100,
        validation=0.2,
    )
    assert 0 <= surrogate.held_out_agreement <= 1
    surrogate.save(tmp_path / "s.safetensors")
    again = Surrogate.load(tmp_path / "s.safetensors", student(seed=7))
    assert weights(again.model) == weights(surrogate.model)
    for name in ("queries", "pool_indices", "history", "loss", "held_out_agreement"):
        assert getattr(again, name) == getattr(surrogate, name)
    batch = torch.from_numpy(images[:3]).requires_grad_()
    again(batch).sum().backward()
    assert batch.grad.abs().sum() > 0
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, model, message in (
        ("bad.safetensors", student(), "does not fit Sequential"),
        ("s.safetensors", nn.Linear(2, 2), "does not fit Linear"),
        ("none.safetensors", student(), "does not exist"),
    ):
        with pytest.raises(SurrogateError, match=message):
            Surrogate.load(tmp_path / name, model)


def test_validation_is_not_trained_on(images: np.ndarray, black_box: Any) -> None:
    """A student that can learn random labels by heart agrees on what it saw, not on what was held out."""
    answers = np.random.default_rng(0)
    target = open_target(
        lambda batch: answers.integers(0, 10, len(batch)),
        num_classes=10,
        output_kind="labels",
        identity="dice",
    )
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    surrogate = distill(target, images, wide, budget=200, epochs=150, validation=0.4, learning_rate=3e-3)
    assert surrogate.history[-1] < 0.3
    assert surrogate.held_out_agreement < 0.35


def test_shifts_stay_in_reach() -> None:
    images = torch.arange(2 * 5 * 6, dtype=torch.float32).reshape(1, 2, 5, 6).repeat(64, 1, 1, 1)
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images[:1], (1, 1, 1, 1), mode="replicate")[0]
    windows = [padded[:, y : y + 5, x : x + 6] for y in range(3) for x in range(3)]
    found = {next(i for i, window in enumerate(windows) if torch.equal(window, image)) for image in moved}
    assert found == set(range(9))
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


def test_no_argument_takes_true_labels() -> None:
    signatures = [inspect.signature(each).parameters for each in (distill, Querying, Recipe)]
    names = set().union(*signatures)
    assert not names & {"labels", "y", "targets", "classes"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be a positive number of queries, got 0"),
        ({"budget": 2.5}, "got 2.5"),
        ({"budget": 10}, "budget is 10 queries, less than the first batch of 64"),
        ({"query_batch": 0}, "query_batch must be a positive integer, got 0"),
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"loss": "l1"}, "loss must be 'auto' or one of cross_entropy .* got 'l1'"),
        ({"loss": "mse"}, "got 'mse'"),
        ({"shift": 8}, r"shift must be in \[0, 8\) pixels, got 8"),
        ({"validation": 1.0}, "got 1.0: try 0.1"),
        ({"selection": "kcentre"}, "strategy must be one of random, kcenter, .*, got 'kcentre'"),
        (
            {"selection": "margin", "validation": 0.3},
            "validation holds out 30 answers of a first round of 20: lower it, or raise the start",
        ),
        ({"ema": 1.0}, r"ema must be a decay in \(0, 1\), got 1.0: try 0.99"),
        ({"patience": 3}, "patience needs held-out answers: set validation, e.g. 0.1"),
        ({"patience": 0, "validation": 0.1}, "patience must be a positive integer, got 0"),
        ({"unlabelled_weight": -1.0}, "unlabeled_weight must be 0 or more, got -1.0"),
        (
            {"committee": [nn.Sequential(nn.Flatten(), nn.Linear(64, 9))]},
            r"expected \(1, 10\): give it 10 outputs",
        ),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, float16, got 'half'"),
        ({"precision": "float16"}, "precision float16 needs a CUDA device, got cpu: use bfloat16"),
        (
            {"student": nn.Sequential(nn.Flatten(), nn.Linear(64, 9))},
            r"expected \(1, 10\): give it 10 outputs",
        ),
        ({"student": nn.Conv2d(3, 10, 3)}, r"student cannot take images of shape \(1, 8, 8\)"),
        ({"pool": np.zeros((100, 1, 8, 8), np.uint8)}, "got uint8: divide 8-bit pixels by 255"),
        ({"pool": np.full((100, 1, 8, 8), 255, np.float32)}, "got max 255.0"),
        ({"pool": np.zeros((0, 1, 8, 8), np.float32)}, r"non-empty array of shape \(N, C, H, W\)"),
        ({"pool": [1.0]}, "got list"),
    ],
)
def test_bad_input_spends_nothing(
    images: np.ndarray, black_box: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with QueryLedger(tmp_path / "ledger.db", 500) as ledger:
        paid = ledger.attach(answering(black_box, "labels"))
        given = {"pool": images, "student": student(), "budget": 100} | options
        with pytest.raises(SurrogateError, match=message) as caught:
            distill(paid, given.pop("pool"), given.pop("student"), **given)
        assert "\n" not in str(caught.value)
        assert ledger.bill()["training"].largest == 0


def test_a_ledger_with_less_than_the_budget_refuses(
    images: np.ndarray, black_box: Any, tmp_path: Path
) -> None:
    with QueryLedger(tmp_path / "ledger.db", 30) as ledger:
        paid = ledger.attach(answering(black_box, "labels"))
        with pytest.raises(BudgetExceeded, match="training budget is 30 queries, 0 spent"):
            distill(paid, images, student(), budget=64)
        assert ledger.bill()["training"].largest == 0
