"""A noise level for each image, taken by a certified router that is free of queries.

Noise that depends on the image has no certificate by itself: an image nearby may get another sigma. Here the choice of
sigma is a smoothed classifier too (Dual Randomized Smoothing, arXiv 2512.01782, where it is trained; here any function,
such as a surrogate's answer, is taken as it is). What it is worth is measured by routed.py; it is not in the package, because
it does not pay.

The classifier. A base router b answers one of M noise levels sigma_0..sigma_{M-1} for a noisy image, and d is the default.

    rho_j(x) = P(b(x + e) = j),  e ~ N(0, tau^2 I)
    h(x)     = the j != d with rho_j(x) > 1/2, else d
    G(x)     = argmax_c P(f(x + eps) = c),  eps ~ N(0, sigma_{h(x)}^2 I)        f: the target

At most one rho_j exceeds 1/2, so h and G are functions of x alone: no draw, no vote and no abstention is part of them.

Theorem. Let j = h(x), and let h be j within R_e of x. If P(f(x + eps) = c) >= p > 1/2 under sigma_j, then G is c at every x'
with |x' - x| < min(R_e, sigma_j Phi^-1(p)). And h is j within
    R_e = tau Phi^-1(q)        if j != d and rho_j(x) >= q > 1/2,
    R_e = tau Phi^-1(1 - u)    if j = d and rho_k(x) <= u < 1/2 for all k != d.

Proof. For a function with values in [0, 1], Phi^-1 of its mean under N(0, tau^2 I) changes by at most |x' - x| / tau
(Cohen et al. 2019; Salman et al. 2019). So within R_e rho_j stays above 1/2 in the first case, and all rho_k stay at or
below 1/2 in the second; h(x') = j either way. There G(x') is the answer of one smoothed classifier, that of sigma_j, which
is c within sigma_j Phi^-1(p) by Cohen's theorem.

Error. The router is bounded from draws of its own at level alpha_e, and the target from other draws at level alpha_c, in
this order: sigma_j is fixed before the first vote of the target. The certificate is wrong only if a bound is: at most
alpha_e + alpha_c, whatever the surrogate. The default's bound u is the largest of M - 1 upper bounds, each at the full
alpha_e: it is too low only if the bound of the truly largest rho_k is, which is one event.

Where the bounds decide nothing (q <= 1/2, or u >= 1/2), h(x) is unknown and nothing is claimed. To go on with the default
there is unsound: that a *sample* did not decide says nothing about h, which may be k != d, and G(x) is then the answer
under another sigma, every time. The default is certified only by its own bound: that no other level has the majority.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from certify.bounds.binomial import binomial_lower_bound, binomial_upper_bound
from certify.certificate import ABSTAIN, Certificate, Counts
from certify.errors import CertifyError, check_alpha, check_count, with_options
from certify.noise.gaussian import Gaussian
from certify.smoothing import Sampling, SmoothedClassifier
from certify.voting.checks import check_images, check_indices, resolve_device
from certify.voting.engine import VoteEngine

ROUNDING = 1e-12  # of a difference of radii
PILOT, ROUTING = 14, 15  # stages of the vote engine's seeds: apart from those of the target's votes


@dataclass(frozen=True)
class Route:
    """Which noise level the router takes at an image, and how far around it.

    Attributes:
        level: Position of the level, or ABSTAIN where the votes do not decide.
        radius: L2 radius within which the router takes it.
        counts: Votes (M,) that bound it.
    """

    level: int
    radius: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RoutedCertificate(Certificate):
    """A certificate of the routed classifier: ``radius`` is the smaller one of router and target.

    Attributes:
        route: What is certified of the router.
        sigma: Noise level of the target's votes; 0 where the router abstained and none was paid for.
        target_radius: Radius of the target's votes alone.
    """

    route: Route = Route(ABSTAIN, 0.0, ())
    sigma: float = 0.0
    target_radius: float = 0.0


def certify_route(counts0: Counts, counts: Counts, default: int, router_sigma: float, alpha: float) -> Route:
    """The level that the exact router h takes, wrong w.p. at most ``alpha``; pure.

    Args:
        counts0: Router's votes (M,) of other draws, which choose the claim that is tested.
        counts: Router's votes (M,), which bound it.
        default: Position of the default.
        router_sigma: Of the noise that both were drawn under.
        alpha: In (0, 0.5).
    """
    noise, total = Gaussian(router_sigma), int(counts.sum())
    level = int(np.argmax(counts0))
    if level != default and 2 * counts0[level] > counts0.sum():
        share = binomial_lower_bound(int(counts[level]), total, alpha)
    else:
        level = default
        share = np.nextafter(1 - binomial_upper_bound(np.delete(counts, default), total, alpha).max(), 0)
    votes = tuple(int(count) for count in counts)
    return Route(level, noise.radius(share), votes) if share > 0.5 else Route(ABSTAIN, 0.0, votes)


def certify_threshold(
    counts0: Counts, counts: Counts, thresholds: Sequence[float], router_sigma: float, alpha: float
) -> Route:
    """The level by the surrogate's own radius: how many thresholds it reaches; wrong w.p. at most ``alpha``.

    phi(x) = tau Phi^-1(max_c P(S(x + e) = c)) changes by at most |x' - x|, as the largest of functions that do. So the number
    of thresholds t_1 < t_2 < ... that phi reaches is the same within phi - t_j above the last one reached and t_{j+1} - phi
    below the next; phi is bounded from both sides, each at alpha / 2. The upper bound is that of the class with most votes: it
    is too low only if the bound of the truly likeliest class is.

    Args:
        counts0: Surrogate's votes (K,) of other draws, which choose the class of the lower bound.
        counts: Surrogate's votes (K,), which bound phi.
        thresholds: M - 1 radii, increasing.
        router_sigma: tau, of the noise that both were drawn under.
        alpha: In (0, 0.5).
    """
    total = int(counts.sum())
    low = binomial_lower_bound(int(counts[int(np.argmax(counts0))]), total, alpha / 2)
    high = binomial_upper_bound(int(counts.max()), total, alpha / 2)
    low, high = router_sigma * ndtri(low), router_sigma * ndtri(high)
    level = int(np.searchsorted(thresholds, low, side="right"))
    below, above = [low - edge for edge in thresholds[:level]], [edge - high for edge in thresholds[level:]]
    radius = min(below[-1:] + above[:1]) - ROUNDING
    votes = tuple(int(count) for count in counts)
    return Route(level, float(radius), votes) if radius > 0 else Route(ABSTAIN, 0.0, votes)


def certify_routed(
    target: Callable[[torch.Tensor], Any],
    router: Callable[[torch.Tensor], Any],
    images: Any,
    sigmas: Sequence[float],
    num_classes: int,
    *,
    router_sigma: float,
    default: int = 0,
    n0: int = 100,
    n: int = 1_000,
    n_router: int = 10_000,
    alpha: float = 0.001,
    alpha_router: float | None = None,
    method: str = "fixed",
    radii: Sequence[float] | None = None,
    subject: str = "target",
    indices: Sequence[int] | None = None,
    **options: Any,
) -> list[RoutedCertificate]:
    """Certify "take a noise level by the router, then vote under it", each image at level ``alpha`` in all.

    Args:
        target: Noisy images (B, C, H, W) float32 -> scores or labels, of each image by itself; only its votes are paid.
        router: Noisy images -> positions (B,) of a level, or scores (B, M): a function of the noisy image alone. Randomness
            of its own must not depend on the image.
        images: (N, C, H, W) in [0, 1].
        sigmas: M noise levels, in [0, 1] pixel units.
        num_classes: Labels are in [0, num_classes).
        router_sigma: tau, of the noise that the router sees.
        default: Position of the level that is taken where no other has the majority.
        n0, n, method, radii: Of the target's votes, as in ``Sampling``. An image whose router abstains costs none.
        n_router: Votes of the router an image, beside n0 that choose the claim; free.
        alpha: Probability of a wrong certificate, router and target together, in (0, 0.5).
        alpha_router: The router's share of it; default a tenth.
        subject: Whose class it is.
        indices: Names of the images (default 0, 1, ...), which seed their noise.
        options: Fields of ``VoteEngine``.

    Raises:
        CertifyError: Bad arguments, before the first vote; bad labels.
    """
    levels = [Gaussian(sigma) for sigma in sigmas]
    count = check_count("the number of sigmas", len(levels), 2)
    if not 0 <= default < count:
        raise CertifyError(f"default must be a position in sigmas, 0 to {count - 1}, got {default}")
    alpha = check_alpha(alpha)
    share = alpha / 10 if alpha_router is None else check_alpha(alpha_router)
    if share >= alpha:
        raise CertifyError(f"alpha_router must be below alpha={alpha:g}, got {share:g}: try {alpha / 10:g}")
    sampling = Sampling(n0, n, alpha - share, method, radii)
    for level in levels:
        sampling.plan(level)
    check_count("n_router", n_router)
    images = check_images(images)
    names = check_indices(indices, len(images))
    engine = with_options(VoteEngine(), options)
    noise, there = Gaussian(router_sigma), replace(engine, device=resolve_device(router, engine.device))

    def vote(draws: int, stage: int) -> Counts:
        return there.count(router, images, noise, count, draws, indices=names, stage=stage)

    pilot, votes = vote(n0, PILOT), vote(n_router, ROUTING)
    routes = [certify_route(*each, default, router_sigma, share) for each in zip(pilot, votes, strict=True)]
    law = {
        "law": "routed",
        "norm": "l2",
        "sigmas": [float(level.sigma) for level in levels],
        "default": default,
        "router_sigma": noise.sigma,
        "alpha_router": share,
    }
    found = {row: _abstained(route, num_classes, alpha, law, subject) for row, route in enumerate(routes)}
    for position, level in enumerate(levels):
        rows = [row for row, route in enumerate(routes) if route.level == position]
        if not rows:
            continue
        smoothed = SmoothedClassifier(target, level, num_classes, subject=subject, engine=engine)
        certificates = smoothed.certify(
            images[rows],
            indices=[names[row] for row in rows],
            **{each.name: getattr(sampling, each.name) for each in fields(sampling)},
        )
        engine = replace(engine, recheck=0)  # once is enough
        for row, certificate in zip(rows, certificates, strict=True):
            found[row] = _routed(certificate, routes[row], level.sigma, alpha, law)
    return [found[row] for row in range(len(routes))]


def _routed(
    certificate: Certificate, route: Route, sigma: float, alpha: float, law: dict[str, Any]
) -> RoutedCertificate:
    """The target's certificate, cut to the router's radius."""
    own = {each.name: getattr(certificate, each.name) for each in fields(Certificate)}
    changed = {
        "radius": min(route.radius, certificate.radius),
        "alpha": alpha,
        "noise": law,
        "method": f"routed {certificate.method}",
    }
    return RoutedCertificate(**own | changed, route=route, sigma=sigma, target_radius=certificate.radius)


def _abstained(
    route: Route, num_classes: int, alpha: float, law: dict[str, Any], subject: str
) -> RoutedCertificate:
    """Nothing is claimed, and nothing was paid."""
    return RoutedCertificate(
        prediction=ABSTAIN,
        radius=0.0,
        norm="l2",
        p_lower=0.0,
        counts=(0,) * num_classes,
        n0=0,
        n=0,
        alpha=alpha,
        method="routed",
        noise=law,
        subject=subject,
        sound=True,
        route=route,
    )
