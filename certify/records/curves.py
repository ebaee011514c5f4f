"""Certified accuracy against radius: numbers with confidence bands, a table, a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certify.bounds.binomial import binomial_interval
from certify.certificate import Framed
from certify.errors import CertifyError, check_alpha
from certify.records.table import Records

if TYPE_CHECKING:
    import pandas

    from certify.records.picture import Picture

# Okabe and Ito's palette: distinct with any color vision, and in print with the line styles below.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve(Framed):
    """Certified accuracy at each radius: the share of images that are correct at least that far.

    Attributes:
        radius, accuracy: (R,).
        lower, upper: (R,), Clopper-Pearson limits for the accuracy on the population of images; each point is
            covered with probability 1 - alpha.
        total: Number of images.
        sound: False where a radius is only approximate.
        known_class: The classes were known: no votes selected them.
    """

    radius: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    total: int
    sound: bool = True
    known_class: bool = False

    def __repr__(self) -> str:
        ends = dict.fromkeys([0, len(self.radius) - 1])
        shares = ", ".join(f"{100 * self.accuracy[at]:.1f}% at radius {self.radius[at]:g}" for at in ends)
        return f"Curve({_label(f'{self.total} images, certified accuracy {shares}', self)})"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a radius: certified accuracy and its limits, as shares."""
        import pandas

        return pandas.DataFrame(
            {"radius": self.radius, "accuracy": self.accuracy, "lower": self.lower, "upper": self.upper}
        )


def certified_accuracy(records: Records, radii: ArrayLike, alpha: float = 0.05) -> Curve:
    """Share of images that are correct with radius >= r, for each r in ``radii``, with 1 - alpha bands.

    Abstentions and wrong classes count as wrong at every radius, 0 included (Cohen et al. 2019).

    Raises:
        CertifyError: There are no records, or a radius is negative or, in a record, not finite.

    Examples:
        >>> records = Records(
        ...     idx=np.arange(4), label=np.array([0, 1, 2, 2]), predict=np.array([0, 1, 1, -1]),
        ...     radius=np.array([0.7, 0.3, 0.5, 0.0]), correct=np.array([True, True, False, False]), seconds=np.zeros(4),
        ... )
        >>> certified_accuracy(records, [0, 0.25, 0.5]).accuracy.tolist()
        [0.5, 0.5, 0.25]
    """
    if len(records) == 0:
        raise CertifyError("certified accuracy needs at least one record, got 0: certify an image first")
    possible = np.isfinite(records.radius) & (records.radius >= 0)
    if not np.all(possible):
        first = int(np.argmin(possible))
        raise CertifyError(
            f"image {records.idx[first]} has radius {records.radius[first]}: it must be finite and >= 0"
        )
    radii = np.atleast_1d(np.asarray(radii, dtype=np.float64))
    if radii.size == 0 or not np.all(radii >= 0):
        raise CertifyError(f"radii must be >= 0, got {radii.tolist()}: try radii=[0, 0.25, 0.5]")
    right = np.sort(records.radius[records.correct & (records.predict >= 0)])
    hits = len(right) - np.searchsorted(right, radii, side="left")
    lower, upper = binomial_interval(hits, len(records), alpha)
    return Curve(radii, hits / len(records), lower, upper, len(records), records.sound, records.known_class)


def table(curves: Mapping[str, Curve]) -> str:
    """A Markdown table: a row a curve, a column a radius, accuracies in % with their confidence limits.

    Raises:
        CertifyError: There is no curve, or they do not share their radii.
    """
    radii = _shared_radii(curves)
    lines = ["| certified accuracy, % | images | " + " | ".join(f"r = {r:g}" for r in radii) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(radii))
    for name, curve in curves.items():
        points = zip(100 * curve.accuracy, 100 * curve.lower, 100 * curve.upper, strict=True)
        cells = [f"{accuracy:.1f} ({lower:.1f}–{upper:.1f})" for accuracy, lower, upper in points]
        lines.append(f"| {_label(name, curve)} | {curve.total} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(
    curves: Mapping[str, Curve],
    path: str | Path | None = None,
    title: str = "Certified accuracy",
    norm: str = "l2",
    unit: str = "pixel values in [0, 1]",
) -> "Picture":
    """Draw the curves with their bands; a notebook shows what is returned, a matplotlib figure.

    Args:
        curves: By name; a few hundred radii each give a smooth picture.
        path: Where to save the picture; the suffix chooses the format.
        title: Above the picture.
        norm: Of the radii: l1, l2 or linf, or the transformation's name; empty where it is not known.
        unit: Of the radii.

    Raises:
        CertifyError: There is no curve.
    """
    from matplotlib.ticker import PercentFormatter

    from certify.records.picture import Picture

    if not curves:
        raise CertifyError("plot needs at least one curve, got none: pass {name: curve}")
    figure = Picture(6.4, 4.2)
    axes: Any = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        color, style = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
        axes.fill_between(curve.radius, curve.lower, curve.upper, color=color, alpha=0.18, linewidth=0)
        line = {"color": color, "linestyle": style, "linewidth": 1.8, "label": _label(name, curve)}
        axes.plot(curve.radius, curve.accuracy, **line)
    furthest = max(curve.radius.max() for curve in curves.values())
    axes.set_xlim(0, furthest or 1)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    symbol = norm.replace("l", "ℓ") if norm in ("l1", "l2", "linf") else norm
    axes.set_xlabel(f"{symbol} radius of the perturbation ({unit})".lstrip())
    axes.set_ylabel("certified accuracy (correct, proven within the radius)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if path is not None:
        figure.savefig(path)
    return figure


def guaranteed_accuracy(
    records: Records, radii: ArrayLike, failure: float = 0.001, alpha: float | None = None
) -> Curve:
    """Lower limit on the share of these very images that truly are certified, all but w.p. ``failure``.

    Each of the M radii is wrong with probability at most ``alpha``, the level that they were certified at. So
    the number of wrong ones is at most a Binomial(M, alpha) variable in convex order, and by Bernstein's
    inequality the certified accuracy of the exact smoothed classifier is at least the observed one minus
    alpha + sqrt(2 alpha (1 - alpha) log(1 / failure) / M) + log(1 / failure) / (3 M) (Cohen et al. 2019,
    Appendix). ``lower`` and ``accuracy`` are that limit, ``upper`` is the observed accuracy.

    Args:
        records: Of one alpha.
        radii: (R,), in [0, 1] pixel units.
        failure: In (0, 0.5).
        alpha: Only where the records do not keep theirs (a ``.tsv``), or are of several: no less than any.

    Raises:
        CertifyError: The level of the radii is unknown or not one, or ``alpha`` is less than it was.
    """
    check_alpha(failure)
    alpha = _alpha_of(records, alpha)
    curve = certified_accuracy(records, radii)
    log = np.log(1 / failure)
    slack = alpha + np.sqrt(2 * alpha * (1 - alpha) * log / curve.total) + log / (3 * curve.total)
    lower = np.maximum(curve.accuracy - slack, 0.0)
    return replace(curve, accuracy=lower, lower=lower, upper=curve.accuracy)


def _alpha_of(records: Records, alpha: float | None) -> float:
    """The level of all radii: what the records say, or the caller where they don't say one."""
    kept = None if records.alpha is None or len(records) == 0 else records.alpha
    if alpha is None:
        if kept is None:
            raise CertifyError("these records do not keep their alpha: read the .jsonl, or give alpha=")
        if kept.min() < kept.max():
            raise CertifyError(
                f"these records are of several alphas, {kept.min():g} to {kept.max():g}: give alpha={kept.max():g}"
            )
        return float(kept[0])
    alpha = check_alpha(alpha)
    if kept is not None and alpha < kept.max():
        raise CertifyError(
            f"these records were certified at alpha={kept.max():g}, got {alpha:g}: leave it out"
        )
    return alpha


def _label(name: str, curve: Curve) -> str:
    remarks = [] if curve.sound else ["approximate"]
    remarks += ["class known"] if curve.known_class else []
    return f"{name} ({', '.join(remarks)})" if remarks else name


def _shared_radii(curves: Mapping[str, Curve]) -> Sequence[float]:
    if not curves:
        raise CertifyError("table needs at least one curve, got none: pass {name: curve}")
    first, *others = (curve.radius for curve in curves.values())
    if any(not np.array_equal(first, other) for other in others):
        raise CertifyError("all curves of a table must share their radii: compute them with the same radii")
    return first.tolist()
