"""Certificates on many machines: each shard votes on its own images and pays from its share of the bill; merging joins both.

A job is prepared once: target, surrogate, purifier, the choice of the noise, whatever comes before the votes. Each shard then
finds all of this in the job's folder, which it only reads, and writes into a folder of its own,
`work_dir/shards/2-of-3`. Votes are seeded by the image, so which shard has an image changes no count. A shard's ledger begins
with what the job's has: whatever was paid for before is known to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import surrogates
from certdef.config.job import ConfigError, RunConfig, flatten
from certdef.config.shard import Shard
from certdef.data.sets import Splits
from certdef.stages.certificates import Ballot, CertifyResult, certify_subjects, classifiers
from certdef.stages.conditions import certifiable, conditions, images_of
from certdef.stages.job import Job, not_prepared
from certdef.stages.ledger import open_ledger
from certdef.stages.votes import record_condition
from certdef.tracking.checked_json import read_json, write_json
from certdef.tracking.workspace import Stage, locked
from certify.records.merge import merge_records
from surrogates.files import replacing
from surrogates.ledger.merge import absorb
from surrogates.ledger.reader import read_statement

STATE, CONFIG = "shard.json", "config.yaml"
MEND = "run the shard again"
SHARED = ("certification", "canary")  # budgets that are divided; the others were paid from before
# Where the work is done, which may differ from shard to shard; everything else is a part of one job.
ELSEWHERE = (
    "work_dir",
    "threads",
    "data.root",
    "certify.backend",
    "certify.workers",
    "certify.scheduler",
    "tracking",
)


def shard_folder(config: RunConfig, shard: Shard) -> Path:
    """Where a shard keeps its ledger and its records."""
    return config.workspace / "shards" / shard.folder


def check_shard(shard: Shard, config: RunConfig, data: Splits | None) -> None:
    """Refuse a job that can't be divided, or not into so many parts.

    Raises:
        ConfigError: Names the value, and the remedy.
    """
    if config.certify.guide != "off":
        raise ConfigError(
            f"certify.guide is {config.certify.guide!r}, and a guide learns from each image for the next: shards, which see "
            "only their own, need --certify.guide off"
        )
    heldout = config.data.heldout_images if data is None else len(data.heldout_images)
    most = max(images_of(config, condition, heldout) for condition in conditions(config))
    if shard.of > most:
        raise ConfigError(f"shard is {shard}, and {most} images are certified: use at most {most} shards")


@contextmanager
def shard_ledger(
    config: RunConfig, path: Path, shard: Shard, heldout: int
) -> Iterator[surrogates.QueryLedger]:
    """A shard's own ledger, with all that the job's ledger has, and budgets that end with its share of what is left there.

    Args:
        config: The job.
        path: Its ledger, which is only read.
        shard: Whose ledger is opened.
        heldout: Number of held-out images.
    """
    if not path.is_file():
        raise not_prepared(config, "target")
    folder = shard_folder(config, shard)
    with locked(folder), open_ledger(config, folder / path.name) as ledger:
        absorb(ledger, path)
        accounts = read_statement(path).accounts
        images = min(config.certify.target_images, certifiable(config, heldout))
        for purpose, budget in ledger.budget.items():
            spent = accounts[purpose].largest if purpose in accounts else 0
            left = max(0, budget - spent) if purpose in SHARED else 0
            ledger.budget[purpose] = spent + shard.share(left, images)
        yield ledger


def record_shard(job: Job, ballot: Ballot) -> Stage[CertifyResult]:
    """Record the images of the job's shard under every condition; those that are recorded stay as they are.

    Raises:
        surrogates.BudgetExceeded: Its share of a budget does not allow them.
    """
    assert job.shard is not None
    shard, stage = job.shard, ballot.stage
    folder = shard_folder(job.config, shard)
    (folder / stage.path.name).mkdir(exist_ok=True)
    state = {
        "number": shard.number,
        "of": shard.of,
        "stage": stage.path.name,
        "ledger": Path(job.ledger.path).name,
        "finished": False,
    }
    _write_config(job.config, folder / CONFIG)
    write_json(folder / STATE, state)
    try:
        for condition, classifier in classifiers(job, ballot.voters, stage, ballot.chosen):
            arithmetic = ballot.voters.engines.chosen
            record_condition(job, condition, classifier, stage, folder / stage.path.name, arithmetic)
        if job.ledger.canaries is not None:
            job.ledger.canaries.finish()
    except surrogates.BudgetExceeded as error:
        raise surrogates.BudgetExceeded(
            f"shard {shard} has spent its share of the budgets ({error}); ledger.certification and ledger.canary are those of "
            "all shards together"
        ) from error
    job.ledger.bill()  # settles what a killed process left in flight
    write_json(folder / STATE, state | {"finished": True})
    return stage


def _write_config(config: RunConfig, path: Path) -> None:
    """The configuration without passwords, for the merge."""
    import yaml

    with replacing(path) as file:
        file.write(yaml.safe_dump(config.public_dict(), sort_keys=False).encode())


@dataclass(frozen=True)
class Shards:
    """The finished shards of one job, in order.

    Attributes:
        folders: Their folders.
        stage: Name of the folder of the certificates, in theirs and in the job's.
        ledger: Name of their ledgers.
    """

    folders: tuple[Path, ...]
    stage: str
    ledger: str

    @property
    def config(self) -> Path:
        """The configuration of the job."""
        return self.folders[0] / CONFIG


def read_shards(folders: Sequence[str | Path]) -> Shards:
    """Read what shards say of themselves: all of one job, each there once and finished.

    Raises:
        ConfigError: All that is wrong, a line each: names the shard, and what differs.
    """
    if not folders:
        raise ConfigError("no shard given: certdef merge runs/digits/shards/*, the folders of all of them")
    states: dict[Path, dict[str, Any]] = {}
    wrong: list[str] = []
    for folder in map(Path, folders):
        if (folder / STATE).is_file():
            states[folder] = read_json(folder / STATE, MEND)
        else:
            wrong.append(
                f"{str(folder)!r} is no shard ({STATE} is missing): give the folders that certdef certify --shard made"
            )
    ordered = dict(sorted(states.items(), key=lambda each: each[1]["number"]))
    wrong += _not_whole(ordered)
    wrong += _differing(ordered)
    if wrong:
        raise ConfigError("\n".join(wrong))
    first = next(iter(ordered.values()))
    return Shards(tuple(ordered), first["stage"], first["ledger"])


def _not_whole(states: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What is missing, not finished, or there twice."""
    lines = []
    seen: dict[str, Path] = {}
    for folder, state in states.items():
        shard = str(Shard(state["number"], state["of"]))
        if shard in seen:
            lines.append(
                f"shard {shard} is given twice, {str(seen[shard])!r} and {str(folder)!r}: give each once"
            )
        seen[shard] = folder
        if not state["finished"]:
            lines.append(
                f"shard {shard} in {str(folder)!r} is not finished: run certdef certify --shard {shard} again"
            )
    parts = sorted({state["of"] for state in states.values()})
    if len(parts) > 1:
        lines.append(f"the shards are of different divisions, {' and '.join(seen)}: give those of one")
    elif parts:
        missing = [
            each for number in range(parts[0]) if (each := str(Shard(number + 1, parts[0]))) not in seen
        ]
        if missing:
            lines.append(
                f"shard {', '.join(missing)} is missing: run certdef certify --shard {missing[0]}, or give its folder"
            )
    return lines


def _differing(states: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What shards were told otherwise than the first one."""
    import yaml

    lines: list[str] = []
    first: tuple[str, dict[str, Any], str] | None = None
    for folder, state in states.items():
        told = flatten(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        told = {name: value for name, value in told.items() if not name.startswith(ELSEWHERE)}
        shard = str(Shard(state["number"], state["of"]))
        first = first or (shard, told, state["stage"])
        names = [name for name in sorted({*told, *first[1]}) if told.get(name) != first[1].get(name)]
        differing = [f"{name} {told.get(name)!r}, not {first[1].get(name)!r}" for name in names]
        if not names and state["stage"] != first[2]:
            differing = ["kind of device, tracking store or prepared job"]
        if differing:
            lines.append(
                f"shard {shard} differs from shard {first[0]} ({'; '.join(differing)}): run it again with the same options"
            )
    return lines


def merge_shards(job: Job, ballot: Ballot, shards: Shards) -> Stage[CertifyResult]:
    """Take over the bills and the records of shards, and certify from them: nothing is left to vote on.

    Raises:
        ConfigError: They are shards of another job.
        certify.CertifyError: Names the shard whose records are damaged, or do not go with the others'.
        surrogates.LedgerError: A ledger is damaged, or another target's.
    """
    stage = ballot.stage
    if stage.path.name != shards.stage:
        raise ConfigError(
            f"the shards are of {shards.stage}, and this job's certificates are {stage.path.name}: give merge the work_dir, "
            "the tracking store and the kind of device that the shards had, and no other options"
        )
    for folder in shards.folders:
        absorb(job.ledger, folder / shards.ledger)
    if not stage.done:
        stage.begin()
        private = job.config.target.is_private
        records = stage.path / "records"
        records.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
        for condition in job.progress(conditions(job.config, ballot.chosen), desc="merge", unit="condition"):
            count = images_of(job.config, condition, len(job.data.heldout_images))
            own = [
                folder / stage.path.name / "records" / f"{condition.key}.jsonl" for folder in shards.folders
            ]
            merge_records(own, records / condition.key, range(count))
    return certify_subjects(job, ballot)
