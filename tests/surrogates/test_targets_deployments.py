"""Endpoints of MLflow Deployments: the answers that MLflow's own client gets, and every attempt on the bill."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surrogates import ClassesUnknown, QueryLedger, Refused, TargetError, open_target
from surrogates.targets import http
from tests.servers.deployments import TOKEN, Client, Deployments, deployments_server

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SHAPE = (1, 4, 4)
IMAGES = np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(16, 3))


def model(images: np.ndarray) -> np.ndarray:
    powers = np.exp(images.reshape(len(images), -1) @ WEIGHT)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployments]:
    monkeypatch.setattr(http, "FIRST_BACKOFF_SECONDS", 0.0)
    with deployments_server(model) as made:
        monkeypatch.setenv("DATABRICKS_HOST", made.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
        yield made


@pytest.mark.parametrize("where", ["databricks", "address"])
def test_an_endpoint_answers_as_to_the_client_of_mlflow(
    where: str, service: Deployments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.deployments import get_deploy_client

    address = service.url if where == "address" else where
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    theirs = get_deploy_client(address).predict(endpoint="digits", inputs={"inputs": IMAGES.tolist()})
    before = service.charged
    target = open_target("deployments:/digits", num_classes=3, input_shape=SHAPE)
    assert (service.charged - before, service.looked_at >= 1) == (0, True)
    assert target.charged_when_sent
    answers = target.query(IMAGES)
    np.testing.assert_allclose(answers.scores, np.asarray(theirs["predictions"]), rtol=1e-6)
    np.testing.assert_allclose(answers.scores, model(IMAGES.astype(np.float64)), rtol=1e-6)
    assert target.identity.startswith(service.url)
    assert target.identity.endswith("endpoints/digits/invocations")


def test_every_attempt_that_may_be_charged_is_on_the_bill(
    service: Deployments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "databricks")
    target = open_target("deployments:/digits", num_classes=3, batch_size=6)
    service.statuses.extend([429, 500, 0])
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        ledger.attach(target).query(IMAGES)
        bill = ledger.bill()["training"]
        assert (bill.answered, bill.unknown) == (6, 6)
        assert bill.answered + bill.unknown == service.charged
        assert TOKEN.encode() not in (tmp_path / "ledger.db").read_bytes()
    assert service.requests == 3


@pytest.mark.parametrize(
    ("variables", "uri", "message"),
    [
        (
            {"MLFLOW_DEPLOYMENTS_TARGET": ""},
            "deployments:/digits",
            "no deployments target is set: set MLFLOW_",
        ),
        ({"DATABRICKS_HOST": ""}, "deployments:/digits", "is on databricks: set DATABRICKS_HOST"),
        ({"DATABRICKS_TOKEN": ""}, "deployments:/digits", r"DATABRICKS_TOKEN \(token_env\) is not set"),
        ({"DATABRICKS_TOKEN": "wrong"}, "deployments:/digits", "answered 403 .*put a valid token"),
        ({}, "deployments:/letters", "answered 404 .*check the address"),
        ({}, "deployments:/", "names no endpoint: give deployments:/NAME"),
        ({}, "deployments:/a/b", "names no endpoint: give deployments:/NAME"),
        (
            {"MLFLOW_DEPLOYMENTS_TARGET": "databricks://mine"},
            "deployments:/digits",
            "is a profile: set MLFLOW_",
        ),
        (
            {"MLFLOW_DEPLOYMENTS_TARGET": "{url}"},
            "deployments:/chat",
            "is a language model .*in a YAML mapping",
        ),
        ({"MLFLOW_DEPLOYMENTS_TARGET": "nothing:/x"}, "deployments:/digits", "cannot open .* on nothing:/x"),
    ],
)
def test_what_cannot_be_opened_is_named_and_free(
    variables: dict[str, str], uri: str, message: str, service: Deployments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name, value in ({"MLFLOW_DEPLOYMENTS_TARGET": "databricks"} | variables).items():
        if value:
            monkeypatch.setenv(name, value.format(url=service.url))
        else:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(TargetError, match=message) as caught:
        open_target(uri, num_classes=3)
    assert "\n" not in str(caught.value)
    assert (service.charged, service.requests) == (0, 0)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.deployments.interface import plugin_store

    plugin_store.register("certdef-test", "tests.servers.deployments")
    monkeypatch.setattr(Client, "calls", [])
    monkeypatch.setattr(Client, "broken", False)
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "certdef-test:/here")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("plugin")
def test_a_plugin_is_called_once_a_batch_with_its_own_copy(tmp_path: Path) -> None:
    target = open_target("deployments:/digits", num_classes=2, layout="hwc", batch_size=4)
    images = IMAGES.copy()
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        paid = ledger.attach(target)
        scores = paid.query(images).scores
        assert scores is not None
        np.testing.assert_allclose(scores[:, 0], IMAGES.reshape(6, -1).mean(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(images, IMAGES)
        assert Client.calls == [(4, 4, 4, 1), (2, 4, 4, 1)]
        Client.broken = True
        with pytest.raises(TargetError, match="failed on a batch of 4: ConnectionError: the line is dead"):
            paid.query(IMAGES / 2)
        assert len(Client.calls) == 3
        bill = ledger.bill()["training"]
        assert (bill.answered, bill.unknown) == (6, 4)  # what was sent may be charged


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_may_repeat_unseen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"num_classes": 2}
    with pytest.raises(TargetError, match=r"cannot open deployments:/letters .*no deployment letters"):
        open_target("deployments:/letters", **options)
    with pytest.raises(ClassesUnknown, match="does not tell its number of classes"):
        open_target("deployments:/digits")
    with pytest.raises(TargetError, match="unknown option 'timeout' of an endpoint of certdef-test"):
        open_target("deployments:/digits", timeout=3, **options)
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "sagemaker:/eu")
    with pytest.raises(TargetError, match="unseen by the ledger: set AWS_MAX_ATTEMPTS=1"):
        open_target("deployments:/digits", **options)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(TargetError, match="unseen by the ledger: set MLFLOW_HTTP_REQUEST_MAX_RETRIES=0"):
        open_target("deployments:/digits", **options)
    assert Client.calls == []


def test_a_refused_endpoint_charges_nothing(
    service: Deployments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "databricks")
    target = open_target("deployments:/digits", num_classes=3, attempts=2)
    service.statuses.extend([429, 429])
    with QueryLedger(tmp_path / "ledger.db", budget=100) as ledger:
        with pytest.raises(Refused, match="answered 429"):
            ledger.attach(target).query(IMAGES)
        assert (ledger.bill()["training"].answered, ledger.bill()["training"].unknown) == (0, 0)
