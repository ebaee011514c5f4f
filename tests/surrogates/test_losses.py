"""Every loss against its definition."""

import numpy as np
import pytest
import torch

from surrogates.distillation.losses import distance, goals_of, pseudo_goals
from surrogates.targets import Answers

pytestmark = pytest.mark.filterwarnings("error")


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn((6, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: str, goals: torch.Tensor) -> tuple[float, torch.Tensor]:
    z = logits().requires_grad_()
    value = distance(loss, z, goals)
    value.backward()
    return value.item(), z.grad


def test_kl_is_cross_entropy_without_the_goals_entropy() -> None:
    q = logits(1).softmax(dim=1)
    kl, by_kl = gradient("kl", q)
    soft, by_soft = gradient("soft_cross_entropy", q)
    assert kl == pytest.approx(soft - float(torch.special.entr(q).sum(dim=1).mean()))
    assert torch.allclose(by_kl, by_soft)
    assert gradient("kl", logits().softmax(dim=1))[0] == pytest.approx(0, abs=1e-12)


def test_partial_labels_match_a_lump() -> None:
    q = logits(1).softmax(dim=1)
    whole, by_whole = gradient("partial", q)
    soft, by_soft = gradient("soft_cross_entropy", q)
    assert whole == pytest.approx(soft)
    assert torch.allclose(by_whole, by_soft)

    goals = q.clone()
    goals[:3, [1, 3]] = torch.nan  # two classes unknown
    goals[3:5, [0, 1, 2]] = torch.nan  # one known; the last row is known in full
    value, slope = gradient("partial", goals)
    p = logits().softmax(dim=1)
    by_hand = 0.0
    for row in range(6):
        known = ~goals[row].isnan()
        by_hand -= float((q[row][known] * p[row][known].log()).sum())
        if not known.all():
            by_hand -= float((1 - q[row][known].sum()) * p[row][~known].sum().log())
    assert value == pytest.approx(by_hand / 6)
    assert slope.isfinite().all()
    # At a student that gives the known classes their goals, nothing is left to learn, however the rest is split.
    other = q.clone()
    other[:3, 1] *= 0.5
    other[:3, 3] += q[:3, 1] * 0.5
    z = other.log().requires_grad_()
    distance("partial", z, goals).backward()
    assert z.grad.abs().max() < 1e-12


def test_a_lump_of_nothing_has_a_finite_gradient() -> None:
    goals = torch.tensor([[0.7, 0.3, torch.nan, torch.nan], [1.0, torch.nan, torch.nan, torch.nan]])
    z = torch.tensor([[0.0, 0.0, -200.0, -200.0], [300.0, 0.0, 0.0, 0.0]], requires_grad=True)
    value = distance("partial", z, goals)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_goals_of_answers() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.5, 0.502, -0.001]], dtype=np.float32)
    answers = Answers(scores.argmax(axis=1), scores)
    assert goals_of(answers, "cross_entropy", "probabilities").tolist() == [0, 1]
    soft = goals_of(answers, "soft_cross_entropy", "probabilities")
    assert torch.allclose(soft.sum(dim=1), torch.ones(2))
    assert soft.min() == 0
    assert torch.equal(goals_of(answers, "l1", "logits"), torch.from_numpy(scores))
    assert torch.allclose(goals_of(answers, "kl", "logits"), torch.from_numpy(scores).softmax(dim=1))
    centred = goals_of(answers, "l1", "probabilities")
    assert centred.isfinite().all()
    assert torch.allclose(centred.mean(dim=1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(centred[0].softmax(dim=0), torch.from_numpy(scores[0]), atol=1e-6)

    best = np.array([[0.6, 0.3, np.nan], [0.7, 0.4, np.nan], [np.nan, 1.0, np.nan]], dtype=np.float32)
    partial = goals_of(Answers(np.array([0, 0, 1]), best), "partial", "top_k")
    assert partial[0, :2].tolist() == pytest.approx([0.6, 0.3])  # the rest is somewhere in the lump
    assert float(partial[1, :2].sum()) == pytest.approx(1)  # more than 1 was rounded up
    assert torch.equal(partial.isnan(), torch.from_numpy(np.isnan(best)))


def test_a_committee_speaks_with_its_mean() -> None:
    members = [logits(1), logits(2), logits(3)]
    assert torch.allclose(pseudo_goals("l1", members), sum(members) / 3)
    soft = pseudo_goals("kl", members)
    assert torch.allclose(soft, sum(member.softmax(dim=1) for member in members) / 3)
    assert torch.allclose(soft.sum(dim=1), torch.ones(6, dtype=torch.float64))
