"""Membership inference on your own target as configured: the two lists of images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MembershipConfig:
    """Do your own target's answers tell which images it was trained on? Measured by run and certify, where both lists are given.

    Both are read as data.path is: a folder, a .csv, an .npz ..., with labels, and data.columns, data.resize and data.color.

    Args:
        members: Images that the target was trained on.
        nonmembers: As many others, or more, that it was not trained on, of the same source: whatever else differs between
            the two lists is measured too. A true positive rate at 1% false positives takes at least 100.
    """

    members: str | None = None
    nonmembers: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether it is measured."""
        return self.members is not None and self.nonmembers is not None
