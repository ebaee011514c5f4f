"""Values that cannot be used are refused here, all at once, before anything is trained or paid for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import chain

from certdef.config.candidates import candidate_laws
from certdef.config.job import (
    AUTO,
    OFF,
    CertifyConfig,
    ConfigError,
    RunConfig,
    TargetConfig,
    preset_path,
    without_password,
)
from certdef.config.names import CHOICES, is_choice, unknown_names
from certdef.config.rules import Rules, named_values, rules_of

# What is a file name and a metric name as it stands; a space too.
LONGEST_LABEL = 50
LABEL = re.compile(rf"\w[\w .-]{{0,{LONGEST_LABEL - 1}}}")

# Parts of the configuration that checks of a job read by themselves: the others of their section may still be looked at.
PARTS = (
    {"certify.laws": "laws"}
    | {f"surrogate.{name}": "training" for name in ("strategy", "loss", "precision")}
    | {f"robustness.{name}": "draws" for name in ("q", "images")}
)
NAMED = ("purifier", "ladder.systems", "ladder.threats", "nim.weights", "reversal.tasks")  # beside CHOICES
# Options that nothing else can find fault with.
PLAIN = {"config", "preset", "seed", "threads", "work_dir", "quiet", "fresh", "threat", *CHOICES}


def check(config: RunConfig) -> None:
    """Refuse values that cannot be used.

    Raises:
        ConfigError: A line for each value, with its name and the remedy.
    """
    lines = [line for found in failures(config).values() for line in found]
    if lines:
        raise ConfigError("\n".join(lines))


def first_look(config: RunConfig, chosen: Collection[str], unknown: Sequence[str] = ()) -> None:
    """Answer what is wrong and known without torch, which takes seconds to load.

    A name that nobody knows is answered at once. So is a value out of range, unless something else was set that only a look
    at images, target or budgets can judge: all of that is looked at then, and named together.

    Args:
        config: The job.
        chosen: The options that were set, dotted.
        unknown: Lines on unknown names beside the configuration.

    Raises:
        ConfigError: A line for each; those that torch must be loaded to judge are left out.
    """
    found = _broken(config)
    names = [*unknown, *unknown_names(config)]
    typos = all(key in NAMED or (key in CHOICES and not is_choice(config, key)) for key in found)
    if (found or names) and (typos or PLAIN.issuperset({*chosen} - {*found})):
        raise ConfigError("\n".join([*chain(*found.values()), *names]))


def failures(config: RunConfig) -> dict[str, list[str]]:
    """A line for each value that cannot be used, by its section, or by its part of PARTS; under its name where it is in none.

    Raises:
        ConfigError: An unknown preset: nothing else is known then.
    """
    found: dict[str, list[str]] = {}
    headers = {"target.headers": lines} if (lines := _headers(config.target)) else {}
    for key, lines in [*_broken(config).items(), *headers.items()]:
        part = PARTS.get(key, key.partition(".")[0])
        found[part] = [*found.get(part, []), *lines]
    return found


def _broken(config: RunConfig) -> dict[str, list[str]]:
    """A line or more for each value that cannot be used, by its dotted name. Loads no torch."""
    preset_path(config.preset)
    found: dict[str, list[str]] = {}
    for name, rules in rules_of(config).items():
        section = getattr(config, name) if name else config
        found |= _failures(section, f"{name}." if name else "", chain(named_values(config, name), rules))
    special = {
        "certify.laws": _laws(config.certify),
        "certify.choose": _candidates(config.certify),
        "certify.baseline": _baseline(config),
        "surrogate.weights": _own_surrogates(config),
    }
    for key, lines in special.items():
        if lines:
            found[key] = [*found.get(key, []), *lines]
    return found


def _failures(section: object, prefix: str, rules: Rules) -> dict[str, list[str]]:
    """A line for each value that breaks a rule, by its name; of a value with several rules, the first that it breaks."""
    remedies: dict[str, str] = {}
    for name, good, remedy in rules:
        if not good:
            remedies.setdefault(name, remedy)
    return {
        f"{prefix}{name}": [f"{prefix}{name} is {getattr(section, name)!r}: {remedy}"]
        for name, remedy in remedies.items()
    }


def _laws(certify: CertifyConfig) -> list[str]:
    failures = [
        f"scale_255 of law {law.label!r} is {law.scale_255!r}: use 8-bit levels above 0, e.g. 3"
        for law in certify.laws
        if not 0 < law.scale_255 <= 255
    ]
    labels = [law.label for law in certify.laws]
    for label in labels:
        if not LABEL.fullmatch(label):
            plain = re.sub(r"[^\w.-]+", "-", label).strip("-.")[:LONGEST_LABEL] or "law"
            remedy = f"it names files and metrics: use up to {LONGEST_LABEL} letters, digits, '_', '.', '-' and spaces, e.g. {plain}"
            failures.append(f"certify.laws has the label {label!r}: {remedy}")
    distinct = {label.lower() for label in labels}  # not every disk tells a from A
    if len(distinct) < len(labels) or "gaussian" in distinct:
        remedy = "give each law its own, whatever the case (gaussian is taken by the comparison)"
        failures.append(f"certify.laws has the labels {labels}: {remedy}")
    return failures


def _baseline(config: RunConfig) -> list[str]:
    baseline = config.certify.baseline
    if baseline is None or config.target.uri is not None:
        return []
    shown = without_password(baseline)
    return [f"certify.baseline is {shown!r}: it is an old version of your own target, give target.uri"]


def _own_surrogates(config: RunConfig) -> list[str]:
    given = config.surrogate.weights
    if given is None or not config.ducd.enabled:
        return []
    return [f"surrogate.weights is {given!r}: the DUCD job distills its own surrogates, unset one of the two"]


def _candidates(certify: CertifyConfig) -> list[str]:
    if isinstance(certify.choose, str) and certify.choose not in (OFF, AUTO):
        return [
            f"certify.choose is {certify.choose!r}: use off, auto, or a list of candidates, e.g. [45,60,90]"
        ]
    try:
        laws = candidate_laws(certify)
    except ConfigError as error:
        return [str(error)]
    if not isinstance(certify.choose, str) and len(laws) < 2:
        return [
            f"certify.choose is {certify.choose!r}: name at least two candidates, e.g. [45,60,90], or use off"
        ]
    return []


def _headers(target: TargetConfig) -> list[str]:
    """The same for headers of requests, without their values, of which one may be a secret."""
    if target.headers is None:
        return []
    from surrogates.errors import TargetError  # loads torch: not for the help, nor without headers
    from surrogates.targets.http_headers import check_headers

    try:
        check_headers(target.headers)
    except TargetError as error:
        return [f"target.headers: {error}"]
    return []
