"""certdef compare: a new version of a model against the old one, image by image, and the gates between it and a release."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certdef.config.job import ConfigError
from certdef.release import gates
from certdef.release.groups import read_groups
from certdef.release.options import all_at_once
from certdef.release.pairing import Pairs, certified, pair, setting
from certdef.release.results import Change, Comparison, Gate, Row, Version
from certdef.release.rules import RADII, Rule, check_levels, check_radii, parse_rules
from certdef.release.sources import Opened, open_both
from certdef.release.statistics import holm, mcnemar, paired_interval
from certify import ABSTAIN, curves
from certify.records import Records

ALPHA = 0.05
POINTS = 400  # of a drawn curve


def compare(
    old: str | Path | Records,
    new: str | Path | Records,
    *,
    radii: Sequence[float] = RADII,
    groups: Sequence[str] = (),
    by_class: bool = True,
    alpha: float = ALPHA,
    condition: str | None = None,
    common: bool = False,
    fail_if: Sequence[str] = (),
    max_drop: float | None = None,
    max_proven_drop: float | None = None,
    picture: str | Path | None = None,
    tracking_uri: str | None = None,
) -> Comparison:
    """Compare two certifications of the same images, pair by pair: at each radius, for all images, each class and each group.

    Each row has McNemar's exact p-value, adjusted by Holm for all rows, and an exact interval of the change in certified
    accuracy, of which all hold together (Bonferroni). Of two certifications of one model no row is called worse or better,
    with probability at least 1 - alpha.

    Args:
        old: What is in use: a run id of MLflow, a folder or file of records, models:/NAME/VERSION, or certify.read_records(...).
        new: What is to replace it, likewise.
        radii: Where they are compared, in [0, 1] pixel units, in the norm of the records.
        groups: Subgroups, each FILE:COLUMN of a .csv, .tsv or .npz.
        by_class: Compare each class, too.
        alpha: Level of all tests together, and of all intervals together.
        condition: Which records of a job, e.g. target-nim-none; unset, those of the headline.
        common: Compare the images that both have and leave the others out.
        fail_if: Gates on NEW, e.g. "certified@0.25 < 0.60".
        max_drop: A gate: the certified accuracy of all images drops at no radius by more than this, as observed.
        max_proven_drop: A gate: in no row is a larger drop than this proven.
        picture: Draw both curves into this file; its end chooses the format.
        tracking_uri: The store of runs and versions; unset, $MLFLOW_TRACKING_URI, else the one in mlruns/.

    Returns:
        The comparison; `passed` says whether every gate holds.

    Raises:
        ConfigError: Options that can't be used, records that are not there or not comparable.
        certify.CertifyError: Records that are damaged.
    """
    all_at_once(
        lambda: check_radii(radii),
        lambda: check_levels(alpha, max_drop=max_drop, max_proven_drop=max_proven_drop),
        lambda: parse_rules(fail_if),
    )
    opened = open_both(old, new, condition, tracking_uri)
    pairs = pair(opened[0].records, opened[1].records, (opened[0].given, opened[1].given), common)
    grouped = read_groups(groups, pairs.old)
    rows = compare_rows(pairs, sorted(set(map(float, radii))), grouped, by_class=by_class, alpha=alpha)
    if picture is not None:
        draw(pairs, picture, opened)
    return Comparison(
        old=_version(opened[0], pairs.old),
        new=_version(opened[1], pairs.new),
        images=len(pairs.old),
        paired_by=pairs.by,
        same_noise=pairs.same_noise,
        radii=tuple(row.radius for row in rows if row.scope == "all"),
        alpha=alpha,
        tests=len(rows),
        correction="p-values: Holm; intervals: Bonferroni; each over all rows",
        rows=tuple(rows),
        lost=tuple(changed(pairs, rows, lost=True)),
        won=tuple(changed(pairs, rows, lost=False)),
        gates=tuple(_gates(pairs, rows, parse_rules(fail_if), max_drop, max_proven_drop)),
        notes=pairs.notes,
    )


def compare_rows(
    pairs: Pairs,
    radii: Sequence[float],
    groups: dict[str, NDArray[np.str_]],
    *,
    by_class: bool = True,
    alpha: float = ALPHA,
) -> list[Row]:
    """Every row: all images, then each class, then each group, at each radius."""
    counted = []
    for scope, name, mask in _parts(pairs, groups, by_class):
        for radius in radii:
            here = [certified(each, radius)[mask] for each in (pairs.old, pairs.new)]
            counts = mask.sum(), here[0].sum(), here[1].sum(), (here[0] & ~here[1]).sum()
            counted.append((scope, name, radius, *counts))
    images, before, after, lost = (np.array(column) for column in list(zip(*counted, strict=True))[3:])
    won = after - before + lost
    p = mcnemar(lost, won)
    adjusted = holm(p)
    lower, upper = paired_interval(lost, won, images, alpha / len(counted))
    rows = []
    for at, (scope, name, radius, *_) in enumerate(counted):
        proven = bool(adjusted[at] <= alpha)
        rows.append(
            Row(
                scope=scope,
                name=name,
                radius=float(radius),
                images=int(images[at]),
                old=float(before[at] / images[at]),
                new=float(after[at] / images[at]),
                lost=int(lost[at]),
                won=int(won[at]),
                difference=float((won[at] - lost[at]) / images[at]),
                lower=float(lower[at]),
                upper=float(upper[at]),
                p=float(p[at]),
                p_holm=float(adjusted[at]),
                verdict="unproven" if not proven else "worse" if lost[at] > won[at] else "better",
            )
        )
    return rows


def _parts(
    pairs: Pairs, groups: dict[str, NDArray[np.str_]], by_class: bool
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    yield "all", "", np.ones(len(pairs.old), dtype=bool)
    if by_class:
        for label in np.unique(pairs.old.label):
            yield "class", str(label), pairs.old.label == label
    for column, values in groups.items():
        for value in np.unique(values):
            yield column, str(value), values == value


def changed(pairs: Pairs, rows: Sequence[Row], *, lost: bool) -> Iterator[Change]:
    """The images that lost, or won, their certificate at some compared radius; what changed most comes first."""
    radii = [row.radius for row in rows if row.scope == "all"]
    first, second = (pairs.old, pairs.new) if lost else (pairs.new, pairs.old)
    at = np.stack([certified(first, radius) & ~certified(second, radius) for radius in radii])
    reach = [np.where(certified(each, 0.0), each.radius, 0.0) for each in (first, second)]
    which = np.flatnonzero(at.any(axis=0))
    for image in which[np.argsort(-(reach[0] - reach[1])[which], kind="stable")]:
        old, new = pairs.old, pairs.new
        yield Change(
            idx=int(old.idx[image]),
            image=None if old.image is None else str(old.image[image]),
            label=int(old.label[image]),
            old_prediction=int(old.predict[image]),
            old_radius=float(old.radius[image]),
            new_prediction=int(new.predict[image]),
            new_radius=float(new.radius[image]),
            at=tuple(radius for radius, here in zip(radii, at[:, image], strict=True) if here),
        )


def _gates(
    pairs: Pairs,
    rows: Sequence[Row],
    rules: Sequence[Rule],
    max_drop: float | None,
    max_proven_drop: float | None,
) -> Iterator[Gate]:
    yield from (gates.gate(rule, pairs) for rule in rules)
    if max_drop is not None:
        yield gates.observed_drop(rows, max_drop)
    if max_proven_drop is not None:
        yield gates.proven_drop(rows, max_proven_drop)


def _version(opened: Opened, records: Records) -> Version:
    noise, right = opened.records.noise, certified(records, 0.0)
    radii = np.where(right, records.radius, 0.0)
    return Version(
        given=opened.given,
        records=opened.where,
        images=len(opened.records),
        subject=setting(records, "subject"),
        denoiser=setting(records, "denoiser"),
        noise=noise,
        norm=(noise or {}).get("norm"),
        n0=setting(records, "n0"),
        n=setting(records, "n"),
        alpha=setting(records, "alpha"),
        method=setting(records, "method"),
        seed=setting(records, "seed"),
        sound=records.sound,
        abstained=float(np.mean(records.predict == ABSTAIN)),
        median_radius=float(np.median(radii)),
        mean_radius=float(np.mean(radii)),
    )


def draw(pairs: Pairs, path: str | Path, opened: Sequence[Opened]) -> None:
    """Both curves of certified accuracy in one picture, over the compared images."""
    furthest = max(float(each.radius.max(initial=0.0)) for each in (pairs.old, pairs.new))
    radii = np.linspace(0, max(0.25, 1.1 * furthest), POINTS)
    lines = {
        f"{name}: {_short(each.given)}": curves.certified_accuracy(records, radii)
        for name, each, records in zip(("OLD", "NEW"), opened, (pairs.old, pairs.new), strict=True)
    }
    norm = (pairs.old.noise or pairs.new.noise or {}).get("norm", "l2")
    title = f"Certified accuracy on the same {len(pairs.old)} images"
    try:
        curves.plot(lines, path, title=title, norm=norm)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--picture is {str(path)!r} ({error}): name a .png, .svg or .pdf that can be written"
        ) from error


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else "..." + text[3 - most :]
