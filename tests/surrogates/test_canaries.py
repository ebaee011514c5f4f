"""Canaries notice a target that changes, between queries and between runs, and pay for their queries."""

from pathlib import Path

import numpy as np
import pytest

from surrogates import BudgetExceeded, Canaries, DriftError, QueryLedger, TargetError, open_target

IMAGES = np.random.default_rng(0).random((40, 1, 2, 2)).astype(np.float32)
BUDGET = {"training": 1000, "certification": 1000, "canary": 60}


class Service:
    """A service with a version and, on demand, a will of its own; it counts its queries."""

    def __init__(self) -> None:
        self.shift, self.noise, self.queries = 0.0, 0.0, 0
        self._rng = np.random.default_rng(1)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.queries += len(images)
        logits = images.reshape(len(images), -1) @ np.arange(12).reshape(4, 3) % 3 * [1, 1 + self.shift, 1]
        logits = logits + self.noise * self._rng.normal(size=logits.shape)
        scores = np.exp(logits)
        return scores / scores.sum(axis=1, keepdims=True)


def ledger_with(path: Path, every: int = 10, budget: dict[str, int] = BUDGET) -> QueryLedger:
    return QueryLedger(path / "ledger.db", budget, Canaries(IMAGES[:3], every=every))


@pytest.mark.parametrize("kind", ["probabilities", "labels"])
def test_a_target_that_stays_the_same_is_checked_now_and_then(kind: str, tmp_path: Path) -> None:
    service = Service()
    function = service if kind == "probabilities" else lambda images: service(images).argmax(axis=1)
    target = open_target(function, num_classes=3, output_kind=kind, identity="service")
    with ledger_with(tmp_path) as ledger:
        paid = ledger.attach(target)
        assert ledger.canaries.deterministic is None
        for start in range(0, 40, 5):
            paid.query(IMAGES[start : start + 5])
        assert ledger.canaries.deterministic is True
        # the reference once, and a check after 5, 15, 25 and 35 queries
        assert ledger.bill()["canary"].answered == 3 + 4 * 3
        paid.query(IMAGES)  # known answers are free, also of canaries
        assert ledger.bill()["canary"].answered == 15
        ledger.canaries.finish()
        ledger.canaries.finish()  # nothing was queried since
        assert ledger.bill()["canary"].answered == 18
        assert service.queries == ledger.bill().total.answered == 58


def test_a_change_stops_the_run(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        paid = ledger.attach(target, purpose="certification", experiment="e")
        paid.query(IMAGES[:5])
        service.shift = 1.0
        paid.query(IMAGES[:5])  # it is not time yet
        with pytest.raises(DriftError, match=r"answers \d of 3 canary images otherwise than at") as caught:
            paid.query(IMAGES[:5])
        assert "\n" not in str(caught.value)
        with pytest.raises(DriftError):  # and goes on stopping it
            paid.query(IMAGES[:5])
        service.shift = 0.0
        paid.query(IMAGES[5:10])  # until the old version is back


def test_a_change_between_runs_is_noticed_by_the_first_paid_query(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        ledger.attach(target).query(IMAGES[:5])
    service.shift = 1.0
    with ledger_with(tmp_path) as ledger:
        ledger.attach(target).query(IMAGES[:5])  # answered by the ledger
        with pytest.raises(DriftError):
            ledger.attach(target).query(IMAGES[:6])


def test_rounding_is_no_drift(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        paid = ledger.attach(target)
        paid.query(IMAGES[:5])
        service.shift = 1e-5
        paid.query(IMAGES[5:])
        assert ledger.canaries.deterministic is True


def test_a_target_with_a_will_of_its_own_is_recorded_and_left_alone(tmp_path: Path) -> None:
    service = Service()
    service.noise = 0.5
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        paid = ledger.attach(target)
        paid.query(IMAGES[:5])
        assert ledger.canaries.deterministic is False
        queries = ledger.bill()["canary"].answered
        paid.query(IMAGES[5:])
        ledger.canaries.finish()
        assert ledger.bill()["canary"].answered == queries == 9


def test_top_k_answers_are_compared_where_they_are_known(tmp_path: Path) -> None:
    service = Service()

    def best(images: np.ndarray) -> np.ndarray:
        scores = service(images)
        scores[scores < scores.max(axis=1, keepdims=True)] = np.nan
        return scores

    target = open_target(best, num_classes=3, output_kind="top_k", identity="service")
    with ledger_with(tmp_path) as ledger:
        ledger.attach(target).query(IMAGES)
        assert ledger.canaries.deterministic is True


def test_canaries_have_a_budget_of_their_own(tmp_path: Path) -> None:
    target = open_target(Service(), num_classes=3, identity="service")
    with ledger_with(tmp_path, budget={"training": 100, "canary": 5}) as ledger:
        with pytest.raises(BudgetExceeded, match=r"canary budget is 5 .*raise ledger.canary to at least 6"):
            ledger.attach(target).query(IMAGES[:5])
        assert ledger.bill()["training"].answered == 5  # paid, and kept


def test_bad_canaries_are_named() -> None:
    with pytest.raises(TargetError, match=r"every must be a whole number of queries of at least 1, got 0"):
        Canaries(IMAGES, every=0)
    with pytest.raises(TargetError, match=r"divide 8-bit pixels by 255"):
        Canaries(IMAGES * 255)
