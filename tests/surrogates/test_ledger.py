"""The ledger pays once, remembers, never passes the budget, and survives whatever kills its processes."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surrogates import (
    BudgetExceeded,
    LedgerError,
    QueryLedger,
    Refused,
    SurrogateError,
    TargetError,
    open_target,
)
from surrogates.ledger.reader import read_statement
from surrogates.targets.base import Answers, Target
from tests.end_to_end.test_ledger_kill import forked

pytestmark = pytest.mark.filterwarnings("error")

SHAPE = (1, 2, 2)
CLASSES = 7
SCALE = 100_000


def pool(count: int, first: int = 0) -> np.ndarray:
    """Distinct images whose first pixel tells their number."""
    images = np.zeros((count, *SHAPE), np.float32)
    images[:, 0, 0, 0] = (np.arange(count) + first) / SCALE
    return images


def numbers(images: np.ndarray) -> list[int]:
    return np.rint(images[:, 0, 0, 0] * SCALE).astype(int).tolist()


class Service:
    """A black box that remembers each image that it served, and may fail on command."""

    def __init__(self) -> None:
        self.served: list[int] = []
        self.batches: list[int] = []
        self.failure: Any = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.served += numbers(images)
        self.batches.append(len(images))
        if isinstance(self.failure, BaseException):
            raise self.failure
        scores = np.full((len(images), CLASSES), 0.1, np.float32)
        scores[np.arange(len(images)), np.array(numbers(images)) % CLASSES] = 0.4
        return scores if self.failure is None else self.failure(scores)


class Module(torch.nn.Module):
    """The same service as a torch module, which dies with this process."""

    def __init__(self, service: Any) -> None:
        super().__init__()
        self.service = service

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.service(images.numpy()))


def opened(service: Any, *, remote: bool = True, **options: Any) -> Target:
    kind = {} if remote else {"output_kind": "probabilities"}
    source = service if remote else Module(service)
    return open_target(source, num_classes=CLASSES, identity="box", **kind, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database beside the ledger, and close it, which sqlite3's own context does not."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def states(path: Path) -> Counter[str]:
    """Count queries by state in the rows themselves, apart from the running tally."""
    with database(path) as db:
        return Counter(dict(db.execute("SELECT state, sum(size) FROM batches GROUP BY state")))


def test_an_image_is_paid_once(path: Path) -> None:
    service = Service()
    images = pool(10)
    with QueryLedger(path, 10) as ledger:
        target = ledger.attach(opened(service))
        first = target.query(images[:6])
        both = target.query(images[[0, 7, 7, 3, 0]])
        assert service.served == [0, 1, 2, 3, 4, 5, 7]
        assert both.labels.tolist() == [0, 0, 0, 3, 0]
        np.testing.assert_array_equal(both.scores[3], first.scores[3])
        assert (ledger.bill()["training"].answered, ledger.bill()["training"].recalled) == (7, 4)
    with QueryLedger(path, 10) as ledger:
        again = ledger.attach(opened(service)).query(images[:6])
        assert len(service.served) == 7
        np.testing.assert_array_equal(again.scores, first.scores)
        np.testing.assert_array_equal(again.labels, first.labels)
        assert ledger.remaining() == 3


def test_answers_are_copies(path: Path) -> None:
    with QueryLedger(path, 4) as ledger:
        target = ledger.attach(opened(Service()))
        target.query(pool(4)).scores[:] = 9
        target.query(pool(4)).labels[:] = 9
        assert target.query(pool(4)).labels.tolist() == [0, 1, 2, 3]
        assert target.query(pool(4)).scores.max() < 1


def test_noisy_images_pass_through_the_ledger(path: Path) -> None:
    with QueryLedger(path, {"certification": 9}) as ledger:
        target = ledger.attach(opened(Service()), purpose="certification", experiment="a")
        assert len(target.query(pool(2) - 0.5 + 0.5, bounded=True)) == 2
        with pytest.raises(TargetError, match="divide 8-bit"):
            target.query(pool(2) + 2)
        assert len(target.query(pool(2) + 0.999, bounded=False)) == 2
        assert ledger.bill()["certification"].spent == 4


def test_the_budget_is_held_before_anything_is_sent(path: Path) -> None:
    service = Service()
    with QueryLedger(path, 600) as ledger:
        target = ledger.attach(opened(service, batch_size=8))
        target.query(pool(590))
        with pytest.raises(BudgetExceeded) as caught:
            target.query(pool(40, first=570))
        assert str(caught.value) == (
            "training budget is 600 queries, 590 spent, this batch needs 20 more: "
            "raise ledger.training to at least 610 or query fewer images"
        )
        assert len(service.served) == 590
        target.query(pool(10, first=590))
        assert ledger.remaining() == 0
        target.query(pool(600))
        assert len(service.served) == 600


def test_purposes_have_their_own_budgets(path: Path) -> None:
    service = Service()
    with QueryLedger(path, {"training": 4, "evaluation": 2}) as ledger:
        ledger.attach(opened(service)).query(pool(4))
        evaluation = ledger.attach(opened(service), purpose="evaluation")
        evaluation.query(pool(4))  # known: costs nothing
        evaluation.query(pool(2, first=10))
        with pytest.raises(BudgetExceeded, match="evaluation budget is 2 queries, 2 spent"):
            evaluation.query(pool(1, first=20))
        with pytest.raises(BudgetExceeded, match="canary budget is 0"):
            ledger.attach(opened(service), purpose="canary").query(pool(1, first=20))
        bill = ledger.bill()
        assert [bill[purpose].spent for purpose in ("training", "evaluation", "canary")] == [4, 2, 0]
        assert (bill.identity, bill.total.spent, bill.total.budget) == ("box", 6, 6)


@pytest.mark.parametrize("purpose", ["certification", "attack"])
def test_votes_and_attacks_are_never_answered_from_the_cache(path: Path, purpose: str) -> None:
    service = Service()
    images = pool(4)
    with QueryLedger(path, {"training": 8, purpose: 100}) as ledger:
        ledger.attach(opened(service)).query(images)
        fresh = ledger.attach(opened(service), purpose=purpose, experiment="seed 0")
        fresh.query(images)
        fresh.query(images)  # equal bytes again: a randomized target must answer again
        assert service.served == [0, 1, 2, 3] * 3
        ledger.attach(opened(service), purpose=purpose, experiment="seed 1").query(images)
        assert len(service.served) == 16
        other = pool(4, first=50)
        fresh.query(other)
        ledger.attach(opened(service)).query(other)  # nor does a vote feed the cache
        assert service.served[-8:] == numbers(other) * 2
        assert ledger.bill()[purpose].spent == 16


@pytest.mark.parametrize("purpose", ["certification", "attack"])
def test_an_interrupted_experiment_gets_back_what_it_paid_for(path: Path, purpose: str) -> None:
    service = Service()
    sequence = [pool(4), pool(4), pool(4, first=10), pool(4)]  # with repeats
    with QueryLedger(path, {purpose: 16}) as ledger:
        target = ledger.attach(opened(service), purpose=purpose, experiment="e")
        before = [target.query(images) for images in sequence[:3]]
        service.failure = RuntimeError("line dropped")
    with QueryLedger(path, {purpose: 20}) as ledger:
        target = ledger.attach(opened(service), purpose=purpose, experiment="e")
        after = [target.query(images) for images in sequence[:3]]
        assert len(service.served) == 12
        for left, right in zip(before, after, strict=True):
            np.testing.assert_array_equal(left.labels, right.labels)
            assert (left.scores is None) == (right.scores is None) == (purpose == "certification")
        with pytest.raises(TargetError, match="line dropped"):
            target.query(sequence[3])
        service.failure = None
        target.query(sequence[3])
        assert ledger.bill()[purpose].answered == 16
    with QueryLedger(path, {purpose: 20}) as ledger:
        target = ledger.attach(opened(service), purpose=purpose, experiment="e")
        for images in sequence:
            target.query(images)
        assert len(service.served) == 20  # the failed query was repeated under its own receipt
        other = ledger.attach(opened(service), purpose=purpose, experiment="f")
        with pytest.raises(BudgetExceeded):
            other.query(sequence[0])


@pytest.mark.parametrize("purpose", ["certification", "attack"])
def test_receipts_of_a_former_experiment_are_not_paid_again(path: Path, purpose: str) -> None:
    service = Service()
    sequence = [pool(4), pool(4), pool(5, first=10)]  # the second has equal bytes
    with QueryLedger(path, {purpose: 100}) as ledger:
        older = ledger.attach(opened(service, batch_size=3), purpose=purpose, experiment="v1")
        before = [older.query(images) for images in sequence]
        assert len(service.served) == 13
    with QueryLedger(path, {purpose: 100}) as ledger:
        options = {"purpose": purpose, "experiment": "v3", "formerly": ["v2", "v1"]}
        newer = ledger.attach(opened(service, batch_size=3), **options)
        after = [newer.query(images) for images in sequence]
        assert len(service.served) == 13
        assert ledger.bill()[purpose].recalled == 13
        for left, right in zip(before, after, strict=True):
            np.testing.assert_array_equal(left.labels, right.labels)
        newer.query(pool(4))  # the third batch of equal bytes was never paid
        assert service.served[13:] == [0, 1, 2, 3]
    with QueryLedger(path, {purpose: 100}) as ledger:
        again = ledger.attach(opened(service, batch_size=3), purpose=purpose, experiment="v3")
        again.query(
            sequence[0]
        )  # without `formerly` the new name knows nothing that was paid under the old one
        assert service.served[17:] == [0, 1, 2, 3]
        with pytest.raises(
            LedgerError, match=r"formerly must be a sequence of experiments, got 'v1': try \['v1'\]"
        ):
            ledger.attach(opened(service), purpose=purpose, experiment="v3", formerly="v1")


def test_a_former_experiment_is_answered_in_part(path: Path) -> None:
    """A batch has a receipt or has none: what an interrupted older run did not pay, the new one pays."""
    service = Service()
    with QueryLedger(path, {"attack": 100}) as ledger:
        ledger.attach(opened(service, batch_size=3), purpose="attack", experiment="v1").query(pool(3))
        newer = ledger.attach(
            opened(service, batch_size=3), purpose="attack", experiment="v2", formerly=["v1"]
        )
        newer.query(pool(6))
        assert service.served == [0, 1, 2, 3, 4, 5]
        other = ledger.attach(
            opened(service, batch_size=3), purpose="attack", experiment="v3", formerly=["v2"]
        )
        other.query(pool(6))  # the first half is kept under v1 alone
        assert service.served[6:] == [0, 1, 2]


OLD_BATCH = "1d8d4578bea01c3446b35fd66eab425203ef5039794e7ebe4130efaf91c0315e"


def test_keys_are_those_of_the_ledgers_that_exist(path: Path) -> None:
    """Written down from version 0.1: under other keys every ledger's file would be paid again."""
    service = Service()
    with QueryLedger(path, {"training": 9, "certification": 9}) as ledger:
        ledger.attach(opened(service, batch_size=3)).query(pool(1))
        # version 0.1 gave a batch one key
        key = bytes.fromhex(OLD_BATCH)
        plan = ledger.store.plan({key: 3}, purpose="certification", budget=9, limit=3, charged_when_sent=True)
        ledger.store.settle(plan.batches[0], [(bytes([4, 5, 6]), None)], None, budget=9)
    with QueryLedger(path, {"certification": 9}) as ledger:  # in whatever batches it is queried now
        votes = ledger.attach(opened(service, batch_size=2), purpose="certification", experiment="old")
        assert votes.query(pool(3)).labels.tolist() == [4, 5, 6]
        assert service.served == [0]
        votes.query(pool(3))  # equal bytes again are other votes, as they were
        assert service.served == [0, 0, 1, 2]
    with database(path) as db:
        keys = [blob.hex() for (blob,) in db.execute("SELECT keys FROM asked ORDER BY batch")]
    assert keys[:2] == ["0fa924fb162013992a54296452554b0cd249c644e2236cf1abc82d87a1e63845", OLD_BATCH]


@pytest.mark.parametrize("purpose", ["certification", "attack"])
@pytest.mark.parametrize(("size", "other", "calls"), [(64, 7, 1), (7, 64, 1), (None, 32, 1), (64, 64, 3)])
def test_a_vote_is_paid_once_however_calls_are_split(
    path: Path, purpose: str, size: int, other: int, calls: int
) -> None:
    service, images = Service(), np.concatenate([pool(100), pool(20)])  # with repeats
    with QueryLedger(path, {purpose: 1000}) as ledger:
        paid = ledger.attach(opened(service, batch_size=size), purpose=purpose, experiment="e")
        first = paid.query(images)
        again = ledger.attach(opened(service, batch_size=other), purpose=purpose, experiment="e")
        parts = [again.query(part).labels for part in np.array_split(images, calls)]
        assert np.concatenate(parts).tolist() == first.labels.tolist()
        assert len(service.served) == ledger.bill()[purpose].spent == 120


def test_a_receipt_is_kept_for_the_draw_where_a_denoiser_rounds(path: Path) -> None:
    service, noisy = Service(), np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    with QueryLedger(path, {"certification": 20}) as ledger:
        for rounding in (0.0, 1e-9):
            paid = ledger.attach(opened(service), purpose="certification", experiment="e")
            images = pool(8, first=1) * np.float32(1 + rounding) + np.float32(rounding)
            assert paid.query(images, draws=noisy).labels.tolist() == [1, 2, 3, 4, 5, 6, 0, 1]
        assert len(service.served) == 8
        paid.query(pool(8), draws=noisy + 1)
        assert len(service.served) == 16


@pytest.mark.parametrize("form", [{"dtype": "uint8"}, {"quantize": 8}, {}])
def test_images_that_the_target_sees_alike_are_one(path: Path, form: dict[str, Any]) -> None:
    queries = []

    def service(images: np.ndarray) -> np.ndarray:
        queries.append(len(images))
        return np.full((len(images), CLASSES), 1 / CLASSES)

    images = (np.arange(1, 17) / 255).astype(np.float32).reshape(4, *SHAPE)
    images[0, 0, 0, 0] = 0.0
    with QueryLedger(path, 50) as ledger:
        target = ledger.attach(opened(service, **form))
        target.query(images)
        signed = images.copy()
        signed[0, 0, 0, 0] = -0.0
        target.query(signed)
        assert sum(queries) == 4
        target.query(np.concatenate([images + np.float32(0.4 / 255), images]))
        assert sum(queries) == (4 if form else 8)
        target.query(images + np.float32(0.6 / 255))
        assert sum(queries) == (8 if form else 12)


@pytest.mark.parametrize("form", [{"dtype": "uint8"}, {"quantize": 8}, {}])
def test_kept_images_of_version_0_1_are_not_paid_again(path: Path, form: dict[str, Any]) -> None:
    """That version took the pixels as they came, -0.0 and what a target rounds away included."""
    service, images = Service(), pool(4) * 1000 + np.float32(0.001)
    images[:, 0, 1, 1] = -0.0
    with QueryLedger(path, 9) as ledger:
        target = ledger.attach(opened(service, **form))
        subject = ("box", target.output_kind, opened(service, **form).preprocessing)
        begun = hashlib.sha256(repr((subject, ("image", ("<f4", SHAPE)))).encode()).digest()
        keys = [hashlib.sha256(begun + image.tobytes()).digest() for image in images]
        plan = ledger.store.plan(
            dict.fromkeys(keys, 1), purpose="training", budget=9, limit=None, charged_when_sent=True
        )
        kept = [(bytes([label]), np.eye(CLASSES, dtype="<f4")[label].tobytes()) for label in (3, 1, 4, 1)]
        ledger.store.settle(plan.batches[0], kept, None, budget=9)
    with QueryLedger(path, 9) as ledger:
        assert ledger.attach(opened(service, **form)).query(images).labels.tolist() == [3, 1, 4, 1]
        assert service.served == []


FAILURES = {
    "fails": (RuntimeError("no route"), "no route"),
    "wrong length": (lambda scores: scores[:-1], "answered 2 rows, expected 3"),
    "nan": (lambda scores: scores * np.nan, "answered nan"),
    "nine classes": (lambda scores: scores[:, :-1], "answered 6 classes, expected 7"),
}


@pytest.mark.parametrize(("failure", "message"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("remote", [True, False])
def test_a_query_without_an_answer(path: Path, failure: Any, message: str, remote: bool) -> None:
    service = Service()
    service.failure = failure
    with QueryLedger(path, 20) as ledger:
        target = ledger.attach(opened(service, remote=remote))
        with pytest.raises(TargetError, match=message):
            target.query(pool(3))
        charge = ledger.bill()["training"]
        assert (charge.unknown, charge.answered, charge.in_flight) == (3 if remote else 0, 0, 0)
        assert (charge.smallest, charge.largest) == (0, charge.unknown)
        assert states(path) == {"unknown" if remote else "refused": 3}
        service.failure = None
        target.query(pool(3))
        assert ledger.bill()["training"].spent == (6 if remote else 3)


@pytest.mark.parametrize("remote", [True, False])
def test_a_refused_query_is_never_charged(path: Path, remote: bool) -> None:
    service = Service()
    with QueryLedger(path, 10) as ledger:
        target = ledger.attach(opened(service, remote=remote, batch_size=4))
        service.failure = Refused("too many requests")
        for _ in range(3):
            with pytest.raises(Refused):
                target.query(pool(10))
        charge = ledger.bill()["training"]
        assert (charge.spent, charge.largest, charge.refused) == (0, 0, 30)
        service.failure = None
        target.query(pool(10))
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.smallest, charge.largest) == (10, 10, 10)


class Lossy(Target):
    """A service that repeats lost attempts by itself, and says how many queries they were."""

    def __init__(self, lost: int, error: TargetError | None = None) -> None:
        super().__init__("box", CLASSES, "probabilities", charged_when_sent=True, batch_size=4)
        self.service, self.lost, self.error = Service(), lost, error

    def answer(self, pixels: np.ndarray) -> Answers:
        if self.error is not None:
            self.error.lost = self.lost
            raise self.error
        scores = self.service(pixels)
        return Answers(scores.argmax(axis=1).astype(np.int64), scores, lost=self.lost)


def test_lost_attempts_are_charged_as_unknown(path: Path) -> None:
    with QueryLedger(path, 100) as ledger:
        target = ledger.attach(Lossy(4))
        assert target.query(pool(8)).labels.tolist() == [number % CLASSES for number in range(8)]
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.unknown, charge.in_flight) == (8, 8, 0)
        assert (charge.smallest, charge.largest, charge.remaining) == (8, 16, 84)
        target.query(pool(8))
        assert ledger.bill()["training"].spent == 16


@pytest.mark.parametrize(
    ("error", "unknown", "refused"), [(TargetError("timeout"), 4 + 8, 6), (Refused("busy"), 8, 10)]
)
def test_lost_attempts_of_a_failure_are_charged_too(
    path: Path, error: TargetError, unknown: int, refused: int
) -> None:
    with QueryLedger(path, 100) as ledger:
        with pytest.raises(type(error)):
            ledger.attach(Lossy(8, error)).query(pool(10))
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.unknown, charge.refused, charge.in_flight) == (0, unknown, refused, 0)


def test_a_query_that_lost_its_budget_on_the_way_stops(path: Path) -> None:
    lossy = Lossy(4)
    with QueryLedger(path, 13) as ledger:
        target = ledger.attach(lossy)
        with pytest.raises(BudgetExceeded, match=r"13 queries, 8 spent and 8 in flight: .* at least 16"):
            target.query(pool(12))
        assert lossy.service.served == [0, 1, 2, 3]
        charge = ledger.bill()["training"]
        assert (charge.answered, charge.unknown, charge.refused, charge.in_flight) == (4, 4, 8, 0)
        assert target.query(pool(4)).labels.tolist() == [0, 1, 2, 3]  # and what was paid is kept
    with QueryLedger(path, 9) as ledger:  # the last attempts of all can pass the budget, and are booked
        ledger.attach(Lossy(4)).query(pool(1, first=50))
        charge = ledger.bill()["training"]
        assert (charge.largest, charge.remaining) == (13, 0)
        with pytest.raises(BudgetExceeded):
            ledger.attach(lossy).query(pool(1, first=60))


def test_canaries_are_queried_afresh(path: Path) -> None:
    service = Service()
    with QueryLedger(path, {"training": 10, "canary": 10}) as ledger:
        ledger.attach(opened(service)).query(pool(3))
        canary = ledger.attach(opened(service), purpose="canary")
        canary.query(pool(3))
        canary.query(pool(3))
        ledger.attach(opened(service), purpose="canary").query(pool(3))
        assert service.served == [0, 1, 2] * 4
        assert ledger.bill()["canary"].answered == 9


def test_images_that_are_prepared_otherwise_are_other_queries(path: Path) -> None:
    service = Service()
    with QueryLedger(path, 30) as ledger:
        for options in ({}, {"quantise": 8}, {"quantise": 8}, {"pixel_range": (-1.0, 1.0)}):
            ledger.attach(opened(service, **options)).query(pool(2) * 1000)
        assert len(service.served) == 6


def test_images_of_another_shape_are_other_queries(path: Path) -> None:
    service = Service()
    with QueryLedger(path, 30) as ledger:
        target = ledger.attach(opened(service))
        for shape in ((1, 2, 2), (1, 1, 4), (2, 2, 1)):
            target.query(np.zeros((1, *shape), np.float32))
        assert len(service.served) == 3


def test_many_classes_and_unnamed_ones_come_back_exactly(path: Path) -> None:
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(300), size=100).astype(np.float32)
    table[table < np.sort(table)[:, -5:-4]] = np.nan  # the five best of each
    asked: list[int] = []

    def function(images: np.ndarray) -> np.ndarray:
        asked.extend(numbers(images))
        return table[numbers(images)]

    def top() -> Target:
        return open_target(function, num_classes=300, identity="box", output_kind="top_k", batch_size=37)

    with QueryLedger(path, 100) as ledger:
        first = ledger.attach(top()).query(pool(100))
    with QueryLedger(path, 100) as ledger:
        order = rng.permutation(np.repeat(np.arange(100), 2))
        again = ledger.attach(top()).query(pool(100)[order])
    assert sorted(asked) == list(range(100))
    np.testing.assert_array_equal(first.scores, table)
    np.testing.assert_array_equal(first.labels, np.nanargmax(table, axis=1))
    np.testing.assert_array_equal(again.scores, table[order])
    np.testing.assert_array_equal(again.labels, first.labels[order])


def test_an_interrupt_keeps_what_was_answered_and_frees_what_was_not_sent(path: Path) -> None:
    class Impatient(Service):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            scores = super().__call__(images)
            if len(self.batches) == 3:
                raise KeyboardInterrupt
            return scores

    service = Impatient()
    with QueryLedger(path, 100) as ledger:
        target = ledger.attach(opened(service, batch_size=4))
        with pytest.raises(KeyboardInterrupt):
            target.query(pool(18))
        assert states(path) == {"answered": 8, "unknown": 4, "refused": 6}
        target.query(pool(18))
        assert service.batches == [4, 4, 4, 4, 4, 2]
        assert ledger.bill()["training"].spent == 22


def test_two_threads_pay_an_image_once(path: Path) -> None:
    class Slow(Service):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            time.sleep(0.1)
            return super().__call__(images)

    service = Slow()
    with QueryLedger(path, 8) as ledger:
        target = ledger.attach(opened(service))
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(target.query(pool(8)).labels.tolist()))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(service.served) == list(range(8))
        assert results == [[0, 1, 2, 3, 4, 5, 6, 0]] * 3


def test_one_ledger_one_target(path: Path) -> None:
    with QueryLedger(path, 5) as ledger:
        ledger.attach(opened(Service()))
        other = open_target(Service(), num_classes=CLASSES, identity="another box")
        with pytest.raises(LedgerError, match=r"belongs to target 'box', got 'another box'"):
            ledger.attach(other)
        with pytest.raises(LedgerError, match=r"over 7 classes, got 8"):
            ledger.attach(open_target(Service(), num_classes=8, identity="box"))


def test_hard_labels_are_kept_apart_from_scores(path: Path) -> None:
    service = Service()

    def hard(images: np.ndarray) -> np.ndarray:
        return service(images).argmax(axis=1)

    with QueryLedger(path, 8) as ledger:
        soft = ledger.attach(opened(service)).query(pool(4))
        labels = ledger.attach(opened(hard, output_kind="labels"))
        assert labels.query(pool(4)).scores is None
        assert labels.query(pool(4)).labels.tolist() == soft.labels.tolist()
        assert len(service.served) == 8


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "at least 1 query, got 0"),
        (-5, "got -5"),
        (2.5, "whole number of queries, got 2.5"),
        ("600", "got '600'"),
        (True, "got True"),
        ({"training": 0}, "at least 1 query"),
        ({"train": 5}, "purpose must be one of training, evaluation, .*, got 'train'"),
        ({"attack": -1}, "attack budget must be a whole number"),
    ],
)
def test_bad_budgets(path: Path, budget: Any, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        QueryLedger(path, budget)
    assert not path.exists()


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name may promise\n" * 50)
    with database(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE runs (id INTEGER)")
    before = (tmp_path / "other.db").read_bytes()
    QueryLedger(tmp_path / "future.db", 1).close()
    with database(tmp_path / "future.db") as db:
        db.execute("PRAGMA user_version = 99")
    os.mkfifo(tmp_path / "pipe.db")
    for name, message in {
        "pipe.db": "is no regular file",
        "future.db-wal": "a name that SQLite takes for another file's",
        "text.db": "file is not a database",
        "other.db": "database of another program",
        "future.db": "has schema 99, expected 3",
        "": "is a directory",
        "missing/ledger.db": "has no directory",
    }.items():
        with pytest.raises(LedgerError, match=message) as caught:
            QueryLedger(tmp_path / name, 5)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ": " in str(caught.value)
    assert (tmp_path / "other.db").read_bytes() == before


def test_bad_attachments(path: Path) -> None:
    with QueryLedger(path, 5) as ledger:
        target = opened(Service())
        with pytest.raises(LedgerError, match="got 'voting'"):
            ledger.attach(target, purpose="voting")
        with pytest.raises(LedgerError, match="'certification' needs an experiment, got None"):
            ledger.attach(target, purpose="certification")
        with pytest.raises(LedgerError, match="already pays from"):
            ledger.attach(ledger.attach(target))
        with pytest.raises(LedgerError, match="open_target it"):
            ledger.attach(Service())
    with pytest.raises(LedgerError, match="closed"):
        ledger.bill()
    assert issubclass(LedgerError, SurrogateError)


def test_a_batch_without_a_living_owner_is_settled(path: Path) -> None:
    """Whoever holds the lock of its owner is alive; a batch of our own that no thread is busy with was given up."""
    with QueryLedger(path, 60) as ledger, QueryLedger(path, 60) as other:
        target = ledger.attach(opened(Service()))
        ours, living = ledger.store.file.owner, other.store.file.owner
        with database(path) as db:
            for state, owner in [("sent", living), ("sent", 12345), ("reserved", 12345), ("sent", ours)]:
                db.execute(
                    "INSERT INTO batches (purpose, size, state, charged_when_sent, owner, reserved_at) "
                    "VALUES ('training', 10, ?, 1, ?, ?)",
                    (state, owner, time.time()),
                )
        charge = ledger.bill()["training"]
        assert (charge.unknown, charge.refused, charge.in_flight, charge.answered) == (20, 10, 10, 0)
        assert (charge.largest, charge.remaining) == (30, 30)
        with pytest.raises(BudgetExceeded, match="20 spent and 10 in flight, this batch needs 31 more"):
            target.query(pool(31))
        other.close()
        assert (ledger.bill()["training"].unknown, ledger.bill()["training"].in_flight) == (30, 0)
        target.query(pool(30))


# Below, scenarios with real processes. A fresh interpreter imports once and forks; see __main__ at the end.


class Witness:
    """A service that writes each image it serves to a file, as a server's own account would."""

    def __init__(self, file: Path, delay: float) -> None:
        self.file, self.delay = file, delay

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self.file.open("a") as file:
            file.write("".join(f"{number}\n" for number in numbers(images)))
        time.sleep(self.delay)
        return Service()(images)


def answered_images(path: Path, total: int) -> set[int]:
    """Which images the ledger could answer for free, read from its tables."""
    with QueryLedger(path, total) as ledger:
        keys = ledger.attach(opened(Service())).keys.of(pool(total)).order
    with database(path) as db:
        blobs = db.execute("SELECT keys FROM asked JOIN batches ON id = batch WHERE state = 'answered'")
        kept = {blob[start : start + 32] for (blob,) in blobs for start in range(0, len(blob), 32)}
    return {number for number, key in enumerate(keys) if key in kept}


def scenario_kills(folder: Path, rounds: int, remote: bool) -> None:
    """Kill a querying process at random moments; after each, compare ledger and witness."""
    path, file = folder / "ledger.db", folder / "witness"
    file.touch()
    total = 50 * rounds
    budget = total + 2 * rounds  # a kill may cost up to 5 queries, so the budget binds
    moments = random.Random(3)
    struck = 0

    def work() -> None:
        with QueryLedger(path, budget) as ledger:
            target = ledger.attach(opened(Witness(file, 0.002), remote=remote, batch_size=5))
            ahead = [number for number in range(total) if number not in known_before]
            for start in range(0, len(ahead), 15):
                recalled = random.choices(sorted(known_before), k=5) if known_before else []
                target.query(pool(total)[ahead[start : start + 15] + recalled])

    served_before = 0
    known_before: set[int] = set()
    for _ in range(rounds):
        child = forked(work)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        struck += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if not path.exists():
            continue
        with QueryLedger(path, budget) as ledger:
            charge = ledger.bill()["training"]
        served = [int(line) for line in file.read_text().split()]
        known = answered_images(path, total)
        assert charge.in_flight == 0
        assert charge.largest <= budget
        assert charge.answered == len(known)
        assert known_before <= known, "an answered query was lost"
        assert not known_before & set(served[served_before:]), "an answered query was paid twice"
        assert len(served) >= charge.answered
        if remote:
            # The witness saw no query that is not on the bill; a batch may have been sent and never arrived.
            assert charge.smallest <= len(served) <= charge.largest
        else:
            assert charge.unknown == 0
        served_before, known_before = len(served), known
    assert struck >= rounds // 2, f"only {struck} of {rounds} children were killed at work"
    child = forked(work)
    os.waitpid(child, 0)  # it finishes, or the unknowns have used up the budget
    with QueryLedger(path, budget) as ledger:
        assert ledger.bill()["training"].largest <= budget
    with QueryLedger(path, 10 * total) as ledger:
        target = ledger.attach(opened(Witness(file, 0), remote=remote))
        assert target.query(pool(total)).labels.tolist() == [number % CLASSES for number in range(total)]
        assert ledger.bill()["training"].answered == total


def scenario_race(folder: Path) -> None:
    """Four processes spend one budget at once, on overlapping images, from a file none has created yet."""
    path, file = folder / "ledger.db", folder / "witness"
    file.touch()

    def spend(ledger: QueryLedger, first: int) -> None:
        target = ledger.attach(opened(Witness(file, 0.001)))
        for start in range(first, first + 100, 5):
            try:
                target.query(pool(5, first=start))
            except BudgetExceeded:
                continue

    def work(first: int) -> None:
        with QueryLedger(path, 150) as ledger:
            spend(ledger, first)

    children = [forked(lambda first=50 * k: work(first)) for k in range(3)]
    with QueryLedger(path, 150) as ours:  # the fourth uses a ledger that its parent opened
        children.append(forked(lambda: spend(ours, 150)))
        for _ in range(50):  # at every moment, for whoever looks
            assert read_statement(path).total.largest <= 150
            time.sleep(0.002)
        assert ours.bill()["training"].largest <= 150
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    served = [int(line) for line in file.read_text().split()]
    assert len(served) == 150  # of 250 distinct images
    assert len(set(served)) == 150, "an image was paid twice"
    with QueryLedger(path, 150) as ledger:
        assert ledger.bill()["training"].answered == 150


def scenario_duplicates(folder: Path) -> None:
    """Four processes query the same images at once, each in its own order; every image is paid once."""
    path, file = folder / "ledger.db", folder / "witness"
    file.touch()

    def work(seed: int) -> None:
        order = random.Random(seed).sample(range(60), 60)
        with QueryLedger(path, 60) as ledger:  # one duplicate more would pass the budget
            target = ledger.attach(opened(Witness(file, 0.003), batch_size=4))
            for start in range(0, 60, 10):
                part = order[start : start + 10]
                assert target.query(pool(60)[part]).labels.tolist() == [number % CLASSES for number in part]

    children = [forked(lambda seed=seed: work(seed)) for seed in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert sorted(int(line) for line in file.read_text().split()) == list(range(60))
    with QueryLedger(path, 60) as ledger:
        charge = ledger.bill()["training"]
    assert (charge.smallest, charge.largest) == (60, 60)


def scenario_death(folder: Path) -> None:
    """A process dies while its query is out: charged if a service may have seen it, else not."""

    class Fatal:
        def __call__(self, images: np.ndarray) -> np.ndarray:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    for remote, expected in ((True, {"unknown": 4, "refused": 2}), (False, {"refused": 6})):
        path = folder / f"{remote}.db"

        def work(path: Path = path, remote: bool = remote) -> None:
            with QueryLedger(path, 9) as ledger:
                ledger.attach(opened(Fatal(), remote=remote, batch_size=4)).query(pool(6))

        child = forked(work)
        for _ in range(500):  # left as a zombie on purpose: it must count as dead before it is reaped
            if path.exists() and states_or_none(path) == {"sent": 4, "reserved": 2}:
                break
            time.sleep(0.01)
        time.sleep(0.1)
        with QueryLedger(path, 9) as ledger:
            charge = ledger.bill()["training"]
            assert (charge.unknown, charge.answered, charge.in_flight) == (4 if remote else 0, 0, 0)
            assert states(path) == expected
        os.waitpid(child, 0)


def scenario_statements(folder: Path) -> None:
    """Kill a query before each of its SQL statements in turn: bill, answers and witness agree after each."""
    for moment in range(200):
        path, file = folder / f"{moment}.db", folder / f"witness {moment}"
        file.touch()

        def work(path: Path = path, file: Path = file, moment: int = moment, fatal: bool = True) -> None:
            with QueryLedger(path, 10) as ledger:
                target = ledger.attach(opened(Witness(file, 0), batch_size=4))
                statements: list[str] = []

                def count(statement: str) -> None:
                    if len(statements) == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    statements.append(statement)

                if fatal:
                    ledger.store.file.connection.set_trace_callback(count)
                target.query(pool(6))

        child = forked(work)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        served = len(file.read_text().split())
        with QueryLedger(path, 10) as ledger:
            charge = ledger.bill()["training"]
        assert charge.answered == len(answered_images(path, 6)), moment
        assert charge.answered <= served <= charge.largest <= 10, moment
        assert charge.in_flight == 0, moment
        again = forked(lambda work=work: work(fatal=False))
        assert os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]) == 0, moment
        repaid = len(file.read_text().split()) - served
        assert repaid == 6 - charge.answered, moment
        if code == 0:
            break
        assert code == -signal.SIGKILL, moment
    assert 10 < moment < 199, f"a query ran {moment} statements"


def states_or_none(path: Path) -> Counter[str] | None:
    try:
        return states(path)
    except sqlite3.OperationalError:
        return None


def scenario(name: str, folder: Path, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.surrogates.test_ledger", name, str(folder), *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("remote", ["remote", "local"])
def test_killed_processes(tmp_path: Path, remote: str) -> None:
    scenario("kills", tmp_path, "20", remote)


def test_four_processes_never_exceed_the_budget(tmp_path: Path) -> None:
    scenario("race", tmp_path)


def test_four_processes_pay_a_duplicate_once(tmp_path: Path) -> None:
    scenario("duplicates", tmp_path)


def test_a_death_before_any_statement(tmp_path: Path) -> None:
    scenario("statements", tmp_path)


def test_a_death_during_a_query(tmp_path: Path) -> None:
    scenario("death", tmp_path)


if __name__ == "__main__":
    name, folder, *arguments = sys.argv[1:]
    if name == "kills":
        scenario_kills(Path(folder), int(arguments[0]), arguments[1] == "remote")
    else:
        {
            "race": scenario_race,
            "duplicates": scenario_duplicates,
            "death": scenario_death,
            "statements": scenario_statements,
        }[name](Path(folder))
