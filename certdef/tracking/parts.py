"""Trained parts in MLflow's model registry: fetched for a job that reuses them, registered for the next one.

A version of the registry says what it was trained for: law, pool, recipe, image shape, and the digest of its weights. The
part itself says the same in its `model.json`, and that is what a job checks, wherever its files came from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError, RunConfig, SigmaLaw, without_password
from certdef.config.own_target import with_value
from certdef.config.parts import (
    MODEL,
    OPTIONS,
    TRACKED,
    download_folder,
    folder_in,
    is_tracked,
    reused,
    value_of,
)
from certdef.tracking import server_watch
from certdef.tracking.callers_session import given_back
from certdef.tracking.checked_json import file_digest, fingerprint, read_json
from certdef.tracking.local_store import is_missing
from certdef.tracking.mlflow import Tracker, tracking_uri

NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
LOGGED = re.compile(r"models:/m-[0-9a-f]+|runs:/[0-9a-f]{32}/.+")  # which never change
MEND = "put it back, or name another"
LONGEST_TAG = 4_900  # characters


def fetch(config: RunConfig) -> RunConfig:
    """Download the parts that a tracking store keeps; returns the configuration with versions in the place of aliases.

    Raises:
        ConfigError: A line for each part that can't be had; names its option.
    """
    lines, store = [], tracking_uri(config)
    for option in OPTIONS:
        given = value_of(config, option)
        if given is not None and is_tracked(given):
            try:
                config = with_value(config, option, _fetched(config, given, store))
            except ConfigError as error:
                lines.append(f"{option} is {given!r}: {error}")
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def _fetched(config: RunConfig, given: str, store: str) -> str:
    shown = without_password(store)
    if not NAMED.fullmatch(given) and not LOGGED.fullmatch(given):
        raise ConfigError("write models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN/PATH")
    if is_missing(store):
        raise ConfigError(f"tracking store {shown!r} is not there: choose another with --tracking.uri")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with server_watch.bounded():
        if server_watch.is_server(store):
            server_watch.check_server(store)
        import mlflow

        try:
            pinned, expected = _pinned(mlflow.MlflowClient(store, registry_uri=store), given)
            folder = download_folder(config, pinned, store)
            if _digest_in(folder) not in (None, expected) or folder_in(folder) is None:
                _download(mlflow, pinned, store, folder)
        except (mlflow.MlflowException, OSError) as error:
            said = without_password((str(error).splitlines() or [type(error).__name__])[0])
            raise ConfigError(f"{said.rstrip('.')} (in {shown!r})") from error
    return pinned


def _pinned(client: Any, given: str) -> tuple[str, str | None]:
    """What never changes in the place of an alias, and the digest of its weights where the registry tells."""
    match = NAMED.fullmatch(given)
    if match is None or LOGGED.fullmatch(given):
        return given, None
    name = match["name"]
    if match["alias"]:
        version = client.get_model_version_by_alias(name, match["alias"])
    elif match["version"] == "latest":
        every = client.search_model_versions(f"name='{name}'")
        if not every:
            raise ConfigError(f"no version of {name!r} is registered")
        version = max(every, key=lambda each: int(each.version))
    else:
        version = client.get_model_version(name, match["version"])
    return f"models:/{name}/{version.version}", version.tags.get("certdef.sha256")


def _download(mlflow: Any, given: str, store: str, folder: Path) -> None:
    """Put the files in a folder of the work directory, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as room, given_back():
        mlflow.set_tracking_uri(store)  # MLflow looks versions up in the store of the session alone
        mlflow.set_registry_uri(store)
        at = mlflow.artifacts.download_artifacts(artifact_uri=given, dst_path=room)
        found = folder_in(Path(at))
        if found is None:
            raise ConfigError("it holds no network that certdef saved (no model.json): name another")
        shutil.rmtree(folder, ignore_errors=True)
        found.rename(folder)


def _digest_in(folder: Path) -> str | None:
    """The digest of the weights that were downloaded before; None where nothing was."""
    found = folder_in(folder)
    return None if found is None else weights_digest(found)


def part_folder(config: RunConfig, given: str) -> Path:
    """The folder of a part, once it was fetched.

    Raises:
        ConfigError: There is none.
    """
    where = download_folder(config, given, tracking_uri(config)) if given.startswith(TRACKED) else Path(given)
    found = folder_in(where)
    if found is None:
        raise ConfigError(f"{given!r} holds no network that certdef saved (no model.json)")
    return found


def read_part(config: RunConfig, given: str) -> dict[str, Any]:
    """What a part says of itself.

    Raises:
        ConfigError: There is none, or it was changed after it was saved.
    """
    return read_json(part_folder(config, given) / MODEL, MEND)


def part_key(config: RunConfig, given: str) -> dict[str, str]:
    """What decides the function that a part computes: how it is built, and its weights. A key of a stage, and a parameter.

    Of a part that was not fetched yet its name stands there.
    """
    try:
        spec = read_part(config, given)
    except ConfigError:
        return {"reused": given}
    return {"reused": fingerprint(spec["networks"], spec.get("files", {}))}


def weights_digest(folder: Path) -> str:
    """The SHA-256 of the weights of a part that is one network."""
    [name] = read_json(folder / MODEL, MEND)["networks"]
    return file_digest(folder / f"{name}.safetensors")


def law_in_words(law: Mapping[str, Any]) -> str:
    """A law of sigma as a tag and an error have it, without its label."""
    shape = "".join(f"{each:g}, " for each in law["shape"])
    return f"{law['family']}({shape}scale {law['scale_255']:g}/255)"


def is_of(law: Mapping[str, Any], other: SigmaLaw) -> bool:
    """Whether a law that was saved is this one, whatever it is called."""
    return [law["family"], list(law["shape"]), law["scale_255"]] == other.parameters


def register(tracker: Tracker, stage: str, folder: Path, logged: str | None) -> str:
    """Register the part that a stage trained, unless these weights are registered already; returns its URI.

    Args:
        tracker: The job's.
        stage: Name of the stage, whose run the version belongs to.
        folder: Where its files are.
        logged: URI of the model that the stage logged, which the version then points to; None where it logged files.
    """
    spec, digest = read_json(folder / MODEL, MEND), weights_digest(folder)
    name, client = f"certdef-{spec['part']}", tracker.client
    try:
        client.create_registered_model(name, description=f"{spec['part']}, trained by certdef")
    except tracker.mlflow.MlflowException:
        known = client.search_model_versions(f"name='{name}'")  # raises where there is no such model
        for version in known:
            if version.tags.get("certdef.sha256") == digest:
                return f"models:/{name}/{version.version}"
    run = client.get_run(tracker.run_of(stage))
    if logged is None or not _is_logged(tracker, logged):
        client.log_artifacts(run.info.run_id, str(folder), "part")
        logged = f"{run.info.artifact_uri}/part"
    version = client.create_model_version(
        name, logged, run.info.run_id, tags=_tags(spec, digest), await_creation_for=0
    )
    return f"models:/{name}/{version.version}"


def _is_logged(tracker: Tracker, uri: str) -> bool:
    """Whether this store has the model: an earlier job in the folder may have logged it to another one."""
    try:
        tracker.client.get_logged_model(uri.removeprefix("models:/"))
    except tracker.mlflow.MlflowException:
        return False
    return True


def _tags(spec: Mapping[str, Any], digest: str) -> dict[str, str]:
    """By which a part is found."""
    law = spec.get("law")
    [described] = spec["networks"].values()
    tags = {
        "law": law_in_words(law) if law else "none",
        "pool": spec.get("pool") or "none",
        "recipe": json.dumps(spec.get("recipe"), sort_keys=True),
        "image_shape": "x".join(map(str, described["image_shape"])),
        "num_classes": described.get("num_classes"),
        "distilled_from": spec.get("distilled_from"),
        "sha256": digest,
        "version": spec["certdef"],
    }
    return {f"certdef.{key}": str(value)[:LONGEST_TAG] for key, value in tags.items() if value is not None}


def lineage(config: RunConfig) -> str:
    """Which parts of other jobs a job used, in Markdown with links to their versions; empty where it used none."""
    lines = []
    for option, given in reused(config).items():
        match = NAMED.fullmatch(given)
        shown = f"`{without_password(given)}`"
        if match and not LOGGED.fullmatch(given):
            shown = f"[{match['name']}, version {match['version']}](#/models/{match['name']}/versions/{match['version']})"
        lines.append(f"- `{option}`: {shown}")
    return "\n".join(["Parts of other jobs:", "", *lines, ""]) if lines else ""
