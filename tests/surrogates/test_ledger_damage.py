"""A damaged ledger is one line within a moment: no wrong answer, no second payment, no loop, no other error."""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from surrogates import LedgerError, QueryLedger
from surrogates.ledger import integrity, store
from surrogates.ledger.export import export
from surrogates.ledger.reader import read_statement
from tests.end_to_end.test_ledger_kill import forked
from tests.surrogates.test_ledger import CLASSES, Service, database, opened, pool

SECONDS = 5  # one damaged file takes milliseconds
PAGE = 4096
VOTES = 60


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TimeoutError out of an endless loop."""

    def end(*_: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def spend(path: Path) -> None:
    """Pay for training images and votes, with a refused and a lost query among them."""
    with QueryLedger(path, {"training": 10_000, "certification": 10_000}) as ledger:
        service = Service()
        target = ledger.attach(opened(service, batch_size=16))
        target.query(pool(200))
        service.failure = RuntimeError("line dropped")
        with pytest.raises(ValueError, match="line dropped"):
            target.query(pool(30, first=900))
        service.failure = None
        ledger.attach(opened(service), purpose="certification", experiment="e").query(pool(VOTES, first=500))


def use(path: Path) -> str:
    """Read and query the ledger; everything that it hands out must be right, and nothing is paid."""
    service = Service()
    truth = [number % CLASSES for number in range(200)]
    try:
        with QueryLedger(path, {"training": 10_000, "certification": 10_000}) as ledger:
            bill = ledger.bill()
            assert (bill["training"].answered, bill["training"].unknown) == (200, 16)
            assert (bill["training"].refused, bill["certification"].spent) == (14, VOTES)
            answers = ledger.attach(opened(service, batch_size=16)).query(pool(200))
            assert answers.labels.tolist() == truth
            np.testing.assert_array_equal(answers.scores, Service()(pool(200)))
            votes = ledger.attach(opened(service), purpose="certification", experiment="e")
            labels = votes.query(pool(VOTES, first=500)).labels
            assert labels.tolist() == [number % CLASSES for number in range(500, 500 + VOTES)]
        assert read_statement(path).total.answered == 200 + VOTES
    except LedgerError as error:
        return "refused" if is_one_line(error, path) else str(error)
    assert service.served == [], "what was paid is paid again"
    return "sound"


def is_one_line(error: LedgerError, path: Path) -> bool:
    return "\n" not in str(error) and str(path) in str(error)


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def zero(data: bytearray, rng: random.Random) -> None:
    page = rng.randrange(len(data) // PAGE)
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)


def swap(data: bytearray, rng: random.Random) -> None:
    first, second = (PAGE * page for page in rng.sample(range(len(data) // PAGE), 2))
    pages = data[first : first + PAGE], data[second : second + PAGE]
    data[second : second + PAGE], data[first : first + PAGE] = pages


def scribble(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) - 64)
    data[start : start + 64] = rng.randbytes(64)


DAMAGES = [flip, cut, zero, swap, scribble]


def copies(sound: Path, damage: Callable[[bytearray, random.Random], None], count: int) -> Iterator[Path]:
    """Damaged copies of a file, one after the other under one name."""
    rng = random.Random(damage.__name__)
    whole = sound.read_bytes()
    path = sound.with_name("damaged.db")
    for _ in range(count):
        data = bytearray(whole)
        damage(data, rng)
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        path.write_bytes(data)
        yield path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_one_line(
    tmp_path: Path, damage: Callable[[bytearray, random.Random], None], count: int
) -> None:
    sound = tmp_path / "ledger.db"
    spend(sound)
    assert use(sound) == "sound"
    outcomes: Counter[str] = Counter()
    for path in copies(sound, damage, count):
        with time_limit():
            outcomes[use(path)] += 1
    assert set(outcomes) <= {"refused", "sound"}
    assert outcomes["refused"] >= count / 10, outcomes  # most bytes of a file matter


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_journal_is_one_line_or_shorter(tmp_path: Path, count: int) -> None:
    """SQLite takes a damaged journal for one that ends there: answers behind may be lost, and none is wrong."""
    spent = tmp_path / "spent.db"

    def die() -> None:
        spend(spent)
        with QueryLedger(spent, 10_000) as ledger:
            ledger.attach(opened(Service(), batch_size=16)).query(pool(200, first=2000))
            os._exit(0)

    os.waitpid(forked(die), 0)
    journal = Path(f"{spent}-wal").read_bytes()
    assert len(journal) > 10 * PAGE
    rng = random.Random(5)
    path = tmp_path / "damaged.db"
    for turn in range(count):
        data = bytearray(journal)
        (flip, cut, zero, scribble)[turn % 4](data, rng)
        shutil.copy(spent, path)
        Path(f"{path}-wal").write_bytes(data)
        Path(f"{path}-shm").unlink(missing_ok=True)
        outcome = True
        with time_limit():
            try:
                with QueryLedger(path, 10_000) as ledger:
                    labels = ledger.attach(opened(Service())).query(pool(400, first=2000)).labels
                    assert labels.tolist() == [number % CLASSES for number in range(2000, 2400)]
                    assert ledger.bill()["training"].in_flight == 0
            except LedgerError as error:
                outcome = is_one_line(error, path)
        assert outcome


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM answers WHERE id = (SELECT min(id) FROM answers)", "damaged .answers .* are missing"),
        ("UPDATE answers SET labels = zeroblob(length(labels))", "damaged .answers "),
        ("UPDATE asked SET keys = zeroblob(length(keys))", "damaged .the keys of batch 1"),
        ("UPDATE tally SET queries = 3", "damaged .its batches do not add up to its tally"),
        ("INSERT INTO subject VALUES ('box', 7)", "damaged .it belongs to two targets"),
    ],
)
def test_what_the_database_itself_does_not_notice(tmp_path: Path, statement: str, message: str) -> None:
    path = tmp_path / "ledger.db"
    spend(path)
    with database(path) as db:
        db.execute(statement)
    with time_limit(), pytest.raises(LedgerError, match=message), QueryLedger(path, 10_000) as ledger:
        ledger.attach(opened(Service(), batch_size=16)).query(pool(200))
    if "keys" not in statement:
        with pytest.raises(LedgerError, match="damaged"):
            export(path, tmp_path / "table.csv")


def test_planted_faults_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its checks the ledger hands out wrong answers, or never ends."""
    sound = tmp_path / "ledger.db"
    spend(sound)
    monkeypatch.setattr(store, "checksum_of_answers", lambda *row: row[-1])
    monkeypatch.setattr(integrity, "checksum_of_answers", lambda *row: row[-1])
    with database(sound) as db:
        db.execute("UPDATE answers SET checksum = ifnull(scores, 0)")
        db.execute("UPDATE answers SET labels = zeroblob(length(labels))")
    with pytest.raises(AssertionError):
        use(sound)
