"""A job in a process whose torch is set otherwise: it computes the same, and gives the settings back."""

from contextlib import contextmanager

import mlflow
import numpy as np
import pytest
import torch

import certdef
from certdef.pipeline.callers_torch import as_in_a_new_process


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def on_meta():
    torch.set_default_device("meta")  # as a notebook says "cuda"
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS = {
    "float64": float64,
    "default device": on_meta,
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "errstate": lambda: np.errstate(all="raise"),
}


def settings():
    """All that a job must not depend on."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        np.geterr(),
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("fails", [False, True])
def test_they_are_set_aside_and_given_back(name, fails):
    plain = settings()
    with SETTINGS[name]():
        theirs = settings()
        assert theirs != plain, "else nothing is tried"
        try:
            with as_in_a_new_process():
                assert settings() == plain
                layer = torch.nn.Linear(2, 1)
                layer(torch.ones(1, 2)).sum().backward()
                assert layer.weight.grad is not None
                assert (layer.weight.dtype, layer.weight.device.type) == (torch.float32, "cpu")
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert settings() == theirs
    assert settings() == plain


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_job_is_the_same_in_a_process_of_float64_without_gradients(store, tmp_path):
    """Both at once: one job each costs seconds."""
    images = np.random.default_rng(0).random((80, 8, 8), dtype=np.float32)
    weights = np.random.default_rng(1).normal(size=(64, 3))

    def target(batch):
        return (np.asarray(batch).reshape(len(batch), -1) @ weights).argmax(1)

    def attack(folder):
        config = certdef.load_config(
            "digits",
            work_dir=str(tmp_path / folder),
            tracking__uri=store,
            tracking__system_metrics=False,
            data__pool_images=40,
            data__heldout_images=20,
            ledger__training=40,
            ledger__preflight=0,
            surrogate__query_batch=40,
            surrogate__epochs=2,
            purifier="gs",
            attack__images=10,
            attack__steps=2,
            attack__eps=[0.3],
            target__num_classes=3,
        )
        summary = certdef.attack(config, target=target, identity="a plane", images=images, progress=False)
        return summary.results["attack"]["rows"], summary.results["surrogate"]["series"]

    plain = attack("plain")
    with float64(), torch.inference_mode():
        assert attack("otherwise") == plain


def test_a_caller_s_autologging_adds_nothing(store, tmp_path):
    """The target that is trained here is a scikit-learn model, whose parameters autolog would write on our run."""
    config = certdef.load_config(
        "digits",
        work_dir=str(tmp_path),
        tracking__uri=store,
        tracking__system_metrics=False,
        surrogate__epochs=1,
    )
    mlflow.sklearn.autolog(silent=True)
    try:
        summary = certdef.distill(config, progress=False)
    finally:
        mlflow.sklearn.autolog(disable=True)
    client = mlflow.MlflowClient(tracking_uri=store)
    [experiment] = [each for each in client.search_experiments() if each.name == "certdef"]
    runs = client.search_runs([experiment.experiment_id])
    assert summary.results.keys() <= {each.info.run_name for each in runs}
    assert not [name for each in runs for name in each.data.params if "class_weight" in name]
    models = client.search_logged_models([experiment.experiment_id])
    assert sorted(each.name for each in models) == ["surrogate", "target"]  # and no "model" of autolog's
