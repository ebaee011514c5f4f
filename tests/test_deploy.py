"""What runs certdef elsewhere stays true: every option that it names exists, and every file that it copies."""

import configparser
import fnmatch
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from certdef.config.load import known_keys, load_config
from certdef.config.verbs import JOBS, OTHERS, own_options

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs" / "many-machines.md").read_text()


def commands(text: str) -> list[list[str]]:
    """Every certdef command line in a text, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    verbs = "|".join([*JOBS, *OTHERS])
    found = re.findall(rf"certdef ((?:{verbs}) [^\n#)]*)", joined)
    return [re.split(r"[\s\"'`]+", line.strip()) for line in found]


def check_options(verb: str, words: list[str]) -> None:
    known = {*own_options(verb), *(f"--{key}" for key in known_keys()), "--config"}
    known |= {name.replace("_", "-") for name in known}
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    for option in options:
        assert option in known or verb == "ledger", f"certdef {verb} has no {option}"


def jobs() -> dict[str, dict]:
    return {
        name: yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text())
        for name in ("prepare", "shards", "merge")
    }


def container(job: dict) -> dict:
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", ["prepare", "shards", "merge"])
def test_the_options_of_a_kubernetes_job_exist(name):
    only = container(jobs()[name])
    line = " ".join(only["args"])
    line = line if "command" in only else f"certdef {line}"
    ((verb, *words),) = commands(line)
    check_options(verb, words)
    assert verb == ("merge" if name == "merge" else "certify")


def test_kubernetes_jobs_go_together():
    shards = jobs()["shards"]["spec"]
    assert shards["completionMode"] == "Indexed"
    numbers = {shards["completions"], shards["parallelism"]}
    for name in ("shards", "merge"):
        numbers |= {int(each["value"]) for each in container(jobs()[name])["env"] if each["name"] == "SHARDS"}
    assert numbers == {3}
    documents = [*yaml.safe_load_all((KUBERNETES / "job.yaml").read_text())]
    names = {each["kind"]: each["metadata"]["name"] for each in documents}
    for job in jobs().values():
        volumes = {each["name"]: each for each in job["spec"]["template"]["spec"]["volumes"]}
        assert volumes["work"]["persistentVolumeClaim"]["claimName"] == names["PersistentVolumeClaim"]
        assert volumes["job"]["configMap"]["name"] == names["ConfigMap"]
        assert {each["name"] for each in container(job)["volumeMounts"]} == volumes.keys()
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_the_configuration_of_the_kubernetes_job_is_one(tmp_path):
    config_map = next(yaml.safe_load_all((KUBERNETES / "job.yaml").read_text()))
    (tmp_path / "job.yaml").write_text(config_map["data"]["job.yaml"])
    config = load_config(file=tmp_path / "job.yaml")
    merge = container(jobs()["merge"])["args"][0]
    assert f"{config.workspace}/shards/" in merge


def test_nothing_runs_as_root():
    user = re.search(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert user
    assert user[1] != "0"
    assert f"--uid {user[1]}" in DOCKERFILE
    for job in jobs().values():
        security = job["spec"]["template"]["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert str(security["runAsUser"]) == user[1]
        assert not container(job)["securityContext"]["allowPrivilegeEscalation"]


def test_the_image_is_slim_and_names_no_registry():
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert "slim" in base
    images = [base.partition(":")[0], *(container(job)["image"].partition(":")[0] for job in jobs().values())]
    assert not [image for image in images if "/" in image or "." in image]
    assert 'ENTRYPOINT ["certdef"]' in DOCKERFILE
    assert "://" not in DOCKERFILE


def test_every_file_that_the_image_copies_is_there_and_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert {"certdef", "certify", "surrogates", "setup.cfg"} <= {*sources}
    assert {*sources} == {*kept}
    assert all((ROOT / name).exists() for name in sources)
    secrets = ("runs/digits/ledger.db", "mlruns/mlflow.db", ".git/config", ".env")
    assert not [path for path in secrets if any(fnmatch.fnmatch(path, pattern) for pattern in kept)]


def test_the_image_installs_what_there_is():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", DOCKERFILE)
    assert {*extras.split(",")} <= {*setup["options.extras_require"]}
    version = setup["metadata"]["version"]
    assert {container(job)["image"] for job in jobs().values()} == {f"certdef:{version}"}


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_slurm_scripts_are_bash_with_options_that_exist(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    found = commands("\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    assert found
    for verb, *words in found:
        check_options(verb, words)


def test_the_entry_points_of_mlproject():
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert {"main", "prepare", "shard", "merge"} <= project["entry_points"].keys()
    for point in project["entry_points"].values():
        program, verb, *words = shlex.split(point["command"])
        assert program == "certdef"
        check_options(verb, words)
        used = set(re.findall(r"\{(\w+)\}", point["command"]))
        assert used == point["parameters"].keys()


def test_the_page_names_options_that_exist():
    found = commands(PAGE)
    assert {verb for verb, *_ in found} >= {"certify", "merge"}
    for verb, *words in found:
        check_options(verb, words)
