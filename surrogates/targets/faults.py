"""Several faults of one opening in one error, so that a user mends them all at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from surrogates.errors import TargetError


class Faults:
    """Collects faults, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note a fault; one that is known already is not said twice."""
        self.lines += [each for each in line.split("\n") if each not in self.lines]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Note what is raised inside, and go on after it."""
        try:
            yield
        except TargetError as error:
            self.add(str(error))

    def refuse(self, kind: type[TargetError] = TargetError) -> None:
        """Raise all that was noted as one error.

        Raises:
            TargetError: There is a fault.
        """
        if self.lines:
            error = kind("\n".join(self.lines))
            error.lines = tuple(self.lines)
            raise error
