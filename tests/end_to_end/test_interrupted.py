"""SIGKILL during distillation and during certification: the job goes on, pays nothing twice, counts the same."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certdef.config.load import load_config
from tests.conftest import TINY

SIZES = TINY | {
    "surrogate__epochs": 150,
    "nim__epochs": 30,
    "threads": 1,
    "certify__images": 40,
    "certify__n": 3000,
    "certify__method": "fixed",
}


def command(folder: Path, store: str) -> list[str]:
    values = SIZES | {"work_dir": str(folder / "work"), "tracking__uri": store}
    options = [
        f"--{key.replace('__', '.')}={value}".replace("=False", "=false") for key, value in values.items()
    ]
    return [sys.executable, "-m", "certdef.cli", "run", "--quiet", *options]


def start(folder: Path, migrated_store: Path) -> tuple[list[str], subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    if not (folder / "mlflow.db").exists():
        shutil.copy(migrated_store, folder / "mlflow.db")
    arguments = command(folder, f"sqlite:///{folder}/mlflow.db")
    return arguments, subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, migrated_store: Path) -> str:
    _, process = start(folder, migrated_store)
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return output


def kill_when(folder: Path, migrated_store: Path, ready) -> None:
    _, process = start(folder, migrated_store)
    deadline = time.monotonic() + 240
    try:
        while not ready(folder / "work"):
            assert process.poll() is None, f"the job ended before it could be killed: {process.stderr.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


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
    folder = tmp_path_factory.mktemp("unbroken")
    finish(folder, migrated_store)
    return folder


def distilling(work: Path) -> bool:
    return any(work.glob("surrogate-*/checkpoint.pt"))


def certifying(part: str, lines: int):
    def ready(work: Path) -> bool:
        return any(
            path.read_bytes().count(b"\n") > lines for path in work.glob(f"certify-*/records/{part}.jsonl")
        )

    return ready


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([distilling], id="distillation"),
        pytest.param([certifying("target-nim-de3", 1)], id="certification-of-the-target"),
        pytest.param(
            [distilling, certifying("target-wide-none", 1), certifying("surrogate-nim-de3", 5)],
            id="three-times",
        ),
    ],
)
def test_a_killed_job_goes_on(moments, unbroken, migrated_store, tmp_path):
    for moment in moments:
        kill_when(tmp_path, migrated_store, moment)
    output = finish(tmp_path, migrated_store)
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
def test_a_second_run_pays_nothing(unbroken, migrated_store):
    before = charges(unbroken)
    assert "every stage was done before" in finish(unbroken, migrated_store)
    assert charges(unbroken) == before


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_fresh_run_in_another_folder_with_the_same_ledger_pays_for_no_training_query(
    unbroken, migrated_store, tmp_path
):
    (tmp_path / "work").mkdir()
    with (
        sqlite3.connect(unbroken / "work" / "ledger.db") as old,
        sqlite3.connect(tmp_path / "work" / "ledger.db") as new,
    ):
        old.backup(new)
    finish(tmp_path, migrated_store)
    assert charges(tmp_path) == charges(unbroken)
    assert records(tmp_path) == records(unbroken)


def test_the_settings_are_usable():
    assert load_config(**SIZES).surrogate.epochs == 150
    assert os.sep in str(Path(sys.executable))
