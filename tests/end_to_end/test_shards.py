"""Three shards and a merge against one process: the same bytes, the same bill, also where a shard was killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from certdef.tracking.checked_json import read_json
from surrogates.ledger.reader import read_statement
from tests.end_to_end.forks import Forks

ROOT = Path(__file__).parents[2]
SIZES = {
    "purifier": "gs",  # nothing to train, votes that are not all the same
    "threads": 1,
    "surrogate": {"epochs": 8},
    "certify": {"images": 8, "target_images": 5, "n": 600, "method": "fixed", "choose": "off"},
    "tracking": {"system_metrics": False},
}
OPTIONS = ["--quiet", "--config", "job.yaml"]


@pytest.fixture(scope="module")
def prepared(forks: Forks, migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job that is ready for its certificates, and for nothing else."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(migrated_store, folder / "mlflow.db")
    sizes = SIZES | {"tracking": SIZES["tracking"] | {"uri": f"sqlite:///{folder}/mlflow.db"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(sizes))
    said = run(forks, folder, "certify", "--prepare")
    assert "prepared    runs/digits" in said
    assert not list(folder.rglob("certify-*"))
    assert "certification" not in read_statement(folder / "runs/digits/ledger.db").accounts
    return folder


@pytest.fixture(scope="module")
def whole(forks: Forks, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job, certified by one process."""
    folder = copy_of(prepared, tmp_path_factory.mktemp("whole") / "job")
    run(forks, folder, "certify")
    return folder


def copy_of(prepared: Path, folder: Path) -> Path:
    """A copy as another machine may have: the ledger and the stages, not the tracking store."""
    return shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns(".lock"))


def run(forks: Forks, folder: Path, *arguments: str) -> str:
    code, output = forks.run(folder, [*arguments, *(OPTIONS if arguments[0] == "certify" else ["--quiet"])])
    assert code == 0, output
    return output


def merged(forks: Forks, folder: Path, of: int = 3) -> str:
    folders = sorted(str(path) for path in (folder / "runs/digits/shards").glob(f"*-of-{of}"))
    return run(forks, folder, "merge", *folders)


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("runs/digits/certify-*/records/*.jsonl")}


def summary(folder: Path) -> dict:
    """The result of the certificates, but for what a clock says."""
    (path,) = folder.glob("runs/digits/certify-*/result.json")
    result = read_json(path)
    result["metrics"] = {name: value for name, value in result["metrics"].items() if "seconds" not in name}
    for curve in result["curves"].values():
        del curve["seconds_per_image"]
    result["files"] = {name: digest for name, digest in result["files"].items() if name.endswith(".jsonl")}
    return result


def charges(folder: Path) -> dict[str, tuple[int, int]]:
    accounts = read_statement(folder / "runs/digits/ledger.db").accounts
    return {purpose: (account.answered, account.unknown) for purpose, account in accounts.items()}


def same(folder: Path, whole: Path) -> None:
    assert len(records(whole)) == 6
    assert records(folder) == records(whole)
    assert summary(folder) == summary(whole)
    assert charges(folder) == charges(whole)
    assert charges(folder)["certification"] == (3 * 5 * (100 + 600), 0)


@pytest.mark.slow
@pytest.mark.acceptance
def test_three_shards_are_one_process_also_where_one_was_killed(forks, prepared, whole, tmp_path):
    folder = copy_of(prepared, tmp_path / "job")
    run(forks, folder, "certify", "--shard", "3/3")
    shard = folder / "runs/digits/shards/2-of-3"
    child = forks.start(folder, ["certify", "--shard", "2/3", *OPTIONS])
    deadline = time.monotonic() + 600
    try:
        while not any(path.read_bytes().count(b"\n") > 1 for path in shard.rglob("records/target-*.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(child, signal.SIGKILL)
        code, output = forks.wait()
    assert code == -signal.SIGKILL, output
    assert not read_json(shard / "shard.json")["finished"], "it ended before the kill"
    paid = read_statement(shard / "ledger.db").accounts["certification"].answered
    assert 0 < paid < 3 * 2 * 700
    run(forks, folder, "certify", "--shard", "1/3")
    folders = [str(folder / f"runs/digits/shards/{number}-of-3") for number in (1, 2, 3)]
    code, output = forks.run(folder, ["merge", *folders, "--quiet"])
    assert (code, "shard 2/3" in output, "is not finished" in output) == (2, True, True), output

    run(forks, folder, "certify", "--shard", "2/3")
    account = read_statement(shard / "ledger.db").accounts["certification"]
    assert (account.answered, account.unknown) == (3 * 2 * 700, 0), "nothing was paid twice"
    said = merged(forks, folder)
    assert "certified   target" in said
    same(folder, whole)
    again = merged(forks, folder)
    assert "reused      every stage was done before" in again
    same(folder, whole)


@pytest.mark.slow
def test_shards_on_machines_of_their_own_and_another_division(forks, prepared, whole, tmp_path):
    """Each in a copy of the prepared folder; their folders are brought back for the merge."""
    here = copy_of(prepared, tmp_path / "here")
    for number in (1, 2):
        there = copy_of(prepared, tmp_path / f"machine-{number}")
        run(forks, there, "certify", "--shard", f"{number}/2")
        name = f"runs/digits/shards/{number}-of-2"
        shutil.copytree(there / name, here / name)
    merged(forks, here, of=2)
    same(here, whole)


@pytest.mark.slow
def test_shares_of_the_bill_hold(forks, prepared, tmp_path):
    """A shard that would pass its share stops, names it, and goes on with a larger budget; all shares are one budget."""
    folder = copy_of(prepared, tmp_path / "job")
    votes = 3 * 5 * 700
    run(forks, folder, "certify", "--shard", "1/3", f"--ledger.certification={votes}")
    budgets = {}
    for number in (1, 2, 3):
        output = run(forks, folder, "certify", "--shard", f"{number}/3", f"--ledger.certification={votes}")
        (line,) = (line for line in output.splitlines() if line.startswith("queries"))
        budgets[number] = line.split("certification ")[1].split(" (")[0].split(",  ")[0]
    assert budgets == {1: "4,200 of 4,200", 2: "4,200 of 4,200", 3: "2,100 of 2,100"}
    # Another seed is another experiment, whose votes nobody has paid for: the share is used up.
    code, output = forks.run(
        folder,
        [
            "certify",
            "--shard",
            "3/3",
            f"--ledger.certification={votes}",
            "--certify.n0=101",
            "--certify.n=599",
            *OPTIONS,
        ],
    )
    assert code == 2, output
    assert "shard 3/3 has spent its share of the budgets" in output


STEPS = {
    "kubernetes": lambda number: (
        yaml.safe_load((ROOT / "deploy/kubernetes/shards.yaml").read_text())["spec"]["template"]["spec"][
            "containers"
        ][0],
        {"JOB_COMPLETION_INDEX": str(number - 1), "SHARDS": "3"},
    ),
    "slurm": lambda number: (
        {"command": ["bash", str(ROOT / "deploy/slurm/shards.sh"), "--config", "/job/job.yaml"], "args": []},
        {"SLURM_ARRAY_TASK_ID": str(number), "SHARDS": "3"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["kubernetes", "slurm"])
def test_the_commands_of_the_manifests_as_three_processes(cluster, forks, prepared, whole, tmp_path):
    folder = copy_of(prepared, tmp_path / "job")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    everywhere = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for number in (1, 2, 3):
        container, environment = STEPS[cluster](number)
        command = [
            each.replace("/job/job.yaml", "job.yaml") for each in (*container["command"], *container["args"])
        ]
        processes.append(
            subprocess.Popen(command, cwd=folder, env=everywhere | environment, stderr=subprocess.PIPE)
        )
    for process in processes:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said.decode()
    job = yaml.safe_load((ROOT / "deploy/kubernetes/merge.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    subprocess.run(
        [*container["command"], *container["args"]],
        cwd=folder,
        env=everywhere | {"SHARDS": "3"},
        check=True,
        timeout=900,
    )
    same(folder, whole)
