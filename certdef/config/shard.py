"""A shard: one of several equal parts of a job's certificates, each for a machine of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from certdef.config.job import ConfigError

PATTERN = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/3` is the second of three; ConfigError otherwise."""
        match = PATTERN.fullmatch(text)
        shard = cls(int(match[1]), int(match[2])) if match else None
        if shard is None or not 1 <= shard.number <= shard.of:
            raise ConfigError(
                f"shard is {text!r}: give its number, from 1, and how many there are, e.g. --shard 2/3"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.number}-of-{self.of}"

    def own(self, count: int) -> list[int]:
        """Those of `count` images that are its own: every of-th one, so that each shard has as much of every condition."""
        return list(range(self.number - 1, count, self.of))

    def share(self, queries: int, count: int) -> int:
        """Its part of a number of queries, by its images; those of all shards add up to all of it."""
        ends = [
            sum(len(Shard(each, self.of).own(count)) for each in range(1, last + 1))
            for last in (self.number - 1, self.number)
        ]
        return queries * ends[1] // count - queries * ends[0] // count
