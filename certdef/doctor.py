"""`certdef doctor`: packages, devices, stores, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

from certdef.config.clash import clash
from certdef.config.job import ConfigError, RunConfig, without_password
from certdef.config.threads import allowed_threads
from certdef.data.named import data_root
from certdef.tracking.mlflow import check_store, tracking_uri

NEEDED = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "statsmodels",
    "scikit-learn",
    "mlflow",
    "torchattacks",
    "accelerate",
    "jsonargparse",
    "safetensors",
    "matplotlib",
)

# Whether it is good (None: only worth a note), what was checked, and its state.
Finding = tuple[bool | None, str, str]

# Packages of the extras, and what is missing without them.
OPTIONAL = {
    "diffusers": "the diffusion purifiers: pip install 'certdef[diffusion]'",
    "adversarial-robustness-toolbox": "HopSkipJump in the threat ladder: pip install 'certdef[attacks]'",
    "torchmetrics": "restoration: pip install 'certdef[restoration]'",
    "onnxruntime": "ONNX targets: pip install 'certdef[onnx]'",
    "dask": "certify.backend dask: pip install 'certdef[dask]'",
    "ray": "certify.backend ray: pip install 'certdef[ray]'",
}


def doctor(config: RunConfig) -> int:
    """Print the state of this installation and, of a job on your own target or images, what is known without a query.

    Args:
        config: The job that it is checked for.

    Returns:
        0, or 1 if something that is needed is missing.
    """
    findings = [*_packages(), *_surrogates(), *_devices(config), *_stores(config)]
    if config.target.uri or config.data.path:
        findings += _job(config)
    width = max(len(what) for _, what, _ in findings)
    for good, what, detail in findings:
        print(f"{'ok     ' if good else 'MISSING' if good is False else 'note   '}  {what:<{width}} {detail}")
    return 1 if any(good is False for good, *_ in findings) else 0


def _packages() -> list[Finding]:
    findings: list[Finding] = [(True, "python", platform.python_version())]
    for name in NEEDED:
        try:
            findings.append((True, name, version(name)))
        except PackageNotFoundError:
            findings.append((False, name, "not installed: install certdef with its constraints file"))
    for name, use in OPTIONAL.items():
        try:
            findings.append((True, name, version(name)))
        except PackageNotFoundError:
            findings.append((None, name, f"not installed, and needed only for {use}"))
    return findings


def _surrogates() -> list[Finding]:
    """Another package on the registry imports under the same name."""
    found = clash()
    return [(found is None, "surrogates", found or "certdef's own")]


def _devices(config: RunConfig) -> list[Finding]:
    import torch

    findings: list[Finding] = [
        (True, "cpu", f"{os.cpu_count()} processors, {allowed_threads()} threads allowed")
    ]
    if torch.cuda.is_available():
        findings += [
            (True, f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())
        ]
    else:
        findings.append(
            (
                False if config.device == "cuda" else None,
                "cuda",
                "no CUDA device: everything runs on the processor",
            )
        )
    return findings


def _job(config: RunConfig) -> list[Finding]:
    """What is known of the user's own target and images without a query: what `certdef plan` says, but for what it pays."""
    from certdef.pipeline import plan
    from certdef.report.plan import WIDTH, render
    from certdef.stages.inspection import EXPECTED

    try:
        lines = render(plan(config, ask=False)).splitlines()
    except EXPECTED as error:
        return [(False, "job", line) for line in str(error).splitlines()]
    rows = [(line[:WIDTH].strip(), line[WIDTH:]) for line in lines]
    return [(None if name == "warning" else True, name, text) for name, text in rows]


def _stores(config: RunConfig) -> list[Finding]:
    findings: list[Finding] = []
    uri = tracking_uri(config)
    try:
        check_store(uri)
        findings.append((True, "tracking store", without_password(uri)))
    except ConfigError as error:
        findings.append((False, "tracking store", str(error)))
    try:
        findings.append((True, "data root", str(data_root(config.data))))
    except ConfigError as error:
        needed = config.data.name == "fashion-mnist"
        findings.append((False if needed else None, "data root", f"{error} (the digits preset needs none)"))
    free = shutil.disk_usage(".").free / 2**30
    findings.append((True if free > 1 else None, "disk", f"{free:.1f} GiB free here"))
    return findings
