"""What a certificate says, in full, in a line, and as a row of a table."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from certify.noise.base import ADDITIVE, PIXELS, NoiseLaw

if TYPE_CHECKING:
    import pandas

ABSTAIN = -1

Counts = NDArray[np.int64]

ROWS = 20  # of a long table in a notebook: the first and the last


class Framed:
    """A value that a notebook shows as its line, ``repr``, above its table, ``to_frame``.

    (surrogates.frames is the same class: these two packages import nothing of each other.)
    """

    def to_frame(self) -> "pandas.DataFrame":
        """The value as a table. Only this imports pandas."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        bounds = {name: how for name in frame.columns if (how := _bound(str(name)))}
        table = frame.to_html(
            index=False, border=0, max_rows=ROWS, formatters=bounds, float_format="{:,.6g}".format
        )
        return f"<p><code>{html.escape(repr(self))}</code></p>\n{table}"


def _bound(column: str) -> Any:
    """How the bounds of a column are written: never as more than was proven."""
    if column == "radius" or column.endswith("lower"):
        return partial(rounded, mode=ROUND_FLOOR)
    return partial(rounded, mode=ROUND_CEILING) if column.endswith("upper") else None


def rounded(value: float, mode: str = ROUND_FLOOR) -> str:
    """A number with at most four decimals, rounded down or as ``mode`` says; one of four decimals stays as it is."""
    if not math.isfinite(value):
        return str(value)
    return f"{Decimal(repr(float(value))).quantize(Decimal('0.0001'), mode).normalize():f}"


def law_in_words(noise: Mapping[str, Any]) -> str:
    """A described law in a few words: its name and its numbers."""
    numbers = {name: value for name, value in noise.items() if isinstance(value, int | float)}
    return " ".join([str(noise.get("law", "?")), *(f"{name}={value:g}" for name, value in numbers.items())])


@dataclass(frozen=True)
class Certificate(Framed):
    """``prediction`` holds within ``radius`` of the image, with probability >= 1 - ``alpha`` over the draws.

    Attributes:
        prediction: Class of the smoothed ``subject``, or ABSTAIN with radius 0.
        radius: In ``norm`` and ``unit``; 0 where abstained.
        norm: "l1", "l2" or "linf"; of a transformation its name.
        p_lower: Lower bound on the probability of the selected class.
        counts: Votes of the ``n`` estimation draws, one entry a class.
        n0: Other draws, which selected the class; 0 where it was known.
        n: Draws of the estimation.
        alpha: Probability of a wrong certificate.
        method: How the votes were drawn and bounded.
        noise: ``describe()`` of the noise law.
        subject: Whose class it is: a certificate of a surrogate says nothing of its target.
        sound: Whether the radius is proven rather than approximate.
        selected: The class that was bounded, also where the prediction is ABSTAIN.
        known_class: The class was named before any vote, so that no selection can be wrong. The claim is "this class
            wins"; an abstention says that it was not proven, also where another class would have been.
        uniform: The draw of a randomized bound (Stevens 1950), made before the votes; None for Clopper and Pearson's.
        threat: What may be done to the image: "additive", or a transformation by name; see ``noise``.
        unit: Of the radius.
    """

    prediction: int
    radius: float
    norm: str
    p_lower: float
    counts: tuple[int, ...]
    n0: int
    n: int
    alpha: float
    method: str
    noise: dict[str, Any]
    subject: str
    sound: bool
    selected: int = ABSTAIN
    known_class: bool = False
    uniform: float | None = None
    threat: str = ADDITIVE
    unit: str = PIXELS

    def __repr__(self) -> str:
        return (
            f"Certificate(prediction={'ABSTAIN' if self.abstained else self.prediction}, "
            f"radius={rounded(self.radius)}, norm={self.norm!r}, noise={law_in_words(self.noise)!r}, "
            f"n={self.n}, alpha={self.alpha:g}, subject={self.subject!r}{'' if self.sound else ', approximate'})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row: the claim, the votes behind it, and whose it is."""
        return Certificates([self]).to_frame().drop(columns="image")

    @property
    def abstained(self) -> bool:
        """Whether no class was certified."""
        return self.prediction == ABSTAIN

    @classmethod
    def of(
        cls,
        selected: int,
        radius: float | None,
        p_lower: float,
        counts0: Counts,
        counts: Counts,
        noise: NoiseLaw,
        *,
        alpha: float,
        method: str,
        subject: str,
        known_class: bool = False,
        uniform: float | None = None,
    ) -> Self:
        """The certificate of class ``selected`` within ``radius``, or an abstention where that is None.

        ``counts0`` (K,) are the votes that selected the class, ``counts`` (K,) those that bound its probability.
        """
        return cls(
            prediction=ABSTAIN if radius is None else selected,
            radius=radius or 0.0,
            norm=noise.norm,
            p_lower=p_lower,
            counts=tuple(int(count) for count in counts),
            n0=int(counts0.sum()),
            n=int(counts.sum()),
            alpha=alpha,
            method=method,
            noise=noise.describe(),
            subject=subject,
            sound=noise.sound,
            selected=selected,
            known_class=known_class,
            uniform=uniform,
            threat=noise.threat,
            unit=noise.unit,
        )


class Certificates(list[Certificate], Framed):
    """Certificates of images, in order: a list that is a table in a notebook.

    Examples:
        >>> certificate = Certificate.of(
        ...     selected=1, radius=0.4, p_lower=0.95, counts0=np.array([0, 9]), counts=np.array([1, 99]),
        ...     noise=Gaussian(0.25), alpha=0.001, method="fixed", subject="model",
        ... )
        >>> certificates = Certificates([certificate])
        >>> certificates
        Certificates(1 images, 1 certified, radius 0.4 to 0.4, norm='l2', noise='gaussian sigma=0.25', alpha=0.001, subject='model', 109 votes)
        >>> certificates.to_frame()[["image", "prediction", "radius", "votes"]].to_dict("records")
        [{'image': 0, 'prediction': 1, 'radius': 0.4, 'votes': 99}]
    """

    def __repr__(self) -> str:
        if not self:
            return "Certificates(0 images)"
        certified = [each for each in self if not each.abstained]
        reach = f", radius {rounded(min(each.radius for each in certified))}" if certified else ""
        reach += f" to {rounded(max(each.radius for each in certified))}" if certified else ""
        same = {
            "norm": {repr(each.norm) for each in self},
            "noise": {repr(law_in_words(each.noise)) for each in self},
            "alpha": {f"{each.alpha:g}" for each in self},
            "subject": {repr(each.subject) for each in self},
        }
        shared = "".join(f", {name}={next(iter(all_))}" for name, all_ in same.items() if len(all_) == 1)
        votes = sum(each.n0 + each.n for each in self)
        approximate = "" if all(each.sound for each in self) else ", approximate"
        return (
            f"Certificates({len(self)} images, {len(certified)} certified{reach}{shared}, "
            f"{votes:,} votes{approximate})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row an image: its position, the claim, the votes behind it, and whose it is.

        ``votes`` are those of the class that was bounded, of ``n``; the noise is in ``Certificate.noise``.
        """
        import pandas

        columns = (
            "prediction",
            "radius",
            "norm",
            "p_lower",
            "n0",
            "n",
            "alpha",
            "method",
            "subject",
            "sound",
        )
        rows = [
            {"image": number}
            | {name: getattr(each, name) for name in columns}
            | {"votes": each.counts[each.selected] if each.selected != ABSTAIN else 0}
            for number, each in enumerate(self)
        ]
        order = ["image", "prediction", "radius", "norm", "p_lower", "votes", *columns[4:]]
        return pandas.DataFrame(rows, columns=order)


def class_to_bound(counts0: Counts, known_class: int | None = None) -> int:
    """The class of most selection votes (K,), of equals the lowest; or the one that is known without them."""
    return int(np.argmax(counts0)) if known_class is None else known_class
