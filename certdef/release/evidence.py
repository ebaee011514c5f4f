"""certdef evidence: one document of one model version, of what is measured and what is not."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from certdef.config.job import CertifyConfig, ConfigError
from certdef.release import certified_parts, measured_parts
from certdef.release.document import Absent, Evidence
from certdef.release.dossier import Dossier, headline_of, open_dossier, radii_of
from certdef.release.identity import model_of, moment, reproduce, run_of
from certdef.release.requirements import requirements
from certdef.report.statements import DOES_NOT_PROVE, LIMITS, PROVES
from surrogates.targets.redaction import Secrets

RADII = (0.0, *CertifyConfig.radii)
LIBRARIES = ("certdef", "torch", "numpy", "scipy", "scikit-learn", "mlflow")
# What holds a secret of whoever writes the document, beside the variables that a job names.
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "HF_TOKEN")


def evidence(
    run: str | Path,
    *,
    groups: Sequence[str] = (),
    radii: Sequence[float] | None = None,
    ledger: str | None = None,
    tracking_uri: str | None = None,
) -> Evidence:
    """Gather the evidence of one model version. Nothing is queried, and nothing is measured that was not measured before.

    Args:
        run: A run id of MLflow, models:/NAME/VERSION, a job's folder, or a folder or file of records.
        groups: Subgroups, each FILE:COLUMN of a .csv, .tsv or .npz.
        radii: Of the tables, in [0, 1] pixel units; unset, 0 and those that the job decided.
        ledger: The job's ledger; unset, it is looked for where the job had it.
        tracking_uri: The store of runs and versions; unset, $MLFLOW_TRACKING_URI, else the one in mlruns/.

    Returns:
        The document; it has passed its schema.

    Raises:
        ConfigError: Options that can't be used, a run that is not there, a result or configuration that was changed.
        certify.CertifyError: Records that are damaged.
        surrogates.LedgerError: A ledger that is damaged.
    """
    if radii is not None and not (radii and all(np.isfinite(each) and each >= 0 for each in radii)):
        raise ConfigError(f"--radii is {list(radii)}: give finite numbers >= 0, e.g. --radii 0,0.25,0.5")
    with TemporaryDirectory() as folder:
        dossier = open_dossier(run, tracking_uri, ledger, Path(folder))
        return _without_secrets(_document(dossier, groups, radii), dossier)


def _document(dossier: Dossier, groups: Sequence[str], radii: Sequence[float] | None) -> Evidence:
    first = headline_of(dossier)
    records = certified_parts.read(dossier.records)
    if not len(records[first]):
        raise ConfigError(
            f"{dossier.given!r}: no image is certified in {first} yet: finish it, the same command goes on"
        )
    decided = radii_of(dossier)
    at = sorted({0.0, *decided} if radii is None and decided else set(map(float, radii or RADII)))
    keys = sorted(records, key=lambda key: (key != first, not key.startswith(first.split("-")[0]), key))
    model = model_of(dossier)
    identity = None if isinstance(model.identity, Absent) else model.identity
    parts = {
        "model": model,
        "run": run_of(dossier),
        "clean_accuracy": measured_parts.clean_accuracy(dossier),
        "subgroups": certified_parts.subgroups(first, records[first], at, groups),
        "attack": measured_parts.attack(dossier),
        "membership": measured_parts.membership(dossier),
        "queries": measured_parts.queries(dossier, identity),
    }
    redo = reproduce(dossier, first)
    missing = {name: isinstance(part, Absent) for name, part in (parts | {"reproduce": redo.command}).items()}
    return Evidence(
        made=moment(time.time()),
        given=dossier.given,
        writer={name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        data=certified_parts.data_of(dossier, records[first]),
        certificates=tuple(
            certified_parts.certificate(key, dossier.records[key], records[key], at, headline=key == first)
            for key in keys
            if len(records[key])
        ),
        proves=PROVES,
        does_not_prove=DOES_NOT_PROVE,
        limits=LIMITS,
        reproduce=redo,
        requirements=requirements(missing),
        **parts,  # type: ignore[arg-type]
    )


def _without_secrets(document: Evidence, dossier: Dossier) -> Evidence:
    """The document as its schema reads it again, without any secret that is known to be one."""
    secrets = Secrets()
    own = None if dossier.config is None else dossier.config.target.token_env
    for name in (*SECRETS, *([own] if own else [])):
        secrets.add(os.environ.get(name, ""))
    text = json.dumps(document.to_json(), allow_nan=False, ensure_ascii=False)
    return Evidence.from_json(secrets.hide(text))
