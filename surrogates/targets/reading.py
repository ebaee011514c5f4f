"""How the caller says that a target's output is to be read: which part of it, and the names of the classes."""

from dataclasses import dataclass

from surrogates.targets.classes import ClassNames


@dataclass(frozen=True)
class Reading:
    """How an output is read.

    Args:
        names: The names of the classes.
        output: Name or place of the part that is the answer, where an output has several.
    """

    names: ClassNames | None = None
    output: str | int | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, None where nobody gave them."""
        return None if self.names is None else self.names.in_order
