"""The caller's own MLflow session: a notebook's store, experiment and active run are given back as they were."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from certdef.tracking.local_store import is_missing
from certdef.tracking.server_watch import bounded

OURS_TO_SET = "MLFLOW_"
# A run and an experiment that the environment names would take the place of the job's.
ELSEWHERE = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME")


@contextmanager
def given_back() -> Iterator[str]:
    """Yield the caller's tracking URI; MLflow's addresses, experiment and environment are afterwards what they were."""
    import mlflow

    environment = {name: value for name, value in os.environ.items() if name.startswith(OURS_TO_SET)}
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    logger = logging.getLogger("mlflow")
    level = logger.level
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    try:
        yield tracking
    finally:
        logger.setLevel(level)
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # its hint forgets that None unsets it
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        _restore(environment)
        if mlflow.get_tracking_uri() != tracking:  # it was set by a call, not by the environment
            mlflow.set_tracking_uri(tracking)
        if mlflow.get_registry_uri() != registry:
            mlflow.set_registry_uri(registry)
        experiment = environment.get("MLFLOW_EXPERIMENT_ID")
        if experiment and not is_missing(tracking):
            with suppress(Exception), bounded():  # whatever MLflow says of a store that is broken by now
                mlflow.set_experiment(experiment_id=experiment)
        _restore(environment)  # MLflow's setters write there too


def _restore(environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(OURS_TO_SET)]:
        del os.environ[name]
    os.environ.update(environment)
