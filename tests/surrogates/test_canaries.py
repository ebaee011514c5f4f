"""Canaries notice a target that changes, between queries and between runs, and pay for their queries."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from surrogates import BudgetExceeded, Canaries, DriftError, QueryLedger, TargetError, open_target
from surrogates.ledger.drift import MARK
from surrogates.ledger.export import export
from surrogates.ledger.reader import read_statement

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
        # the reference once, and a check before the first query and after 10, 20, 30 and 40
        assert ledger.bill()["canary"].answered == 3 + 5 * 3
        paid.query(IMAGES)  # known answers are free, also of canaries
        ledger.canaries.finish()  # nothing was queried since
        assert ledger.bill()["canary"].answered == 18
        paid.query(IMAGES[:5] / 2)
        ledger.canaries.finish()
        ledger.canaries.finish()
        assert ledger.bill()["canary"].answered == 21
        assert service.queries == ledger.bill().total.answered == 66


def test_a_change_stops_the_run_and_its_answers_are_not_used(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        paid = ledger.attach(target)
        paid.query(IMAGES[:10])  # vouched for by the check after them
        paid.query(IMAGES[10:15])
        service.shift = 1.0
        with pytest.raises(
            DriftError, match=r"answers \d of 3 canary .* the 2 batches since the last"
        ) as caught:
            paid.query(IMAGES[15:20])
        assert "\n" not in str(caught.value)
        before = ledger.bill()["training"].answered
        with pytest.raises(DriftError):  # and goes on stopping it, with nothing paid for
            paid.query(IMAGES[20:25])
        assert ledger.bill()["training"].answered == before == 20
        assert len(paid.query(IMAGES[:10])) == 10  # those are good
    with QueryLedger(tmp_path / "ledger.db", BUDGET) as ledger:  # nobody watches
        paid = ledger.attach(target)
        paid.query(IMAGES[:10])
        for images in (IMAGES[10:15], IMAGES[15:20], IMAGES[20:25]):
            with pytest.raises(DriftError, match=r"ledger.db had changed at the last canary check"):
                paid.query(images)
        assert ledger.bill()["training"].answered == 20
    service.shift = 0.0
    with ledger_with(tmp_path) as ledger:  # until the old version is back
        ledger.attach(target).query(IMAGES[:25])
        assert ledger.bill()["training"].answered == 20 + 15  # what is marked is paid for again
    export(tmp_path / "ledger.db", tmp_path / "queries.csv")
    assert (tmp_path / "queries.csv").read_text().count(MARK) == 10


def test_a_long_query_is_checked_on_its_way(tmp_path: Path) -> None:
    service = Service()

    def changing(images: np.ndarray) -> np.ndarray:
        service.shift = float(service.queries >= 20)
        return service(images)

    target = open_target(changing, num_classes=3, identity="service", batch_size=4)
    with ledger_with(tmp_path) as ledger:
        with pytest.raises(DriftError):
            ledger.attach(target).query(IMAGES)
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.unknown, charge.refused) == (24, 0, 16)


def test_a_change_between_runs_is_noticed_before_anything_is_paid(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as ledger:
        ledger.attach(target).query(IMAGES[:5])
        ledger.canaries.finish()
    service.shift = 1.0
    with ledger_with(tmp_path) as ledger:
        ledger.attach(target).query(IMAGES[:5])  # answered by the ledger
        with pytest.raises(DriftError, match="the 0 batches since"):
            ledger.attach(target).query(IMAGES[:6])
        assert ledger.bill()["training"].answered == 5


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
        assert ledger.bill()["training"].answered == 0


def test_bad_canaries_are_named() -> None:
    with pytest.raises(TargetError, match=r"every must be a whole number of queries of at least 1, got 0"):
        Canaries(IMAGES, every=0)
    with pytest.raises(TargetError, match=r"divide 8-bit pixels by 255"):
        Canaries(IMAGES * 255)


def test_what_one_ledger_marks_no_other_hands_out(tmp_path: Path) -> None:
    service = Service()
    target = open_target(service, num_classes=3, identity="service")
    with ledger_with(tmp_path) as watching, QueryLedger(tmp_path / "ledger.db", BUDGET) as other:
        watching.attach(target).query(IMAGES[:5])
        service.shift = 1.0
        unwatched = other.attach(target)
        unwatched.query(IMAGES[10:15])
        assert len(unwatched.query(IMAGES[10:15])) == 5  # in memory now
        with pytest.raises(DriftError):
            watching.attach(target).query(IMAGES[20:30])
        assert read_statement(tmp_path / "ledger.db").kept == 0
        with pytest.raises(DriftError, match="had changed at the last canary check"):
            unwatched.query(IMAGES[10:15])


def test_a_change_stops_what_others_have_reserved_or_wait_for(tmp_path: Path) -> None:
    service = Service()
    with ledger_with(tmp_path) as watching, QueryLedger(tmp_path / "ledger.db", BUDGET) as other:
        watched = watching.attach(open_target(service, num_classes=3, identity="service"))
        watched.query(IMAGES[:5])

        def slow(images: np.ndarray) -> np.ndarray:
            """Another process finds the change while this one waits for an answer."""
            if service.shift == 0:
                service.shift = 1.0
                with pytest.raises(DriftError):
                    watched.query(IMAGES[30:40])
            return service(images)

        target = open_target(slow, num_classes=3, identity="service", batch_size=4)
        with pytest.raises(DriftError, match="had changed at the last canary check"):
            other.attach(target).query(IMAGES[10:30])
        charge = other.bill()["training"]
        assert (charge.answered, charge.refused, charge.in_flight) == (5 + 10 + 4, 16, 0)
        assert read_statement(tmp_path / "ledger.db").kept == 0


def test_threads_with_canaries_pay_every_image_once(tmp_path: Path) -> None:
    target = open_target(Service(), num_classes=3, identity="service", batch_size=4)
    images = np.random.default_rng(1).random((960, 1, 2, 2)).astype(np.float32)
    budget = {"training": len(images), "canary": 10**6}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ledger_with(tmp_path, budget=budget) as ledger, ThreadPoolExecutor(8) as pool:
            list(pool.map(ledger.attach(target).query, np.split(images, 120)))
            assert len(ledger.attach(target).query(images)) == len(images)
            assert ledger.bill()["training"].answered == len(images)
    finally:
        sys.setswitchinterval(before)
