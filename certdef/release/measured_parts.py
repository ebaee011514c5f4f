"""What the stages of a job say beside the certificates: accuracy, attacks, membership inference, queries. Or why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from certdef.config.job import without_password
from certdef.release.certified_parts import interval
from certdef.release.document import (
    Absent,
    Attack,
    CleanAccuracy,
    Inference,
    Ledger,
    ListsAlike,
    LowRate,
    Membership,
    Purpose,
    Queries,
    WorstCase,
)
from certdef.release.dossier import Dossier
from certdef.stages.membership import ALARM
from certdef.tracking import metrics
from surrogates.ledger.bill import PURPOSES
from surrogates.ledger.digest import ledger_digest
from surrogates.ledger.reader import read_statement

NAME_THE_JOB = (
    "`certdef evidence RUN_ID`, or the folder of the job: records alone hold votes and nothing else"
)
LIMIT_OF_FOLDER = "`certdef evidence RUN_ID`: a run of MLflow names the stages of one job"


def absent(dossier: Dossier, stages: Sequence[str], why: str, how: str) -> Absent:
    """Why no stage of these names is there."""
    unclear = [folder for name in stages for folder in dossier.unclear.get(name, ())]
    if unclear:
        several = f"the folder has several of them, of different jobs ({', '.join(unclear)})"
        return Absent(status="not known", why=several, how=LIMIT_OF_FOLDER)
    if dossier.kind == "records":
        return Absent(status="not known", why="records were named, not their job", how=NAME_THE_JOB)
    if dossier.kind == "run" and not dossier.stages:
        lost = "this run keeps no results of stages: it was made by an evaluation, or by a version that logged none"
        return Absent(
            status="not known",
            why=lost,
            how="`certdef run` or `certify` again, or name the folder of the job",
        )
    return Absent(status="not measured", why=why, how=how)


def clean_accuracy(dossier: Dossier) -> CleanAccuracy | Absent:
    """The bare target on the held-out images."""
    result = dossier.stages.get("target")
    if result is None:
        return absent(
            dossier, ["target"], "the target's clean accuracy was not measured", "`certdef certify`"
        )
    if result.get("answers") is not None:
        return Absent(
            status="not measured",
            why="the images have no labels: right means the target's own clean answer, of which it is right by definition",
            how="`certdef certify --data.path FOLDER`, of images with labels",
        )
    images = None if dossier.config is None else dossier.config.data.heldout_images
    return CleanAccuracy(images=images, accuracy=interval(result["accuracy"]))


def attack(dossier: Dossier) -> Attack | Absent:
    """The threat ladder's worst cases, the job's own system first."""
    result = dossier.stages.get("ladder")
    if result is None:
        also = (
            "; a transfer attack was run, which says nothing of the worst case"
            if "attack" in dossier.stages
            else ""
        )
        how = "`certdef attack --ladder` with the options of the job (it needs a surrogate, and queries of ledger.attack)"
        return absent(dossier, ["ladder"], f"the threat ladder was not run{also}", how)
    own = result["own"]
    rows = [
        _worst(system, subject, evaluation, own)
        for system, subjects in result["systems"].items()
        for subject, evaluation in subjects.items()
    ]
    rows.sort(key=lambda row: (not row.own, row.subject != "target"))
    return Attack(eps=result["eps"], systems=tuple(rows))


def _worst(system: str, subject: str, evaluation: dict[str, Any], own: str) -> WorstCase:
    worst = evaluation["headline"]
    return WorstCase(
        subject=subject,
        system=system,
        own=system == own,
        images=evaluation["images"],
        attacks=worst["attacks"],
        accuracy=interval(worst["accuracy"]),
        strongest=worst["strongest"],
        alone=interval(worst["alone"]) if worst.get("alone") else None,
        control=interval(worst["control"]) if worst.get("control") else None,
        queries=evaluation["queries"],
        alarms=tuple(evaluation["alarms"]),
    )


def membership(dossier: Dossier) -> Membership | Absent:
    """By the user's own lists, else by those of a target that certdef trained."""
    if (own := dossier.stages.get("membership-own")) is not None:
        lists = own["alike"]
        return Membership(
            members=own["members"],
            nonmembers=own["nonmembers"],
            digests=own["digests"],
            attacks=tuple(
                Inference(
                    subject="target",
                    attack=name,
                    auc=interval(each["auc"]),
                    rates=tuple(
                        LowRate(
                            fpr=rate["fpr"],
                            found=interval(rate["found"]),
                            passed=rate["passed"][0],
                            possible=rate["possible"],
                        )
                        for rate in each["rates"]
                    ),
                )
                for name, each in own["attacks"].items()
            ),
            lists=ListsAlike(auc=interval(lists["auc"]), p=lists["p"], differ=lists["p"] < ALARM),
            warnings=tuple(own["warnings"]),
        )
    if (result := dossier.stages.get("membership")) is not None:
        return _of_trained_target(result)
    how = "`certdef certify --membership.members FILE_OR_FOLDER --membership.nonmembers FILE_OR_FOLDER` with the options of the job"
    return absent(
        dossier, ["membership-own", "membership"], "no lists of members and non-members were given", how
    )


def _of_trained_target(result: dict[str, Any]) -> Membership:
    enough = result["candidates"]
    return Membership(
        members=enough,
        nonmembers=enough,
        digests={},
        attacks=tuple(
            Inference(
                subject=subject,
                attack=name,
                auc=interval(each["auc"]),
                rates=tuple(
                    LowRate(
                        fpr=rate["fpr"],
                        found=interval((rate["tpr"], rate["lower"], rate["upper"])),
                        passed=rate["attained"],
                        possible=enough * rate["fpr"] >= 1 - 1e-9,
                    )
                    for rate in each["rates"]
                ),
            )
            for subject, attacks in result["attacks"].items()
            for name, each in attacks.items()
        ),
        lists=Absent(
            status="not measured",
            why="certdef drew members and non-members at random from one data set",
            how="nothing: they are of one distribution by construction",
        ),
        warnings=(),
    )


def queries(dossier: Dossier, identity: str | None) -> Queries | Absent:
    """What the target was asked, from the ledger where it is at hand, else from the run.

    Args:
        dossier: The job.
        identity: Of its target; None where it is not known.

    Raises:
        surrogates.LedgerError: The ledger is damaged.
    """
    ledger = _ledger(dossier, identity)
    if isinstance(ledger, Ledger) and dossier.ledger is not None:
        accounts = read_statement(dossier.ledger).accounts
        spent = {
            name: (each.answered + each.unknown, each.answered, each.unknown)
            for name, each in accounts.items()
        }
        return Queries(purposes=_purposes(dossier, spent), source="ledger", ledger=ledger)
    known = {} if dossier.job is None else dossier.job.metrics
    figures = {name: known.get(metrics.SPENT.format(purpose=f"_{name}")) for name in PURPOSES}
    spent_by = {name: (int(value), None, None) for name, value in figures.items() if value is not None}
    if not spent_by:
        assert isinstance(ledger, Absent)
        return ledger
    return Queries(purposes=_purposes(dossier, spent_by), source="run", ledger=ledger)


def _purposes(
    dossier: Dossier, spent: Mapping[str, tuple[int, int | None, int | None]]
) -> tuple[Purpose, ...]:
    budgets = _budgets(dossier)
    rows = []
    for name in PURPOSES:
        total, answered, unknown = spent.get(name, (0, 0, 0))
        if total or budgets.get(name):
            rows.append(
                Purpose(
                    purpose=name, spent=total, answered=answered, unknown=unknown, budget=budgets.get(name)
                )
            )
    return tuple(rows)


def _budgets(dossier: Dossier) -> dict[str, int]:
    """Queries that the job was granted; what the run logged counts before the configuration."""
    if dossier.job is not None:
        names = {name: metrics.BUDGET.format(purpose=f"_{name}") for name in PURPOSES}
        logged = {
            name: dossier.job.metrics[metric]
            for name, metric in names.items()
            if metric in dossier.job.metrics
        }
        if logged:
            return {name: int(value) for name, value in logged.items()}
    if dossier.config is not None:
        return {name: value for name, value in asdict(dossier.config.ledger).items() if name in PURPOSES}
    return {}


def _ledger(dossier: Dossier, identity: str | None) -> Ledger | Absent:
    how = "`certdef evidence RUN --ledger FILE`, the ledger of the job"
    if dossier.ledger is None:
        return Absent(
            status="not known",
            why="the job's ledger is not on this machine, or not where the job had it",
            how=how,
        )
    owner = read_statement(dossier.ledger).identity or ""
    if identity is not None and owner != identity:
        other = f"the ledger at {dossier.ledger} belongs to {without_password(owner)!r}, and the job's target is {identity!r}"
        return Absent(status="not known", why=other, how=how)
    digest = ledger_digest(dossier.ledger)
    return Ledger(
        file=str(dossier.ledger),
        identity=owner,
        sha256=digest.sha256,
        upto=digest.upto,
        queries=digest.queries,
        in_flight=digest.in_flight,
        recompute=f"certdef ledger {dossier.ledger} --digest --upto {digest.upto}",
    )
