"""Shared fixtures: one migrated MLflow database to copy, one torch thread, nothing sent home."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
torch.set_num_threads(1)  # most models here are too small to share

TINY = {
    "certify__laws": "[{label: nim}, {label: wide, scale_255: 6}]",
    "certify__images": 6,
    "certify__target_images": 3,
    "certify__n": 200,
    "surrogate__epochs": 12,
    "nim__epochs": 30,  # enough for votes that are not all the same
    "attack__images": 20,
    "attack__steps": 2,
    "tracking__system_metrics": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first: processes that take file after file then end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _mlflow_as_it_was():
    """No test leaves MLflow a registry or an environment of its own: its setters write to the environment."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_registry_uri(None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated MLflow database. Making one takes seconds, copying it nothing."""
    import mlflow

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking URI of a fresh store in tmp_path, where the test also runs."""
    monkeypatch.chdir(tmp_path)
    return _copy(migrated_store, tmp_path)


def _copy(template: Path, folder: Path) -> str:
    (folder / "mlruns").mkdir(exist_ok=True)
    if not (folder / "mlruns" / "mlflow.db").exists():
        shutil.copy(template, folder / "mlruns" / "mlflow.db")
    return f"sqlite:///{folder}/mlruns/mlflow.db"


@pytest.fixture(scope="session")
def tiny_job(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory):
    """A whole job at its smallest, run once: (configuration, summary, folder)."""
    return run_once(tmp_path_factory.mktemp("job"), migrated_store, **TINY)


@pytest.fixture
def copied(tiny_job, tmp_path, monkeypatch):
    """The tiny job in a folder of its own: doing it again only reads and logs."""
    config, _, folder = tiny_job
    monkeypatch.chdir(folder)
    work = tmp_path / "copy"
    shutil.copytree(config.workspace, work, ignore=shutil.ignore_patterns("jobs", ".lock"))
    return dataclasses.replace(config, work_dir=str(work))


def run_once(folder: Path, template: Path, **settings):
    """Run a whole job in a folder with a store of its own: (configuration, summary, folder)."""
    import certdef

    config = certdef.load_config(
        work_dir=str(folder / "work"), tracking__uri=_copy(template, folder), **settings
    )
    here = Path.cwd()
    os.chdir(folder)  # MLflow keeps artifacts beside where it is run
    try:
        return config, certdef.run(config, progress=False), folder
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def one_thread():
    """For models too small to share: threads that wait for each other only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def logistic():
    """A logistic regression of scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, labels = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=300).fit(pixels[:900] / 16, labels[:900])


@pytest.fixture
def service(logistic):
    """The same as a service that can fail: (address, Faults)."""
    from tests.servers.faulty import faulty_server

    with faulty_server(lambda images: logistic.predict_proba(images.reshape(len(images), -1))) as made:
        yield made


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """Headless Chromium that calls nowhere; skips where there is none, unless CERTDEF_REQUIRE_BROWSER is 1."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("CERTDEF_REQUIRE_BROWSER") == "1":
            pytest.fail("CERTDEF_REQUIRE_BROWSER is 1, but chromium or chromedriver is not on the PATH")
        pytest.skip("chromium or chromedriver is not on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets; skips where there is none."""
    return _real_data("")


def certification_log(sigma: str) -> Path:
    """A published certification log; skips where there is none."""
    return _real_data(f"certify_logs/cifar10_resnet110_gaussian/noise_{sigma}/test/sigma_{sigma}")


def _real_data(path: str) -> Path:
    root = Path(os.environ.get("CERTDEF_DATA_ROOT") or Path(__file__).parents[1] / "../shared/data")
    if not (root / path).exists():
        pytest.skip(f"no {root / path}: set CERTDEF_DATA_ROOT")
    return root / path
