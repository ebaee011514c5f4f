"""MLflow, and the folder in which a job keeps what it made."""

from certdef.tracking.mlflow import Tracker, check_store, tracking_uri

__all__ = ["Tracker", "check_store", "tracking_uri"]
