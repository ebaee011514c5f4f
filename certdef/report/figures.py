"""The pictures of the report, as PNG bytes: what the denoiser sees and returns, accuracy under attack, the ladder, membership inference."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import certify
from certify.records.curves import COLORS, STYLES

# Colour names the subject and line style the defence, here as in the certified-accuracy curves.
ATTACK_LINES = {
    "target": ("target", COLORS[0], "--"),
    "target_purified": ("target behind {}", COLORS[0], "-"),
    "surrogate": ("surrogate", COLORS[1], "--"),
    "surrogate_purified": ("surrogate behind {}", COLORS[1], "-"),
}


def denoising_steps(
    denoiser: nn.Module | None, noise: certify.NoiseLaw, images: NDArray[np.float32], seed: int
) -> tuple[Tensor, Tensor]:
    """One noise draw an image (N, C, H, W) in [0, 1] and what the denoiser, if any, makes of it: (noisy, denoised)."""
    clean = torch.from_numpy(images)
    noisy = clean + noise.sample(tuple(clean.shape), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return noisy, denoiser(noisy) if denoiser else noisy


def png(image: NDArray[Any] | Tensor) -> bytes:
    """An image (C, H, W), cut to [0, 1], pixel by pixel; in colour if C is 3, else the mean in grey."""
    from matplotlib.image import imsave

    pixels = np.clip(np.asarray(image, dtype=np.float32), 0, 1)
    if len(pixels) != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True), 3, axis=0)
    file = io.BytesIO()
    imsave(file, np.round(255 * pixels.transpose(1, 2, 0)).astype(np.uint8), format="png")
    return file.getvalue()


def attack_plot(rows: Sequence[Any], purifier: str) -> bytes:
    """Accuracy against eps with 95% intervals, one line each for target and surrogate, with and without the purifier.

    `rows` have `eps` and, for each line, [accuracy, lower, upper].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    eps = np.array([row.eps for row in rows])
    apart = 0.006 * (eps.max() or 1)  # so that error bars do not hide each other
    for number, (key, (name, color, style)) in enumerate(ATTACK_LINES.items()):
        accuracy, lower, upper = np.array([getattr(row, key) for row in rows]).T
        axes.errorbar(
            eps + (number - 1.5) * apart,
            accuracy,
            yerr=np.clip([accuracy - lower, upper - accuracy], 0, None),
            color=color,
            linestyle=style,
            linewidth=1.8,
            marker="o" if style == "-" else "s",
            markerfacecolor=color if style == "-" else "white",
            markersize=5,
            capsize=3,
            label=name.format(purifier),
        )
    axes.set_ylim(0, 1.02)
    axes.set_xticks(eps)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("L∞ budget of the attack, ε (pixel values in [0, 1])")
    axes.set_ylabel("images classified right")
    axes.set_title("PGD on the surrogate, transferred to the target", loc="left", fontsize=11)
    return _drawn(axes)


def membership_plot(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], candidates: int
) -> bytes:
    """True against false positive rate of membership inference, both on log axes, one line a model.

    `curves` have both rates (points,); rates below one of `candidates` images can't be told from 0 and are cut off.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    least = 1 / candidates
    axes.plot([least, 1], [least, 1], color="0.6", linewidth=1, linestyle=":", label="a coin")
    for number, (name, (false, true)) in enumerate(curves.items()):
        axes.plot(
            np.maximum(false, least),
            np.maximum(true, least),
            color=COLORS[number % len(COLORS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.8,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    axes.set_xlabel("non-members taken for members (false positive rate)")
    axes.set_ylabel("members found (true positive rate)")
    axes.set_title("Membership inference, offline RMIA", loc="left", fontsize=11)
    return _drawn(axes)


def roc(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates, one point a threshold, of scores (P,) and (N,)."""
    from sklearn.metrics import roc_curve

    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    false, true, _ = roc_curve(truth, np.concatenate([members, nonmembers]), drop_intermediate=False)
    return false, true


def budget_plot(panels: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Agreement against queries: a panel a title, a line a strategy through its medians over seeds.

    Points have queries, median, lower, upper, lowest and highest: bars are intervals, bands the spread of seeds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, found) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (strategy, points) in enumerate(found.items()):
            queries, median, lower, upper, lowest, highest = np.array(
                [[p.queries, p.median, p.lower, p.upper, p.lowest, p.highest] for p in points]
            ).T
            color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
            apart = 1.015 ** (number - (len(found) - 1) / 2)  # so that error bars do not hide each other
            axes.errorbar(
                queries * apart,
                median,
                yerr=np.clip([median - lower, upper - median], 0, None),
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.6,
                label=strategy,
            )
            axes.fill_between(queries * apart, lowest, highest, color=color, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sorted({point.queries for points in found.values() for point in points}))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("queries")
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("agreement with the target")
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def ladder_plot(
    subjects: Mapping[str, Mapping[str, Sequence[Any]]], curve: Sequence[Any], eps: float
) -> bytes:
    """The threat ladder and the certificate: a panel a subject, a rung a row, a colour a system, with 95% intervals.

    `subjects` have rungs by system; `curve` has, at each L2 radius, what is certified and what an attack on the vote
    leaves, [accuracy, lower, upper] each, and may be empty. The lowest rung of a system is filled.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from certdef.attacks.evaluation import THREAT_MODELS, worst_case

    panels = len(subjects) + bool(curve)
    figure = Figure(figsize=(1.5 + 4.6 * panels, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes, (subject, systems) in zip(every, subjects.items(), strict=False):
        tried = {rung.name for rungs in systems.values() for rung in rungs if rung.accuracy}
        names = [name for name in THREAT_MODELS if name in tried]
        for number, (system, rungs) in enumerate(systems.items()):
            color, lowest = COLORS[number % len(COLORS)], worst_case(rungs)
            shown = [rung for rung in rungs if rung.accuracy]
            accuracy, lower, upper = np.array([rung.accuracy for rung in shown]).T
            apart = 0.7 / len(systems) * (number - (len(systems) - 1) / 2)
            rows = np.array([names.index(rung.name) for rung in shown]) + apart
            errors = np.clip([accuracy - lower, upper - accuracy], 0, None)
            label = f"in front: {system}"
            axes.errorbar(
                accuracy, rows, xerr=errors, fmt="o", color=color, markerfacecolor="white", capsize=2, label=label
            )  # fmt: skip
            axes.plot(accuracy[shown.index(lowest)], rows[shown.index(lowest)], "o", color=color, zorder=5)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"images classified right, ε = {eps:g} (L∞)")
        axes.set_title(f"{subject}; filled: the lowest rung", loc="left", fontsize=10)
    if curve:
        axes = every[-1]
        radii = np.array([row.radius for row in curve])
        for key, name, color, style in (
            ("attacked", "right under PGD on the vote", COLORS[1], "--"),
            ("certified", "certified", COLORS[0], "-"),
        ):
            accuracy, lower, upper = np.array([getattr(row, key) for row in curve]).T
            axes.plot(radii, accuracy, color=color, linestyle=style, marker="o", markersize=4, label=name)
            axes.fill_between(radii, lower, upper, color=color, alpha=0.12, linewidth=0)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("L2 radius (pixel values in [0, 1])")
        axes.set_title("smoothed surrogate", loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    marks = every[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower left", ncols=len(marks[0]), frameon=False, fontsize=8)
    for axes in every:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def data_uri(content: bytes) -> str:
    """PNG bytes as a `data:` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _drawn(axes: Any) -> bytes:
    """The figure of finished axes as PNG, with a light grid and a legend."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    file = io.BytesIO()
    axes.figure.savefig(file, format="png")
    return file.getvalue()
