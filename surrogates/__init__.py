"""Black boxes and their stand-ins: query a target under a budget, keep every answer, distil a surrogate."""

from surrogates.canaries import Canaries
from surrogates.checkpoint import TrainingCheckpoint
from surrogates.distillation import Surrogate, distill
from surrogates.errors import BudgetExceeded, DriftError, LedgerError, Refused, SurrogateError, TargetError
from surrogates.fidelity import Fidelity, fidelity
from surrogates.ledger import Bill, Charge, QueryLedger
from surrogates.membership import Membership, MembershipAudit, auc_difference
from surrogates.selection import Selection
from surrogates.targets import Answers, Target, open_target
from surrogates.training import Recipe

__all__ = [
    "Answers",
    "Bill",
    "BudgetExceeded",
    "Canaries",
    "Charge",
    "DriftError",
    "Fidelity",
    "LedgerError",
    "Membership",
    "MembershipAudit",
    "QueryLedger",
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
]
