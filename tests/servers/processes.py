"""Real servers as a user starts them, on free ports of loopback, each stopped with all its children."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In environments of their own: MLServer pins an old FastAPI, PyTriton an old numpy.
MLSERVER = ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "scikit-learn==1.9.1")
TRITON = ("nvidia-pytriton==0.7.0",)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], health: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
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
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also children that it left behind
        process.wait(timeout=20)


@contextmanager
def mlflow_server(model: Path, folder: Path) -> Iterator[str]:
    """Yield the address of `mlflow models serve` for a saved model."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    # It starts uvicorn by name, which is not on the path where the environment is not active.
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with running(command, f"{address}/ping", folder / f"mlflow-{port}.log", path):
        yield f"{address}/invocations"


@contextmanager
def mlserver(models: Path, folder: Path) -> Iterator[str]:
    """Yield the address of an MLServer that serves every model in a folder."""
    http, grpc, metrics = free_port(), free_port(), free_port()
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    settings |= {"parallel_workers": 0, "debug": False}
    (models / "settings.json").write_text(json.dumps(settings))
    address = f"http://127.0.0.1:{http}"
    python = environment("mlserver", MLSERVER)
    command = [str(python.parent / "mlserver"), "start", str(models)]
    with running(command, f"{address}/v2/health/ready", folder / "mlserver.log"):
        yield address


@contextmanager
def triton(models: Path, folder: Path) -> Iterator[str]:
    """Yield the address of NVIDIA's Triton Inference Server, which the PyTriton wheel brings, on the CPU.

    Its Python backend gets the packages of its environment in the variable TRITON_PACKAGES.
    """
    python = environment("triton", TRITON)
    packages = (
        python.parents[1] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    )
    server = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    port = free_port()
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={models}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=5"]
    address = f"http://127.0.0.1:{port}"
    libraries = [packages / "nvidia_pytriton.libs", server / "external_libs", server / "lib"]
    variables = {"TRITON_PACKAGES": str(packages), "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    with running(command, f"{address}/v2/health/ready", folder / "triton.log", variables):
        yield address


def environment(name: str, packages: Sequence[str]) -> Path:
    """Return the python of a server's own environment: $CERTDEF_<NAME>_PYTHON, else one made in .cache.

    Skips where pip cannot reach a registry; in CI that fails.
    """
    variable = f"CERTDEF_{name.upper()}_PYTHON"
    if given := os.environ.get(variable):
        return Path(given)
    digest = hashlib.sha256(repr((packages, sys.version_info[:2])).encode()).hexdigest()[:8]
    folder = ROOT / ".cache" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(install, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            if os.environ.get("CI"):
                pytest.fail(f"{name} cannot be installed: {reason}")
            pytest.skip(f"{name} cannot be installed ({reason}): set {variable}")
        ready.touch()
    return python
