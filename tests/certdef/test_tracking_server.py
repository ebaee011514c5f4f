"""A tracking server that is down, dies or never answers stops a job within bounds, with a word, and nothing is lost."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from certdef.config.job import ConfigError
from certdef.config.load import load_config
from certdef.pipeline.opening import open_job
from certdef.tracking import StageResult, server_watch
from certdef.tracking.mlflow import check_store, connect
from tests.servers.loopback import Handler, serving
from tests.servers.processes import free_port, running


def test_a_server_behind_a_proxy_and_the_names_of_services_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy(Handler):
        seen: list[str] = []  # noqa: RUF012

        def do_GET(self) -> None:
            self.seen.append(self.path)
            self.reply(b"OK")

    with serving(Proxy) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        check_store("http://mlflow.corp.invalid:5000/below/a/path")
    assert Proxy.seen[0].startswith("http://mlflow.corp.invalid:5000/below/a/path/api/2.0/mlflow/")
    for uri in ("databricks", "databricks://team", "databricks-uc", "postgresql://u:p@host/db"):
        check_store(uri)
    with pytest.raises(ConfigError, match="is a folder"):
        check_store("./databricks")


def test_a_server_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "PROBE_SECONDS", 0.5)

    class Broken(Handler):
        def do_GET(self) -> None:
            self.reply(b"", 502)

    with socket.socket() as silent, serving(Broken) as broken:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address, said in (
            (f"http://user:hush@127.0.0.1:{silent.getsockname()[1]}", "timed out"),
            ("http://user:hush@127.0.0.1:9", r"\[Errno 111\] Connection refused"),
            (broken.replace("//", "//user:hush@"), "it answers 502"),
            ("http://user:hush@nowhere.invalid", "does not answer"),
        ):
            start = time.monotonic()
            with pytest.raises(ConfigError, match=f"{said}.*--tracking.uri") as caught:
                check_store(address)
            assert "hush" not in str(caught.value)
            assert time.monotonic() - start < 5


def test_a_password_of_the_store_is_in_no_error() -> None:
    with pytest.raises(
        ConfigError, match=r"tracking store 'nosuchdatabase://…@127.0.0.1:9/db' can't be used"
    ) as caught:
        connect(load_config(tracking__uri="nosuchdatabase://user:hush@127.0.0.1:9/db"))
    assert "hush" not in str(caught.value)


def test_waiting_is_bounded_only_meanwhile_and_not_against_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server_watch.TIMEOUT, "77")
    monkeypatch.delenv(server_watch.RETRIES, raising=False)
    with server_watch.bounded() as ours, server_watch.bounded() as inner:
        assert (ours, inner) == ({server_watch.RETRIES: server_watch.WAITING[server_watch.RETRIES]}, {})
        assert (os.environ[server_watch.TIMEOUT], os.environ[server_watch.RETRIES]) == (
            "77",
            server_watch.WAITING[server_watch.RETRIES],
        )
    assert os.environ[server_watch.TIMEOUT] == "77"
    assert server_watch.RETRIES not in os.environ


@contextmanager
def mlflow_tracking_server(folder: Path, port: int) -> Iterator[Callable[[int], None]]:
    """Run MLflow's own server, one worker; yields what sends a signal to it and its children."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlruns/mlflow.db"]
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with running(command, f"http://127.0.0.1:{port}/health", folder / "server.log", path) as process:
        yield lambda number: os.killpg(process.pid, number)


# Not the probe, which a slow server must answer in time.
SOONER = {
    "EVERY_SECONDS": 2.0,
    "PATIENCE_SECONDS": 9.0,
    "WAITING": {server_watch.TIMEOUT: "3", server_watch.RETRIES: "1"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "share"),
    [
        pytest.param(signal.SIGKILL, 1 / 2, id="dies-sooner", marks=pytest.mark.acceptance),
        pytest.param(signal.SIGKILL, 1, id="dies-as shipped"),
        pytest.param(signal.SIGSTOP, 1 / 2, id="never answers-sooner"),
        pytest.param(signal.SIGSTOP, 1, id="never answers-as shipped"),
    ],
)
def test_a_server_that_goes_away_during_a_job_costs_seconds_and_no_result(
    end: int,
    share: float,
    store: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if share < 1:
        for name, value in SOONER.items():
            monkeypatch.setattr(server_watch, name, value)
    port = free_port()
    config = load_config(
        "digits",
        work_dir=str(tmp_path / "work"),
        tracking__uri=f"http://127.0.0.1:{port}",
        tracking__system_metrics=False,
    )
    went: list[float] = []

    def job(compute: Callable[[], StageResult]) -> Any:
        with open_job(config, progress=False) as opened:
            stage = opened.stage("demo", StageResult, 1)
            return opened.run(stage, compute), opened.tracker, opened.tracker.run_page

    with mlflow_tracking_server(tmp_path, port) as send:

        def compute() -> StageResult:
            send(end)
            went.append(time.monotonic())
            while not caplog.records:  # a stage takes longer than it takes to notice
                time.sleep(0.1)
            went.append(time.monotonic())
            return StageResult(metrics={"figure": 4.0})

        with (
            caplog.at_level(logging.WARNING, "certdef.tracking.server_watch"),
            pytest.raises(ConfigError, match=r"does not answer .*the same command goes on with what is kept"),
        ):
            job(compute)
        stopped = time.monotonic()
        send(signal.SIGKILL)
    print(f"noticed after {went[1] - went[0]:.0f} s, stopped after {stopped - went[0]:.0f} s")
    assert "does not answer" in caplog.text
    assert went[1] - went[0] < 15
    assert stopped - went[0] < 120 * share
    assert server_watch.RETRIES not in os.environ
    with mlflow_tracking_server(tmp_path, port):
        stage, tracker, page = job(lambda: pytest.fail("computed again"))
        assert stage.reused
        run = tracker.mlflow.MlflowClient(tracker.uri).get_run(tracker.run_id)
        assert run.data.metrics["figure"] == 4.0
        assert page == f"{tracker.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
