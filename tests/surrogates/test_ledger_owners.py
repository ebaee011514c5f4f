"""Who is alive is decided by the kernel alone, and what is paid goes into the file that everybody sees, or is not paid."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from surrogates import BudgetExceeded, LedgerError, QueryLedger
from surrogates.ledger import file
from surrogates.ledger.owners import OwnerLock
from tests.end_to_end.test_ledger_kill import forked
from tests.surrogates.test_ledger import CLASSES, Service, Witness, database, numbers, opened, pool, states

BUDGET = 100
CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_memory_keeps_nothing_and_is_refused() -> None:
    with pytest.raises(LedgerError, match="':memory:' would keep nothing: give the path of a file"):
        QueryLedger(":memory:", 5)


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with QueryLedger("ledger.db", 9) as ledger:
        target = ledger.attach(opened(Service()))
        target.query(pool(3))
        monkeypatch.chdir(tmp_path / "elsewhere")
        child = forked(lambda: target.query(pool(6)))
        assert os.waitpid(child, 0)[1] == 0
        target.query(pool(6))
        assert ledger.bill()["training"].answered == 6
    assert list((tmp_path / "elsewhere").iterdir()) == []


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").rename(path)


def delete_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_the_journal(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def delete_the_index(path: Path) -> None:
    path.with_name(f"{path.name}-shm").unlink()


def delete_the_lock(path: Path) -> None:
    path.with_name(f"{path.name}-lock").unlink()


ENDS = [delete, move, replace, delete_the_folder, delete_the_journal, delete_the_index, delete_the_lock]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("during", [True, False], ids=["during a query", "between queries"])
def test_a_file_that_is_no_longer_in_place_pays_nothing_more(
    tmp_path: Path, end: Callable[[Path], None], during: bool
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "ledger.db"

    class Disturbed(Service):
        def __call__(self, images):
            if numbers(images)[0] == 24 and during:
                end(path)
            return super().__call__(images)

    service = Disturbed()
    with QueryLedger(path, BUDGET) as ledger:
        target = ledger.attach(opened(service, batch_size=4))
        target.query(pool(20))
        if not during:
            end(path)
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"was deleted, moved or replaced .* nothing more is paid"):
                target.query(pool(16, first=20))
        assert service.served == [*range(28 if during else 20)]
        assert target.query(pool(20)).labels.tolist() == [number % CLASSES for number in range(20)]


def test_a_full_disk_pays_nothing_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    with QueryLedger(path, BUDGET) as ledger:
        target = ledger.attach(opened(service))
        target.query(pool(4))
        monkeypatch.setattr(file, "ROOM_BYTES", 2**60)
        with pytest.raises(LedgerError, match=r"bytes of disk left, .* nothing more is paid"):
            target.query(pool(8))
        assert service.served == [*range(4)]
        assert states(path) == {"answered": 4}


def test_a_batch_is_sent_only_if_it_is_still_reserved(path: Path) -> None:
    class Taken(Service):
        def __call__(self, images):
            with database(path) as db:  # another process takes this one for dead
                db.execute("UPDATE batches SET state = 'refused', settled_at = 0 WHERE state = 'reserved'")
            return super().__call__(images)

    service = Taken()
    with QueryLedger(path, BUDGET) as ledger:
        with pytest.raises(LedgerError, match="has given up batch 2: query again"):
            ledger.attach(opened(service, batch_size=4)).query(pool(12))
        assert service.served == [*range(4)]
        assert states(path) == {"answered": 4, "refused": 8}
        ledger.attach(opened(service)).query(pool(12))
        assert service.served == [*range(12)]


def test_a_batch_is_sent_only_if_the_budget_still_holds(path: Path) -> None:
    class Outbid(Service):
        def __call__(self, images):
            if len(self.batches) == 0:
                with QueryLedger(path, 2 * BUDGET) as other:  # a process that was given more
                    other.attach(opened(Service())).query(pool(BUDGET, first=500))
            return super().__call__(images)

    service = Outbid()
    with QueryLedger(path, BUDGET) as ledger:
        with pytest.raises(BudgetExceeded, match="100 queries, 104 spent and 8 in flight"):
            ledger.attach(opened(service, batch_size=4)).query(pool(12))
        assert service.served == [*range(4)]
        assert states(path) == {"answered": 104, "refused": 8}


def test_an_owner_lives_until_its_file_is_closed(tmp_path: Path) -> None:
    first, second = (OwnerLock(tmp_path / "lock", 0o600) for _ in range(2))
    assert second.is_alive(first.owner)
    (tmp_path / "lock").open().close()  # which would free a lock of fcntl.lockf
    assert second.is_alive(first.owner)
    assert not second.is_alive(first.owner + 1)
    first.close()
    assert not second.is_alive(first.owner)
    second.close()


def test_tables_that_are_made_by_another_while_a_file_is_opened_are_a_ledgers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two open a new file at once: one reads "no ledger", the other makes its tables, and the first counts them."""
    connect = sqlite3.connect
    other = threading.Thread(target=lambda: QueryLedger(path, 5).close())

    class Overtaken(sqlite3.Connection):
        def execute(self, statement, *rest):
            cursor = super().execute(statement, *rest)
            if statement == "PRAGMA application_id":
                monkeypatch.setattr(sqlite3, "connect", connect)
                other.start()
                other.join(1.0)  # it may also have to wait for us
            return cursor

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Overtaken))
    with QueryLedger(path, 5) as ledger:
        other.join()
        assert ledger.attach(opened(Service())).query(pool(5)).labels.tolist() == [0, 1, 2, 3, 4]


# Scenarios with real processes, in a fresh interpreter that forks; see `play`.


def served(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "witness").read_text().split()]


def spend(folder: Path, first: int, clock: float = 0.0) -> None:
    """Ask for queries of many batches for some seconds, while the clock of this process is wrong."""
    real = time.time
    time.time = lambda: real() + clock
    with QueryLedger(folder / "ledger.db", BUDGET) as ledger:
        target = ledger.attach(opened(Witness(folder / "witness", 0.02), batch_size=5))
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                target.query(pool(40, first=first))
                first += 40
            except BudgetExceeded:
                time.sleep(0.005)


def finish(children: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)


def scenario_clock(folder: Path) -> None:
    """Four processes share a budget while their clocks are hours apart."""
    clocks = (0.0, 7200.0, -7200.0, 1e6)
    finish(
        [forked(lambda k=k, clock=clock: spend(folder, 1000 * k, clock)) for k, clock in enumerate(clocks)]
    )
    assert len(served(folder)) == 80, f"paid {len(served(folder))}: two queries of 40 fit into 100"
    with QueryLedger(folder / "ledger.db", BUDGET) as ledger:
        assert ledger.bill()["training"].answered == 80


def scenario_taken_for_dead(folder: Path) -> None:
    """Plant a fault: everybody else looks dead."""
    OwnerLock.is_alive = lambda *_: False
    scenario_clock(folder)


def scenario_forks(folder: Path) -> None:
    """Fork while threads use the ledger: no child hangs, and each pays for itself."""
    stop = threading.Event()
    with QueryLedger(folder / "ledger.db", 10**6) as ledger:
        target = ledger.attach(opened(Witness(folder / "witness", 0)))

        def hammer(first: int) -> None:
            while not stop.is_set():
                target.query(pool(5, first=first))
                first += 5

        threads = [threading.Thread(target=hammer, args=(10_000 * k,)) for k in range(1, 7)]
        for thread in threads:
            thread.start()

        def work(first: int) -> None:
            assert target.query(pool(5, first=first)).labels.tolist() == [
                k % CLASSES for k in range(first, first + 5)
            ]
            assert ledger.bill()["training"].answered >= 5

        try:
            children = []
            for k in range(20):
                children.append(forked(partial(work, 80_000 + 5 * k)))
                time.sleep(0.01)
            finish(children)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert ledger.bill()["training"].answered == len(served(folder)) == len(set(served(folder)))
    assert {number for number in served(folder) if number >= 80_000} == {*range(80_000, 80_100)}


def scenario_parent_closes(folder: Path) -> None:
    """A child goes on with the ledger of its parent, which closes it and ends: every answer is kept."""
    (child_ready, ready), (parent_closed, closed) = os.pipe(), os.pipe()
    ledger = QueryLedger(folder / "ledger.db", 1000)
    target = ledger.attach(opened(Witness(folder / "witness", 0)))
    target.query(pool(5))

    def work() -> None:
        target.query(pool(5, first=100))
        os.write(ready, b"!")
        os.read(parent_closed, 1)
        for first in range(200, 300, 5):
            target.query(pool(5, first=first))

    child = forked(work)
    os.read(child_ready, 1)
    ledger.close()
    with QueryLedger(folder / "ledger.db", 1000) as other:
        assert other.bill()["training"].answered == 10
    os.write(closed, b"!")
    finish([child])
    with QueryLedger(folder / "ledger.db", 1000) as other:
        assert other.bill()["training"].answered == len(served(folder)) == 110


def scenario_fork_in_flight(folder: Path) -> None:
    """A query that is out while its process forks stays in flight, for the child too, until the process ends."""
    path = folder / "ledger.db"

    class Forking(Service):
        def __call__(self, images):
            def look() -> None:
                charge = ledger.bill()["training"]
                assert (charge.largest, charge.unknown, charge.refused) == (8, 0, 0)

            finish([forked(look)])
            return super().__call__(images)

    with QueryLedger(path, 20) as ledger:
        assert ledger.attach(opened(Forking(), batch_size=4)).query(pool(8)).labels.tolist()[:3] == [0, 1, 2]
        assert states(path) == {"answered": 8}


SCENARIOS = {
    "clock": scenario_clock,
    "forks": scenario_forks,
    "parent_closes": scenario_parent_closes,
    "fork_in_flight": scenario_fork_in_flight,
    "taken_for_dead": scenario_taken_for_dead,  # the last, since it changes what others rely on
}


def play(folder: Path) -> dict[str, str]:
    """Play every scenario in this interpreter, which imports once; return how each ended."""
    outcomes = {}
    for name, scenario in SCENARIOS.items():
        (folder / name).mkdir()
        (folder / name / "witness").touch()
        try:
            scenario(folder / name)
            outcomes[name] = "right"
        except Exception:
            outcomes[name] = traceback.format_exc()
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.surrogates.test_ledger_owners",
            "play",
            str(tmp_path_factory.mktemp("owners")),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)  # why a child failed, which a failing test shows
    return json.loads(done.stdout)


def test_a_clock_step_makes_nobody_dead(outcomes: dict[str, str]) -> None:
    assert outcomes["clock"] == "right"


def test_a_planted_fault_is_seen(outcomes: dict[str, str]) -> None:
    assert "AssertionError" in outcomes["taken_for_dead"]


def test_no_child_hangs_that_is_forked_while_threads_use_the_ledger(outcomes: dict[str, str]) -> None:
    assert outcomes["forks"] == "right"


def test_a_child_outlives_the_ledger_of_its_parent(outcomes: dict[str, str]) -> None:
    assert outcomes["parent_closes"] == "right"


def test_a_query_is_in_flight_while_its_process_forks(outcomes: dict[str, str]) -> None:
    assert outcomes["fork_in_flight"] == "right"


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.skipif(
    subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0, reason="no PID namespaces here"
)
def test_another_pid_namespace_makes_nobody_dead(tmp_path: Path) -> None:
    """Two of four processes are in PID namespaces of their own, as in containers that share a folder."""
    (tmp_path / "witness").touch()
    ask = [sys.executable, "-m", "tests.surrogates.test_ledger_owners", "spend", str(tmp_path)]
    processes = [
        subprocess.Popen([*(CONTAINER if k % 2 else []), *ask, str(1000 * k)], cwd=Path(__file__).parents[2])
        for k in range(4)
    ]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert len(served(tmp_path)) == 80, f"paid {len(served(tmp_path))}: two queries of 40 fit into 100"


if __name__ == "__main__":
    name, place, *rest = sys.argv[1:]
    if name == "spend":
        spend(Path(place), int(rest[0]))
    else:
        print(json.dumps(play(Path(place))))
