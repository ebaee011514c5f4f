"""The command line of certdef evidence: options, files that are written, exit code."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certdef.config.job import ConfigError, nearest
from certdef.config.verbs import description
from certdef.release import options
from certdef.release.places import check_ledger, check_place

if TYPE_CHECKING:
    from certdef.release.document import Evidence

WRITTEN = 0
FORMATS = {"json": "evidence.json", "md": "evidence.md", "html": "evidence.html", "card": "card.md"}
EPILOG = """\
exit codes:
  0  written; what was not measured is in it as such
  2  bad input: nothing was written

formats:
  json  everything, by the schema certdef-evidence-1, which it is checked against before it is written
  md    the same as Markdown; html: as one page that loads nothing
  card  a block for a Hugging Face model card: front matter with a model index, and a section
"""


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(
        prog="certdef evidence",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        usage="certdef evidence RUN [options]",
        formatter_class=RawDescriptionHelpFormatter,
        description=description("evidence", "Nothing is queried."),
        epilog=EPILOG,
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        nargs="?",
        help="A run id of MLflow, models:/NAME/VERSION, a job's folder, or records (a folder, a .jsonl or .tsv).",
    )
    add("--out", metavar="FOLDER", default="evidence", help="Where the files go; default evidence/.")
    add("--format", metavar="F,F,...", default=",".join(FORMATS), help="Which; default json,md,html,card.")
    add(
        "--groups",
        metavar="FILE:COLUMN",
        action="append",
        default=[],
        help="Subgroups, as for certdef compare. Repeatable.",
    )
    add("--radii", metavar="R,R,...", help="Radii in [0, 1] pixel units; default 0 and those of the job.")
    add("--ledger", metavar="FILE", help="The job's ledger; default where the job had it.")
    add("--schema", action="store_true", help="Print the JSON schema and stop.")
    add("--tracking.uri", dest="tracking_uri", metavar="URI", help="MLflow's store of runs and versions.")
    add("-h", "--help", action="store_true", help="Show this help.")
    return parser


def run(arguments: list[str]) -> int:
    """Gather, check, write; returns 0.

    Raises:
        ConfigError: Options or a run that can't be used.
    """
    parser = build_parser()
    namespace = options.parse(parser, arguments, ("run",), ("help", "schema"))
    if namespace.help:
        parser.print_help()
        return WRITTEN
    if namespace.schema:
        from certdef.release.document import json_schema

        print(json.dumps(json_schema(), indent=1))
        return WRITTEN
    _check(namespace)
    from certdef.release.evidence import evidence

    document = evidence(
        namespace.run,
        groups=namespace.groups,
        radii=options.radii(namespace.radii) or None,
        ledger=namespace.ledger,
        tracking_uri=namespace.tracking_uri,
    )
    out = Path(namespace.out)
    formats = _formats(namespace)
    for name in formats:
        _write(out / FORMATS[name], _writers()[name](document))
    print(_summary(document, [out / FORMATS[name] for name in formats]))
    return WRITTEN


def _check(namespace: Any) -> None:
    """Refuse what can't be used, all at once, before torch is loaded and anything is read."""
    options.all_at_once(
        lambda: check_place(namespace.run),
        lambda: check_ledger(namespace.ledger),
        lambda: _formats(namespace),
        lambda: _check_out(namespace.out),
        lambda: options.radii(namespace.radii),
    )


def _formats(namespace: Any) -> list[str]:
    """The formats that are asked for, each once."""
    formats = list(dict.fromkeys(each.strip() for each in namespace.format.split(",")))
    problems = [
        f"--format has {each!r}{nearest(each, FORMATS)}: choose of {', '.join(FORMATS)}"
        for each in formats
        if each not in FORMATS
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return formats


def _check_out(given: str) -> None:
    there = next(each for each in (Path(given), *Path(given).absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"--out is {given!r}, which can't be written: name another folder")


def _writers() -> dict[str, Callable[[Evidence], str]]:
    from certdef.release.evidence_words import as_markdown
    from certdef.release.model_card import as_card
    from certdef.release.page import as_html

    return {"json": _as_json, "md": as_markdown, "html": as_html, "card": as_card}


def _as_json(document: Evidence) -> str:
    return json.dumps(document.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    mend = "name another folder with --out"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{str(path.parent)!r} can't be made ({error.strerror}): {mend}") from error
    options.write(path, text.encode(), mend)


def _summary(document: Evidence, paths: list[Path]) -> str:
    """What it is of, what is absent in it, and where it is."""
    from certdef.release.document import Absent
    from certdef.release.page import headline_radius, lead_of, title_of

    parts = {
        "clean accuracy": document.clean_accuracy,
        "groups": getattr(document.subgroups, "columns", document.subgroups),
        "attack": document.attack,
        "membership": document.membership,
        "queries": document.queries,
        "ledger": getattr(document.queries, "ledger", document.queries),
        "version": document.model.version,
        "digest": document.model.digest,
    }
    lines = [
        f"evidence    {title_of(document)}",
        f"            {lead_of(document, headline_radius(document))}",
    ]
    for name, part in parts.items():
        if isinstance(part, Absent):
            lines.append(f"{part.status:<13} {name}: {part.how}".replace("`", ""))
    return "\n".join([*lines, *(f"written     {path}" for path in paths)])
