"""A package on the registry imports as `surrogates` too: real distributions of that name in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ITS_OWN = "def encode(text):\n    return text.encode('utf-16', 'surrogatepass')\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the distribution `surrogates` 1.0.2: package, metadata and list of files."""
    info = tmp_path / "site" / "surrogates-1.0.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: surrogates\nVersion: 1.0.2\n")
    (info / "RECORD").write_text("surrogates/__init__.py,,\nsurrogates-1.0.2.dist-info/METADATA,,\n")
    (info / "top_level.txt").write_text("surrogates\n")
    (info.parent / "surrogates").mkdir()
    (info.parent / "surrogates" / "__init__.py").write_text(ITS_OWN)
    return info.parent


def certdef(*arguments: str, path: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "certdef.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_doctor_names_an_installed_package_that_our_own_hides(site: Path, tmp_path: Path) -> None:
    done = certdef("doctor", path=[ROOT, site], folder=tmp_path)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.split()[1] == "surrogates"]
    assert line.startswith("MISSING")
    assert "pip uninstall surrogates" in line
    assert "torch" in done.stdout  # all else is looked at too


def test_doctor_and_a_job_name_a_package_that_hides_ours(site: Path, tmp_path: Path) -> None:
    done = certdef("doctor", path=[site, ROOT], folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(
        "MISSING  surrogates the installed package surrogates imports under this name"
    )
    job = certdef("run", "--quiet", path=[site, ROOT], folder=tmp_path)
    assert job.returncode == 2
    [line] = job.stderr.splitlines()
    assert line.startswith("certdef: surrogates: the installed package surrogates")


def test_a_file_of_that_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "surrogates.py").write_text(ITS_OWN)
    done = certdef("doctor", path=[tmp_path, ROOT], folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{tmp_path / 'surrogates.py'} is imported in the place of" in done.stdout
    assert "rename or remove it" in done.stdout
