"""A model of the ledger against eight real processes that ask, fail, fork, are killed, and disagree about the time.

Hypothesis chooses what happens next. Every process is at rest whenever the model looks: it is idle, its query is out
(the service has counted it and waits), or it waits for another process that has asked for the same image. So that nobody
can tell the others by their ids, all processes believe to be number 7, as processes in containers believe to be 1.
The machine runs in an interpreter of its own, which imports once and forks.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from surrogates import BudgetExceeded, QueryLedger, TargetError, open_target
from surrogates.ledger import ledger as ledger_module
from surrogates.ledger.owners import OwnerLock
from surrogates.ledger.reader import Account, read_statement
from tests.end_to_end.test_ledger_kill import CLASSES, SCALE, forked, images, in_an_interpreter

PROCESSES = 8
BUDGET = 16
POOL = 30  # distinct images
BATCH = 3
FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None  # this is about processes, not about the disk
PATIENCE = 30  # seconds until a process counts as hung

Service = Callable[[np.ndarray], np.ndarray]


def scores_of(numbers: np.ndarray) -> np.ndarray:
    scores = np.full((len(numbers), CLASSES), 0.1, np.float32)
    scores[np.arange(len(numbers)), numbers % CLASSES] = 0.4
    return scores


class Process:
    """A process that pays: every order that it gets is answered by one event."""

    def __init__(self, address: str, path: Path, inherited: QueryLedger | None = None) -> None:
        self.address, self.path, self.clock = address, path, 0.0
        self.line: Connection = Client(address)
        self.ledger = inherited or QueryLedger(path, BUDGET)
        self.target = self.ledger.attach(
            open_target(self.serve, num_classes=CLASSES, identity="box", batch_size=BATCH)
        )

    def serve(self, asked: np.ndarray) -> np.ndarray:
        numbers = np.rint(asked[:, 0, 0, 0] * SCALE).astype(int)
        self.line.send(("asked", numbers.tolist()))
        if self.line.recv() == "fail":
            raise RuntimeError("line dropped")
        return scores_of(numbers)

    def wait(self, seconds: float) -> None:
        self.line.send(("waiting", None))
        self.line.recv()

    def live(self) -> None:
        real = time.time
        time.time = lambda: real() + self.clock
        os.getpid = lambda: 7
        ledger_module.time = SimpleNamespace(sleep=self.wait)
        event: tuple[str, Any] = ("idle", None)
        while True:
            self.line.send(event)
            order, argument = self.line.recv()
            event = getattr(self, order)(argument)

    def query(self, span: tuple[int, int]) -> tuple[str, Any]:
        try:
            return "done", self.target.query(images(*span)).labels.tolist()
        except BudgetExceeded as error:
            return "exceeded", str(error)
        except TargetError as error:
            return "failed", str(error)

    def look(self, _: None) -> tuple[str, Any]:
        charge = self.ledger.bill()["training"]
        return "idle", (charge.answered, charge.unknown, charge.in_flight)

    def set_clock(self, seconds: float) -> tuple[str, Any]:
        self.clock = seconds
        return "idle", None

    def fork(self, _: None) -> tuple[str, Any]:
        return "idle", forked(lambda: Process(self.address, self.path, self.ledger).live())


class Handle:
    """The model's end of a process."""

    def __init__(self, pid: int, line: Connection) -> None:
        self.pid, self.line = pid, line
        self.state, self.wanted, self.out = "idle", range(0), list[int]()
        self.event()

    def event(self) -> Any:
        assert self.line.poll(PATIENCE), f"a process hangs while it is {self.state}"
        kind, value = self.line.recv()
        self.state = kind if kind in ("asked", "waiting") else "idle"
        self.out = value if kind == "asked" else []
        return kind, value

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while not dead(self.pid):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        self.line.close()


def dead(pid: int) -> bool:
    """Whether a process, of our own or of a child's, has ended; a zombie has."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=FOLDER)
        self.path = Path(self.folder.name) / "ledger.db"
        self.listener = Listener(str(Path(self.folder.name) / "line"), backlog=PROCESSES)
        self.living: list[Handle] = []
        self.served: list[int] = []  # what the service has counted
        self.kept: set[int] = set()  # whose answer must be in the ledger
        self.lost = 0  # queries that failed or whose process was killed
        self.hidden = 0  # of those, queries that may have been marked as sent without having left
        self.start()

    @rule()
    @precondition(lambda self: len(self.living) < PROCESSES)
    def start(self) -> None:
        pid = forked(lambda: Process(self.listener.address, self.path).live())
        self.living.append(Handle(pid, self.listener.accept()))

    def one(self, data: st.DataObject, *states: str) -> Handle:
        found = [handle for handle in self.living if handle.state in states]
        return data.draw(st.sampled_from(found), label="process") if found else hypothesis.reject()

    def order(self, handle: Handle, *order: Any) -> None:
        handle.line.send(order if len(order) > 1 else order[0])
        kind, value = handle.event()
        if kind == "asked":
            again = self.kept & set(value)
            assert not again, f"paid again: {again}"
            self.served += value
        elif kind == "done":
            assert value == [number % CLASSES for number in handle.wanted]
            self.kept |= set(handle.wanted)
        elif kind == "exceeded":
            assert f"{BUDGET} queries" in value

    @rule(data=st.data(), first=st.integers(0, POOL - 1), count=st.integers(1, 12))
    def query(self, data: st.DataObject, first: int, count: int) -> None:
        handle = self.one(data, "idle")
        handle.wanted = range(first, min(first + count, POOL))
        self.order(handle, "query", (first, len(handle.wanted)))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        handle = self.one(data, "asked")
        arrived = set(handle.out)
        self.order(handle, "answer")
        self.kept |= arrived
        self.poll()

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        handle = self.one(data, "asked")
        self.lost += len(handle.out)
        self.order(handle, "fail")
        self.poll()

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        handle = self.one(data, "idle", "asked", "waiting")
        self.lost += len(handle.out)
        self.living.remove(handle)
        handle.kill()
        self.poll()

    @rule(data=st.data(), seconds=st.floats(0, 0.003))
    def answer_and_kill(self, data: st.DataObject, seconds: float) -> None:
        """Kill while the answer is being kept, and perhaps while the next batch is being sent."""
        handle = self.one(data, "asked")
        self.lost += len(handle.out) + BATCH
        self.hidden += BATCH
        handle.line.send("answer")
        time.sleep(seconds)
        self.living.remove(handle)
        handle_line, handle.line = handle.line, Silent()
        handle.kill()
        while handle_line.poll():
            try:
                kind, value = handle_line.recv()
            except (EOFError, OSError):
                break
            if kind == "asked":
                self.served += value
        handle_line.close()
        self.poll()

    @rule(data=st.data(), seconds=st.sampled_from([-1e5, -3.0, 0.0, 3.0, 7200.0, 1e8]))
    def step_clock(self, data: st.DataObject, seconds: float) -> None:
        self.order(self.one(data, "idle"), "set_clock", seconds)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """Ask for the bill, which settles what dead processes left."""
        self.order(self.one(data, "idle"), "look", None)

    @rule(data=st.data())
    @precondition(lambda self: len(self.living) < PROCESSES)
    def fork(self, data: st.DataObject) -> None:
        handle = self.one(data, "idle")
        handle.line.send(("fork", None))
        line = self.listener.accept()
        _, pid = handle.event()
        self.living.append(Handle(pid, line))

    def poll(self) -> None:
        """Let those look again that wait for another process."""
        for handle in self.living:
            if handle.state == "waiting":
                self.order(handle, "look again")

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        states = {handle.state for handle in self.living}
        assert "waiting" not in states or "asked" in states

    @invariant()
    def the_books_agree(self) -> None:
        account = read_statement(self.path).accounts.get("training", Account(0, 0, 0, 0, None, None))
        assert len(self.served) <= BUDGET, f"{len(self.served)} paid of {BUDGET}"
        assert len(self.served) <= account.largest <= BUDGET
        assert len(self.kept) <= account.answered <= len(self.served)
        assert account.unknown <= self.lost, "a living process was taken for dead"
        out = sum(len(handle.out) for handle in self.living)
        assert account.answered + account.unknown + out <= len(self.served) + self.hidden

    def teardown(self) -> None:
        for handle in self.living:
            self.lost += len(handle.out)
            handle.kill()
        self.listener.close()
        service: list[int] = []

        def answer(asked: np.ndarray) -> np.ndarray:
            service.extend(np.rint(asked[:, 0, 0, 0] * SCALE).astype(int).tolist())
            return scores_of(np.array(service[-len(asked) :]))

        with QueryLedger(self.path, BUDGET) as ledger:
            charge = ledger.bill()["training"]
            assert charge.in_flight == 0
            assert len(self.served) <= charge.largest <= len(self.served) + self.hidden
        with QueryLedger(self.path, BUDGET + POOL) as ledger:
            target = ledger.attach(open_target(answer, num_classes=CLASSES, identity="box"))
            assert target.query(images(0, POOL)).labels.tolist() == [k % CLASSES for k in range(POOL)]
            assert not self.kept & set(service), "an answer was lost"
        self.folder.cleanup()
        while True:  # reap
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break


class Silent:
    def close(self) -> None: ...


def run(examples: str, steps: str = "30") -> None:
    """Run the machine, with the same examples each time."""
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=int(examples),
            stateful_step_count=int(steps),
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


def taken_for_dead(examples: str) -> None:
    """Plant a fault: everybody else looks dead."""
    OwnerLock.is_alive = lambda *_: False
    run(examples)


def unbounded(examples: str) -> None:
    """Plant a fault: nobody looks at the budget."""
    ledger_module.LedgerStore._check_budget = lambda *_: None
    run(examples)


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param("8", id="8", marks=pytest.mark.acceptance),
        pytest.param("200", id="200", marks=pytest.mark.slow),
    ],
)
def test_the_ledger_keeps_to_its_model(examples: str) -> None:
    done = in_an_interpreter("run", examples, module="test_ledger_machine", timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.acceptance
@pytest.mark.parametrize("fault", ["taken_for_dead", "unbounded"])
def test_a_planted_fault_is_seen(fault: str) -> None:
    """By as few examples as the quick test has."""
    done = in_an_interpreter(fault, "8", module="test_ledger_machine", timeout=1200)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    globals()[name](*rest)
