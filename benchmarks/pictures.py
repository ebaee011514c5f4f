"""The pictures of the purifiers' benchmarks, as PNG bytes: what becomes of images, and accuracy against each dial."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from certify.records.curves import COLORS

Points = Mapping[str, Sequence[float]]  # by key: [accuracy, lower, upper]


def image_strip(columns: Mapping[str, Tensor]) -> bytes:
    """What becomes of some images, a row each: columns of images (N, C, H, W) in [0, 1], each under its title."""
    rows = len(next(iter(columns.values())))
    figure = _figure(1.3 * len(columns), 1.3 * rows + 0.3)
    grid: Any = figure.subplots(rows, len(columns), squeeze=False)
    for number, (title, images) in enumerate(columns.items()):
        grid[0, number].set_title(title, fontsize=8)
        for axes, image in zip(grid[:, number], images.detach().cpu().clamp(0, 1), strict=True):
            axes.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    return _png(figure)


def trade_off_plot(
    purifiers: Mapping[str, Sequence[Points]], marked: Mapping[str, Points], panels: Mapping[str, str]
) -> bytes:
    """Accuracy under attack against clean accuracy: a panel for each title and key, a point for each setting.

    Args:
        purifiers: The settings of each purifier, with the keys `clean` and those of the panels; the first purifier's
            are joined by a line.
        marked: Drawn on top, with their intervals.
        panels: The key of each panel, by its title.
    """
    figure = _figure(1.2 + 4.2 * len(panels), 5.0)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, key) in zip(every, panels.items(), strict=True):
        for number, (name, settings) in enumerate(purifiers.items()):
            clean, attacked = (np.array([each[column][0] for each in settings]) for column in ("clean", key))
            line = "none" if number else "-"
            axes.plot(clean, attacked, "o", linestyle=line, color=COLORS[number], markersize=4, label=name)
        for number, (name, row) in enumerate(marked.items(), len(purifiers)):
            (clean, left, right), (attacked, lower, upper) = row["clean"], row[key]
            across, along = [[clean - left], [right - clean]], [[attacked - lower], [upper - attacked]]
            style = {"fmt": "sDX^v"[number % 5], "color": COLORS[number % len(COLORS)], "label": name}
            axes.errorbar(
                clean, attacked, xerr=across, yerr=along, markersize=7, capsize=3, linewidth=1.2, **style
            )
        _tidy(axes, "x", "y")
        axes.set_ylim(bottom=-0.01)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("classified right, clean")
    every[0].set_ylabel("classified right, under attack")
    marks = every[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _png(figure)


def dial_plot(panels: Mapping[str, Mapping[str, Sequence[Any]]], attack: str) -> bytes:
    """Accuracy against the dial of a defense: a panel a dial, a color a network; solid attacked, dashed clean.

    Args:
        panels: By dial and network the points [dial, clean, attacked], the last two [accuracy, lower, upper, ...].
        attack: Its name.
    """
    figure = _figure(1.2 + 4.6 * len(panels), 4.4)
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (dial, networks) in zip(every, panels.items(), strict=True):
        for number, (name, points) in enumerate(networks.items()):
            at, color = [point[0] for point in points], COLORS[number % len(COLORS)]
            for column, style, label in ((1, "--", None), (2, "-", name)):
                accuracy, lower, upper = np.array([point[column][:3] for point in points]).T
                axes.plot(at, accuracy, style, color=color, marker="o", markersize=4, label=label)
                axes.fill_between(at, lower, upper, color=color, alpha=0.12, linewidth=0)
        _tidy(axes, "y")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(dial)
        axes.legend(frameon=False, fontsize=8)
    every[0].set_ylabel("images classified right")
    every[0].set_title(f"solid: {attack}; dashed: clean", loc="left", fontsize=10)
    return _png(figure)


def noise_level_plot(rows: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Accuracy (with 95% intervals) and Frechet distance against the step t that images are diffused to, a panel an attack.

    Rows have, by t, `accuracy` ([share, lower, upper]) and `distances`, and the steps `t` (ANLS's choice) and `best`.
    """
    columns = min(4, len(rows))
    figure = _figure(3.1 * columns, 2.6 * -(-len(rows) // columns))
    panels = figure.subplots(-(-len(rows) // columns), columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(rows) :]:
        axes.remove()
    for axes, (name, row) in zip(panels.flat, rows.items(), strict=False):
        grid = np.array([int(t) for t in row["accuracy"]])
        accuracy, lower, upper = np.array(list(row["accuracy"].values())).T
        errors, style = [accuracy - lower, upper - accuracy], {"marker": "o", "markersize": 3, "capsize": 2}
        axes.errorbar(grid, accuracy, errors, color=COLORS[0], **style)
        distances = np.array(list(row["distances"].values()))
        scaled = (distances - distances.min()) / (np.ptp(distances) or 1.0)
        axes.plot(grid, scaled, color=COLORS[1], linestyle="--", linewidth=1.2)
        axes.axvline(row["t"], color=COLORS[1], linewidth=1, alpha=0.6)
        axes.axvline(row["best"], color=COLORS[0], linewidth=1, linestyle=":")
        _tidy(axes, "y")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylim(-0.03, 1.03)
    figure.supxlabel("noise steps t of 1,000", fontsize=9)
    title = (
        "Accuracy after purification (solid), Fréchet distance of features, scaled to its range (dashed); "
    )
    figure.suptitle(title + "lines: most accurate t (dotted), ANLS (solid)", fontsize=8)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Any, *percent: str) -> None:
    """A light grid, two spines, and percentages on the named axes."""
    from matplotlib.ticker import PercentFormatter

    for name in percent:
        getattr(axes, f"{name}axis").set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
