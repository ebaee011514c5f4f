"""The noise that few images choose, against every candidate on the images that are certified: is the choice any good?

    python benchmarks/choice.py --presets digits fashion-mnist --data-root FOLDER

The target behind the preset's denoiser is certified under each candidate, by votes that stop early unless told otherwise, and
the chosen one is marked. What the choice has cost is printed below. Everything is kept in the work directory, resumable.
"""

import argparse
import sys
import time
from pathlib import Path

import certdef
from certdef import stages
from certdef.config.candidates import candidate_laws
from certdef.config.noise_laws import noise_law
from certdef.pipeline import open_job
from certdef.report.formats import with_interval
from certdef.stages.choice import choose_headline
from certdef.stages.conditions import Condition, place_of
from certdef.stages.votes import BaseClassifier, CertifiedCurve, certify_condition, paid_classifier
from certdef.tracking.results import StageResult


def measure(job: stages.Job, certified: list[str] | None) -> list[str]:
    """The table of a job, a row a candidate by mean sigma; of those that are named, or of all."""
    config, name = job.config, job.config.purifier
    target = stages.open_target(job)[0]
    surrogate, surrogate_stage = stages.distill(job, target)
    purifier = stages.prepare_purifier(job, name, surrogate, surrogate_stage)
    parts = [surrogate_stage, *purifier.stages]
    started = time.perf_counter()
    students = stages.train_students(job, target, surrogate, surrogate_stage, purifier)
    choice = choose_headline(job, target, students, purifier, parts)
    assert choice is not None  # candidates are set below
    seconds, result = time.perf_counter() - started, choice.result
    chosen = result.chosen[place_of("target", name)]
    draws = stages.target_draws(config)
    key = [config.certify.settings, draws, target.subject, [each.fingerprint for each in parts]]
    stage = job.stage("candidates", StageResult, *key)
    stage.begin()
    laws = sorted(candidate_laws(config.certify), key=lambda law: noise_law(law).mean_sigma)
    if certified:
        laws = [law for law in laws if law.label in certified]
    radii = config.certify.radii
    lines = [
        "| candidate | " + " | ".join(f"r = {r:g}" for r in radii) + " | mean | expected | votes an image | |"
    ]
    lines.append("| --- |" + " ---: |" * (len(radii) + 3) + " --- |")
    for law in laws:
        condition = Condition("target", law.label, name, noise_law(law))
        denoiser, mark = purifier.denoiser(law.label), purifier.denoiser_key(law.label)
        paid = paid_classifier(job, target, stage, condition, denoiser, mark)
        curve = certify_condition(job, condition, BaseClassifier(paid, target.num_classes, draws), stage)
        expected = chosen.scores.get(law.label)
        told = "not tried" if expected is None else f"{100 * expected:.1f}"
        lines.append(row(law.label, curve, told, "chosen" if law == chosen.law else ""))
        print(lines[-1], file=sys.stderr, flush=True)
    free = result.chosen[place_of("surrogate", name)]
    bare = result.chosen[place_of("target", None)]
    lines += [
        "",
        f"Chosen on {result.images} images by {result.votes_each} votes of each candidate: target {chosen.law.label} for {chosen.votes:,} "
        f"paid votes (without a denoiser {bare.law.label} for {bare.votes:,}), surrogate {free.law.label}; {seconds:.0f} s.",
    ]
    return lines


def row(label: str, curve: CertifiedCurve, expected: str, mark: str) -> str:
    shares = " | ".join(with_interval(share) for share in curve.accuracy)
    mean = sum(share.value for share in curve.accuracy) / len(curve.accuracy)
    return f"| {label} | {shares} | {100 * mean:.1f} | {expected} | {curve.samples_per_image:.0f} | {mark} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder of the data sets; $CERTDEF_DATA_ROOT, else ../shared/data"
    )
    parser.add_argument("--presets", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--work-dir", default="runs/choice", help="the jobs' folders are below it")
    parser.add_argument("--choose", default="[45,60,75,90,105,nim,nim@60-90]", help="candidates")
    parser.add_argument("--images", type=int, default=200, help="images certified")
    parser.add_argument("--choice-images", type=int, default=60, help="images that choose")
    parser.add_argument("--choice-n", type=int, default=100, help="votes of each, a candidate")
    parser.add_argument("--n", type=int, default=2_000, help="votes of a certificate, at most")
    parser.add_argument(
        "--radii", default="[0.25,0.5,0.75,1.0]", help="of the criterion and the certificates"
    )
    parser.add_argument(
        "--certified", nargs="*", help="labels of the candidates that are certified; unset, all"
    )
    parser.add_argument("--method", default="group_sequential", help="of the certificates")
    arguments = parser.parse_args()
    for preset in arguments.presets:
        config = certdef.load_config(
            preset,
            data__root=arguments.data_root if preset != "digits" else None,
            work_dir=str(Path(arguments.work_dir) / preset),
            certify__laws=[{"label": "nim", "family": "gamma", "shape": [25], "scale_255": 3}],
            certify__choose=arguments.choose,
            certify__choice_images=arguments.choice_images,
            certify__choice_n=arguments.choice_n,
            certify__target_images=arguments.images,
            certify__n=arguments.n,
            certify__radii=arguments.radii,
            certify__method=arguments.method,
            ledger__certification=10_000_000,
            threads=1,
        )
        with open_job(config, verb="certify") as job:
            print(
                f"\n**{preset}**, {arguments.images} images, n at most {arguments.n:,}, alpha {config.certify.alpha:g}\n"
            )
            print("\n".join(measure(job, arguments.certified)), flush=True)


if __name__ == "__main__":
    main()
