"""What a release is made of agrees with itself: versions, workflows, scripts, and the wheel's files."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import certdef

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOST = re.compile(r"https?://|\b[\w-]+\.(?:io|org|com|net|dev)\b")


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("setup.cfg", r"^version = (.*)$"),
        ("CITATION.cff", r"^version: (.*)$"),
        ("CHANGELOG.md", r"^## \[(?:Unreleased\]: )?([\d.]+)"),
        ("docs/many-machines.md", r"docker build -t certdef:(\S+)"),
    ],
)
def test_every_place_has_the_same_version(path: str, pattern: str) -> None:
    found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
    assert found
    assert found[1] == certdef.__version__


def steps(workflow: Path) -> list[dict]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_exist(workflow: Path) -> None:
    text = workflow.read_text()
    assert not HOST.search(text)
    assert all(job["timeout-minutes"] <= 60 for job in yaml.safe_load(text)["jobs"].values())
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"].split() for step in steps(workflow) if "run" in step]
    assert commands
    for program, *arguments in commands:
        if program == "make":
            assert {*arguments} <= targets
        else:
            assert os.access(ROOT / program, os.X_OK), program


def test_the_workflows_do_all_that_a_release_needs() -> None:
    commands = {step["run"] for workflow in WORKFLOWS for step in steps(workflow) if "run" in step}
    assert commands >= {".ci/run", ".ci/package", "make docs"}


@pytest.mark.parametrize("script", ["run", "package", "smoke"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / script)], check=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(template: Path) -> None:
    form = yaml.safe_load(template.read_text())
    if template.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"]
    assert form["description"]
    assert {field["type"] for field in form["body"]} <= {
        "markdown",
        "textarea",
        "input",
        "dropdown",
        "checkboxes",
    }
    names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(names)) == len(names) > 0


def test_the_contributing_page_is_short() -> None:
    assert (ROOT / "CONTRIBUTING.md").read_text().count("\n") <= 60
