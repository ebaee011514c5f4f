"""A tracking server that is down, dies or never answers: noticed within seconds, and waited for within bounds.

MLflow itself asks the server, so that proxies, logins and certificates count as they do for the job. By its defaults one
call takes minutes to give up, in silence, and a job makes several on its way out.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from certdef.config.job import ConfigError, without_password

PROBE_SECONDS = 5.0
EVERY_SECONDS = 5.0
PATIENCE_SECONDS = 45.0  # from then on nothing is waited for
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
WAITING = {TIMEOUT: "15", RETRIES: "3"}  # a call gives up after 72 s at most, 12 s where the port is closed
GONE = {TIMEOUT: "3", RETRIES: "0"}

logger = logging.getLogger(__name__)


def is_server(uri: str) -> bool:
    """Whether a tracking URI is the address of a server that can be asked."""
    return urlsplit(uri).scheme in ("http", "https")


def fault_of(uri: str) -> str | None:
    """Return why a tracking server does not answer, None where it does."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/get-by-name",
            "GET",
            max_retries=0,
            timeout=PROBE_SECONDS,
            raise_on_status=False,
            params={"experiment_name": "Default"},
        )
    except Exception as error:  # MLflow wraps whatever its HTTP library raises
        known = re.search(r"\[Errno -?\d+\] [\w ]+|timed out|certificate verify failed", str(error))
        return known.group() if known else type(error).__name__
    return f"it answers {answer.status_code}" if answer.status_code in (502, 503, 504) else None


def check_server(uri: str) -> None:
    """Refuse a tracking server that does not answer.

    Raises:
        ConfigError: Names the server and what to do.
    """
    fault = fault_of(uri)
    if fault is not None:
        raise ConfigError(
            f"tracking server {without_password(uri)} does not answer ({fault}): start it, or pass --tracking.uri"
        )


@contextmanager
def bounded() -> Iterator[dict[str, str]]:
    """Bound how long a call of MLflow waits, unless the environment does; yields the variables that are ours meanwhile."""
    ours = {name: value for name, value in WAITING.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield ours
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def watched(uri: str, kept: Path) -> Iterator[None]:
    """Watch a tracking server during a job.

    Args:
        uri: The tracking URI; one that is no server is not watched.
        kept: Where the job keeps its results, for what is said to the user.

    Raises:
        ConfigError: MLflow failed and the server does not answer.
    """
    if not is_server(uri):
        yield
        return
    import mlflow

    over = threading.Event()
    with bounded() as ours:
        thread = threading.Thread(target=_watch, args=(uri, kept, ours, over), daemon=True)
        thread.start()
        try:
            yield
        except (mlflow.MlflowException, OSError) as error:
            fault = fault_of(uri)
            if fault is None:
                raise
            raise ConfigError(
                f"tracking server {without_password(uri)} does not answer ({fault}): start it, and the same command "
                f"goes on with what is kept in {kept}"
            ) from error
        finally:
            over.set()
            thread.join(2 * PROBE_SECONDS)


def _watch(uri: str, kept: Path, ours: dict[str, str], over: threading.Event) -> None:
    """Ask again and again until the job is over; say when the server stops to answer, and when it answers again."""
    since: float | None = None
    while not over.wait(EVERY_SECONDS):
        fault = fault_of(uri)
        if over.is_set():
            return
        if fault is None and since is not None:
            logger.warning("tracking server %s answers again", without_password(uri))
            os.environ.update({name: WAITING[name] for name in ours})
            since = None
        elif fault is not None and since is None:
            since = time.monotonic()
            logger.warning(
                "tracking server %s does not answer (%s): start it before the stage ends, or the job stops there; "
                "what is done is kept in %s",
                without_password(uri),
                fault,
                kept,
            )
        elif since is not None and time.monotonic() - since > PATIENCE_SECONDS:
            os.environ.update({name: GONE[name] for name in ours})
