"""benchmarks/gpu.py in miniature on a processor: every part has its rows, and a part that fails says so."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, timeout=600
    )


def test_a_part_that_fails_has_a_row_and_an_exit_code():
    done = run("--device", "nowhere", "--toy", "--parts", "records")
    assert done.returncode == 1
    assert "| records: FAILED | RuntimeError: " in done.stdout
    assert done.stderr == "failed: records\n"


@pytest.mark.slow
def test_a_part_that_runs_out_of_time_has_a_row_too():
    done = run("--device", "cpu", "--toy", "--parts", "records", "--seconds", "0.5")
    assert done.returncode == 1
    assert "| records: FAILED | it was stopped after " in done.stdout


@pytest.mark.slow
def test_every_part_has_its_rows():
    done = run("--device", "cpu", "--toy")
    assert done.returncode == 0, done.stdout + done.stderr
    for what in (
        "ResNet-8, float32",
        "vit_tiny_patch16_224, bfloat16 compiled",
        "certdef run",
        "NIM pre-training",
    ):
        assert f"| {what}" in done.stdout
    assert done.stdout.count("the same |") == 2
