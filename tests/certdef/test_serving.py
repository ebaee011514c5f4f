"""The certified classifier over real HTTP, behind MLflow's own scoring server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

import certify
from certdef.config.job import ConfigError
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models import serving, storage

PARAMS = {"n0": 50, "n": 300, "alpha": 0.01, "seed": 7}


@pytest.fixture(scope="module")
def server(tiny_job):
    """`certdef serve` as a user starts it, on a free port of loopback."""
    config, _, folder = tiny_job
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "certdef.cli",
        "serve",
        f"--port={port}",
        f"--tracking.uri={config.tracking.uri}",
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def post(address: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def images(tiny_job):
    config, *_ = tiny_job
    return load_data(config.data, config.seed).heldout_images[:5]


@pytest.fixture(scope="module")
def library(tiny_job):
    """The same smoothed classifier, put together from the stages' own weights without any serving code."""
    config, summary, _ = tiny_job
    parts = {
        name: storage.load_model(next(summary.workspace.glob(f"{name}-" + "[0-9a-f]" * 16)) / "model")
        for name in ("surrogate", "nim")
    }
    noise = noise_law(config.certify.laws[0])

    def run(images, *, seed, **settings):
        base = torch.nn.Sequential(parts["nim"], parts["surrogate"])
        smoothed = certify.SmoothedClassifier(base, noise, 10, subject="surrogate", seed=seed)
        return smoothed.certify(torch.from_numpy(images), **settings)

    return run


def test_the_server_answers_exactly_what_the_library_answers(server, images, library):
    status, body = post(server, {"inputs": images.tolist(), "params": PARAMS})
    assert status == 200
    expected = library(images, **PARAMS)
    assert len({certificate.counts for certificate in expected}) > 1, (
        "votes that are all alike compare nothing"
    )
    assert [list(row) for row in body["predictions"]] == [list(serving.ANSWER)] * 5
    for row, certificate in zip(body["predictions"], expected, strict=True):
        assert row["prediction"] == certificate.prediction
        assert row["radius"] == certificate.radius
        assert row["p_lower"] == certificate.p_lower
        assert row["abstained"] == (certificate.prediction == certify.ABSTAIN)
        assert (row["norm"], row["n"], row["alpha"], row["subject"]) == ("l2", 300, 0.01, "surrogate")
        assert row["seed"] == PARAMS["seed"]


def test_another_seed_is_another_answer(server, images):
    answers = [
        post(server, {"inputs": images.tolist(), "params": PARAMS | {"seed": seed}})[1] for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_defaults_are_those_of_the_job(server, images, tiny_job):
    config, *_ = tiny_job
    _, body = post(server, {"inputs": images[:1].tolist()})
    assert body["predictions"][0]["n"] == config.certify.n
    assert body["predictions"][0]["alpha"] == config.certify.alpha


def test_without_a_seed_each_request_draws_its_own_and_names_it(server, images):
    first, second = (post(server, {"inputs": images.tolist()})[1]["predictions"] for _ in range(2))
    assert first[0]["seed"] != second[0]["seed"]
    _, again = post(server, {"inputs": images.tolist(), "params": {"seed": second[0]["seed"]}})
    assert again["predictions"] == second


BAD = [
    (lambda x: {"inputs": x.tolist(), "params": {"alhpa": 0.01}}, "unknown params alhpa"),
    (lambda x: {"inputs": x.tolist(), "params": {"alpha": 2.0}}, "alpha"),
    (lambda x: {"inputs": x.tolist(), "params": {"n": 3}}, "n >= 10"),
    (lambda x: {"inputs": (255 * x).tolist()}, "255"),
    (lambda x: {"inputs": np.zeros((1, 1, 7, 8)).tolist()}, "8"),
    (lambda x: {"inputs": []}, ""),
]


@pytest.mark.parametrize(("body", "said"), BAD)
def test_bad_requests_are_refused_by_name(server, images, body, said):
    status, answer = post(server, body(images[:1]))
    assert status == 400, answer
    assert said in answer["message"]


def test_the_registered_model_has_signature_example_and_no_pickle(tiny_job):
    import mlflow

    config, *_ = tiny_job
    mlflow.set_tracking_uri(config.tracking.uri)
    mlflow.set_registry_uri(config.tracking.uri)
    info = mlflow.models.get_model_info("models:/certdef-digits/latest")
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert {spec.name for spec in info.signature.params.params} == {"n0", "n", "alpha", "seed"}
    assert info.saved_input_example_info is not None
    folder = mlflow.artifacts.download_artifacts("models:/certdef-digits/latest")
    files = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    assert any(name.endswith(".safetensors") for name in files)
    assert not any(name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib")) for name in files), files


def test_a_missing_model_is_named(tiny_job, monkeypatch):
    config, _, folder = tiny_job
    serving.connect(config)
    with pytest.raises(ConfigError, match=r"models:/nothing/1.*can't be loaded"):
        serving.scoring_app("models:/nothing/1")
    with pytest.raises(ConfigError, match=r"no model\.json"):
        storage.load_model(folder)
