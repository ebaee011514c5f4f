"""What is added to the pixels, and the radius that it proves."""

from certify.noise.base import Gaussian, Laplace, NoiseLaw, Uniform, UniformLinf
from certify.noise.inclusion import Inclusion
from certify.noise.numerical import IID, generalised_normal
from certify.noise.scale_mixture import GaussianScaleMixture, nim_noise
from certify.noise.truncation import truncated

__all__ = [
    "IID",
    "Gaussian",
    "GaussianScaleMixture",
    "Inclusion",
    "Laplace",
    "NoiseLaw",
    "Uniform",
    "UniformLinf",
    "generalised_normal",
    "nim_noise",
    "truncated",
]
