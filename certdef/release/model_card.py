"""Evidence as a block of a Hugging Face model card: front matter with a model index, and a section of Markdown."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from certdef.release.document import Absent, Evidence, Interval
from certdef.release.evidence_words import absent, area, certificates, clean, share
from certdef.release.page import headline_radius, lead_of, title_of


def as_card(document: Evidence) -> str:
    """The block: put the front matter into that of the card, and the section below it."""
    import yaml

    front = yaml.safe_dump(front_matter(document), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{front}---\n\n" + "\n".join([*_section(document), ""])


def front_matter(document: Evidence) -> dict[str, Any]:
    """What the front matter says; the results are those of the headline's subject, and of the bare target as such."""
    first, model = document.headline, document.model
    name = document.given if isinstance(model.name, Absent) else model.name
    norm = (first.norm or "unknown norm").upper()
    subject = first.subject or "model"
    results = [
        _metric(
            "certified_accuracy",
            f"Certified accuracy of the smoothed {subject}, {norm} radius {row.radius:g}",
            row.accuracy,
            radius=row.radius,
            alpha=first.alpha,
            claim=first.claim,
        )
        for row in first.radii
        if first.reach is None or row.radius <= first.reach
    ]
    results.append(_metric("abstention_rate", f"Abstentions of the smoothed {subject}", first.abstained))
    data = document.data.sets[0].name if document.data.sets else "certified images"
    dataset: dict[str, Any] = {"name": data, "type": data}
    if isinstance(document.data.digest, str):
        dataset["args"] = {"sha256": document.data.digest}
    entries = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": results}]
    extra = []
    if not isinstance(document.clean_accuracy, Absent):
        extra.append(
            _metric("accuracy", "Clean accuracy of the bare target", document.clean_accuracy.accuracy)
        )
    if not isinstance(document.attack, Absent):
        for row in document.attack.systems:
            said = (
                f"Accuracy of the {row.subject}, purifier {row.system}, worst case over {row.attacks} attacks"
            )
            extra.append(_metric("robust_accuracy", f"{said}, Linf {document.attack.eps:g}", row.accuracy))
    if not isinstance(document.membership, Absent):
        for each in document.membership.attacks:
            extra.append(
                _metric(
                    "roc_auc", f"Membership inference on the {each.subject}, {each.attack} attack", each.auc
                )
            )
    if extra:
        entries.append(
            {"task": {"type": "image-classification"}, "dataset": deepcopy(dataset), "metrics": extra}
        )
    return {
        "pipeline_tag": "image-classification",
        "tags": ["certified-robustness", "randomized-smoothing", "certdef"],
        "model-index": [{"name": name, "results": entries}],
    }


def _metric(kind: str, name: str, value: Interval, **settings: Any) -> dict[str, Any]:
    args = {key: each for key, each in settings.items() if each is not None}
    interval = {"lower": round(value.lower, 6), "upper": round(value.upper, 6), "confidence": 0.95}
    return {
        "type": kind,
        "name": name,
        "value": round(value.value, 6),
        "args": {**args, "interval": interval},
    }


def _section(document: Evidence) -> list[str]:
    attack, membership, queries = document.attack, document.membership, document.queries
    lines = [
        "## Certified robustness",
        "",
        f"{lead_of(document, headline_radius(document))} Evidence of {title_of(document)}, written {document.made} by "
        f"certdef {document.writer['certdef']}.",
        "",
        *certificates(document),
        "",
        f"- Clean accuracy: {clean(document)}",
    ]
    if isinstance(attack, Absent):
        lines.append(f"- Worst case over attacks: {absent(attack)}")
    else:
        worst = attack.systems[0]
        lines.append(
            f"- Worst case over {worst.attacks} attacks, L-infinity {attack.eps:g}: {share(worst.accuracy)} ({worst.subject}, "
            f"purifier {worst.system}); a measurement, no proof"
        )
    if isinstance(membership, Absent):
        lines.append(f"- Membership inference: {absent(membership)}")
    else:
        first = membership.attacks[0]
        lines.append(
            f"- Membership inference: AUC {area(first.auc)} ({first.subject}, {first.attack} attack)"
        )
    if isinstance(queries, Absent):
        lines.append(f"- Queries: {absent(queries)}")
    else:
        spent = ", ".join(f"{each.purpose} {each.spent:,}" for each in queries.purposes)
        hashed = (
            absent(queries.ledger)
            if isinstance(queries.ledger, Absent)
            else f"`sha256:{queries.ledger.sha256}`"
        )
        lines.append(f"- Queries: {spent}; ledger {hashed}")
    return [
        *lines,
        "",
        "### Limits",
        "",
        *(f"{at}. {each}" for at, each in enumerate(document.limits, start=1)),
    ]
