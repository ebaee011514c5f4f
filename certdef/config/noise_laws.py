"""From a configured sigma law to a noise law, at the door where 8-bit levels become [0, 1] pixel units."""

from __future__ import annotations

from functools import lru_cache

import scipy.stats

import certify
from certdef.config.candidates import TRUNCATED
from certdef.config.job import ConfigError, SigmaLaw


def noise_law(law: SigmaLaw) -> certify.GaussianScaleMixture | certify.Gaussian:
    """The Gaussian scale mixture of a configured law of sigma, e.g. Gamma(25, scale 3)/255; one Gaussian if it is constant.

    Of a family `truncated_gamma` the last two shape arguments are the smallest and the largest sigma, in 8-bit levels.

    Raises:
        ConfigError: scipy.stats has no such family, or the family refuses the shape arguments.
    """
    if law.family == "constant":
        if law.shape:
            raise ConfigError(f"law {law.label!r}: a constant sigma is its scale alone, give shape []")
        return certify.Gaussian(law.scale_255 / 255)
    try:
        return _mixture(law.family, tuple(law.shape), law.scale_255 / 255)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"law {law.label!r}: {error}") from error


@lru_cache(maxsize=64)  # a job asks for its few laws again and again, and each has thousands of quantiles
def _mixture(family: str, shape: tuple[float, ...], scale: float) -> certify.GaussianScaleMixture:
    cut = family.startswith(TRUNCATED)
    shape, ends = (shape[:-2], shape[-2:]) if cut else (shape, ())
    known = getattr(scipy.stats, family.removeprefix(TRUNCATED), None)
    if not isinstance(known, scipy.stats.rv_continuous):
        raise ValueError(
            f"family {family!r} is no continuous scipy.stats law: try gamma, uniform, gengamma or constant"
        )
    sigma = known(*shape, scale=scale)
    if cut:
        low, high = ends
        sigma = certify.truncated(sigma, low / 255, high / 255)
    return certify.GaussianScaleMixture(sigma)
