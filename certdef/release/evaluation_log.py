"""An evaluation in MLflow: metrics on the run and on the model, files, and a table that mlflow.load_table reads."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import certify
from certdef.release.evaluation import Evaluation
from certdef.release.evaluator_config import PURPOSES

TABLE = "certdef_certificates.json"  # not in a folder: EvaluationResult.tables looks for it by its name
FOLDER = "certdef"
POINTS = 400  # of the curve


def log_evaluation(
    evaluation: Evaluation, run_id: str, model_id: str | None, dataset: Any, prefix: str
) -> Any:
    """Log an evaluation in a run, and its metrics on the model too; returns MLflow's EvaluationResult.

    Args:
        evaluation: What was found.
        run_id: The caller's run.
        model_id: Of the LoggedModel; None where MLflow evaluates what it has not logged.
        dataset: MLflow's EvaluationDataset, which the metrics are of.
        prefix: Before the names of metrics and files.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.models import EvaluationResult
    from mlflow.models.evaluation.artifacts import (
        ImageEvaluationArtifact,
        JsonEvaluationArtifact,
        TextEvaluationArtifact,
    )
    from PIL import Image

    client, now = MlflowClient(), round(1000 * time.time())
    root = client.get_run(run_id).info.artifact_uri
    values = {prefix + name: value for name, value in evaluation.metrics.items()}
    of: dict[str, Any] = {
        "model_id": model_id,
        "dataset_name": dataset.name,
        "dataset_digest": dataset.digest,
        "run_id": run_id,
    }
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0, **of) for name, value in values.items()])
    artifacts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in _files(evaluation, Path(temporary)):
            client.log_artifact(run_id, str(path), f"{prefix}{FOLDER}")
            uri = f"{root}/{prefix}{FOLDER}/{path.name}"
            name = f"{prefix}{FOLDER}_{path.stem}" + ("_tsv" if path.suffix == ".tsv" else "")
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
                artifacts[name] = ImageEvaluationArtifact(uri, picture)
            else:
                artifacts[name] = TextEvaluationArtifact(uri, path.read_text(encoding="utf-8"))
    rows = table(evaluation)
    client.log_table(run_id, rows, prefix + TABLE)
    artifacts[prefix + Path(TABLE).stem] = JsonEvaluationArtifact(f"{root}/{prefix}{TABLE}", rows)
    return EvaluationResult(metrics=values, artifacts=artifacts, run_id=run_id)


def table(evaluation: Evaluation) -> dict[str, list[Any]]:
    """A row a certificate, each complete by itself: rows of several evaluations stand in one table of a run."""
    records = certify.read_records(evaluation.records)
    noise = evaluation.curve.noise
    assert records.p_lower is not None  # a .jsonl keeps these
    assert records.counts is not None
    assert records.alpha is not None
    assert records.n0 is not None
    count = len(records)

    def named(label: int) -> str:
        if label == certify.ABSTAIN:
            return "abstains"
        return evaluation.classes[label] if label < len(evaluation.classes) else str(label)

    return {
        "model": [evaluation.identity] * count,
        "row": evaluation.rows[records.idx].tolist(),
        "label": [named(label) for label in records.label.tolist()],
        "prediction": [named(label) for label in records.predict.tolist()],
        "correct": records.correct.tolist(),
        "radius": records.radius.tolist(),
        "norm": [noise["norm"]] * count,
        "p_lower": records.p_lower.tolist(),
        "votes": (records.n0 + records.counts.sum(axis=1)).tolist(),
        "alpha": records.alpha.tolist(),
        "noise": [json.dumps(noise, sort_keys=True)] * count,
        "sound": [records.sound] * count,
    }


def report(evaluation: Evaluation) -> str:
    """Certified accuracy as Markdown, with all that the claim is of."""
    curve, noise = evaluation.curve, evaluation.curve.noise
    records = certify.read_records(evaluation.records)
    assert records.alpha is not None  # a .jsonl keeps it
    at_radii = certify.curves.certified_accuracy(records, evaluation.radii)
    clean = " ({1:.1%} to {2:.1%})".format(*evaluation.clean)
    charges = ", ".join(
        f"{purpose} {evaluation.bill[purpose].spent:,}"
        + (f" of {evaluation.budget[purpose]:,}" if purpose in evaluation.budget else "")
        for purpose in PURPOSES
    )
    return "\n".join(
        [
            f"# Certified accuracy of {evaluation.identity}",
            "",
            certify.curves.table({"smoothed model": at_radii}),
            f"- Subject: the vote of this model under noise `{json.dumps(noise, sort_keys=True)}`, without a purifier. The bare model "
            "has no guarantee.",
            f"- Radii: norm {noise['norm']}, pixels in [0, 1]; {'sound' if curve.sound else 'approximate'}; each certificate is "
            f"wrong with probability {records.alpha.max():g} at most. Intervals: 95%, over the images.",
            f"- Abstained: {curve.abstained:.1%}. Votes: {curve.samples_per_image:,.0f} an image, {curve.n:,} at most besides those that "
            "choose the class.",
            f"- Without noise {evaluation.clean.value:.1%}{clean} of the same {curve.images} images are right.",
            f"- Queries of this model so far: {charges}; {evaluation.paid:,} of them were paid by this evaluation.",
            "",
        ]
    )


def _files(evaluation: Evaluation, folder: Path) -> list[Path]:
    """The records as they are, the curve as a picture, and the report."""
    records = certify.read_records(evaluation.records)
    furthest = max(evaluation.radii[-1], 1.1 * float(records.radius.max(initial=0.0)))
    curve = certify.curves.certified_accuracy(records, np.linspace(0, furthest, POINTS))
    picture, page = folder / "certified_accuracy.png", folder / "report.md"
    norm = evaluation.curve.noise["norm"]
    certify.curves.plot({"smoothed model": curve}, picture, norm=norm)
    page.write_text(report(evaluation), encoding="utf-8")
    copies = [folder / f"records{suffix}" for suffix in (".jsonl", ".tsv")]
    for copy in copies:
        copy.write_bytes(evaluation.records.with_suffix(copy.suffix).read_bytes())
    return [*copies, picture, page]
