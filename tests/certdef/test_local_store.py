"""MLflow's local store: made whole, by one process at a time, whoever is killed meanwhile."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from certdef.config.job import ConfigError
from certdef.config.load import load_config
from certdef.tracking import local_store
from certdef.tracking.mlflow import connect

CONNECT = (
    "from certdef.config.load import load_config\n"
    "from certdef.tracking.mlflow import connect\n"
    "connect(load_config(tracking__uri='sqlite:///mlflow.db'))"
)


def start(folder) -> subprocess.Popen:
    """A first job's connection to a store that is not there."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CONNECT], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def opened(folder) -> str:
    connect(load_config(tracking__uri=f"sqlite:///{folder}/mlflow.db"))
    with sqlite3.connect(folder / "mlflow.db") as db:
        return db.execute("SELECT name FROM experiments WHERE name = 'certdef'").fetchone()[0]


def test_what_a_killed_migration_left_is_replaced(tmp_path, migrated_store):
    half = migrated_store.read_bytes()[:100_000]
    for name in ("mlflow.db.new", "mlflow.db.new-journal"):
        (tmp_path / name).write_bytes(half)
    (tmp_path / "mlflow.db").touch()  # opened, and killed before the first page
    assert opened(tmp_path) == "certdef"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_a_store_that_is_there_is_left_alone(tmp_path, migrated_store):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    before = (tmp_path / "mlflow.db").stat()
    local_store.make_local_store(f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").stat() == before
    assert not (tmp_path / "mlflow.db.lock").exists()
    local_store.make_local_store("http://127.0.0.1:9")
    local_store.make_local_store("databricks")


def test_a_process_that_makes_it_for_ever_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(local_store, "PATIENCE", 0.2)
    with (tmp_path / "mlflow.db.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"is being created by another process.*--tracking\.uri"):
            local_store.make_local_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_that_an_older_version_left_half_made_says_what_to_do(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("CREATE TABLE registered_models (name TEXT)")
    with pytest.raises(ConfigError, match="there is no run in it, so delete the file") as error:
        connect(load_config(tracking__uri=uri))
    assert "\n" not in str(error.value)
    assert local_store.holds_no_run(uri)


def test_a_store_with_runs_is_never_to_be_deleted(tmp_path, migrated_store):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert local_store.holds_no_run(uri)
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("INSERT INTO runs (run_uuid) VALUES ('one')")
    assert not local_store.holds_no_run(uri)
    (tmp_path / "text.db").write_text("no database")
    assert not local_store.holds_no_run(f"sqlite:///{tmp_path}/text.db")
    assert not local_store.holds_no_run("http://127.0.0.1:9")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # once: a fork is at its migration at once
from certdef.config.load import load_config
from certdef.tracking.mlflow import connect

def started(folder):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        code = 1
        try:
            connect(load_config(tracking__uri="sqlite:///mlflow.db"))
            code = 0
        finally:
            os._exit(code)
    return child

def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

draws = random.Random(0)
for number in range(4):
    folder = Path(str(number))
    folder.mkdir()
    child = started(folder)
    while not (folder / "mlflow.db.new").exists():
        time.sleep(0.002)
    time.sleep(draws.uniform(0, 2))
    os.kill(child, signal.SIGKILL)
    struck = code_of(child) == -signal.SIGKILL and (folder / "mlflow.db.new").exists()
    print(struck, code_of(started(folder)), flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_instant_of_the_first_migration_it_is_made_by_the_next(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILLED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [code for _, code in lines] == ["0"] * 4, done.stderr
    assert any(struck == "True" for struck, _ in lines), "no migration was interrupted"
    for number in range(4):
        assert opened(tmp_path / str(number)) == "certdef"


@pytest.mark.slow
def test_first_jobs_that_race_all_get_it(tmp_path):
    processes = [start(tmp_path) for _ in range(4)]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert os.listdir(tmp_path).count("mlflow.db") == 1
    assert opened(tmp_path) == "certdef"
