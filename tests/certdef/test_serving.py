"""The certified classifier over real HTTP, behind MLflow's own scoring server."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from contextvars import copy_context

import numpy as np
import psutil
import pytest
import torch

import certify
from certdef.config.job import ConfigError
from certdef.config.noise_laws import noise_law
from certdef.data.sets import load_data
from certdef.models import requests, serving, storage

PARAMS = {"n0": 50, "n": 300, "alpha": 0.01, "seed": 7}


@contextmanager
def serving_process(tiny_job, *options):
    """`certdef serve` as a user starts it, on a free port of loopback: its process and its address."""
    config, _, folder = tiny_job
    command = [sys.executable, "-m", "certdef.cli", "serve", "--port=0"]
    command += [f"--tracking.uri={config.tracking.uri}", *options]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        first = process.stdout.readline()
        assert first.startswith("serving models:/certdef-digits/latest on http://127.0.0.1:"), first
        yield process, first.split(" on ")[1].partition("/invocations")[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def serving_seeds(tiny_job):
    with serving_process(tiny_job, "--allow-seed") as served:
        yield served


@pytest.fixture(scope="module")
def server(serving_seeds):
    return serving_seeds[1]


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
        for name in ("student-nim-de3", "nim")
    }
    noise = noise_law(config.certify.laws[0])

    def run(images, *, seed, **settings):
        base = torch.nn.Sequential(parts["nim"], parts["student-nim-de3"])
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
        assert (row["seed"], row["seed_by"]) == (PARAMS["seed"], "client")


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
    assert {row["seed_by"] for row in first} == {"server"}
    _, again = post(server, {"inputs": images.tolist(), "params": {"seed": second[0]["seed"]}})
    assert again["predictions"] == [row | {"seed_by": "client"} for row in second]


BAD = [
    (
        lambda x: {"inputs": x.tolist(), "params": {"alhpa": 0.01}},
        "unknown params alhpa: this server takes n0, n, alpha",
    ),
    (lambda x: {"inputs": x.tolist(), "params": {"n": "x"}}, "n is 'x': use a whole number of at least 1"),
    (lambda x: {"inputs": x.tolist(), "params": {"n": 2000.5}}, "n is 2000.5: use a whole number"),
    (lambda x: {"inputs": x.tolist(), "params": {"n": -1}}, "n is -1: use a whole number of at least 1"),
    (lambda x: {"inputs": x.tolist(), "params": {"alpha": 2.0}}, "alpha"),
    (lambda x: {"inputs": x.tolist(), "params": {"n": 3}}, "n >= 10"),
    (lambda x: {"inputs": (255 * x).tolist()}, "255"),
    (lambda x: {"inputs": np.zeros((1, 1, 7, 8)).tolist()}, "8"),
    (lambda x: {"inputs": []}, ""),
    (lambda x: {"inputs": x.tolist(), "params": {"n": 100_001}}, "n is 100001: this server allows 100000"),
    (lambda x: {"inputs": x.tolist(), "params": {"n0": 10**18}}, "this server allows 100000"),
    (
        lambda x: {"inputs": x.repeat(25, 0).tolist(), "params": {"n": 90_000}},
        "25 images x 90100 draws are 2252500 votes: this server allows 2000000",
    ),
]


@pytest.mark.parametrize(("body", "said"), BAD)
def test_bad_requests_are_refused_by_name(server, images, body, said):
    status, answer = post(server, body(images[:1]))
    assert status == 400, answer
    assert said in answer["message"]


def test_a_seed_is_the_servers_own_unless_it_is_allowed(tiny_job, images):
    from starlette.testclient import TestClient

    serving.connect(tiny_job[0])
    client = TestClient(serving.scoring_app("models:/certdef-digits/latest"))

    def answers(**params):
        body = {"inputs": images[:1].tolist(), "params": {"n": 100} | params}
        return client.post("/invocations", json=body)

    refused = answers(seed=7)
    assert refused.status_code == 400
    assert "seed: this server chooses it" in refused.json()["message"]
    (row,) = answers().json()["predictions"]
    assert row["seed_by"] == "server"
    assert row["seed"] != answers(seed=-1).json()["predictions"][0]["seed"]


def test_a_model_whose_own_n_is_beyond_the_limits_is_not_served(tiny_job):
    serving.connect(tiny_job[0])
    with pytest.raises(ConfigError, match=r"n is 200: this server allows 150.*raise --max-n"):
        serving.scoring_app("models:/certdef-digits/latest", serving.Limits(n=150))


def ask_for_minutes(address: str, images) -> socket.socket:
    """A connection with a long request under way, as many votes as the server allows."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"inputs": images.repeat(4, 0).tolist(), "params": {"n": 99_000}}).encode()
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    client = socket.create_connection((host, int(port)))
    client.sendall(head.encode() + body)
    return client


def wait_until_busy(process, busy: bool) -> None:
    """Wait until a process computes, or no longer does."""
    usage, deadline = psutil.Process(process.pid), time.monotonic() + 60
    while True:
        before = sum(usage.cpu_times()[:2])
        time.sleep(1)
        if (sum(usage.cpu_times()[:2]) - before > 0.1) == busy:
            return
        assert time.monotonic() < deadline, f"busy is still {not busy}"


def test_work_ends_when_the_client_leaves(serving_seeds, images):
    process, address = serving_seeds
    with ask_for_minutes(address, images):
        wait_until_busy(process, True)
        wait_until_busy(process, True)
    wait_until_busy(process, False)
    assert post(address, {"inputs": images[:1].tolist()})[0] == 200


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_server_that_is_told_to_stop_does_not_finish_its_work(tiny_job, images):
    with serving_process(tiny_job) as (process, address), ask_for_minutes(address, images):
        wait_until_busy(process, True)
        process.terminate()
        process.wait(timeout=10)


def test_a_request_that_timed_out_is_worked_on_no_longer():
    """MLflow's server answers 504 and leaves the worker thread at work: it is stopped with the request."""
    ended = threading.Event()

    async def app(scope, receive, send):
        await receive()

        def work():
            while True:
                time.sleep(0.01)
                try:
                    requests.Patience().update()
                except requests.Stopped:
                    ended.set()
                    return

        asyncio.get_running_loop().run_in_executor(None, copy_context().run, work)
        await send({"type": "http.response.start", "status": 504, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    from starlette.testclient import TestClient

    assert TestClient(requests.Watched(app)).post("/", content=b"x").status_code == 504
    assert ended.wait(5)
    requests.Patience().update()  # outside a request nothing ends the work


def test_a_body_that_is_too_long_is_not_read():
    from starlette.testclient import TestClient

    async def app(scope, receive, send):
        raise AssertionError("it must not be called")

    client = TestClient(requests.Watched(app, longest_body=100))
    refused = client.post("/invocations", content=b"x" * 101)
    assert refused.status_code == 413
    assert "more than 100 bytes" in refused.json()["message"]


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
