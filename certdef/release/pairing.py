"""The same images in two certifications: matched, and refused where they are not comparable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from certdef.config.job import ConfigError
from certify.records import Records

SHOWN = 5
BESIDE_THE_MODEL = ("subject", "denoiser", "method", "n0", "n", "alpha", "bound", "known_class")


@dataclass(frozen=True)
class Pairs:
    """Records of the same M images, in the order of OLD.

    Attributes:
        old, new: (M,) each.
        by: What they were matched by.
        same_noise: Whether each pair had the same noise draws; None where the records do not say.
        notes: What differs beside the model, or is not known.
    """

    old: Records
    new: Records
    by: Literal["image", "idx"]
    same_noise: bool | None
    notes: tuple[str, ...]


def pair(old: Records, new: Records, names: tuple[str, str], common: bool = False) -> Pairs:
    """Pair two certifications image by image.

    Args:
        old: Before.
        new: After.
        names: What errors call them.
        common: Compare the images that both have, and leave the others out.

    Raises:
        ConfigError: All at once: other norm, noise law or preparation of the images, other images, other labels.
    """
    by: Literal["image", "idx"] = "idx" if old.image is None or new.image is None else "image"
    keys = [_keys(records, by) for records in (old, new)]
    problems = _laws(old, new) + _images(keys[0], keys[1], names, common, by)
    shared = [key for key in keys[0] if key in keys[1]]
    rows = [np.array([each[key] for key in shared], dtype=np.int64) for each in keys]
    first, second = old.take(rows[0]), new.take(rows[1])
    if not problems:
        problems += _labels(first, second, by)
    if problems:
        lead = f"{names[0]} and {names[1]} can't be compared"
        raise ConfigError("\n".join(f"{lead}: {problem}" for problem in problems))
    left_out = len(old) + len(new) - 2 * len(shared)
    notes = [f"{left_out} records of images that only one of both has are left out"] if left_out else []
    return Pairs(first, second, by, _same_noise(first, second), (*notes, *_notes(first, second, by)))


def _keys(records: Records, by: str) -> dict[Hashable, int]:
    """Where each image is; the same pixels a second time are a second image."""
    if by == "idx":
        return {int(idx): at for at, idx in enumerate(records.idx)}
    assert records.image is not None  # then it would be idx
    seen: Counter[str] = Counter()
    keys: dict[Hashable, int] = {}
    for at in np.argsort(records.idx, kind="stable"):
        image = str(records.image[at])
        keys[image, seen[image]] = int(at)
        seen[image] += 1
    order = sorted(keys, key=lambda key: keys[key])  # as in the file
    return {key: keys[key] for key in order}


def _laws(old: Records, new: Records) -> list[str]:
    problems = []
    before, after = old.noise, new.noise
    if before and after:
        norms = before.get("norm"), after.get("norm")
        if norms[0] != norms[1]:
            problems.append(f"radii in norm {norms[0]} and {norms[1]}: certify both in one norm")
        elif before != after:
            problems.append(
                f"noise {in_words(before)} and {in_words(after)}: certify both under one law, or name records of the "
                "same law with --condition"
            )
    prepared = [(records.config or {}).get("prepared", "") for records in (old, new)]
    if prepared[0] != prepared[1] and old.config and new.config:
        problems.append(
            f"images {prepared[0] or 'as they are'} and {prepared[1] or 'as they are'}: prepare both alike"
        )
    if old.image is None or new.image is None:
        seeds = [(records.config or {}).get("seed") for records in (old, new)]
        jobs = all("stage" in (records.config or {}) for records in (old, new))
        if jobs and seeds[0] != seeds[1]:
            problems.append(
                f"held-out images of seed {seeds[0]} and {seeds[1]}, and no digests of the images: use one seed"
            )
    return problems


def _images(
    old: dict[Hashable, int], new: dict[Hashable, int], names: tuple[str, str], common: bool, by: str
) -> list[str]:
    only = [[key for key in mine if key not in other] for mine, other in ((old, new), (new, old))]
    if len(only[0]) == len(old):
        what = "no image in common" if old and new else "a certification without records"
        return [f"{what} (by {by}): certify both on the same images"]
    if common or not any(only):
        return []
    lines = [f"{len(each)} images only in {name}" for each, name in zip(only, names, strict=True) if each]
    return [f"{' and '.join(lines)}: finish both, or use --common for the {len(old) - len(only[0])} of both"]


def _labels(old: Records, new: Records, by: str) -> list[str]:
    """Refuse other labels of the same images, unless right means the own clean answer of each."""
    differ = np.flatnonzero(old.label != new.label)
    if not len(differ) or (by == "image" and all("right" in (each.config or {}) for each in (old, new))):
        return []
    shown = ", ".join(str(idx) for idx in old.idx[differ][:SHOWN])
    return [
        f"other labels of {len(differ)} images (idx {shown}{', ...' if len(differ) > SHOWN else ''}): certify both on the "
        "same images with the same labels"
    ]


def _same_noise(old: Records, new: Records) -> bool | None:
    settings = [[(each.config or {}).get(name) for name in ("seed", "chunk_size")] for each in (old, new)]
    if None in settings[0] + settings[1]:
        return None
    return settings[0] == settings[1] and bool(np.array_equal(old.idx, new.idx))


def _notes(old: Records, new: Records, by: str) -> list[str]:
    notes = []
    for name in BESIDE_THE_MODEL:
        before, after = (setting(records, name) for records in (old, new))
        if before != after and (old.config and new.config):
            notes.append(
                f"{name} is {before} in OLD and {after} in NEW: part of the difference may come from it"
            )
    if old.noise is None or new.noise is None:
        notes.append("noise law and norm are not in both records, and are taken for the same")
    if by == "idx":
        notes.append("the images have no digests in both records, and are paired by idx and label")
    if not (old.sound and new.sound):
        notes.append("some radii are approximate, not proven")
    if all("right" in (each.config or {}) for each in (old, new)):
        notes.append(f"right means {(old.config or {})['right']}")
    return notes


def setting(records: Records, name: str) -> Any:
    """What the header says of how the records were drawn; None where it says nothing."""
    return (records.config or {}).get(name)


def in_words(noise: dict[str, Any]) -> str:
    """A noise law, shortly."""
    named = {k: v for k, v in noise.items() if k not in ("law", "norm", "args", "mean_sigma")}
    return " ".join([str(noise.get("law")), *(f"{k} {v}" for k, v in named.items())])


def certified(records: Records, radius: float) -> NDArray[np.bool_]:
    """Which images (M,) are right and certified at least that far."""
    return records.correct & (records.predict >= 0) & (records.radius >= radius)
