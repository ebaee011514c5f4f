"""The boosters behind LightGBM's and XGBoost's scikit-learn classes, which have neither predict_proba nor classes."""

import hashlib
import re
from typing import Any

from surrogates.errors import TargetError

CLASSIFYING = ("binary", "multiclass", "multiclassova")


def is_lightgbm(thing: object) -> bool:
    """Whether an object is a booster of LightGBM."""
    return type(thing).__module__.startswith("lightgbm.") and hasattr(thing, "model_to_string")


def refuse_xgboost(thing: object) -> None:
    """Refuse a booster of XGBoost, which takes matrices of its own.

    Raises:
        TargetError: It is one.
    """
    if type(thing).__module__.startswith("xgboost.") and not hasattr(thing, "predict_proba"):
        raise TargetError(
            "an xgboost Booster takes a DMatrix, no array: save it, load it with xgboost.XGBClassifier().load_model(...), "
            "and open that"
        )


def classes_of_lightgbm(booster: Any) -> int:
    """Return the number of classes of a booster.

    Raises:
        TargetError: It is no classifier.
    """
    objective = re.search(r"^objective=(\S+)", booster.model_to_string(), re.MULTILINE)
    if objective is None or objective[1] not in CLASSIFYING:
        found = "no objective" if objective is None else objective[1]
        raise TargetError(
            f"the LightGBM booster was trained for {found}, expected one of {', '.join(CLASSIFYING)}: "
            "open a function that calls it and answers scores"
        )
    return max(2, int(booster.num_model_per_iteration()))


def digest_of_lightgbm(booster: Any) -> str:
    """Return 16 hexadecimal digits of the trees, the same when the booster is saved and loaded again."""
    text = booster.model_to_string().partition("end of trees")[0]
    return hashlib.sha256(text.encode()).hexdigest()[:16]
