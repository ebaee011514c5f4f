"""The stages of a job, one a file. Each reads its stage folder if it is done, else does the work and leaves it there.

A stage's `result.json` holds plain values: params, metrics, series and artifacts for MLflow, and the figures that the
report shows. The order, and what depends on what, is in `certdef/pipeline.py`.
"""

from certdef.stages.attack import attack, check_attack_budget
from certdef.stages.budgets import check_budgets, trace_budgets
from certdef.stages.certificates import Condition, certify_subjects, conditions, target_draws
from certdef.stages.denoiser import pretrain_denoiser
from certdef.stages.ducd.certificates import check_choice, choose_noise, compare_subjects
from certdef.stages.ducd.membership import audit_membership, check_audit, train_references
from certdef.stages.ducd.surrogates import check_pools, distil_students
from certdef.stages.job import Job, interval
from certdef.stages.ladder import check_ladder_budget, climb_ladder, ladder_systems
from certdef.stages.purifier import Purifier, check_purifier, prepare_purifier, purify_images
from certdef.stages.served import register
from certdef.stages.surrogate import distil, recipe_of, selection_of
from certdef.stages.target import open_black_box
from certdef.stages.trained_once import trained_once
from certdef.tracking.workspace import Stage

__all__ = [
    "Condition",
    "Job",
    "Purifier",
    "Stage",
    "attack",
    "audit_membership",
    "certify_subjects",
    "check_attack_budget",
    "check_audit",
    "check_budgets",
    "check_choice",
    "check_ladder_budget",
    "check_pools",
    "check_purifier",
    "choose_noise",
    "climb_ladder",
    "compare_subjects",
    "conditions",
    "distil",
    "distil_students",
    "interval",
    "ladder_systems",
    "open_black_box",
    "prepare_purifier",
    "pretrain_denoiser",
    "purify_images",
    "recipe_of",
    "register",
    "selection_of",
    "target_draws",
    "trace_budgets",
    "train_references",
    "trained_once",
]
