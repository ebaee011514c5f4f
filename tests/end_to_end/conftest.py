"""Whole jobs that need no start of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.forks import Forks


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        forks.run(Path.cwd(), ["--version"])  # once this has answered, everything is imported
        yield forks
