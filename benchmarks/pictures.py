"""The figures of the purifiers' benchmarks, as PNG bytes: accuracy against each purifier's parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from certdef.report.canvas import as_png, canvas, color, line_with_band, percentages, tidy, with_errors

Points = Mapping[str, Sequence[float]]  # by key: [accuracy, lower, upper]


def trade_off_plot(
    purifiers: Mapping[str, Sequence[Points]], marked: Mapping[str, Points], panels: Mapping[str, str]
) -> bytes:
    """Robust against clean accuracy: a panel for each attack, a point for each of a purifier's settings.

    Args:
        purifiers: Settings by purifier, each with [accuracy, lower, upper] by key: `clean` and those of the panels.
            The first purifier's settings are joined by a line.
        marked: Further rows of that form, drawn on top with their intervals.
        panels: Key by title.
    """
    figure, every = canvas(1.2 + 4.2 * len(panels), 5.0, columns=len(panels))
    for axes, (title, key) in zip(every, panels.items(), strict=True):
        for number, (name, settings) in enumerate(purifiers.items()):
            clean, attacked = ([each[column][0] for each in settings] for column in ("clean", key))
            line = "none" if number else "-"
            axes.plot(clean, attacked, "o", linestyle=line, color=color(number), markersize=4, label=name)
        for number, (name, row) in enumerate(marked.items(), len(purifiers)):
            _marked_point(axes, number, name, row["clean"], row[key])
        percentages(axes.xaxis)
        percentages(axes.yaxis)
        axes.set_ylim(bottom=-0.01)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("clean accuracy")
        tidy(axes)
    every[0].set_ylabel("robust accuracy")
    marks = every[-1].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return as_png(figure)


def _marked_point(
    axes: Any, number: int, name: str, clean: Sequence[float], attacked: Sequence[float]
) -> None:
    (x,), x_errors = with_errors([clean])
    (y,), y_errors = with_errors([attacked])
    marker = {"fmt": "sDX^v"[number % 5], "color": color(number), "markersize": 7}
    axes.errorbar(x, y, xerr=x_errors, yerr=y_errors, capsize=3, linewidth=1.2, label=name, **marker)


def dial_plot(panels: Mapping[str, Mapping[str, Sequence[Any]]], attack: str) -> bytes:
    """Accuracy against a parameter of a defense: a panel a parameter, a color a network; solid attacked, dashed clean.

    Args:
        panels: By parameter and network the points [parameter, clean, attacked], the last two [accuracy, lower, upper, ...]
            with 95% intervals.
        attack: Name of the attack.
    """
    figure, every = canvas(1.2 + 4.6 * len(panels), 4.4, columns=len(panels), sharey=True)
    for axes, (parameter, networks) in zip(every, panels.items(), strict=True):
        for number, (name, points) in enumerate(networks.items()):
            at = [point[0] for point in points]
            clean, attacked = ([point[column][:3] for point in points] for column in (1, 2))
            line_with_band(axes, at, clean, color=color(number), linestyle="--", label=None)
            line_with_band(axes, at, attacked, color=color(number), linestyle="-", label=name)
        axes.set_ylim(0, 1.02)
        percentages(axes.yaxis)
        axes.set_xlabel(parameter)
        tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    every[0].set_ylabel("accuracy")
    every[0].set_title(f"solid: {attack}; dashed: clean", loc="left", fontsize=10)
    return as_png(figure)


def noise_level_plot(rows: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Accuracy (with 95% intervals) and Frechet distance against the diffusion step t, a panel an attack.

    Args:
        rows: By attack `accuracy` ([share, lower, upper]) and `distances` by t, and the steps `t` (ANLS's choice) and
            `best` (the most accurate).
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure, panels = canvas(3.1 * columns, 2.6 * lines, lines, columns, sharex=True, sharey=True)
    for axes in panels[len(rows) :]:
        axes.remove()
    for axes, (name, row) in zip(panels, rows.items(), strict=False):
        _noise_level_panel(axes, row)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        percentages(axes.yaxis, decimals=0)
        tidy(axes)
    figure.supxlabel("noise steps t of 1,000", fontsize=9)
    solid = (
        "Accuracy after purification (solid), Fréchet distance of features, scaled to its range (dashed); "
    )
    figure.suptitle(solid + "lines: most accurate t (dotted), ANLS (solid)", fontsize=8)
    return as_png(figure)


def _noise_level_panel(axes: Any, row: Mapping[str, Any]) -> None:
    grid = np.array([int(t) for t in row["accuracy"]])
    accuracy, errors = with_errors(list(row["accuracy"].values()))
    axes.errorbar(grid, accuracy, errors, color=color(0), marker="o", markersize=3, capsize=2)
    distances = np.array(list(row["distances"].values()))
    scaled = (distances - distances.min()) / (np.ptp(distances) or 1.0)
    axes.plot(grid, scaled, color=color(1), linestyle="--", linewidth=1.2)
    axes.axvline(row["t"], color=color(1), linewidth=1, alpha=0.6)
    axes.axvline(row["best"], color=color(0), linewidth=1, linestyle=":")
