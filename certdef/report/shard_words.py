"""What a part of a job on many machines prints when it is done, and the command that comes next."""

from __future__ import annotations

from certdef.config.job import RunConfig
from certdef.config.shard import Shard
from certdef.stages.shards import shard_folder
from certdef.stages.summary import Summary


def of_part(config: RunConfig, shard: Shard | None, summary: Summary) -> str:
    """Of a shard, or of the preparation where there is none."""
    assert summary.bill is not None
    spent = ", ".join(
        f"{purpose} {charge.spent:,} of {charge.budget:,}"
        for purpose, charge in summary.bill.charges.items()
        if charge.budget
    )
    if shard is None:
        return "\n".join(
            [
                f"prepared    {summary.workspace}: all that comes before the certificates",
                f"queries     {spent}",
                "next        certdef certify --shard 1/3 with the same options, and 2/3, 3/3, wherever this folder is read",
            ]
        )
    folder = shard_folder(config, shard)
    return "\n".join(
        [
            f"shard       {shard} is done: {folder}",
            f"queries     {spent} (with what was paid before the shards)",
            f"ledger      {summary.ledger}",
            f"next        certdef merge {folder.parent}/*-of-{shard.of}, once all {shard.of} are done",
        ]
    )
