"""What the pages of all jobs share: the templates, and how models, queries and papers are presented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certdef.config.job import without_password
from certdef.report import formats
from certdef.report.citations import reference
from certdef.report.words import sigma_in_words
from certdef.tracking.results import StageResult

TEMPLATES = Path(__file__).parent / "templates"
PURPOSES = {
    "training": "labels for the surrogate's training images",
    "evaluation": "accuracy, agreement and membership inference: answers that need not be fresh",
    "certification": "noise votes that certify the target itself",
    "attack": "adversarial images",
    "canary": "repeated queries that notice a changed target",
    "preflight": "a look at the first images before the job; evaluation got their answers for nothing",
}


@dataclass(frozen=True)
class Paper:
    """A reference, and the address of its arXiv page where it has one."""

    reference: str
    address: str


def template(name: str) -> Any:
    """A template of this folder; a name that it is not given is an error, and what comes from outside is text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"share": formats.percent, "up": formats.percent_up, "sigma": sigma_in_words}
    environment.globals["purposes"] = PURPOSES
    own = {"down": formats.radius_down, "count_to": range, "inline": _inline}
    environment.filters |= filters | {"count": formats.count} | own
    return environment.get_template(name)


def _inline(text: str) -> Any:
    """Bold, emphasis and code of a line of Markdown as HTML; all else is text."""
    from markupsafe import Markup, escape

    safe = str(escape(text))
    for mark, tag in ((r"\*\*(.+?)\*\*", "b"), (r"(?<!\w)\*(\S.*?)\*(?!\w)", "em"), (r"`(.+?)`", "code")):
        safe = re.sub(mark, rf"<{tag}>\1</{tag}>", safe)
    return Markup(safe)


def uris(results: Mapping[str, StageResult]) -> dict[str, str]:
    """Where each stage's model is, without passwords."""
    every = {name: getattr(result, "uri", None) for name, result in results.items()}
    return {name: without_password(uri) for name, uri in every.items() if uri}


def papers(*keys: str) -> list[Paper]:
    """References by their keys."""
    numbers = {text: re.search(r"arXiv (\d{4}\.\d{5})", text) for text in map(reference, keys)}
    return [
        Paper(text, f"https://arxiv.org/abs/{number[1]}" if number else "")
        for text, number in numbers.items()
    ]
