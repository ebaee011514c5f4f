"""Black boxes and their stand-ins: query a target under a budget, keep every answer, distil a surrogate."""

from surrogates.blind import Blind, told_apart
from surrogates.distillation.checkpoint import TrainingCheckpoint
from surrogates.distillation.distill import Querying, distill
from surrogates.distillation.fidelity import Fidelity, fidelity
from surrogates.distillation.selection import Selection
from surrogates.distillation.student import Recipe
from surrogates.distillation.surrogate import Surrogate
from surrogates.errors import (
    BudgetExceeded,
    ClassesUnknown,
    DriftError,
    LedgerError,
    Refused,
    SurrogateError,
    TargetError,
)
from surrogates.ledger.bill import Bill, Charge
from surrogates.ledger.canaries import Canaries
from surrogates.ledger.ledger import QueryLedger
from surrogates.membership import Membership, MembershipAudit, auc_difference
from surrogates.targets import Answers, Target, open_target

__all__ = [
    "Answers",
    "Bill",
    "Blind",
    "BudgetExceeded",
    "Canaries",
    "Charge",
    "ClassesUnknown",
    "DriftError",
    "Fidelity",
    "LedgerError",
    "Membership",
    "MembershipAudit",
    "QueryLedger",
    "Querying",
    "Recipe",
    "Refused",
    "Selection",
    "Surrogate",
    "SurrogateError",
    "Target",
    "TargetError",
    "TrainingCheckpoint",
    "auc_difference",
    "distill",
    "fidelity",
    "open_target",
    "told_apart",
]
