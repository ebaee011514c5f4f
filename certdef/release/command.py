"""The command line of certdef compare: options, files that are written, exit code."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from certdef.config.job import ConfigError
from certdef.config.verbs import description
from certdef.release import options
from certdef.release.places import check_place
from certdef.release.rules import RADII, check_levels, check_radii, parse_rules

PASSED, FAILED = 0, 1
EXIT_CODES = """\
exit codes:
  0  every gate holds, or none was set
  1  a gate failed
  2  bad input: nothing was compared

gates, each of NEW:
  --fail-if "certified@0.25 < 0.60"   certified@R, clean (the same at 0), abstained, median_radius, mean_radius,
                                      drop@R (OLD - NEW), lost@R (images); with <, <=, >, >= and a number, 0.6 or 60%
  --max-drop 0.02                     as observed, of all images
  --max-proven-drop 0.02              only what is proven at --alpha, of all images, each class and each group
"""
OUTPUTS = ("markdown", "junit", "json", "picture")


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(
        prog="certdef compare",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        usage="certdef compare OLD NEW [options]",
        formatter_class=RawDescriptionHelpFormatter,
        description=description("compare"),
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    what = "A run id of MLflow, a folder of records, a .jsonl or .tsv, or models:/NAME/VERSION."
    add("old", metavar="OLD", nargs="?", help=f"What is in use. {what}")
    add(
        "new", metavar="NEW", nargs="?", help="What is to replace it, likewise; certified on the same images."
    )
    add("--radii", metavar="R,R,...", help="Radii in [0, 1] pixel units; default 0,0.25,0.5,0.75,1.")
    add(
        "--groups",
        metavar="FILE:COLUMN",
        action="append",
        default=[],
        help="Subgroups by a column of a .csv, .tsv or .npz: with a column idx, or with the rows of the file of data. Repeatable.",
    )
    add("--no-classes", action="store_true", help="Don't compare class by class; the other rows gain power.")
    add(
        "--condition",
        metavar="NAME",
        help="Records of a job by name, e.g. target-nim-none; default the headline.",
    )
    add("--common", action="store_true", help="Compare the images that both have.")
    add("--alpha", type=float, default=0.05, help="Level of all tests together; default 0.05.")
    add(
        "--fail-if",
        metavar="RULE",
        action="append",
        default=[],
        help="A gate, see below. Repeatable.",
    )
    add("--max-drop", metavar="SHARE", type=float, help="A gate on the observed drop, see below.")
    add("--max-proven-drop", metavar="SHARE", type=float, help="A gate on the proven drop, see below.")
    add("--markdown", metavar="FILE", help="Write a Markdown summary for a pull request.")
    add("--junit", metavar="FILE", help="Write JUnit XML for CI, a test case a gate.")
    add("--json", metavar="FILE", help="Write everything (docs/compare.md describes it).")
    add("--picture", metavar="FILE", help="Draw both curves: .png, .svg, .pdf.")
    add("--tracking.uri", dest="tracking_uri", metavar="URI", help="MLflow's store of runs and versions.")
    add("-h", "--help", action="store_true", help="Show this help.")
    return parser


def run(arguments: list[str]) -> int:
    """Compare, print, write; returns 0 where every gate holds, 1 where one fails.

    Raises:
        ConfigError: Options or records that can't be used.
    """
    parser = build_parser()
    namespace = options.parse(parser, arguments, ("old", "new"))
    if namespace.help:
        parser.print_help()
        return PASSED
    _check(namespace)
    from certdef.release.compare import compare
    from certdef.release.junit import as_junit
    from certdef.release.words import as_markdown, as_text

    comparison = compare(
        namespace.old,
        namespace.new,
        radii=options.radii(namespace.radii) or RADII,
        groups=namespace.groups,
        by_class=not namespace.no_classes,
        alpha=namespace.alpha,
        condition=namespace.condition,
        common=namespace.common,
        fail_if=namespace.fail_if,
        max_drop=namespace.max_drop,
        max_proven_drop=namespace.max_proven_drop,
        picture=namespace.picture,
        tracking_uri=namespace.tracking_uri,
    )
    text = as_text(comparison)
    print(text)
    if namespace.markdown:
        options.write(namespace.markdown, as_markdown(comparison, _link(namespace)).encode())
    if namespace.junit:
        options.write(namespace.junit, as_junit(comparison, text))
    if namespace.json:
        options.write(
            namespace.json, (json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n").encode()
        )
    return PASSED if comparison.passed else FAILED


def _check(namespace: Any) -> None:
    """Refuse what can't be used, all at once, before torch is loaded and anything is read."""
    drops = {"max_drop": namespace.max_drop, "max_proven_drop": namespace.max_proven_drop}
    options.all_at_once(
        lambda: _check_place("OLD", namespace.old),
        lambda: _check_place("NEW", namespace.new),
        lambda: check_radii(options.radii(namespace.radii) or RADII),
        lambda: check_levels(namespace.alpha, **drops),
        lambda: parse_rules(namespace.fail_if),
        lambda: _check_outputs(namespace),
    )


def _check_place(name: str, given: str) -> None:
    try:
        check_place(given)
    except ConfigError as error:
        raise ConfigError(f"{name} {error}") from error


def _check_outputs(namespace: Any) -> None:
    """Refuse files that can't be written."""
    problems = []
    for name in OUTPUTS:
        value = getattr(namespace, name)
        if value is None:
            continue
        folder = Path(value).parent
        if Path(value).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            problems.append(
                f"--{name} is {value!r}: name a file in a folder that is there and can be written"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _link(namespace: Any) -> str | None:
    """The picture as seen from the Markdown file."""
    if namespace.picture is None:
        return None
    return Path(os.path.relpath(namespace.picture, Path(namespace.markdown).parent)).as_posix()
