"""UDC, the intervals: photographs are their units, not crops.

Two crops of one photograph are alike. An interval that counts them as independent is too narrow: with n crops of each
photograph and a correlation of rho between two of them, the mean has 1 + (n - 1) rho times the variance that it claims.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t


class Mean(NamedTuple):
    """A mean over photographs with its 95% interval; in JSON the list [value, lower, upper]."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: ArrayLike, photographs: ArrayLike) -> Mean:
        """The crops of each photograph are averaged first; then Student's interval of the photographs' means.

        Args:
            values: Of each crop, (N,).
            photographs: Number of each crop's photograph, (N,).

        Raises:
            ValueError: Fewer than two photographs.
        """
        _, place = np.unique(np.asarray(photographs), return_inverse=True)
        means = np.bincount(place, np.asarray(values, np.float64)) / np.bincount(place)
        count = len(means)
        if count < 2:
            raise ValueError(f"an interval needs crops of two photographs or more, got those of {count}")
        half = t.ppf(0.975, count - 1) * means.std(ddof=1) / count**0.5
        return cls(float(means.mean()), float(means.mean() - half), float(means.mean() + half))
