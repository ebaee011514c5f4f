"""The query ledger: every query is budgeted, charged once, and its answer kept."""

from surrogates.ledger.bill import Bill, Charge
from surrogates.ledger.canaries import Canaries
from surrogates.ledger.ledger import PaidTarget, QueryLedger

__all__ = ["Bill", "Canaries", "Charge", "PaidTarget", "QueryLedger"]
