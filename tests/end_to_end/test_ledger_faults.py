"""What faults of the world do to the ledger, as a table that anybody can make again.

    python -m tests.end_to_end.test_ledger_faults [--times 100] [--faults kill stop "full disk" "power cut"]

A process pays a service in small batches while a fault strikes at a random moment; then a new process goes on. The
service keeps a tally of its own, on the disk before it answers, and so does the caller of what it was handed. "lost" are
answers that were handed out and that the ledger no longer has; "paid twice" are images that the service answered again
although their answer had been handed out; "past the budget" are queries that the service answered beyond it; "unknown" are queries that the
ledger books although their answer never came. The full disk needs the right to mount (unshare --user --mount).

A power cut is simulated: of what was written, that is kept which SQLite had waited for, and a random part of the rest. It
waits for its journal at some commits, so that this takes a hundredth of the time, and before it copies it into the file.
"oldest" is how long before the cut the oldest lost answer had been handed out.
"""

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from surrogates import BudgetExceeded, LedgerError, QueryLedger, open_target
from tests.end_to_end.test_ledger_kill import CLASSES, SCALE, forked, images, in_an_interpreter

BATCH = 5
QUERY = 15  # images of one query
BUDGET = 2_000
FRAME = 24 + 4096  # of SQLite's journal, after its header
HEADER = 32


@dataclass
class Figures:
    """What a fault did, summed over its times."""

    times: int = 0
    lost: int = 0
    twice: int = 0
    past_the_budget: int = 0
    unknown: int = 0
    paid: int = 0
    oldest: float = 0.0


class Episode:
    """One ledger, its service's tally and its callers' tally, in a folder of their own."""

    def __init__(self, folder: Path, budget: int = BUDGET) -> None:
        self.path, self.tally, self.handed = folder / "ledger.db", folder / "tally", folder / "handed"
        self.budget = budget
        self.moments = folder / "moments"  # when each was handed out

    def serve(self, asked: np.ndarray) -> np.ndarray:
        numbers = np.rint(asked[:, 0, 0, 0] * SCALE).astype(int)
        write(self.tally, numbers.tolist())
        time.sleep(0.001)
        scores = np.full((len(asked), CLASSES), 0.1, np.float32)
        scores[np.arange(len(asked)), numbers % CLASSES] = 0.4
        return scores

    def spend(self, queries: int, prepare: Callable[[QueryLedger], None] = lambda ledger: None) -> None:
        """Ask for images from the first on, those that are known among them, and note what comes."""
        with QueryLedger(self.path, self.budget) as ledger:
            prepare(ledger)
            target = ledger.attach(
                open_target(self.serve, num_classes=CLASSES, identity="box", batch_size=BATCH)
            )
            start = max(0, max(read(self.tally), default=0) - 3 * QUERY)
            for first in range(start, start + queries * QUERY, QUERY):
                try:
                    labels = target.query(images(first, QUERY)).labels.tolist()
                except BudgetExceeded:
                    return
                numbers = [*range(first, first + QUERY)]
                assert labels == [number % CLASSES for number in numbers], "a wrong answer"
                write(self.handed, numbers)
                write(self.moments, [round(1e6 * time.monotonic())] * QUERY)

    def audit(self, figures: Figures, struck: float = 0.0) -> None:
        """Hold the ledger, after a fault at that moment, against both tallies."""
        served, handed = Counter(read(self.tally)), set(read(self.handed))
        with QueryLedger(self.path, self.budget + 10**6) as ledger:
            charge = ledger.bill()["training"]
            asked: list[int] = []

            def note(batch: np.ndarray) -> np.ndarray:
                asked.extend(np.rint(batch[:, 0, 0, 0] * SCALE).astype(int).tolist())
                return np.full((len(batch), CLASSES), 1 / CLASSES, np.float32)

            target = ledger.attach(open_target(note, num_classes=CLASSES, identity="box", batch_size=BATCH))
            for number in sorted(handed):
                target.query(images(number, 1))
        assert charge.in_flight == 0
        figures.times += 1
        figures.lost += len(asked)
        if asked:
            moments = dict(zip(read(self.handed), read(self.moments), strict=False))
            figures.oldest = max(figures.oldest, struck - min(moments[number] for number in asked) / 1e6)
        figures.twice += sum(
            served[number] - 1 for number in handed if served[number] > 1 and number not in self.excused()
        )
        figures.past_the_budget += max(0, served.total() - self.budget)
        figures.unknown += charge.unknown
        figures.paid += served.total()

    def excused(self) -> set[int]:
        """Images that were asked again because their first query never came back."""
        file = self.handed.with_name("excused")
        return set(read(file))

    def excuse(self) -> None:
        """Note the images that were served and not handed out: who asks for them again pays again."""
        write(self.handed.with_name("excused"), sorted(set(read(self.tally)) - set(read(self.handed))))


def write(path: Path, numbers: list[int]) -> None:
    with path.open("a") as file:
        file.write("".join(f"{number}\n" for number in numbers))


def read(path: Path) -> list[int]:
    """The numbers in a file; a torn last line is none."""
    text = path.read_text() if path.exists() else ""
    return [int(line) for line in text[: text.rfind("\n") + 1].split()]


def finish(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the process that goes on has failed"


def kill(folder: Path, moments: random.Random, figures: Figures) -> None:
    """SIGKILL at a random moment; the next process goes on."""
    episode = Episode(folder)
    child = forked(lambda: episode.spend(60))
    time.sleep(moments.uniform(0.005, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    episode.excuse()
    finish(forked(lambda: episode.spend(10)))
    episode.audit(figures)


def stop(folder: Path, moments: random.Random, figures: Figures) -> None:
    """SIGSTOP at a random moment; others pay for other images from the same small budget; SIGCONT."""
    episode = Episode(folder, budget=120)
    child = forked(lambda: episode.spend(60))
    time.sleep(moments.uniform(0.005, 0.12))
    os.kill(child, signal.SIGSTOP)
    others = [forked(partial(elsewhere, episode, 10_000 * k)) for k in (1, 2)]
    time.sleep(moments.uniform(0.01, 0.05))
    os.kill(child, signal.SIGCONT)
    for process in (child, *others):
        finish(process)
    episode.audit(figures)


def elsewhere(episode: Episode, first: int) -> None:
    with QueryLedger(episode.path, episode.budget) as ledger:
        target = ledger.attach(
            open_target(episode.serve, num_classes=CLASSES, identity="box", batch_size=BATCH)
        )
        for number in range(first, first + 10 * QUERY, QUERY):
            try:
                target.query(images(number, QUERY))
            except BudgetExceeded:
                return
            write(episode.handed, [*range(number, number + QUERY)])


def full_disk(folder: Path, moments: random.Random, figures: Figures) -> None:
    """The disk of the ledger is filled to the last byte at a random moment, and later there is room again."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        episode = Episode(folder)
        episode.path = disk / "ledger.db"

        def work() -> None:
            try:
                episode.spend(60)
            except LedgerError as error:
                message = str(error)
            else:
                message = ""
            assert "\n" not in message

        child = forked(work)
        time.sleep(moments.uniform(0.005, 0.12))
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(2**20))
            except OSError:
                pass
        finish(child)
        (disk / "filler").unlink()
        episode.excuse()
        finish(forked(lambda: episode.spend(10)))
        episode.audit(figures)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def power_cut(folder: Path, moments: random.Random, figures: Figures) -> None:
    """Everything stops at a random moment, and the disk has what was waited for, and a part of the rest."""
    episode = Episode(folder)
    mark = folder / "waited for"

    def watch(ledger: QueryLedger) -> None:
        def note(statement: str) -> None:
            if statement == "PRAGMA synchronous = NORMAL":  # the commit before it has waited for the disk
                salt, frames, _ = journal(episode.path)
                part = mark.with_name("part")
                part.write_bytes(salt + struct.pack("=I", frames))
                part.replace(mark)

        ledger.store.file.connection.set_trace_callback(note)

    child = forked(lambda: episode.spend(600, watch))
    time.sleep(moments.uniform(0.01, 2.5))
    struck = time.monotonic()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if episode.path.exists() and Path(f"{episode.path}-wal").exists():
        salt, frames, copied = journal(episode.path)
        noted = mark.read_bytes() if mark.exists() else b""
        safe = struct.unpack("=I", noted[8:])[0] if noted[:8] == salt else 0
        tear(Path(f"{episode.path}-wal"), max(safe, copied), frames, moments)
    Path(f"{episode.path}-shm").unlink(missing_ok=True)
    episode.excuse()
    finish(forked(lambda: episode.spend(10)))
    episode.audit(figures, struck)


def journal(path: Path) -> tuple[bytes, int, int]:
    """The salt of SQLite's journal, its frames, and those that were copied into the file, from the index beside it."""
    index = Path(f"{path}-shm").read_bytes()[:136]
    if len(index) < 136:
        return b"", 0, 0
    (frames,), (copied,) = struct.unpack_from("=I", index, 16), struct.unpack_from("=I", index, 128)
    return index[32:40], frames, copied


def tear(path: Path, safe: int, frames: int, moments: random.Random) -> None:
    """Keep the first `safe` frames of a journal; of the others some sectors arrive and some do not."""
    data = bytearray(path.read_bytes())
    start, end = (min(len(data), HEADER + FRAME * count) for count in (safe, frames))
    end = moments.randint(start, end)
    for sector in range(start, end, 512):
        if moments.random() < 0.1:
            data[sector : min(sector + 512, end)] = bytes(min(512, end - sector))
    path.write_bytes(data[:end])


FAULTS: dict[str, Callable[[Path, random.Random, Figures], None]] = {
    "kill": kill,
    "stop": stop,
    "full disk": full_disk,
    "power cut": power_cut,
}


def measure(fault: str, times: int, seed: int = 7) -> Figures:
    """Let a fault strike so many times, each in a folder of its own."""
    moments, figures = random.Random(f"{fault} {seed}"), Figures()
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            FAULTS[fault](Path(folder), moments, figures)
    return figures


def line(fault: str, figures: Figures) -> str:
    oldest = f"{figures.oldest:.1f} s" if figures.lost else ""
    counts = (
        figures.times,
        figures.lost,
        figures.twice,
        figures.past_the_budget,
        figures.unknown,
        figures.paid,
    )
    return f"| {fault} | " + " | ".join(f"{count:,}" for count in counts) + f" | {oldest} |"


def mounted(times: int) -> str:
    """Return the line of the full disk, from a process that may mount one."""
    command = [
        sys.executable,
        "-m",
        "tests.end_to_end.test_ledger_faults",
        "--times",
        str(times),
        "--mounted",
    ]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command], capture_output=True, text=True
    )
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return done.stdout.strip() if done.returncode == 0 else f"| full disk | not run: {reason} |"


@pytest.mark.slow
@pytest.mark.acceptance
def test_no_fault_loses_an_answer_or_passes_the_budget() -> None:
    """Only a power cut may lose something: the last moments."""
    done = in_an_interpreter("--times", "5", module="test_ledger_faults")
    assert done.returncode == 0, done.stderr
    table = {row.split("|")[1].strip(): row for row in done.stdout.splitlines()[2:]}
    assert [*table] == [*FAULTS]
    for fault in ("kill", "stop", "full disk"):
        assert table[fault].startswith(f"| {fault} | 5 | 0 | 0 | 0 |") or "not run" in table[fault]
    assert table["power cut"].startswith("| power cut | 5 | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS], default=[*FAULTS])
    parser.add_argument("--mounted", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mounted:
        print(line("full disk", measure("full disk", arguments.times)))
        return
    print("| fault | times | answers lost | paid twice | past the budget | unknown | of queries | oldest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for fault in arguments.faults:
        times = arguments.times
        print(mounted(times) if fault == "full disk" else line(fault, measure(fault, times)), flush=True)


if __name__ == "__main__":
    main()
