"""What is added to the pixels, and the radius that it proves."""

from certify.noise.base import NoiseLaw
from certify.noise.gaussian import Gaussian
from certify.noise.inclusion import Inclusion
from certify.noise.laplace import Laplace
from certify.noise.numerical import IID, generalized_normal
from certify.noise.scale_mixture import GaussianScaleMixture, nim_noise
from certify.noise.truncation import truncated
from certify.noise.uniform import Uniform, UniformLinf

__all__ = [
    "IID",
    "Gaussian",
    "GaussianScaleMixture",
    "Inclusion",
    "Laplace",
    "NoiseLaw",
    "Uniform",
    "UniformLinf",
    "generalized_normal",
    "nim_noise",
    "truncated",
]
