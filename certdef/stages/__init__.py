"""The stages of a job, one a file. Each reads its stage folder if it is done, else does the work and leaves it there.

A stage's `result.json` holds its typed result in plain form. The order, and what depends on what, is in
`certdef/pipeline/verbs.py`.
"""

from certdef.stages.attack import AttackResult, attack, check_attack_budget
from certdef.stages.budgets import BudgetsResult, check_budgets, trace_budgets
from certdef.stages.certificates import Ballot, CertifyResult, certify_subjects, headline_law, prepare_votes
from certdef.stages.choice import ChoiceResult, choose_headline
from certdef.stages.conditions import Condition, conditions, target_draws
from certdef.stages.ducd.certificates import (
    ComparisonResult,
    NoiseResult,
    check_choice,
    choose_noise,
    compare_subjects,
)
from certdef.stages.ducd.membership import (
    MembershipResult,
    audit_membership,
    check_audit,
    train_references,
)
from certdef.stages.ducd.surrogates import StudentResult, check_pools, distill_pilot, distill_students
from certdef.stages.estimates import foretell
from certdef.stages.finetuning import FinetunedResult, finetune_surrogate
from certdef.stages.job import Job, Shelf
from certdef.stages.ladder import LadderResult, check_ladder_budget, evaluate_ladder, ladder_systems
from certdef.stages.ledger import open_ledger
from certdef.stages.membership import OwnMembershipResult, infer_membership
from certdef.stages.networks import (
    Defended,
    NetworkResult,
    Trained,
    pretrain_denoiser,
    train_network,
    trained_once,
)
from certdef.stages.own_target import watch
from certdef.stages.plan import Plan, look_at, make_plan, plan_of_own
from certdef.stages.purifier import (
    Purifier,
    check_purifier,
    finetune_denoiser,
    prepare_purifier,
    purify_images,
)
from certdef.stages.robustness import RobustnessResult, check_robustness, measure_robustness, robustness_bill
from certdef.stages.served import ServedResult, register
from certdef.stages.shards import (
    Shards,
    check_shard,
    merge_shards,
    read_shards,
    record_shard,
    shard_folder,
    shard_ledger,
)
from certdef.stages.students import CertifiedSurrogateResult, Students, train_students
from certdef.stages.surrogate import SurrogateResult, distill, recipe_of, selection_of
from certdef.stages.target import TargetResult, ledger_file, open_target, target_stage
from certdef.stages.udc.evaluation import UDCResult, evaluate_defense
from certdef.stages.udc.networks import check_udc, train_defense
from certdef.stages.udc.photographs import load_photographs, photographs_through_display

__all__ = [
    "AttackResult",
    "Ballot",
    "BudgetsResult",
    "CertifiedSurrogateResult",
    "CertifyResult",
    "ChoiceResult",
    "ComparisonResult",
    "Condition",
    "Defended",
    "FinetunedResult",
    "Job",
    "LadderResult",
    "MembershipResult",
    "NetworkResult",
    "NoiseResult",
    "OwnMembershipResult",
    "Plan",
    "Purifier",
    "RobustnessResult",
    "ServedResult",
    "Shards",
    "Shelf",
    "StudentResult",
    "Students",
    "SurrogateResult",
    "TargetResult",
    "Trained",
    "UDCResult",
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
    "check_robustness",
    "check_shard",
    "check_udc",
    "choose_headline",
    "choose_noise",
    "compare_subjects",
    "conditions",
    "distill",
    "distill_pilot",
    "distill_students",
    "evaluate_defense",
    "evaluate_ladder",
    "finetune_denoiser",
    "finetune_surrogate",
    "foretell",
    "headline_law",
    "infer_membership",
    "ladder_systems",
    "ledger_file",
    "load_photographs",
    "look_at",
    "make_plan",
    "measure_robustness",
    "merge_shards",
    "open_ledger",
    "open_target",
    "photographs_through_display",
    "plan_of_own",
    "prepare_purifier",
    "prepare_votes",
    "pretrain_denoiser",
    "purify_images",
    "read_shards",
    "recipe_of",
    "record_shard",
    "register",
    "robustness_bill",
    "selection_of",
    "shard_folder",
    "shard_ledger",
    "target_draws",
    "target_stage",
    "trace_budgets",
    "train_defense",
    "train_network",
    "train_references",
    "train_students",
    "trained_once",
    "watch",
]
