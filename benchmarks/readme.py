"""Write the numbers of the default run into README and docs/results.md: `python benchmarks/readme.py`, after `make run`.

The job is finished by then, so nothing is trained or paid for; each figure is read from a stage's result or the ledger.
"""

import sys
from pathlib import Path

from certdef import pipeline
from certdef.config.job import RunConfig
from certdef.config.load import load_config
from certdef.report.certificates import CertificateRow, certificate_rows
from certdef.report.formats import radius_down
from certdef.report.words import purifier_title
from certdef.stages.attack import AttackResult
from certdef.stages.certificates import CertifyResult
from certdef.stages.summary import Summary
from certdef.tracking.results import Share
from surrogates import Bill

NUMBERS = (
    "docs/results.md",
    "<!-- numbers: from the run's result.json files -->\n",
    "<!-- end of numbers -->\n",
)
SUMMARY = ("README.md", "<!-- summary: of the default run -->\n", "<!-- end of summary -->\n")
NAMES = {"nim": "NIM"}
SUBJECTS = {"target": "by paid queries", "surrogate": "without queries"}


def numbers(config: RunConfig, summary: Summary) -> str:
    """The section between the marks."""
    result = {name: stage.result for name, stage in summary.stages.items()}
    surrogate = result["surrogate"]
    lines = [
        "The summary in the terminal:",
        "",
        *printed(summary),
        "",
        f"alpha {config.certify.alpha:g} for each image, n0 {config.certify.n0}; L2 radii in [0, 1] pixel units; every row is `sound`.",
        "Cells: certified accuracy, the percentage of held-out images that are classified right with a certified radius of at",
        'least r, and its 95% interval (Clopper-Pearson). "Largest r" is what a unanimous vote of n draws proves; a radius beyond',
        "it is marked –.",
        "",
    ]
    for subject in SUBJECTS:
        lines += [*certificates(config, result["certify"], subject), ""]
    lines += [
        f"**Without noise**: the clean accuracy of the target is {percent(result['target'].accuracy)} percent. The surrogate, distilled from",
        f"{surrogate.queries} answers, has an agreement with it of {percent(surrogate.agreement_clean)} percent on clean images and of",
        f"{percent(surrogate.agreement_noisy)} percent under the NIM noise without the denoiser.",
        "",
        *attack(config, result["attack"]),
    ]
    assert summary.bill is not None  # the job has paid
    return "\n".join([*lines, "", *query_bill(summary.bill)]) + "\n"


def printed(summary: Summary) -> list[str]:
    """The summary in the terminal, as the first run prints it."""
    lines = [line for line in str(summary).splitlines() if not line.startswith("reused")]
    store = "runs        mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db"
    return ["```text", *lines[:-1], store, "```"]


def certificates(config: RunConfig, result: CertifyResult, subject: str) -> list[str]:
    """Certified accuracy of a subject, a row a noise."""
    rows = certificate_rows(config, result, subject)
    first, radii = rows[0].curve, [0.0, *config.certify.radii]
    return [
        f"**{subject.capitalize()}**, certified {SUBJECTS[subject]}: {first.images} images, n = {first.n:,}.",
        "",
        *table(["noise", "purifier"], [*(f"r = {radius:g}" for radius in radii), "abstained", "largest r"]),
        *(certificate_line(row, radii) for row in rows),
    ]


def certificate_line(row: CertificateRow, radii: list[float]) -> str:
    name = "Gaussian" if row.law is None else NAMES.get(row.curve.law, row.curve.law)
    noise = f"{name}, sigma ~ {row.law}" if row.law else f"{name}, sigma {row.mean_sigma:.3f}"
    noise += ", chosen" if row.chosen else ""
    shares = [
        percent(share) if radius <= row.largest_radius else "–"
        for radius, share in zip(radii, row.curve.shares, strict=True)
    ]
    ends = [f"{100 * row.curve.abstained:.1f}", radius_down(row.largest_radius)]
    return line(noise, row.purifier or "none", *shares, *ends)


def attack(config: RunConfig, result: AttackResult) -> list[str]:
    """Accuracy under the transfer attack, a row an eps."""
    purifier, steps = purifier_title(config.purifier), config.attack.steps
    columns = {
        "target": "target",
        "target_purified": f"target behind {purifier}",
        "surrogate": "surrogate (white box)",
        "surrogate_purified": f"surrogate behind {purifier}",
    }
    return [
        f"**Attack** (empirical, not a proof): accuracy in percent on {result.images} images under L-infinity PGD, {steps} steps, computed",
        f"on the surrogate and transferred to the target. {purifier} is here a single forward pass (sigma {config.attack.sigma_255:g}/255) without a vote; the",
        "attacker does not know of it. Robust accuracy against adaptive attackers: [the threat ladder](ladder.md).",
        "",
        *table([], ["eps", *columns.values()]),
        *(
            line(f"{row.eps:g}" if row.eps else "0 (clean)", *(percent(getattr(row, key)) for key in columns))
            for row in result.rows
        ),
    ]


def query_bill(bill: Bill) -> list[str]:
    """The charges of each purpose that was budgeted or used."""
    charges = {name: charge for name, charge in bill.charges.items() if charge.budget or charge.largest}
    return [
        "**Query bill** of the target, one query an image:",
        "",
        *table(["purpose"], ["budget", "answered", "unknown"]),
        *(
            line(name, *(f"{value:,}" for value in (charge.budget, charge.answered, charge.unknown)))
            for name, charge in (charges | {"total": bill.total}).items()
        ),
    ]


def table(words: list[str], figures: list[str]) -> list[str]:
    """The head of a table: columns of words, then of figures."""
    return [line(*words, *figures), "|" + " --- |" * len(words) + " ---: |" * len(figures)]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def percent(share: Share) -> str:
    value, lower, upper = (100 * each for each in share)
    return f"{value:.1f} ({lower:.1f}–{upper:.1f})"


def rewrite(file: str, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a file."""
    path = Path(__file__).parents[1] / file
    before, rest = path.read_text().split(begin)
    path.write_text(before + begin + text + end + rest.split(end)[1])


def main() -> None:
    """Rewrite both sections."""
    if sys.argv[1:]:
        sys.exit(__doc__)
    config = load_config("digits")
    summary = pipeline.run(config, progress=False)
    if not summary.reused:
        sys.exit("the default job was not done: make run, then again")
    rewrite(*NUMBERS, numbers(config, summary))
    rewrite(*SUMMARY, "\n".join(printed(summary)) + "\n")


if __name__ == "__main__":
    main()
