"""SIGKILL at random moments of a process that pays: nothing answered is lost, nothing answered is paid again.

The service keeps a tally of its own, on the disk before it answers; after every kill the ledger is held against
it, image by image. The scenario runs in an interpreter of its own, which imports once and forks.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from surrogates import BudgetExceeded, QueryLedger, open_target
from surrogates.ledger import store
from surrogates.targets.base import Target

CLASSES = 7
SCALE = 1_000_000
VOTES = 500_000  # images from this number on are asked for votes, those before for training
BLOCK = 12  # images of one query; the service takes 5 at a time
LIVES_OF_AN_EXPERIMENT = 5


def images(first: int, count: int) -> np.ndarray:
    """Distinct images whose first pixel tells their number."""
    found = np.zeros((count, 1, 2, 2), np.float32)
    found[:, 0, 0, 0] = (np.arange(count) + first) / SCALE
    return found


def service(tally: Path) -> Target:
    """A service that answers in a millisecond, and writes down what it was asked before it does."""

    def answer(asked: np.ndarray) -> np.ndarray:
        numbers = np.rint(asked[:, 0, 0, 0] * SCALE).astype(int)
        with tally.open("a") as file:
            file.write("".join(f"{number}\n" for number in numbers))
            file.flush()
            os.fsync(file.fileno())
        time.sleep(0.001)
        scores = np.full((len(asked), CLASSES), 0.1, np.float32)
        scores[np.arange(len(asked)), numbers % CLASSES] = 0.4
        return scores

    return open_target(answer, num_classes=CLASSES, identity="box", batch_size=5)


def experiment(life: int) -> str:
    return f"experiment {life // LIVES_OF_AN_EXPERIMENT}"


def first_vote(life: int) -> int:
    return VOTES + 2_000 * (life // LIVES_OF_AN_EXPERIMENT)


def live(folder: Path, budget: dict[str, int], life: int, frontier: int, ready: int) -> None:
    """Ask on and on: training from a little before the frontier, votes from the start of the experiment."""
    with QueryLedger(folder / "ledger.db", budget) as ledger:
        training = ledger.attach(service(folder / "tally"))
        votes = ledger.attach(service(folder / "tally"), purpose="certification", experiment=experiment(life))
        os.write(ready, b"!")
        start = max(0, frontier - 3 * BLOCK)
        for turn in range(100):
            for target, first in (
                (training, start + turn * BLOCK),
                (votes, first_vote(life) + turn * BLOCK),
            ):
                try:
                    labels = target.query(images(first, BLOCK)).labels
                    assert labels.tolist() == [number % CLASSES for number in range(first, first + BLOCK)]
                except BudgetExceeded:
                    time.sleep(0.001)


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def killed(work: Callable[[int], None], moments: random.Random) -> bool:
    """Kill a process at a random moment: of its whole life, or (more often) once it has opened the ledger."""
    reading, writing = os.pipe()
    child = forked(lambda: work(writing))
    os.close(writing)
    if moments.random() < 0.7:
        os.read(reading, 1)  # ends too when the child does
    time.sleep(moments.uniform(0, 0.06))  # the first commit of a life waits for the disk
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "the process failed by itself"
    return code == -signal.SIGKILL


def batches(path: Path) -> dict[int, tuple[str, str, int]]:
    """Purpose, state and size of every batch, from the rows themselves."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT id, purpose, state, size FROM batches").fetchall()
    finally:
        connection.close()
    return {row: tuple(rest) for row, *rest in rows}


def images_by_fate(path: Path, names: dict[bytes, list[int]]) -> dict[str, Counter[int]]:
    """How often each image stands in an answered, unknown or refused batch, by the keys of the batches."""
    connection = sqlite3.connect(path)
    fates: dict[str, Counter[int]] = {state: Counter() for state in ("answered", "unknown", "refused")}
    try:
        for state, keys in connection.execute("SELECT state, keys FROM batches JOIN asked ON id = batch"):
            for start in range(0, len(keys), 32):
                fates[state].update(names[keys[start : start + 32]])
    finally:
        connection.close()
    return fates


def names_of_keys(folder: Path, life: int, frontier: int) -> dict[bytes, list[int]]:
    """The image numbers behind every key that may have been asked up to this life."""
    names: dict[bytes, list[int]] = {}
    with QueryLedger(folder / "ledger.db", 1) as ledger:
        training = ledger.attach(service(folder / "tally"))
        keys = training.keys.of(images(0, frontier + 200 * BLOCK)).order
        names.update((key, [number]) for number, key in enumerate(keys))
        for other in range(0, life + 1, LIVES_OF_AN_EXPERIMENT):
            votes = ledger.attach(
                service(folder / "tally"), purpose="certification", experiment=experiment(other)
            )
            for turn in range(100):
                first = first_vote(other) + turn * BLOCK
                keys = votes.keys.of(images(first, BLOCK)).order
                names.update((key, [first + row]) for row, key in enumerate(keys))
    return names


def run(folder: Path, kills: int) -> None:
    """Kill that many processes, one after the other, and hold ledger and tally together after each."""
    path, tally = folder / "ledger.db", folder / "tally"
    tally.touch()
    moments = random.Random(7)
    largest, answered_before = Counter[str](), Counter[int]()
    struck = life = frontier = seen = stale = 0
    while struck < kills:
        budget = {
            purpose: largest[purpose] + moments.randint(10, 150) for purpose in ("training", "certification")
        }
        work = (budget, life, frontier)
        struck += killed(lambda ready, work=work: live(folder, *work, ready), moments)
        if not path.exists():
            continue
        try:
            left = batches(path)
        except sqlite3.OperationalError:
            continue  # it died while it made the tables
        with QueryLedger(path, budget) as ledger:
            bill = ledger.bill()
        served = [int(line) for line in tally.read_text().split()]
        frontier = max([frontier, *(number for number in served if number < VOTES)])
        for row, (_, state, _) in batches(path).items():
            before = left[row][1]
            assert state == {"sent": "unknown", "reserved": "refused"}.get(before, before), (life, row)
            stale += before == "sent"
        fates = images_by_fate(path, names_of_keys(folder, life, frontier))
        times = Counter(served)
        for number in times.keys() | fates["answered"].keys():
            low = fates["answered"][number]
            assert low <= 1, f"image {number} was paid twice"
            assert low <= times[number] <= low + fates["unknown"][number], f"image {number} is billed wrongly"
        assert answered_before <= fates["answered"], "an answered query was lost"
        assert not answered_before.keys() & set(served[seen:]), "an answered query was asked again"
        for purpose, charge in bill.charges.items():
            whole = sum((number >= VOTES) == (purpose == "certification") for number in served)
            if purpose in budget:
                assert charge.in_flight == 0
                assert charge.smallest <= whole <= charge.largest <= budget[purpose], (life, purpose)
            largest[purpose] = charge.largest
        answered_before, seen, life = fates["answered"], len(served), life + 1
    assert stale >= kills // 10, f"only {stale} of {struck} kills struck while a query was out"
    print(f"{struck} kills, {stale} queries were out, {bill.total}")


def never_marked(folder: Path) -> None:
    """Plant a fault: batches leave without having been marked as sent, so that a kill makes them look free."""
    store.LedgerStore._mark_sent = lambda *_: None
    run(folder, 60)


def in_an_interpreter(
    *arguments: str, module: str = "test_ledger_kill", timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a module of this folder as a command."""
    return subprocess.run(
        [sys.executable, "-m", f"tests.end_to_end.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(25, id="25", marks=pytest.mark.acceptance),
        pytest.param(200, id="200", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    done = in_an_interpreter("run", str(tmp_path), str(kills))
    assert done.returncode == 0, done.stderr


def test_a_planted_fault_is_seen(tmp_path: Path) -> None:
    done = in_an_interpreter("never_marked", str(tmp_path))
    assert done.returncode != 0
    assert "is billed wrongly" in done.stderr or "struck while a query was out" in done.stderr


if __name__ == "__main__":
    scenario, place, *rest = sys.argv[1:]
    {"run": run, "never_marked": never_marked}[scenario](Path(place), *map(int, rest))
