"""Whole jobs in processes that can be killed, each a fork of one that has imported everything: a start costs nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SERVER = """
import json, os, sys
import mlflow, sklearn.svm, scipy.stats, torch, matplotlib.pyplot
torch.set_num_threads(1)
from certdef import pipeline, stages
from certdef.models import serving
from certdef.purifiers import gs
from certdef.report import terminal
from certdef.cli import main
for line in iter(sys.stdin.readline, ""):
    folder, arguments, printed = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        output = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            code = main(arguments)
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()  # one that has ended is not collected before, so that its id stays its own
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs `certdef` in forks, one at a time; a context manager."""

    def __init__(self) -> None:
        self.printed = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, folder: Path, arguments: list[str], life: float | None = None) -> tuple[int, str]:
        """Run in a folder, killed after so many seconds of life; returns the exit code and what was printed."""
        child = self.start(folder, arguments)
        if life is not None:
            time.sleep(life)
            os.kill(child, signal.SIGKILL)
        return self.wait()

    def start(self, folder: Path, arguments: list[str]) -> int:
        """Run in a folder; returns the id of the process, which is its own until `wait`."""
        return self._ask(json.dumps([str(folder), arguments, self.printed.name]))

    def wait(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was printed."""
        return self._ask(""), Path(self.printed.name).read_text()

    def _ask(self, line: str) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(line, file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.server.kill()
        self.server.communicate()
        self.printed.close()
