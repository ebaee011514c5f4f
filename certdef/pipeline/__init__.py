"""The verbs of a job, each a function, and how a job is opened."""

from certdef.pipeline.opening import open_job
from certdef.pipeline.verbs import (
    attack,
    budgets,
    certify,
    distill,
    merge,
    plan,
    pretrain,
    purify,
    report,
    robustness,
    run,
    storable,
)

__all__ = [
    "attack",
    "budgets",
    "certify",
    "distill",
    "merge",
    "open_job",
    "plan",
    "pretrain",
    "purify",
    "report",
    "robustness",
    "run",
    "storable",
]
