"""What the records say: certificates, subgroups, and the images that they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import certify
from certdef.release.document import Absent, AtRadius, Certificate, Data, DataSet, Group, Interval, Subgroups
from certdef.release.dossier import Dossier
from certdef.release.groups import read_groups
from certdef.release.pairing import certified, in_words, setting
from certdef.stages.conditions import largest_radius
from certdef.tracking.checked_json import file_digest
from certdef.tracking.results import Share
from certify import ABSTAIN
from certify.noise.description import open_law
from certify.records import Records


def interval(share: Sequence[float]) -> Interval:
    """A share with its bounds."""
    value, lower, upper = share
    return Interval(value=float(value), lower=float(lower), upper=float(upper))


def at_radii(
    records: Records, radii: Sequence[float], mask: NDArray[np.bool_] | None = None
) -> tuple[AtRadius, ...]:
    """Certified accuracy of the images of a mask (M,), at each radius."""
    within = np.ones(len(records), dtype=bool) if mask is None else mask
    rows = []
    for radius in radii:
        count = int((certified(records, radius) & within).sum())
        share = Share.of(count, int(within.sum()))
        rows.append(AtRadius(radius=float(radius), certified=count, accuracy=interval(share)))
    return tuple(rows)


def certificate(
    key: str, path: Path, records: Records, radii: Sequence[float], *, headline: bool
) -> Certificate:
    """Everything that a file of records says, counted again from its votes."""
    noise = records.noise or None
    votes = None
    if records.counts is not None and records.n0 is not None:
        votes = float(np.mean(records.n0 + records.counts.sum(axis=1)))
    right = np.where(certified(records, 0.0), records.radius, 0.0)
    return Certificate(
        key=key,
        headline=headline,
        subject=setting(records, "subject"),
        denoiser=setting(records, "denoiser"),
        noise=noise,
        law=law_in_words(noise),
        norm=(noise or {}).get("norm"),
        n0=setting(records, "n0"),
        n=setting(records, "n"),
        votes=votes,
        alpha=setting(records, "alpha"),
        method=setting(records, "method") or records.method,
        seed=setting(records, "seed"),
        claim="sound" if records.sound and noise else "approximate",
        images=len(records),
        radii=at_radii(records, radii),
        abstained=interval(Share.of(int((records.predict == ABSTAIN).sum()), len(records))),
        reach=_reach(noise, setting(records, "n"), setting(records, "alpha")),
        median_radius=float(np.median(right)),
        records=file_digest(path),
        versions=setting(records, "versions") or {},
    )


def _reach(noise: dict[str, Any] | None, votes: int | None, alpha: float | None) -> float | None:
    law = open_law(noise) if noise else None
    if law is None or not votes or not alpha:
        return None
    radius = largest_radius(law, votes, alpha)
    return radius if np.isfinite(radius) else None


def law_in_words(noise: dict[str, Any] | None) -> str:
    """A noise law as a person writes it."""
    if not noise:
        return "not in these records"
    if noise.get("law") == "gaussian" and "sigma" in noise:
        return f"Gaussian, sigma {noise['sigma']:.3f}"
    if noise.get("law") == "gaussian_scale_mixture" and "kwds" in noise:
        arguments = [
            *(f"{each:g}" for each in noise.get("args", [])),
            *(f"{name} {255 * value:.4g}/255" for name, value in noise["kwds"].items()),
        ]
        return f"Gaussian, sigma ~ {noise['sigma']}({', '.join(arguments)}), mean {noise['mean_sigma']:.3f}"
    return in_words(noise)


def subgroups(
    key: str, records: Records, radii: Sequence[float], columns: Sequence[str]
) -> Subgroups | Absent:
    """The headline's certificate by class, and by each column.

    Raises:
        ConfigError: Columns that are not there or do not fit the records.
    """
    groups = read_groups(columns, records)
    every = {"class": records.label.astype(np.str_)} | groups
    absent = Absent(
        status="not measured",
        why="no column of subgroups was given",
        how="`certdef evidence RUN --groups data.csv:COLUMN`, a column of the data's table; nothing is queried for it",
    )
    return Subgroups(of=key, groups=tuple(_groups(records, radii, every)), columns=tuple(groups) or absent)


def _groups(records: Records, radii: Sequence[float], every: dict[str, NDArray[np.str_]]) -> Iterator[Group]:
    for column, values in every.items():
        names = sorted(
            set(values.tolist()),
            key=lambda name: (not name.isdigit(), name.zfill(12) if name.isdigit() else name),
        )
        for name in names:
            mask = values == name
            yield Group(
                column=column, name=name, images=int(mask.sum()), radii=at_radii(records, radii, mask)
            )


def data_of(dossier: Dossier, records: Records) -> Data:
    """The certified images, and the data sets of the job."""
    sets = () if dossier.job is None else dossier.job.data
    header = records.config or {}
    digest: str | Absent = Absent(
        status="not known",
        why="these records keep no digest of each image",
        how="certify again with this version: every .jsonl keeps them",
    )
    if records.image is not None:
        lines = sorted(zip(records.idx.tolist(), records.label.tolist(), records.image.tolist(), strict=True))
        text = "".join(f"{idx} {label} {image}\n" for idx, label, image in lines)
        digest = hashlib.sha256(text.encode()).hexdigest()
    return Data(
        images=len(records),
        classes=len(np.unique(records.label)),
        digest=digest,
        prepared=str(header.get("prepared", "")),
        right=str(header.get("right", "")),
        sets=tuple(DataSet(name=each.name, digest=each.digest, use=each.context) for each in sets),
    )


def read(files: dict[str, Path]) -> dict[str, Records]:
    """The records of every file, each bound computed again from its votes.

    Raises:
        certify.CertifyError: One is damaged.
    """
    return {key: certify.read_records(path) for key, path in files.items()}
