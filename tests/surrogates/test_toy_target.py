"""A new kind of target is one class in one file: this one. It pays, is distilled from and compared like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from surrogates import BudgetExceeded, QueryLedger, Target, distill, fidelity, open_target


class Brightness(Target):
    """Sorts images (N, 1, 4, 4) by their mean into dark, gray and bright, and counts its queries."""

    def __init__(self) -> None:
        super().__init__("toy:brightness", 3, "probabilities", charged_when_sent=True, input_shape=(1, 4, 4))
        self.queries = 0

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        self.queries += len(pixels)
        logits = -50 * (pixels.mean(axis=(1, 2, 3))[:, None] - np.array([0.25, 0.5, 0.75])) ** 2
        scores = np.exp(logits)
        return scores / scores.sum(axis=1, keepdims=True)


def images(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    levels = random.random((count, 1, 1, 1))
    return np.clip(levels + random.normal(0, 0.1, (count, 1, 4, 4)), 0, 1).astype(np.float32)


@pytest.mark.usefixtures("one_thread")
def test_a_toy_target_pays_and_is_distilled(tmp_path: Path) -> None:
    target = Brightness()
    assert open_target(target) is target
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    with QueryLedger(tmp_path / "ledger.db", {"training": 200, "evaluation": 100}) as ledger:
        paid = ledger.attach(target)
        surrogate = distill(paid, images(400, 0), student, budget=200, epochs=60, learning_rate=1e-2)
        agreement = fidelity(surrogate, ledger.attach(target, purpose="evaluation"), images(100, 1))
        assert agreement.agreement > 0.9
        assert target.queries == 300 == ledger.bill().total.answered
        with pytest.raises(BudgetExceeded):
            paid.query(images(1, 2))
    with QueryLedger(tmp_path / "ledger.db", {"evaluation": 100}) as ledger:
        ledger.attach(target, purpose="evaluation").query(images(100, 1))
    assert target.queries == 300
