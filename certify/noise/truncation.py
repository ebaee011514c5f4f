"""Laws of sigma cut to an interval: keep the radius' slope at p = 1/2 when E[1/sigma] would be infinite."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.errors import CertifyError


def truncated(law: Any, low: float, high: float = np.inf) -> Any:
    """``law`` given low <= sigma <= high, for GaussianScaleMixture.

    Args:
        law: A frozen continuous scipy.stats distribution.
        low: Smallest sigma, in [0, 1] pixel units.
        high: Largest sigma.

    Raises:
        CertifyError: The law has no mass on the interval, or is not frozen.
    """
    try:
        below, above = float(law.cdf(low)), float(law.cdf(high))
    except (AttributeError, TypeError):
        raise CertifyError(
            f"law must be a frozen scipy.stats law, got {law!r}: give its parameters"
        ) from None
    if not (0 <= low < high and above - below > 1e-9):
        raise CertifyError(f"law has no mass on [{low:g}, {high:g}]: widen the interval")
    return _Truncated(law, low, high, below, above)


class _Truncated:
    """The part of scipy's frozen laws that a scale mixture uses."""

    def __init__(self, law: Any, low: float, high: float, below: float, above: float) -> None:
        self._law, self._ends, self._below, self._mass = law, (low, high), below, above - below
        self.name = f"truncated_{getattr(law, 'dist', law).name}"
        self.args = (*getattr(law, "args", ()), *getattr(law, "kwds", {}).values(), low)
        self.args += (high,) if np.isfinite(high) else ()  # a description is JSON, which knows no infinity

    def cdf(self, x: ArrayLike) -> NDArray[np.float64]:
        return np.clip((self._law.cdf(x) - self._below) / self._mass, 0.0, 1.0)

    def ppf(self, q: ArrayLike) -> NDArray[np.float64]:
        return np.clip(self._law.ppf(self._below + np.asarray(q) * self._mass), *self._ends)

    def mean(self) -> float:
        nodes = (np.arange(4096) + 0.5) / 4096
        return float(np.mean(self.ppf(nodes)))
