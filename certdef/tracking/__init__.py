"""MLflow, typed results, and the folder in which a job keeps them."""

from certdef.tracking.mlflow import Tracker, check_store, tracking_uri
from certdef.tracking.results import Share, StageResult
from certdef.tracking.workspace import Stage

__all__ = ["Share", "Stage", "StageResult", "Tracker", "check_store", "tracking_uri"]
