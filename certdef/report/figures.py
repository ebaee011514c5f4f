"""The figures of a job, for pages and notebooks: accuracy under attack, the threat ladder, membership inference, query budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certdef.attacks.evaluation import WORST_CASE, AttackEvaluation, known_by
from certdef.report.canvas import (
    COLORS,
    canvas,
    color,
    line_with_band,
    percentages,
    query_counts,
    style,
    tidy,
    with_errors,
)
from surrogates import Bill

if TYPE_CHECKING:  # a figure of what was computed without a job loads no job
    from certdef.stages.attack import AttackRow
    from certdef.stages.budgets import Point
    from certdef.stages.ladder import SmoothedRow
    from certify.records.picture import Picture

CONDITIONS = {
    "clean": "clean images",
    "noisy": "under the smoothing noise",
    "denoised": "behind the denoiser",
}

# Color names the subject and line style the defense, here as in the certified-accuracy curves.
ATTACK_LINES = {
    "target": ("target", color(0), "--"),
    "target_purified": ("target behind {}", color(0), "-"),
    "surrogate": ("surrogate", color(1), "--"),
    "surrogate_purified": ("surrogate behind {}", color(1), "-"),
}


def attack_plot(rows: Sequence[AttackRow], purifier: str, right: str = "") -> Picture:
    """Accuracy against eps with 95% intervals: target and surrogate, each without and with the purifier.

    Args:
        rows: One an eps.
        purifier: Its title.
        right: What right means, where it needs saying.
    """
    figure, (axes,) = canvas(6.4, 4.2)
    eps = np.array([row.eps for row in rows])
    apart = 0.006 * (eps.max() or 1)  # so that error bars do not hide each other
    drawn = {key: line for key, line in ATTACK_LINES.items() if getattr(rows[0], key) is not None}
    for number, (key, (name, line_color, line)) in enumerate(drawn.items()):
        accuracy, errors = with_errors([getattr(row, key) for row in rows])
        axes.errorbar(
            eps + (number - 1.5) * apart,
            accuracy,
            yerr=errors,
            color=line_color,
            linestyle=line,
            linewidth=1.8,
            marker="o" if line == "-" else "s",
            markerfacecolor=line_color if line == "-" else "white",
            markersize=5,
            capsize=3,
            label=name.format(purifier),
        )
    axes.set_ylim(0, 1.02)
    axes.set_xticks(eps)
    percentages(axes.yaxis)
    axes.set_xlabel("L∞ budget of the attack, ε (pixel values in [0, 1])")
    axes.set_ylabel(f"accuracy{right}")
    axes.set_title("PGD on the surrogate, transferred to the target", loc="left", fontsize=11)
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def membership_plot(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], candidates: int
) -> Picture:
    """ROC curves of membership inference, both axes logarithmic, a line a model.

    Args:
        curves: False and true positive rates (points,) by model.
        candidates: Number of members; rates below one of them cannot be distinguished from 0 and are cut off.
    """
    figure, (axes,) = canvas(6.4, 4.6)
    least = 1 / candidates
    axes.plot([least, 1], [least, 1], color="0.6", linewidth=1, linestyle=":", label="chance")
    for number, (name, rates) in enumerate(curves.items()):
        false, true = (np.maximum(rate, least) for rate in rates)
        axes.plot(false, true, color=color(number), linestyle=style(number), linewidth=1.8, label=name)
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_title("Membership inference, offline RMIA", loc="left", fontsize=11)
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def roc(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates, one point a threshold, of scores (P,) and (N,)."""
    from sklearn.metrics import roc_curve

    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    false, true, _ = roc_curve(truth, np.concatenate([members, nonmembers]), drop_intermediate=False)
    return false, true


class Measured(NamedTuple):
    """Agreement of one surrogate after so many queries, with its interval; a Point is that of several seeds."""

    queries: int
    median: float
    lower: float
    upper: float

    @property
    def lowest(self) -> float:
        """Of the seeds, of which there is one."""
        return self.median

    @property
    def highest(self) -> float:
        """Of the seeds, of which there is one."""
        return self.median


def budget_plot(panels: Mapping[str, Mapping[str, Sequence[Point | Measured]]]) -> Picture:
    """Agreement against queries: a panel a title, a line a strategy through its medians over seeds.

    Bars are intervals over images, bands the spread of the seeds.
    """
    figure, every = canvas(1.2 + 4.2 * len(panels), 4.2, columns=len(panels))
    for axes, (title, strategies) in zip(every, panels.items(), strict=True):
        for number, (strategy, points) in enumerate(strategies.items()):
            apart = 1.015 ** (number - (len(strategies) - 1) / 2)  # so that error bars do not hide each other
            _strategy_line(axes, number, strategy, points, apart)
        query_counts(axes, sorted({point.queries for points in strategies.values() for point in points}))
        percentages(axes.yaxis)
        axes.set_title(title, loc="left", fontsize=10)
        tidy(axes)
    every[0].set_ylabel("agreement with the target")
    every[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _strategy_line(
    axes: Any, number: int, strategy: str, points: Sequence[Point | Measured], apart: float
) -> None:
    queries = apart * np.array([point.queries for point in points])
    median, errors = with_errors([(point.median, point.lower, point.upper) for point in points])
    line = {"color": color(number), "linestyle": style(number // len(COLORS))}
    axes.errorbar(
        queries,
        median,
        yerr=errors,
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.6,
        label=strategy,
        **line,
    )
    lowest, highest = [point.lowest for point in points], [point.highest for point in points]
    axes.fill_between(queries, lowest, highest, color=line["color"], alpha=0.12, linewidth=0)


def bill_plot(bill: Bill) -> Picture:
    """Queries by purpose as bars: charged, possibly charged because the answer was lost, and what the budget leaves."""
    charges = {
        name: charge for name, charge in reversed(bill.charges.items()) if charge.budget or charge.largest
    }
    figure, (axes,) = canvas(6.4, 1.3 + 0.42 * len(charges))
    places, left = np.arange(len(charges)), np.zeros(len(charges))
    parts = {
        "answered": ([each.answered for each in charges.values()], color(0)),
        "unknown or in flight": ([each.largest - each.answered for each in charges.values()], color(1)),
        "left in the budget": ([each.remaining for each in charges.values()], "0.85"),
    }
    budgets = np.array([max(1, each.budget, each.largest) for each in charges.values()])
    for name, (queries, filled) in parts.items():
        if any(queries):
            axes.barh(places, queries / budgets, left=left, height=0.62, color=filled, label=name)
        left = left + queries / budgets
    names = [f"{name}\n{each.spent:,} of {each.budget:,}" for name, each in charges.items()]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlim(0, 1)
    percentages(axes.xaxis)
    axes.set_xlabel("share of the purpose's query budget")
    tidy(axes)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    return figure


def ladder_plot(
    subjects: Mapping[str, Mapping[str, Sequence[AttackEvaluation]]],
    curve: Sequence[SmoothedRow],
    eps: float,
    right: str = "",
) -> Picture:
    """The threat ladder and the certificate: a panel a subject, a row an attack, a color a system, 95% intervals.

    Args:
        subjects: Attacks by subject and system; the worst case, image by image, is filled.
        curve: Certified accuracy and accuracy under the attack on the vote at each L2 radius; may be empty.
        eps: L-infinity budget of the attacks.
        right: What right means, where it needs saying.
    """
    panels, rows = len(subjects) + bool(curve), max(len(_tried(systems)) for systems in subjects.values())
    figure, every = canvas(1.5 + 4.6 * panels, max(4.6, 1.6 + 0.32 * rows), columns=panels)
    for axes, (subject, systems) in zip(every, subjects.items(), strict=False):
        _attacks_panel(axes, systems)
        axes.set_xlabel(f"accuracy, ε = {eps:g} (L∞){right}")
        axes.set_title(f"{subject}; filled: worst case image by image", loc="left", fontsize=10)
    if curve:
        _smoothed_panel(every[-1], curve)
    marks = every[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower left", ncols=len(marks[0]), frameon=False, fontsize=8)
    for axes in every:
        tidy(axes)
    return figure


def _attacks_panel(axes: Any, systems: Mapping[str, Sequence[AttackEvaluation]]) -> None:
    """Accuracy of each system under each attack that was run on any of them, in the order of the ladder."""
    names = _tried(systems)
    for number, (system, attacks) in enumerate(systems.items()):
        run = [attack for attack in attacks if attack.accuracy]
        accuracy, errors = with_errors([attack.accuracy or () for attack in run])
        apart = 0.7 / len(systems) * (number - (len(systems) - 1) / 2)
        rows = np.array([names.index(attack.name) for attack in run]) + apart
        points = {
            "color": color(number),
            "markerfacecolor": "white",
            "capsize": 2,
            "label": f"purifier: {system}",
        }
        axes.errorbar(accuracy, rows, xerr=errors, fmt="o", **points)
        for row, attack in enumerate(run):
            if attack.name == WORST_CASE:
                axes.plot(accuracy[row], rows[row], "o", color=color(number), zorder=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    percentages(axes.xaxis)


def _tried(systems: Mapping[str, Sequence[AttackEvaluation]]) -> list[str]:
    """The attacks that any of the systems was evaluated under, in the order of the ladder."""
    tried = {attack.name for attacks in systems.values() for attack in attacks if attack.accuracy}
    return [name for name in known_by(systems.values()) if name in tried]


def _smoothed_panel(axes: Any, curve: Sequence[SmoothedRow]) -> None:
    """Certified accuracy of the smoothed surrogate below its accuracy under attack."""
    radii = np.array([row.radius for row in curve])
    attacked, certified = [row.attacked for row in curve], [row.certified for row in curve]
    line_with_band(
        axes, radii, attacked, color=color(1), linestyle="--", label="accuracy under PGD on the vote"
    )
    line_with_band(axes, radii, certified, color=color(0), linestyle="-", label="certified accuracy")
    axes.set_ylim(0, 1.02)
    percentages(axes.yaxis)
    axes.set_xlabel("L2 radius (pixel values in [0, 1])")
    axes.set_title("smoothed surrogate", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
