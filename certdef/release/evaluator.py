"""The evaluator `certdef` of mlflow.models.evaluate: it certifies any MLflow model of images.

MLflow loads this file in every process that evaluates a model, whoever is asked. So it loads no torch, and takes part
only where a key of its own is in the configuration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflow.models.evaluation import EvaluationResult, ModelEvaluator

from certdef.config.job import ConfigError
from certdef.release.evaluator_config import is_meant, read_config

CLASSIFIER = "classifier"  # MLflow's name of a type of models


class CertdefEvaluator(ModelEvaluator):
    """Randomized smoothing of the model under evaluation, by paid queries on a ledger; docs/evaluator.md."""

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: dict[str, Any], **kwargs: Any) -> bool:
        """Whether the model is a classifier and the configuration has a key of this evaluator."""
        return model_type == CLASSIFIER and is_meant(evaluator_config)

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: dict[str, Any],
        model: Any = None,
        extra_metrics: Any = None,
        custom_artifacts: Any = None,
        predictions: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Certify the model on rows of the data, and log what was found in the caller's run and on the model.

        Args:
            model_type: classifier.
            dataset: MLflow's EvaluationDataset: pixels in its columns.
            run_id: The caller's run.
            evaluator_config: certdef.release.evaluator_config.EvaluatorConfig as a dictionary.
            model: The loaded model.
            extra_metrics: Of other evaluators; a certificate has no predictions that they could be computed of.
            custom_artifacts: Of other evaluators.
            predictions: A column of the model's output, which is the answer.
            model_id: Of the LoggedModel, where there is one.
            kwargs: What later versions of MLflow add.

        Raises:
            ConfigError: All that cannot be used, a line each, before any query.
            surrogates.SurrogateError: The model fails, or the budget is spent.
        """
        config = read_config(evaluator_config)
        if predictions is not None and config.output not in (None, predictions):
            raise ConfigError(
                f"output is {config.output!r}, but predictions is {predictions!r}: leave output out"
            )
        from certdef.release.evaluation import evaluate
        from certdef.release.evaluation_log import log_evaluation

        if predictions is not None:
            config = replace(config, output=predictions)
        evaluation = evaluate(model, dataset.features_data, dataset.labels_data, config, dataset.name)
        if model_id is None:  # MLflow finds it in models:/m-..., but not in the URI of a registered version
            model_id = getattr(model, "model_id", None)
        return log_evaluation(evaluation, run_id, model_id, dataset, config.metric_prefix)
