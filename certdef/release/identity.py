"""Which model a document is of, where it ran, and the command that does it again: without secrets."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from typing import Any

from certdef.config.job import RunConfig, flatten, preset_path, without_password
from certdef.config.objects import is_object
from certdef.release.document import Absent, Model, Reproduce, Run
from certdef.release.dossier import CERTIFY, Dossier
from certdef.release.measured_parts import NAME_THE_JOB
from certdef.tracking.jobs import digest_of_uri
from surrogates.targets.addresses import public_url

FILE_DIGEST = re.compile(r"[a-z]+:([0-9a-f]{64})\b")
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
OF_FILES = (
    "SHA-256 over a line for each file of the model, sorted by path, in its folder: "
    "`find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum`"
)
OF_FILE = "SHA-256 of the model's file: `sha256sum FILE`"


def model_of(dossier: Dossier) -> Model:
    """Name, version and digest, from the registry where it is there."""
    target = dossier.stages.get("target")
    identity: str | Absent = Absent(
        status="not known", why="what was named does not say which target the ledger knew", how=NAME_THE_JOB
    )
    if target is not None:
        identity = without_password(target["identity"])
    version = None if dossier.job is None else dossier.job.version
    if version is not None:
        unread = Absent(
            status="not known",
            why=f"the files of the version can't be fetched ({version.unread})",
            how=f"`mlflow artifacts download -u {version.source}`",
        )
        return Model(
            name=version.name,
            version=version.version,
            aliases=version.aliases,
            identity=identity,
            digest=version.sha256 or unread,
            digest_of=OF_FILES,
            role="surrogate" if dossier.subject == "surrogate" else "target",
        )
    how = "register it in MLflow, and `certdef certify --target.uri models:/NAME/VERSION`"
    unnamed = Absent(status="not known", why="the target has no version in a registry", how=how)
    if target is None:
        nameless = Absent(
            status="not known", why="what was named keeps no result of the target", how=NAME_THE_JOB
        )
        tagged = None if dossier.job is None else dossier.job.tags.get("certdef.target")
        return Model(
            name=public_url(tagged) if tagged else nameless,
            version=nameless,
            aliases=(),
            identity=identity,
            digest=nameless,
            digest_of="",
            role="target",
        )
    uri = public_url(target["uri"])
    named = REGISTERED.fullmatch(uri)
    digest, digest_of = _digest(dossier, target)
    return Model(
        name=named["name"] if named else uri,
        version=named["version"] if named else unnamed,
        aliases=(),
        identity=identity,
        digest=digest,
        digest_of=digest_of,
        role="target",
    )


def _digest(dossier: Dossier, target: dict[str, Any]) -> tuple[str | Absent, str]:
    known = FILE_DIGEST.match(target["identity"])
    if known:
        return known[1], OF_FILE
    uri = target["uri"]
    if dossier.job is not None and uri.startswith(("models:/", "runs:/")):
        sha256, unread = digest_of_uri(uri, dossier.job.store)
        if sha256 is not None:
            return sha256, OF_FILES
        return Absent(
            status="not known",
            why=f"its files can't be fetched ({unread})",
            how="`--tracking.uri` of its store",
        ), ""
    why = "the target is a service or an object: nobody outside has its files"
    how = "its owner's release notes; the ledger's canaries say whether its answers changed while it was queried"
    if uri.startswith(("models:/", "runs:/")):
        why, how = "its files are in MLflow", "`certdef evidence RUN_ID`: a run says in which store"
    return Absent(status="not known", why=why, how=how), ""


def run_of(dossier: Dossier) -> Run | Absent:
    """The run that it comes from."""
    job = dossier.job
    if job is None:
        return Absent(
            status="not known",
            why="a folder or records were named, no run of MLflow",
            how="`certdef evidence RUN_ID`",
        )
    return Run(
        store=job.store,
        job=job.job_id,
        records=job.run_id,
        name=without_password(job.name),
        started=moment(job.started),
        ended="" if job.ended is None else moment(job.ended),
        tags={name: without_password(value) for name, value in job.tags.items()},
    )


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def reproduce(dossier: Dossier, records: str) -> Reproduce:
    """The command of the job, and the one that needs no query.

    Args:
        dossier: The job.
        records: Name of the headline's records.
    """
    offline = f"python -c \"import certify; print(certify.read_records('{records}.jsonl').radius)\""
    config = dossier.config
    if config is None:
        how = "`certdef evidence RUN_ID`: a run keeps the job's configuration"
        nothing = Absent(status="not known", why="what was named keeps no configuration of the job", how=how)
        return Reproduce(command=nothing, note="", offline=offline)
    if any(is_object(str(each)) for each in (config.target.uri, config.surrogate.model, config.purifier)):
        why = "target, surrogate or purifier was an object in Python"
        how = "the program that called certdef, with the configuration in the run's config.yaml"
        return Reproduce(command=Absent(status="not known", why=why, how=how), note="", offline=offline)
    left_out = (
        ["a token is read from the environment variable that token_env names"]
        if config.target.token_env
        else []
    )
    if config.target.headers:
        left_out.append("the values of headers are left out here")
    if "://…@" in str(config.public_dict()):
        left_out.append("user and password of addresses are left out here")
    paid = "with the same ledger nothing is paid for twice"
    return Reproduce(command=command_of(config, dossier), note="; ".join([*left_out, paid]), offline=offline)


def command_of(config: RunConfig, dossier: Dossier) -> str:
    """certdef VERB with every option that is not its preset's."""
    import yaml

    whole = {"attack", "served", "comparison"} & dossier.stages.keys()
    verb = "run" if whole or CERTIFY not in dossier.stages else "certify"
    own = flatten(config.public_dict())
    preset = flatten(RunConfig().to_dict()) | flatten(yaml.safe_load(preset_path(config.preset).read_text()))
    named = [] if config.preset == RunConfig.preset else ["--preset", config.preset]
    words = ["certdef", verb, *named]
    for name, value in own.items():
        if name == "preset" or value == preset.get(name) or value is None:
            continue
        words.append(f"--{name}={_plain(name, value)}")
    return shlex.join(words)


def _plain(name: str, value: Any) -> str:
    import json

    if name.startswith("target.headers"):
        return "…"
    return public_url(value) if isinstance(value, str) else json.dumps(value)
