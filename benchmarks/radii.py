"""Seconds for 10,000 radii of the scale mixture on one core, and how far below the exact radius they are.

python benchmarks/radii.py
"""

import time
from itertools import pairwise

import numpy as np
import scipy.stats as st
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr

from certify import GaussianScaleMixture

LAWS = {
    "gamma(25, 3/255)": st.gamma(25, scale=3 / 255),
    "gamma(4, 8/255)": st.gamma(4, scale=8 / 255),
    "lognorm(0.8, 0.2)": st.lognorm(0.8, scale=0.2),
    "uniform(1, 30)/255": st.uniform(1 / 255, 29 / 255),
}


def exact_radius(p: float, law, guess: float) -> float:  # type: ignore[no-untyped-def]
    """The radius by adaptive quadrature and root finding on the defining equations."""

    def mean(f) -> float:  # type: ignore[no-untyped-def]
        points = ndtr(np.array([-9, -5, -3, -1.5, 0, 1.5, 3, 5, 8]))
        return sum(
            quad(lambda q: f(law.ppf(q)), *ends, epsabs=1e-11, epsrel=1e-8)[0] for ends in pairwise(points)
        )

    def needed(r: float) -> float:
        level = brentq(lambda t: mean(lambda s: ndtr(s * t / r - r / (2 * s))) - 0.5, 0, 200)
        return mean(lambda s: ndtr(s * level / r + r / (2 * s)))

    return brentq(lambda r: needed(r) - p, 0.98 * guess, 1.02 * guess, xtol=1e-8)


def main() -> None:
    torch.set_num_threads(1)
    p = np.linspace(0.5, 0.99999, 10_000)
    print("| law of sigma | first call, s | 10,000 radii, s | below exact at p = 0.8, 0.99, % |")
    print("| --- | ---: | ---: | --- |")
    for name, law in LAWS.items():
        noise = GaussianScaleMixture(law)
        start = time.process_time()
        noise.radius(0.9)
        first = time.process_time() - start
        start = time.process_time()
        noise.radius(p)
        many = time.process_time() - start
        below = [100 * (1 - noise.radius(q) / exact_radius(q, law, noise.radius(q))) for q in (0.8, 0.99)]
        print(f"| {name} | {first:.2f} | {many:.2f} | {below[0]:.3f}, {below[1]:.3f} |")


if __name__ == "__main__":
    main()
