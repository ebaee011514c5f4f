"""Ledgers that paid apart and are joined: every batch once, every answer found again, nothing that is doubtful."""

import shutil
import sqlite3

import numpy as np
import pytest

from surrogates import LedgerError, QueryLedger, open_target
from surrogates.ledger.canaries import Canaries
from surrogates.ledger.export import export
from surrogates.ledger.merge import absorb
from surrogates.ledger.reader import read_statement

BUDGET = {"training": 100, "certification": 1000, "canary": 100}
CLASSES = 7


def pool(count, first=0):
    images = np.zeros((count, 1, 2, 2), np.float32)
    images[:, 0, 0, 0] = (np.arange(count) + first) / 1000
    return images


class Service:
    """Labels by the image's number; counts what it was asked."""

    def __init__(self):
        self.queries = 0

    def __call__(self, images):
        self.queries += len(images)
        return np.rint(images[:, 0, 0, 0] * 1000).astype(int) % CLASSES


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def target(service):
    return open_target(service, identity="service", num_classes=CLASSES, output_kind="labels", batch_size=16)


def pay(path, target, images, purpose="certification", **options):
    with QueryLedger(path, BUDGET, **options) as ledger:
        paid = ledger.attach(target, purpose=purpose, experiment="e")
        return paid.query(images).labels


def spent(path):
    return {purpose: account.answered for purpose, account in read_statement(path).accounts.items()}


@pytest.fixture
def ledgers(tmp_path, target):
    """One that was paid before, and two that began with it and went on apart."""
    base = tmp_path / "base.db"
    pay(base, target, pool(40), "training")
    pay(base, target, pool(30))
    parts = []
    for number in (1, 2):
        part = tmp_path / f"part-{number}.db"
        with QueryLedger(part, BUDGET) as ledger:
            absorb(ledger, base)
        pay(part, target, pool(50, first=100 * number))
        parts.append(part)
    return base, *parts


def test_the_sum_is_what_one_process_pays(tmp_path, ledgers, target, service):
    base, *parts = ledgers
    with QueryLedger(base, BUDGET) as ledger:
        assert [absorb(ledger, part) for part in parts] == [4, 4]  # 50 queries of at most 16
        assert [absorb(ledger, part) for part in parts] == [0, 0], "again there is nothing new"
        bill = ledger.bill()
        assert (bill["training"].spent, bill["certification"].spent) == (40, 130)
    assert service.queries == 40 + 130
    one = tmp_path / "one.db"
    pay(one, target, pool(40), "training")
    for images in (pool(30), pool(50, 100), pool(50, 200)):
        pay(one, target, images)
    assert spent(base) == spent(one)
    rows = [export(path, path.with_suffix(".csv")) for path in (base, one)]
    assert rows == [170, 170]


def test_every_answer_is_found_again(ledgers, target, service):
    base, *parts = ledgers
    with QueryLedger(base, BUDGET) as ledger:
        for part in parts:
            absorb(ledger, part)
    before = service.queries
    for first, count in ((0, 30), (100, 50), (200, 50)):
        labels = pay(base, target, pool(count, first))
        assert labels.tolist() == [(first + at) % CLASSES for at in range(count)]
    assert pay(base, target, pool(40), "training").tolist() == [at % CLASSES for at in range(40)]
    assert service.queries == before


def test_a_part_knows_what_was_paid_before(ledgers, target, service):
    before = service.queries
    pay(ledgers[1], target, pool(30))
    assert service.queries == before
    assert spent(ledgers[1]) == {"training": 40, "certification": 80}


def test_an_open_ledger_goes_on_with_what_it_took(ledgers, target, service):
    base, part, _ = ledgers
    with QueryLedger(base, BUDGET) as ledger:
        paid = ledger.attach(target, purpose="certification", experiment="e")
        paid.query(pool(5, 500))
        absorb(ledger, part)
        before = service.queries
        assert paid.query(pool(50, 100)).labels.tolist() == [(100 + at) % CLASSES for at in range(50)]
        assert service.queries == before
        paid.query(pool(5, 600))
    assert spent(base)["certification"] == 30 + 50 + 10


def test_checks_of_canaries_come_along(ledgers, target):
    base, part, _ = ledgers
    canaries = Canaries(pool(3, 900), every=10)
    pay(part, target, pool(20, 300), canaries=canaries)
    with QueryLedger(base, BUDGET) as ledger:
        absorb(ledger, part)
        absorb(ledger, part)
    counted = [
        sqlite3.connect(path).execute("SELECT count(*), max(batch) > 0 FROM checks").fetchone()
        for path in (base, part)
    ]
    assert counted[0] == counted[1]
    assert counted[0][0] > 0


def test_another_target_is_refused(tmp_path, ledgers, service):
    other = open_target(service, identity="other", num_classes=CLASSES, output_kind="labels")
    path = tmp_path / "other.db"
    pay(path, other, pool(3))
    with (
        QueryLedger(ledgers[0], BUDGET) as ledger,
        pytest.raises(LedgerError, match="belongs to target 'service', got 'other'"),
    ):
        absorb(ledger, path)
    assert spent(ledgers[0])["certification"] == 30


def test_queries_in_flight_are_refused(ledgers):
    base, part, _ = ledgers
    with sqlite3.connect(part) as db:
        db.execute(
            "INSERT INTO batches (purpose, size, state, charged_when_sent, owner, reserved_at, sent_at) "
            "VALUES ('certification', 5, 'sent', 1, 1, 2, 3)"
        )
    with QueryLedger(base, BUDGET) as ledger, pytest.raises(LedgerError, match="5 queries in flight"):
        absorb(ledger, part)
    assert spent(base)["certification"] == 30


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE answers SET labels = zeroblob(length(labels)) WHERE id = (SELECT max(id) FROM answers)",
            "answers",
        ),
        (
            "UPDATE asked SET checksum = checksum + 1 WHERE batch = (SELECT max(batch) FROM asked)",
            "the keys of batch",
        ),
        ("DELETE FROM answers WHERE id = (SELECT max(id) FROM answers)", "answers are missing"),
    ],
)
def test_damage_takes_nothing(ledgers, statement, words):
    base, part, _ = ledgers
    with sqlite3.connect(part) as db:
        db.execute(statement)
    with QueryLedger(base, BUDGET) as ledger, pytest.raises(LedgerError, match=f"is damaged .*{words}"):
        absorb(ledger, part)
    assert spent(base) == {"training": 40, "certification": 30}


def test_an_empty_ledger_and_none(tmp_path, ledgers):
    QueryLedger(tmp_path / "empty.db", BUDGET).close()
    with QueryLedger(ledgers[0], BUDGET) as ledger:
        assert absorb(ledger, tmp_path / "empty.db") == 0
        with pytest.raises(LedgerError, match="does not exist"):
            absorb(ledger, tmp_path / "none.db")


def test_a_copy_of_a_file_is_no_new_bill(tmp_path, ledgers):
    """What is copied by hand, not absorbed, is known all the same."""
    shutil.copy(ledgers[1], tmp_path / "copy.db")
    with QueryLedger(ledgers[1], BUDGET) as ledger:
        assert absorb(ledger, tmp_path / "copy.db") == 0
