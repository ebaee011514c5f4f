"""Real servers as a user starts them, on free ports of loopback, each stopped with all its children."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Apart from ours: MLServer pins an old FastAPI.
MLSERVER = ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "scikit-learn==1.9.1", "tritonclient==2.73.0")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], health: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a server until the block ends, from when `health` answers; its log is shown where it fails."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(health, timeout=5).close()
                break
            except OSError:
                said = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None, f"the server ended: {said}"
                assert time.monotonic() < deadline, f"the server did not come up: {said}"
                time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


@contextmanager
def mlflow_server(model: Path, folder: Path) -> Iterator[str]:
    """Yield the address of `mlflow models serve` for a saved model."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/ping", folder / f"mlflow-{port}.log"):
        yield f"{address}/invocations"


@contextmanager
def mlserver(models: Path, folder: Path) -> Iterator[str]:
    """Yield the address of an MLServer that serves every model in a folder."""
    http, grpc, metrics = free_port(), free_port(), free_port()
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    settings |= {"parallel_workers": 0, "debug": False}
    (models / "settings.json").write_text(json.dumps(settings))
    address = f"http://127.0.0.1:{http}"
    command = [str(mlserver_python().parent / "mlserver"), "start", str(models)]
    with running(command, f"{address}/v2/health/ready", folder / "mlserver.log"):
        yield address


def mlserver_python() -> Path:
    """Return the python of MLServer's own environment: $CERTDEF_MLSERVER_PYTHON, else one made in .cache.

    Skips where pip cannot reach a registry; in CI that fails.
    """
    if given := os.environ.get("CERTDEF_MLSERVER_PYTHON"):
        return Path(given)
    digest = hashlib.sha256(repr((MLSERVER, sys.version_info[:2])).encode()).hexdigest()[:8]
    folder = ROOT / ".cache" / f"mlserver-{digest}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *MLSERVER]
        done = subprocess.run(install, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            if os.environ.get("CI"):
                pytest.fail(f"MLServer cannot be installed: {reason}")
            pytest.skip(f"MLServer cannot be installed ({reason}): set CERTDEF_MLSERVER_PYTHON")
        ready.touch()
    return python
