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
