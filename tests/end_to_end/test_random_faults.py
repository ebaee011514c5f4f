"""A whole tiny job, killed at random instants or with the disk full in the middle: it goes on, result and bill are the same."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_interrupted import charges

TINY = {
    "surrogate.epochs": 10,
    "certify.n": 60,
    "certify.n0": 10,
    "certify.images": 3,
    "certify.target_images": 2,
    "certify.choose": "[60,90]",  # killed there too, but a little of it will do
    "certify.choice_images": 4,
    "certify.choice_n": 20,
    "attack.images": 10,
    "attack.steps": 1,
    "attack.eps": "[0.1]",
    "data.heldout_images": 20,
    "ledger.training": 100,
    "purifier": "gs",
    "threads": 1,
    "tracking.system_metrics": "false",
    "tracking.uri": "sqlite:///mlflow.db",
    "work_dir": "work",
}
ARGUMENTS = ["run", "--quiet", *(f"--{key}={value}" for key, value in TINY.items())]
LIVES, KILLS = 2, 3  # jobs, and how often each is killed
# What differs between two runs of one job: names that MLflow draws, and time.
DRAWN = {"uri", "seconds_per_image", "certify/seconds_per_image", "files", "sha256", "versions"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(forks, tmp_path_factory):
    """A job that nothing happened to, and how long it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    started = time.monotonic()
    code, output = forks.run(folder, ARGUMENTS)
    assert code == 0, output
    return folder, time.monotonic() - started


def results(folder: Path) -> dict[str, object]:
    """Every stage's result, and every record, without what MLflow draws and without times."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key not in DRAWN}
        return [plain(each) for each in value] if isinstance(value, list) else value

    stages = {path.parent.name: path for path in folder.glob("work/*/result.json")}
    # the target's folder is named by its tracking store too, which is the same relative path everywhere
    found: dict[str, object] = {name: plain(json.loads(path.read_text())) for name, path in stages.items()}
    records = folder.glob("work/certify-*/records/*.jsonl")
    weights = folder.glob("work/*/model/*.safetensors")
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in (*records, *weights)}


def test_killed_at_random_instants(forks, unbroken, tmp_path, record_property):
    whole, seconds = unbroken
    expected = results(whole)
    assert len(expected) > 10
    assert charges(whole)["training", "answered"] == 100
    draws, killed = random.Random(0), 0
    for life in range(LIVES):
        folder = tmp_path / str(life)
        folder.mkdir()
        for _ in range(KILLS):
            code, _ = forks.run(folder, ARGUMENTS, life=draws.uniform(0, 0.6) * seconds)
            killed += code == -9
        code, output = forks.run(folder, ARGUMENTS)
        assert code == 0, output
        assert results(folder) == expected
        assert charges(folder) == charges(whole)
        assert not list(folder.rglob("*.tmp")), "nothing half written is left"
    record_property("killed", killed)
    assert killed >= LIVES, "most jobs were killed before they ended"


# What lies on the small disk: its options, and what is said when it is full.
GOES_ON = "free some space, and the same command goes on where it was"
SMALL = {
    "ledger": (["--ledger.path=disk/ledger.db"], "nothing more is paid until some is made"),
    "work": (["--work_dir=disk/work", "--ledger.path=work/ledger.db"], GOES_ON),
    "store": (["--tracking.uri=sqlite:///disk/mlflow.db"], GOES_ON),
}
SCRIPT = """
mount -t tmpfs -o size=$1 tmpfs disk || exit 99
shift
"$@" > first.txt 2>&1; echo $? > first.code
mount -o remount,size=100m disk
"$@" > second.txt 2>&1; echo $? > second.code
mkdir -p work
cp -r disk/ledger.db disk/work/* work/ 2> /dev/null
true
"""


@pytest.mark.parametrize(
    ("full", "size"),
    [
        ("ledger", "700k"),
        ("work", "600k"),
        ("work", "1600k"),
        ("store", "1000k"),
    ],
)
def test_the_disk_is_full_in_the_middle(unbroken, tmp_path, migrated_store, full, size):
    """On a small file system of its own, which is then enlarged: one line, exit code 2, and the same command goes on."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a mount namespace: unshare -rm")
    whole, _ = unbroken
    (tmp_path / "disk").mkdir()
    if full != "store":
        shutil.copy(migrated_store, tmp_path / "mlflow.db")
    options, reason = SMALL[full]
    command = [sys.executable, "-W", "ignore", "-m", "certdef.cli", *ARGUMENTS, *options]
    subprocess.run(["unshare", "-rm", "bash", "-c", SCRIPT, "bash", size, *command], cwd=tmp_path, check=True)
    first, second = ((tmp_path / f"{name}.txt").read_text() for name in ("first", "second"))
    assert (tmp_path / "first.code").read_text() == "2\n", first
    assert (tmp_path / "second.code").read_text() == "0\n", second
    said = [line for line in first.splitlines() if line.startswith("certdef:")]
    assert len(said) == 1
    assert reason in said[0]
    assert "Traceback" not in first
    assert charges(tmp_path) == charges(whole)
    assert without_target(results(tmp_path)) == without_target(results(whole))


def without_target(found: dict[str, object]) -> dict[str, object]:
    """Results by the names of their stages; the target's own stage is of its tracking store too."""
    return {name: value for name, value in found.items() if not name.startswith("target-")}
