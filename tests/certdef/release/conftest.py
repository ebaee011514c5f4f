"""Certifications of a float network, the same again, and its int8 form: 100 digits each."""

import warnings

import pytest

from tests.certdef.release.certified import digit_network, digits, record


@pytest.fixture(scope="session")
def versions(tmp_path_factory):
    """Folder by name: `float`, `again` (other noise), `same`, `int8` (dynamically quantized), `worse` (hardly trained)."""
    import torch

    images, labels = digits()
    network = digit_network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the successor of its quantization
        int8 = torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8)
    folder = tmp_path_factory.mktemp("versions")
    models = {
        "float": (network, 0),
        "same": (network, 0),
        "again": (network, 1),
        "int8": (int8, 0),
        "worse": (digit_network(epochs=2), 0),
    }
    for name, (model, seed) in models.items():
        record(model, images, labels, folder / name / "records" / "target-g-none", seed=seed)
    return folder


@pytest.fixture(scope="session")
def own_job(migrated_store, tmp_path_factory):
    """A target that knows its training images by heart, certified alone with both lists: (folder, store, options)."""
    import os
    import shutil
    from pathlib import Path

    from certdef.cli import main
    from tests.certdef.release.memorizing import LISTS, write_job

    folder = tmp_path_factory.mktemp("own")
    shutil.copy(migrated_store, folder / "mlflow.db")
    store = f"sqlite:///{folder}/mlflow.db"
    options = [*write_job(folder), *LISTS, f"--tracking.uri={store}"]
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["certify", *options, "--quiet"]) == 0
    finally:
        os.chdir(here)
    return folder, store, options
