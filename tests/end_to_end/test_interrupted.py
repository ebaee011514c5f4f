"""SIGKILL during distillation and during certification: the job goes on, pays nothing twice, counts the same."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from certdef.config.load import load_config
from tests.conftest import TINY
from tests.end_to_end.forks import Forks

SIZES = TINY | {
    "surrogate__epochs": 12,  # students too, behind their denoisers
    "nim__epochs": 3,
    "threads": 1,
    "certify__images": 8,
    "certify__n": 200,
    "certify__method": "fixed",
}


def arguments(folder: Path, migrated_store: Path) -> list[str]:
    """Of `certdef`, for a job in a folder, which has a store from then on."""
    folder.mkdir(exist_ok=True)
    if not (folder / "mlflow.db").exists():
        shutil.copy(migrated_store, folder / "mlflow.db")
    values = SIZES | {"work_dir": str(folder / "work"), "tracking__uri": f"sqlite:///{folder}/mlflow.db"}
    options = [
        f"--{key.replace('__', '.')}={value}".replace("=False", "=false") for key, value in values.items()
    ]
    return ["run", "--quiet", *options]


def finish(forks: Forks, folder: Path, migrated_store: Path) -> str:
    code, output = forks.run(folder, arguments(folder, migrated_store))
    assert code == 0, output
    return output


def kill_when(forks: Forks, folder: Path, migrated_store: Path, moment: tuple[str, Callable]) -> None:
    """Kill a job at a moment within a stage, which must not end before."""
    stage, ready = moment
    process = forks.start(folder, arguments(folder, migrated_store))
    deadline = time.monotonic() + 120
    try:
        while not ready(folder / "work"):
            assert time.monotonic() < deadline
            assert not any((folder / "work").glob(f"{stage}-*/result.json")), f"{stage} ended before the kill"
            time.sleep(0.005)
    finally:
        os.kill(process, signal.SIGKILL)
        code, output = forks.wait()
    assert code == -signal.SIGKILL, output
    assert not any((folder / "work").glob(f"{stage}-*/result.json")), f"{stage} was not interrupted"


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("work/certify-*/records/*.jsonl"))}


def charges(folder: Path) -> dict[tuple[str, str], int]:
    """The bill, read from the ledger's file itself."""
    with sqlite3.connect(folder / "work" / "ledger.db") as ledger:
        table = next(
            name
            for (name,) in ledger.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE 'batch%' AND type = 'table'"
            )
        )
        rows = ledger.execute(
            f"SELECT purpose, state, SUM(size) FROM {table} GROUP BY purpose, state"
        ).fetchall()
    return {(purpose, state): size for purpose, state, size in rows if state in ("answered", "unknown")}


@pytest.fixture(scope="module")
def unbroken(migrated_store, tmp_path_factory):
    """A job that nothing happened to, from the command itself; the others are forks."""
    folder = tmp_path_factory.mktemp("unbroken")
    command = [sys.executable, "-m", "certdef.cli", *arguments(folder, migrated_store)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


DISTILLING = "surrogate", lambda work: any(work.glob("surrogate-*/checkpoint.pt"))


def certifying(part: str, lines: int):
    def ready(work: Path) -> bool:
        return any(
            path.read_bytes().count(b"\n") > lines for path in work.glob(f"certify-*/records/{part}.jsonl")
        )

    return "certify", ready


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(
            [DISTILLING, certifying("target-nim-de3", 1)],
            id="distillation-and-certification",
            marks=pytest.mark.acceptance,
        ),
        pytest.param(
            [DISTILLING, certifying("target-wide-none", 1), certifying("surrogate-nim-de3", 5)],
            id="three-times",
        ),
    ],
)
def test_a_killed_job_goes_on(moments, forks, unbroken, migrated_store, tmp_path):
    for moment in moments:
        kill_when(forks, tmp_path, migrated_store, moment)
    output = finish(forks, tmp_path, migrated_store)
    assert "report" in output
    assert len(records(tmp_path)) == 10
    assert records(tmp_path) == records(unbroken)
    assert charges(tmp_path) == charges(unbroken)
    assert charges(tmp_path)["training", "answered"] == 600
    assert not any(state == "unknown" for _, state in charges(tmp_path))

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("certdef")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 13, "one parent and twelve stages, however often the job was killed"
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_second_run_pays_nothing(forks, unbroken, migrated_store):
    before = charges(unbroken)
    assert "every stage was done before" in finish(forks, unbroken, migrated_store)
    assert charges(unbroken) == before


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_fresh_run_in_another_folder_with_the_same_ledger_pays_for_no_training_query(
    forks, unbroken, migrated_store, tmp_path
):
    (tmp_path / "work").mkdir()
    with (
        sqlite3.connect(unbroken / "work" / "ledger.db") as old,
        sqlite3.connect(tmp_path / "work" / "ledger.db") as new,
    ):
        old.backup(new)
    finish(forks, tmp_path, migrated_store)
    assert charges(tmp_path) == charges(unbroken)
    assert records(tmp_path) == records(unbroken)


def test_the_settings_are_usable():
    assert load_config(**SIZES).surrogate.epochs == 12
    assert os.sep in str(Path(sys.executable))
