"""Write the numbers of the default run into the README: `python benchmarks/readme.py`, after `make run`.

The job is finished by then, so nothing is trained or paid for; each figure is read from a stage's result or the ledger.
"""

import sys
from pathlib import Path

import certdef
import certify
from certdef import stages
from certdef.report import terminal
from certdef.report.words import law_in_words, purifier_title

BEGIN, END = "<!-- numbers: from the run's result.json files -->\n", "<!-- end of numbers -->\n"


def percent(triple: list[float]) -> str:
    share, low, high = (100 * value for value in triple)
    return f"{share:.1f} ({low:.1f}–{high:.1f})"


def certificates(config, found: dict, subject: str) -> list[str]:
    radii = found["radii"]
    lines = [
        "| noise | in front | r = 0 | " + " | ".join(f"r = {r:g}" for r in radii) + " | abstained | reach |",
        "| --- | --- |" + " ---: |" * (len(radii) + 3),
    ]
    words = {law.label: law_in_words(law) for law in config.certify.laws}
    for condition in stages.conditions(config):
        if condition.subject != subject:
            continue
        curve = found["curves"][condition.key]
        reach = condition.noise.radius(
            certify.binomial_lower_bound(curve["n"], curve["n"], config.certify.alpha)
        )
        name = {"gaussian": f"Gaussian, sigma {condition.noise.mean_sigma:.3f}"}.get(
            condition.law, f"{'NIM' if condition.headline or condition.law == 'nim' else condition.law}, sigma ~ {words.get(condition.law)}"
        )  # fmt: skip
        cells = [percent(curve["accuracy_at_0"])]
        cells += [
            percent(each) if r <= reach else "–" for r, each in zip(radii, curve["accuracy"], strict=True)
        ]
        front = purifier_title(condition.purifier) if condition.denoised else "nothing"
        lines.append(
            f"| {name} | {front} | {' | '.join(cells)} | {100 * curve['abstained']:.1f} | {int(1000 * reach) / 1000:.3f} |"
        )
    return lines


def numbers(config, summary) -> str:
    results, front = summary.results, purifier_title(config.purifier)
    found, attack, surrogate = results["certify"], results["attack"], results["surrogate"]
    printed = [
        line for line in terminal.headline(config, summary).splitlines() if not line.startswith("reused")
    ]
    lines = ["The summary in the terminal:", "", "```text", *printed[1:-1]]
    lines += ["runs        mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db", "```", ""]
    lines += [
        f"alpha {config.certify.alpha:g} for each image, n0 {config.certify.n0}; L2 radii in [0, 1] pixel units; every row is `sound`.",
        "Cells: share of held-out images, in percent, that are classified right with a proven radius of at least r, and its",
        '95% interval (Clopper-Pearson). "Reach" is the largest radius that n votes can prove; a radius beyond it shows as "–".',
        "",
    ]
    for subject, words in (("target", "by paid queries"), ("surrogate", "free of queries")):
        curve = next(each for each in found["curves"].values() if each["subject"] == subject)
        lines += [
            f"**{subject.capitalize()}**, certified {words}: {curve['images']} images, n = {curve['n']:,}.", "",
            *certificates(config, found, subject), "",
        ]  # fmt: skip
    lines += [
        f"**Bare models**: the target is right on {percent(results['target']['accuracy'])} percent of the held-out images. The surrogate,",
        f"distilled from {surrogate['queries']} answers, agrees with it on {percent(surrogate['agreement_clean'])} percent of clean images and",
        f"on {percent(surrogate['agreement_noisy'])} percent under the NIM noise without the denoiser.",
        "",
        f"**Attack** (empirical, not a proof): accuracy in percent on {attack['images']} images under L-infinity PGD, {config.attack.steps} steps, made on the",
        f"surrogate and shown to the target. {front} is here one noisy look (sigma {config.attack.sigma_255:g}/255) without a vote; the attacker does",
        "not know of it. What is left against one who does: [the ladder](#the-ladder).",
        "",
        f"| eps | target | target behind {front} | surrogate (white box) | surrogate behind {front} |",
        "| ---: |" + " ---: |" * 4,
    ]
    for row in attack["rows"]:
        cells = [
            percent(row[key]) for key in ("target", "target_purified", "surrogate", "surrogate_purified")
        ]
        lines.append(
            f"| {'0 (clean)' if row['eps'] == 0 else format(row['eps'], 'g')} | {' | '.join(cells)} |"
        )
    lines += ["", "**Query bill** of the target, one query an image:", ""]
    lines += ["| purpose | budget | answered | unknown |", "| --- | ---: | ---: | ---: |"]
    charges = {
        name: charge for name, charge in summary.bill.charges.items() if charge.budget or charge.largest
    }
    for name, charge in (charges | {"total": summary.bill.total}).items():
        lines.append(f"| {name} | {charge.budget:,} | {charge.answered:,} | {charge.unknown:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:]:
        sys.exit(__doc__)
    config = certdef.load_config("digits")
    summary = certdef.run(config, progress=False)
    if not summary.reused:
        sys.exit("the default job was not done: make run, then again")
    readme = Path(__file__).parents[1] / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + numbers(config, summary) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
